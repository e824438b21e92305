"""The notebook runner: papermill's traps stay closed, nothing is executed twice, and the notebooks keep to the rules."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import nbformat
import pytest
from grid_stages import Number

from gkp.artifact import executed
from gkp.artifact import experiments as grid
from gkp.artifact import notebooks as reproduce
from gkp.artifact.executed import Record
from gkp.artifact.experiments import ledger
from gkp.artifact.notebooks import notebook_files, run_notebook
from gkp.errors import BadInput, RunFailed

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
COMPUTE_CELLS = reproduce.compute_cells
PARAMETERS = {"profile": "quick", "jobs": 1}
CELLS = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
from gkp.artifact import experiments as grid
from gkp.files import output_folder
from grid_stages import Number
"""


@pytest.fixture
def notebook(tmp_path):
    """A function that writes a notebook of one parameters cell and one other cell into a checkout-like folder."""

    def write(code: str, name: str = "00_try") -> Path:
        parameters = nbformat.v4.new_code_cell('profile = "quick"\njobs = 1', metadata={"tags": ["parameters"]})
        book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        file = tmp_path / "notebooks" / f"{name}.ipynb"
        nbformat.write(book, file)
        return file

    return write


@pytest.fixture
def out(tmp_path, monkeypatch) -> Path:
    """An output folder beside a store of its own for cells."""
    monkeypatch.setenv("GKP_CELLS", str(tmp_path / "cells"))
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def outputs(file: Path) -> str:
    cells = nbformat.read(file, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# --- one notebook ---------------------------------------------------------------------------------------------------


def test_a_misspelt_parameter_is_refused_before_anything_runs(notebook, tmp_path):
    with pytest.raises(BadInput, match=r"00_try.ipynb has no parameter profil; it has (profile, jobs|jobs, profile)"):
        run_notebook(notebook("print(1)"), tmp_path, {"profil": "quick"})
    assert not (tmp_path / "00_try.ipynb").exists()


def test_a_failing_cell_leaves_nothing_under_a_final_name_not_even_an_older_copy(notebook, out):
    (out / "00_try.ipynb").write_text("an older copy")
    (out / "old.csv").write_text("1")
    Record("00_try", {}, (), {"old.csv": "", "00_try.ipynb": ""}, 1.0).save(out)
    code = CELLS + "(output_folder() / 'half.csv').write_text('1')\n1 / 0"
    with pytest.raises(
        RunFailed, match=r"00_try.ipynb: ZeroDivisionError: division by zero \(cell by cell in .*failed.ipynb\)"
    ):
        run_notebook(notebook(code), out, {"profile": "quick"})
    assert visible(out) == ["00_try.failed.ipynb"] and Record.load(out, "00_try") is None


def test_a_notebook_is_executed_again_when_anything_it_followed_from_has_changed_and_only_then(notebook, out, monkeypatch):
    code = CELLS + "print(profile)\nprint(grid.run([Number(x=1), Number(x=2)], jobs=1, progress=False))\n"
    code += "print(len(grid.load([Number(x=3)])))\n(output_folder() / 'tables').mkdir()\n"
    code += "(output_folder() / 'tables' / 'one.csv').write_text('1')"
    file = notebook(code)
    grid.run([Number(x=1)], jobs=1, progress=False, quiet=True)
    done = run_notebook(file, out, PARAMETERS, came_from=executed.origin(file, PARAMETERS))
    assert done.cells == "2 cells: 1 cached, 1 computed" and outputs(done.file).startswith("quick\n")
    assert visible(out) == ["00_try.ipynb", "tables"] and (out / "tables" / "one.csv").read_text() == "1"
    assert "GKP_OUT" not in os.environ and ledger.LEDGER not in os.environ

    record = Record.load(out, "00_try")
    assert record is not None and set(record.files) == {"00_try.ipynb", "tables/one.csv"}

    def why(**changes) -> str | None:
        return record.outdated({**executed.origin(file, {**PARAMETERS, **changes})}, out)

    assert why() is None and why(jobs=7) is None
    assert why(profile="paper") == "its parameters changed"
    with monkeypatch.context() as patch:
        patch.setattr(executed, "_code", lambda: "other code")
        patch.setattr(executed, "_packages", lambda: "other versions")
        patch.setattr(executed, "_published", lambda: "other numbers")
        assert why() == "gkp, data/published, an installed package changed"
    (out / "tables" / "one.csv").write_text("2")
    assert why() == "tables/one.csv was edited"
    (out / "tables" / "one.csv").unlink()
    assert why() == "tables/one.csv is gone"
    (out / "tables" / "one.csv").write_text("1")
    (missing,) = grid.run([Number(x=3)], jobs=1, progress=False, quiet=True)
    assert why() == f"cell {missing.cell.id} is there now"
    missing.folder.rename(missing.folder.parent / ".aside")
    assert why() is None
    result = grid.load([Number(x=2)])[0].folder / "result.json"
    kept = result.read_bytes()
    result.write_bytes(kept.replace(b'"value": 2.0', b'"value": 3.0'))
    assert why() == f"cell {Number(x=2).id} is gone or another"
    result.write_bytes(kept)
    assert why() is None
    notebook(code + "\n# more")
    assert why() == "the notebook changed"


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def three(notebook, tmp_path, monkeypatch):
    """Two notebooks that share a cell, each with one of its own, and a summary; a function that reproduces them."""
    code = CELLS + "print(grid.run([Number(x=1, counter={counter!r}), Number(x={x}, counter={counter!r})], jobs=1))"
    counter = str(tmp_path / "counter")
    files = [notebook(code.format(x=x, counter=counter), name) for x, name in ((2, "00_a"), (3, "01_b"))]
    files.append(notebook(CELLS + f"print(len(grid.load([Number(x=x, counter={counter!r}) for x in (1, 2, 3)])))", "99_sum"))
    monkeypatch.setattr(reproduce, "notebook_files", lambda only: [file for file in files if only is None or only in file.stem])
    monkeypatch.setattr(reproduce, "compute_cells", lambda profile, jobs: frozenset())
    return lambda **options: reproduce.reproduce(out=tmp_path / "out", **options)


def test_a_second_reproduce_executes_nothing_and_says_what_was_cached(three, notebook, out, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(executed, "_code", lambda: "whatever it is")  # so that an edit of gkp meanwhile does not count
    three(jobs=2)
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("[3/3] 99_sum: executed in") and "3 cells: 3 cached, 0 computed" in said[-2]
    assert said[-1].startswith("3 notebooks: 0 up to date, 3 executed; 3 cells: 0 cached, 3 computed; ")
    counter = str(tmp_path / "counter")
    assert sorted((tmp_path / "counter").read_text().split()) == sorted(Number(x=x, counter=counter).id for x in (1, 2, 3))
    assert outputs(out / "99_sum.ipynb") == "3\n"  # it waited for the others
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.ipynb")}

    three(jobs=2)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "[1/3] 00_a (quick): up to date; 2 cells: 2 cached, 0 computed"
    assert said[-1].startswith("3 notebooks: 3 up to date, 0 executed; 3 cells: 3 cached, 0 computed; ")
    assert {file: file.stat().st_mtime_ns for file in out.glob("*.ipynb")} == before

    notebook("1 / 0", "00_a")  # the others are not stopped by it
    with pytest.raises(RunFailed, match=r"^00_a.ipynb: ZeroDivisionError: division by zero"):
        three(jobs=2)
    assert visible(out) == ["00_a.failed.ipynb", "01_b.ipynb", "99_sum.ipynb"]
    assert "3 notebooks: 2 up to date, 0 executed, 1 failed; " in capsys.readouterr().out.splitlines()[-1]


def test_cells_are_computed_before_several_notebooks_and_counted_as_computed(three, tmp_path, capsys, monkeypatch):
    counter = str(tmp_path / "counter")
    monkeypatch.setattr("gkp.artifact.profiles.cells", lambda profile: [Number(x=x, counter=counter) for x in (1, 2, 3)])
    monkeypatch.setattr(reproduce, "compute_cells", COMPUTE_CELLS)
    three(jobs=2)
    said = capsys.readouterr().out
    assert said.index("3 cells: 0 cached, 3 computed") < said.index("executed in")
    assert said.splitlines()[-1].startswith("3 notebooks: 0 up to date, 3 executed; 3 cells: 0 cached, 3 computed; ")


def test_what_is_not_to_be_computed_is_missing_and_said_to_be(three, out, tmp_path, capsys):
    three(jobs=2, compute=False)
    said = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "counter").exists() and outputs(out / "99_sum.ipynb") == "0\n"
    command = "make reproduce PROFILE=quick COMPUTE=1"
    assert said[-2] == f"3 of 3 cells are not finished, what they decide is not run; `{command}` computes them"
    assert said[-1].startswith("3 notebooks: 0 up to date, 3 executed; 3 cells: 0 cached, 0 computed, 3 missing; ")
    three(jobs=2, compute=True)  # a notebook that showed nothing is executed again once its cells are there
    said = capsys.readouterr().out.splitlines()
    assert "3 cells: 0 cached, 3 computed; " in said[-1] and "not finished" not in said[-2]


def test_only_the_profile_whose_cells_are_committed_is_shown_without_computing(three, monkeypatch):
    asked = []
    monkeypatch.setattr(reproduce._Reproduction, "execute", lambda run, *_, **__: asked.append(run.compute))
    monkeypatch.setattr(reproduce, "notebook_files", lambda only: [])
    for profile in ("quick", "cifar10", "paper"):
        three(profile=profile)
    assert asked == [True, True, False, False, True, True]  # the notebooks, then the summary


def test_force_executes_what_is_up_to_date(notebook, out, capsys):
    file = notebook("1")
    Record("00_try", executed.origin(file, PARAMETERS), (), {}, 1.0).save(out)
    for force, said in ((False, "up to date; no cells"), (True, "to be executed, as asked")):
        run = reproduce._Reproduction([file], out, PARAMETERS, force=force, compute=True)
        assert run.is_up_to_date(file, executed.origin(file, PARAMETERS)) is not force
        assert capsys.readouterr().out == f"[1/1] 00_try (quick): {said}\n"


def test_the_verdicts_come_last_and_digits_give_none(tmp_path):
    assert reproduce.verdict_lines(tmp_path) == []
    table = tmp_path / "tables" / "verdicts.csv"
    table.parent.mkdir()
    table.write_text("id,item,statement,verdict\na,Table 1,It is so,differs\nb,Figure 2,It is not,not run\n")
    assert reproduce.verdict_lines(tmp_path) == [
        f"{'differs':<16} {'Table 1':<28} It is so",
        f"{'not run':<16} {'Figure 2':<28} It is not",
        "2 claims: 1 differs, 1 not run",
    ]
    table.write_text("id,item,statement,verdict\na,Table 1,It is so,not a verdict: digits\n")
    assert reproduce.verdict_lines(tmp_path) == ["1 claims: 1 not a verdict: digits"]


def test_two_notebooks_that_save_under_one_name_are_refused(notebook, out):
    notebook("1", "00_a")
    Record("00_a", {}, (), {"tables/one.csv": ""}, 1.0).save(out)
    saved = out / ".01_b.partial"
    (saved / "tables").mkdir(parents=True)
    (saved / "tables" / "two.csv").touch()
    reproduce._check_names(notebook("1", "01_b"), out, saved)
    (saved / "tables" / "one.csv").touch()
    with pytest.raises(RunFailed, match=r"01_b.ipynb saves tables/one.csv, and so does 00_a.ipynb"):
        reproduce._check_names(notebook("1", "01_b"), out, saved)


def _compute_in_turn(root: Path, file: Path, began: Path) -> None:
    os.environ[ledger.TURN] = str(file)
    began.touch()
    report = grid.run([Number(x=1)], jobs=1, progress=False, quiet=True, store=grid.Store(root))
    began.with_suffix(".computed").write_text(str(report.computed))


def test_a_run_waits_for_its_turn_and_takes_what_others_have_computed_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setenv(ledger.TURN, str(tmp_path / "turn"))
    with ledger.turn() as waited:
        assert waited
        began = tmp_path / "began"
        process = multiprocessing.get_context("spawn").Process(
            target=_compute_in_turn, args=(tmp_path / "cells", tmp_path / "turn", began)
        )
        process.start()
        while not began.exists():
            time.sleep(0.05)
        time.sleep(0.3)
        assert not began.with_suffix(".computed").exists()
        monkeypatch.delenv(ledger.TURN)  # for this process, whose turn it is
        grid.run([Number(x=1)], jobs=1, progress=False, quiet=True, store=grid.Store(tmp_path / "cells"))
    process.join(60)
    assert began.with_suffix(".computed").read_text() == "0"


# --- the notebooks of this repository -------------------------------------------------------------------------------


def test_notebooks_are_chosen_by_part_of_their_name():
    assert [file.stem for file in notebook_files("start")] == ["00_start_here"]
    assert [file.stem for file in notebook_files()] == [file.stem for file in NOTEBOOKS]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_committed_notebook_communicates_and_does_not_compute(file):
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    parameters = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == 1 and book.cells[0].source.startswith("# ")
    assert all(json.dumps(cell.source) and "error" not in {o.output_type for o in cell.get("outputs", [])} for cell in code)
    for cell in code:
        for line in cell.source.splitlines():
            assert not line.startswith(("def ", "class ", "!", "%", "for ", "while ", "if ")), line
            assert not line.startswith(("import ", "from ")) or "gkp" in line, f"only gkp is imported: {line}"
            assert "/" not in line.replace(" / ", "").partition("#")[0] or '"' not in line, f"a path literal: {line}"
    assert len({cell["id"] for cell in book.cells}) == len(book.cells)
