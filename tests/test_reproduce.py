"""The notebook runner: papermill's traps stay closed, nothing is executed twice, and the notebooks keep to the rules."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from grid_stages import Number

from gkp.artifact import claims, executed, profiles
from gkp.artifact import experiments as grid
from gkp.artifact import notebooks as reproduce
from gkp.artifact.executed import Record
from gkp.artifact.notebooks import notebook_files, run_notebook
from gkp.errors import BadInput, RunFailed

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
PARAMETERS = {"profile": "quick", "jobs": 1}
RUN = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import pathlib
from gkp.artifact import experiments, profiles
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
    Record("00_try", {}, {"old.csv": "", "00_try.ipynb": ""}, 1.0).save(out)
    code = RUN + "pathlib.Path('build').mkdir()\npathlib.Path('build', 'half.csv').write_text('1')\n1 / 0"
    with pytest.raises(
        RunFailed, match=r"00_try.ipynb: ZeroDivisionError: division by zero \(cell by cell in .*failed.ipynb\)"
    ):
        run_notebook(notebook(code), out, {"profile": "quick"})
    assert visible(out) == ["00_try.failed.ipynb"] and Record.load(out, "00_try") is None
    assert not list(out.glob(".00_try*"))
    failed = nbformat.read(out / "00_try.failed.ipynb", as_version=4)
    assert failed.cells[-1].outputs[-1].ename == "ZeroDivisionError"


def test_a_kernel_that_dies_is_a_failure_in_one_line(notebook, out):
    with pytest.raises(RunFailed, match=r"^00_try.ipynb: its process was killed"):
        run_notebook(notebook("import os\nos.kill(os.getpid(), 9)"), out, {"profile": "quick"})
    assert visible(out) == []


def test_the_kernel_is_this_interpreter_with_this_gkp_whatever_kernels_there_are(notebook, out, tmp_path, monkeypatch):
    """A cluster's JUPYTER_PATH may hold another "python3"; and nothing is said on a good run, of interrupts least of all."""
    kernel = tmp_path / "site" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["no-such-python"], "display_name": "site", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    file = notebook("import sys, gkp\nprint(sys.executable, gkp.__file__, sep='\\n')")
    code = "import sys; from pathlib import Path; from gkp.artifact.notebooks import run_notebook\n"
    code += "run_notebook(Path(sys.argv[1]), Path(sys.argv[2]), {'jobs': 1}, came_from={})"
    environment = {**os.environ, "JUPYTER_PATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(file), str(out)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
    import gkp

    assert outputs(out / "00_try.ipynb").split() == [sys.executable, gkp.__file__]


def test_a_notebook_is_executed_again_when_anything_it_followed_from_has_changed_and_only_then(notebook, out, monkeypatch):
    wanted = [Number(x=1), Number(x=2)]
    monkeypatch.setattr(profiles, "cells", lambda profile, *groups: wanted if groups == ("mine",) else [*wanted, Number(x=3)])
    code = 'profiles.cells(profile, "mine")\nclaims.verdicts(profile)'  # what the notebook names, it need not run here
    save = "pathlib.Path('build', 'tables').mkdir(parents=True)\npathlib.Path('build', 'tables', 'one.csv').write_text('1')"
    code = f"{RUN}print(profile)\n{save}\nif False:\n    {code.replace(chr(10), chr(10) + '    ')}"
    file = notebook(code)
    grid.run(wanted, jobs=1, progress=False, quiet=True)
    done = run_notebook(file, out, PARAMETERS)
    assert outputs(done.file) == "quick\n"
    assert visible(out) == ["00_try.ipynb", "tables"] and (out / "tables" / "one.csv").read_text() == "1"

    record = Record.load(out, "00_try")
    assert record is not None and set(record.files) == {"00_try.ipynb", "tables/one.csv"}

    def why(**changes) -> str | None:
        return record.outdated(executed.origin(file, {**PARAMETERS, **changes}), out)

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
    assert why() == "its cells changed"  # it gives verdicts: what was not finished counts too
    missing.folder.rename(missing.folder.parent / ".aside")
    assert why() is None
    folder = grid.load([Number(x=2)])[0].folder
    folder.rename(folder.parent / ".other")
    assert why() == "its cells changed"
    (folder.parent / ".other").rename(folder)
    assert why() is None
    notebook(code + "\n# more")
    assert why() == "the notebook changed"


def test_a_comment_or_docstring_in_the_code_makes_no_notebook_stale(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('"""Says so."""\n\n\ndef f(x):\n    """Double."""\n    return 2 * x\n')
    before = executed.code_of(file)
    file.write_text('"""Says it otherwise."""\n# A comment.\n\n\ndef f(x):\n    return 2 * x  # twice\n')
    assert executed.code_of(file) == before
    file.write_text("def f(x):\n    return 3 * x\n")
    assert executed.code_of(file) != before


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_the_cells_of_a_notebook_are_those_of_the_groups_it_names(file):
    """Nothing but `experiments.run` and `load` of these gives results in a notebook."""
    book = executed.read_notebook(file)
    names = {name for name, _ in executed._calls(book)}
    assert ("experiments.run" in names) == bool(executed.cells_run(book, "cifar10"))  # it has every group
    assert len(executed.cells_shown(book, "quick")) >= len(executed.cells_run(book, "quick"))
    assert names & {"claims.verdicts"} or len(executed.cells_shown(book, "quick")) < len(profiles.cells("quick"))


def test_an_interrupt_ends_the_kernels_at_once_and_leaves_nothing(notebook, out, tmp_path):
    note = tmp_path / "pid"
    file = notebook(f"import os, pathlib, time\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(600)")
    code = "import sys; from pathlib import Path; from gkp.artifact import notebooks\n"
    code += "notebooks.notebook_files = lambda only: [Path(sys.argv[1])]\nnotebooks.reproduce(out=sys.argv[2])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file), str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        until = time.monotonic() + 120
        while not (note.exists() and note.read_text()) and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode and said.rstrip().endswith(b"KeyboardInterrupt")
        assert not Path(f"/proc/{note.read_text()}").exists() and visible(out) == [] and not list(out.glob(".00_try*"))
    finally:
        process.kill()


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def three(notebook, tmp_path, monkeypatch):
    """Two notebooks that share a cell, each with one of its own, and a summary; a function that reproduces them."""
    counter = str(tmp_path / "counter")
    groups = {
        name: [Number(x=x, counter=counter) for x in xs] for name, xs in {"a": (1, 2), "b": (1, 3), "": (1, 2, 3)}.items()
    }
    monkeypatch.setattr(profiles, "cells", lambda profile, *names: groups["".join(names)])
    code = RUN + "cells = [Number(x=x, counter={counter!r}) for x in {xs}]\nprofiles.cells = lambda *_: cells\n"
    code += "print(experiments.run(profiles.cells(profile, '{group}'), jobs=jobs))"
    files = [
        notebook(code.format(counter=counter, xs=xs, group=group), name)
        for xs, group, name in (((1, 2), "a", "00_a"), ((1, 3), "b", "01_b"))
    ]
    looks = RUN + f"print(len(experiments.load([Number(x=x, counter={counter!r}) for x in (1, 2, 3)])))"
    files.append(notebook(looks + "\nif False:\n    claims.verdicts(profile)", "99_sum"))
    monkeypatch.setattr(reproduce, "notebook_files", lambda only: [file for file in files if only is None or only in file.stem])
    return lambda **options: reproduce.reproduce(out=tmp_path / "out", **options)


def test_cells_are_computed_once_before_the_notebooks_and_a_second_reproduce_executes_nothing(
    three, notebook, out, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(executed, "_code", lambda: "whatever it is")  # so that an edit of gkp meanwhile does not count
    three(jobs=2)
    said = capsys.readouterr().out.splitlines()
    assert sorted(line for line in said if "executed in" in line)[-1].startswith("[3/3] 99_sum (quick): executed in")
    assert said[-1].startswith("3 notebooks: 0 up to date, 3 executed; 3 cells: 0 cached, 3 computed; ")
    counter = str(tmp_path / "counter")
    assert sorted((tmp_path / "counter").read_text().split()) == sorted(Number(x=x, counter=counter).id for x in (1, 2, 3))
    assert "2 cells: 2 cached, 0 computed" in outputs(out / "00_a.ipynb") and outputs(out / "99_sum.ipynb") == "3\n"
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


def test_one_notebook_computes_its_own_cells_only(three, out, tmp_path, capsys):
    three(jobs=1, only="01_b")
    assert visible(out) == ["01_b.ipynb"]
    assert "1 notebook: 0 up to date, 1 executed; 2 cells: 0 cached, 2 computed; " in capsys.readouterr().out
    assert len((tmp_path / "counter").read_text().split()) == 2


def test_what_is_not_to_be_computed_is_missing_and_said_to_be(three, out, tmp_path, capsys):
    three(jobs=2, compute=False)
    said = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "counter").exists() and outputs(out / "99_sum.ipynb") == "0\n"
    command = "make reproduce PROFILE=quick COMPUTE=1"
    assert said[-2] == f"3 of 3 cells are not finished, what they decide is not run; `{command}` computes them"
    assert said[-1].startswith("3 notebooks: 0 up to date, 3 executed; 3 cells: 0 cached, 0 computed, 3 missing; ")
    three(jobs=2, compute=True)  # a notebook that showed nothing is executed again once its cells are there
    said = capsys.readouterr().out.splitlines()
    assert "3 executed; 3 cells: 0 cached, 3 computed; " in said[-1] and "not finished" not in said[-2]


def test_only_the_profile_whose_cells_are_committed_is_shown_without_computing(three, out, monkeypatch):
    asked = []

    def run(cells, *, jobs, quiet):
        asked.append(bool(jobs))
        return grid.load(cells)

    monkeypatch.setattr(grid, "run", run)
    monkeypatch.setattr(reproduce, "run_notebook", lambda file, out, parameters, came_from: reproduce.Executed("", file, 0.0))
    for profile in ("quick", "cifar10", "paper"):
        three(profile=profile)
    assert asked == [True, False, True]


def test_force_executes_what_is_up_to_date(notebook, out, capsys):
    file = notebook("1")
    Record("00_try", executed.origin(file, PARAMETERS), {}, 1.0).save(out)
    for force, said in ((False, "up to date; no cells"), (True, "to be executed, as asked")):
        run = reproduce._Reproduction(out, PARAMETERS, {}, set(), {file: []})
        assert run.is_up_to_date(file, executed.origin(file, PARAMETERS), force=force) is not force
        assert capsys.readouterr().out == f"[1/1] 00_try (quick): {said}\n"


def test_the_verdicts_come_last_and_digits_give_none(tmp_path):
    assert reproduce.verdict_lines(tmp_path) == []
    table = tmp_path / "tables" / "verdicts.csv"
    table.parent.mkdir()
    columns = "id,board,statement,verdict,ours,interval,n,seeds,reason\n"
    row = '{},claims,It is so,{},1.0 points,"[0.5, 1.5]",100,3,because\n'
    table.write_text(columns + row.format("fragility", "holds") + row.format("another", "undecided"))
    assert reproduce.verdict_lines(tmp_path) == [
        f"{'holds':<14} It is so: 1.0 points; [0.5, 1.5]; n 100; 3 seeds",
        "Claims: 1 holds, 1 undecided.",
    ]
    table.write_text(columns + row.format("fragility", claims.NO_VERDICT))
    assert reproduce.verdict_lines(tmp_path) == [f"Claims: 1 {claims.NO_VERDICT}."]


def test_two_notebooks_that_save_under_one_name_are_refused(notebook, out):
    notebook("1", "00_a")
    Record("00_a", {}, {"tables/one.csv": ""}, 1.0).save(out)
    saved = out / ".01_b.partial" / "build"
    (saved / "tables").mkdir(parents=True)
    (saved / "tables" / "two.csv").touch()
    reproduce._check_names(notebook("1", "01_b"), out, saved)
    (saved / "tables" / "one.csv").touch()
    with pytest.raises(RunFailed, match=r"01_b.ipynb saves tables/one.csv, and so does 00_a.ipynb"):
        reproduce._check_names(notebook("1", "01_b"), out, saved)


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
            without_fractions = re.sub(r"\b\d+ ?/ ?\d+\b", "", line).partition("#")[0]  # "1/255" is a radius
            assert "/" not in without_fractions or '"' not in line, f"a path literal: {line}"
    assert len({cell["id"] for cell in book.cells}) == len(book.cells)


def test_a_table_links_its_csv_in_the_executed_notebook_and_has_no_link_in_the_committed_one(notebook, out):
    code = "import pandas as pd\nfrom gkp.artifact.tables import Table\n"
    code += "table = Table('one', pd.DataFrame(), pd.DataFrame({'a': [1]}))\ntable.save('one')\ntable"
    done = run_notebook(notebook(code), out, PARAMETERS)
    shown = nbformat.read(done.file, as_version=4).cells[-1].outputs[-1].data["text/html"]
    (link,) = re.findall(r'href="([^"]+)"', shown)
    assert link == "../out/tables/one.csv" and (done.file.parent / link).read_text() == "a\n1\n"
    copy = json.dumps(executed.reading_copy(executed.read_notebook(done.file), "quick"))
    assert "one.csv</a>" not in copy and "<b>one</b>" in copy
