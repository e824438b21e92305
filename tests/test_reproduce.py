"""The notebook runner: papermill's traps stay closed, and the committed notebooks keep to the rules."""

import json
from pathlib import Path

import nbformat
import pytest

from gkp.errors import BadInput, RunFailed
from gkp.reproduce import notebook_files, run_notebook

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture
def notebook(tmp_path):
    """A function that writes a notebook of one parameters cell and one other cell into a checkout-like folder."""

    def write(code: str) -> Path:
        parameters = nbformat.v4.new_code_cell('profile = "quick"\njobs = 1', metadata={"tags": ["parameters"]})
        book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        file = tmp_path / "notebooks" / "00_try.ipynb"
        nbformat.write(book, file)
        return file

    return write


def outputs(file: Path) -> str:
    cells = nbformat.read(file, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_a_notebook_gets_its_parameters_and_keeps_its_output(notebook, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    code = "print(profile, jobs * 2)\nprint('3 cells: 3 cached, 0 computed')"
    done = run_notebook(notebook(code), out, {"profile": "paper", "jobs": 21})
    assert done.file == out / "00_try.ipynb" and outputs(done.file).startswith("paper 42\n")
    assert done.cells == "3 cells: 3 cached, 0 computed"
    assert [file.name for file in out.iterdir()] == ["00_try.ipynb"]


def test_a_misspelt_parameter_is_refused_before_anything_runs(notebook, tmp_path):
    with pytest.raises(BadInput, match=r"00_try.ipynb has no parameter profil; it has (profile, jobs|jobs, profile)"):
        run_notebook(notebook("print(1)"), tmp_path, {"profil": "quick"})
    assert not (tmp_path / "00_try.ipynb").exists()


def test_a_failing_cell_leaves_nothing_under_the_final_name_not_even_an_older_copy(notebook, tmp_path):
    (tmp_path / "00_try.ipynb").write_text("an older copy")
    with pytest.raises(
        RunFailed, match=r"00_try.ipynb: ZeroDivisionError: division by zero \(cell by cell in .*failed.ipynb\)"
    ):
        run_notebook(notebook("1 / 0"), tmp_path, {"profile": "quick"})
    assert sorted(file.name for file in tmp_path.glob("*.ipynb")) == ["00_try.failed.ipynb"]


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
