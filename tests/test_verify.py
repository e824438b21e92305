"""What is committed follows from the committed data: tampering is noticed, and publishing makes none of it official."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from grid_stages import Number

import gkp
from gkp.artifact import claims, executed, manifest, profiles, publish, verify
from gkp.artifact import experiments as grid
from gkp.artifact import readme as front_page
from gkp.artifact.executed import Record, reading_copy, source_sha256
from gkp.artifact.experiments.kinds import EvaluateCell, PretrainedCell, PruneCell, TrainCell
from gkp.artifact.experiments.store import signature, write_json
from gkp.artifact.html_report import html_report
from gkp.errors import BadInput, RunFailed
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.files import file_sha256
from gkp.networks.build import build_model

BASELINE = TrainCell(dataset="digits", epochs=1)
PRUNED = PruneCell(net=BASELINE, epochs=0)
EVALUATED = EvaluateCell(net=PRUNED, examples=50)
PUBLIC = PretrainedCell(model="resnet56")
NAMED = "profiles.cells(profile, 'main')"  # in the notebook: a cell with two ancestors
CELLS = [BASELINE, PRUNED, EVALUATED, PUBLIC, PruneCell(net=PUBLIC, epochs=0)]


def outcomes(right: int) -> Outcomes:
    """Of 50 images, all correct without attack and `right` of them under one."""
    rows = np.array([[True] * 50, [i < right for i in range(50)]])
    labels = np.arange(50) % 10
    return Outcomes(
        right=rows,
        indices=np.arange(50),
        labels=labels,
        predictions=labels,
        attacks=(AttackSpec("pgd", 8 / 255),),
        protocol="pixel",
        dataset="digits",
        split="test",
        seed=0,
        bounds=(0.0, 1.0),
        data_sha256="0" * 64,
        model_sha256="1" * 64,
        versions={},
        seconds=0.0,
    )


def finish(cell, store: grid.Store) -> None:
    """Puts a finished cell of hand-made figures into the store, as the grid does."""
    store.prepare()
    figures: dict = {"n": 50, "seed": 0}
    with store.writing(cell.id) as folder:
        if isinstance(cell, EvaluateCell):
            found = outcomes(30)
            found.save(folder)
            figures |= {"accuracy": found.accuracy(), "interval": {key: list(ends) for key, ends in found.interval().items()}}
        else:
            gkp.save_model(build_model("resnet20"), folder / ("compact" if isinstance(cell, PruneCell) else "model"))
        (folder / "log.txt").write_text("said")
        run = dict.fromkeys(("finished", "seconds", "threads", "peak_memory_mb", "git_commit", "versions"), 1.0)
        store.publish(
            folder,
            cell.id,
            cell.hash,
            spec=cell.spec,
            figures=figures,
            run={**run, "hardware": {"processor": "hand", "cores": 2}},
        )


def verdicts(profile: str, store: grid.Store) -> SimpleNamespace:
    """A verdict by hand: does the evaluated network keep more than half of its accuracy?"""
    found = grid.load([EVALUATED], store=store)
    value = found[0]["accuracy"]["pgd-8/255"] if len(found) else float("nan")
    verdict = ("holds" if value > 0.5 else "does not hold") if len(found) else "not run"
    rows = [{"id": "half", "ours": value, "verdict": verdict}, {"id": "fragility", "ours": "5 points", "verdict": verdict}]
    said = {"statement": "They | differ", "reported": "15 points", "n": 50, "seeds": 1, "interval": "[1, 9]", "minutes": 61.2}
    said |= {"board": "claims", "setting": "ResNet-20, 3 epochs"}
    said |= {"command": "make reproduce PROFILE=cifar10 ONLY=00_a COMPUTE=1", "reason": "not finished; later"}
    return SimpleNamespace(points=pd.DataFrame(rows).assign(**said))


def store_of(root: Path) -> grid.Store:
    return grid.Store(root / "build" / "cells", (root / "data" / "results",))


def execute(root: Path, source: str = "1 + 1") -> None:
    """What `gkp reproduce --profile cifar10` leaves of the one notebook, which is written here."""
    books = nbformat.v4
    cells = [
        books.new_markdown_cell("# One & two", id="title"),
        books.new_code_cell("profile = 'quick'", id="parameters", metadata={"tags": ["parameters"]}),
        books.new_code_cell(source, id="sum"),
    ]
    cells.append(books.new_code_cell(NAMED, id="cells"))
    name = "00_a.ipynb"
    nbformat.write(books.new_notebook(cells=cells), root / "notebooks" / name)
    injected = books.new_code_cell("profile = 'cifar10'", metadata={"tags": ["parameters-of", executed.INJECTED]})
    run = [cells[0], cells[1], injected, *cells[2:]]
    for count, cell in enumerate(run[1:], start=1):
        cell.execution_count, cell.metadata["papermill"] = count, {"duration": 1.5}
    cells[2].outputs = [books.new_output("execute_result", data={"text/plain": "2"}, execution_count=3)]
    out = root / "build" / "cifar10"
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for suffix in ("svg", "png", "csv", "txt"):
        (out / "figures" / f"robustness.{suffix}").write_text("Who asks?\nYes. All do.\n" if suffix == "txt" else "drawn")
    nbformat.write(books.new_notebook(cells=run, metadata={"papermill": {"duration": 2.0}}), out / name)
    origin = executed.origin(root / "notebooks" / name, {"profile": "cifar10", "jobs": 2})
    files = [name, *(f"figures/robustness.{suffix}" for suffix in ("svg", "png", "csv", "txt"))]
    Record("00_a", origin, {file: file_sha256(out / file) for file in files}, 6.0).save(out)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A checkout-like folder in which everything was published once."""
    root = tmp_path_factory.mktemp("published")
    for cell in CELLS:
        finish(cell, grid.Store(root / "build" / "cells"))
    (root / "data" / "published").mkdir(parents=True)
    (root / "data" / "published" / "README.md").write_text(
        "| file | what | where from |\n|---|---|---|\n| `t.csv` | x | the paper |\n"
    )
    (root / "data" / "published" / "t.csv").write_text("a\n1\n")
    (root / "notebooks").mkdir()
    (root / "README.md").write_text(f"# Title\n{front_page.BEGIN}\n{front_page.END}\nRest\n")
    with pytest.MonkeyPatch.context() as patch:
        as_there(patch, root)
        execute(root)
        done = publish.publish(root=root, store=store_of(root))
    assert (done.finished, done.cells, done.notebooks) == (5, 6, ("00_a.ipynb",))
    return root


def as_there(patch: pytest.MonkeyPatch, root: Path) -> None:
    """The claims and the profile of that folder instead of those of this repository."""
    patch.setenv("GKP_CELLS", str(root / "build" / "cells"))
    every = [*CELLS, Number(x=1)]  # one of them is not finished
    patch.setattr(profiles, "cells", lambda profile, *groups: [EVALUATED] if groups else every)
    patch.setattr(claims, "verdicts", verdicts, raising=False)
    patch.setattr(executed, "_code", lambda: "this code")


@pytest.fixture
def root(built, tmp_path, monkeypatch) -> Path:
    """A copy of it to do harm to."""
    shutil.copytree(built, tmp_path / "copy")
    as_there(monkeypatch, tmp_path / "copy")
    return tmp_path / "copy"


def problems(root: Path) -> list[str]:
    return [problem for check in verify.verify(root) for problem in check.problems]


# --- what is published ----------------------------------------------------------------------------------------------


def test_what_was_just_published_is_as_it_should_be(root):
    checks = verify.verify(root)
    files, rows = len(manifest.files(root / "data")), len(claims.MAIN)
    assert [check.n for check in checks] == [files, 5, 1, 0, 2, rows, 1] and problems(root) == []
    assert all(check.line.endswith("as they should be") for check in checks)


def test_the_small_networks_are_committed_and_logs_and_public_weights_are_not(root):
    results = root / "data" / "results"

    def nets(cell) -> list[str]:
        return sorted(path.parent.name for path in (results / cell.id).rglob("*.safetensors"))

    assert [nets(cell) for cell in CELLS] == [["model"], ["compact"], [], [], []]
    assert not list(results.rglob("log.txt"))
    assert gkp.load_model(root / "data" / "checkpoints" / "resnet20-gkp").architecture.name == "resnet20"


def test_every_file_has_a_size_a_hash_a_source_and_a_licence(root):
    rows = manifest.read(root / "data")
    assert rows["published/t.csv"].source == "the paper" and rows["verdicts.csv"].licence == "MIT"
    assert all(row.source and row.licence and len(row.sha256) == 64 and row.bytes > 0 for row in rows.values())
    assert {path for path in rows if path.startswith("results/")} > {f"results/{BASELINE.id}/result.json"}


def test_a_file_from_nowhere_does_not_get_into_the_manifest(root):
    (root / "data" / "published" / "guess.csv").write_text("a\n2\n")
    with pytest.raises(BadInput, match=r"data/published/guess.csv: nothing says where it is from"):
        manifest.write(root / "data")


def test_minutes_are_those_of_the_cells_on_two_cores_and_of_the_notebook_itself(root):
    row, whole = pd.read_csv(root / "data" / "minutes.csv").to_dict("records")
    assert whole == {**row, "notebook": "all"}
    assert (row["profile"], row["notebook"], row["cells"], row["missing"]) == ("cifar10", "00_a", 3, 0)
    assert row["minutes"] == round((3 * 1.0 / 2 + 6) / 60, 2) and row["hardware"] == "hand"


def test_a_reading_copy_has_the_sources_and_outputs_of_the_execution_and_no_times(root):
    file = root / "notebooks" / "00_a.ipynb"
    book, text = nbformat.read(file, as_version=4), file.read_text()
    nbformat.validate(book)
    assert [cell.source for cell in book.cells] == ["# One & two", "profile = 'quick'", "1 + 1", NAMED]
    assert [cell.get("execution_count") for cell in book.cells] == [None, 1, 2, 3]
    assert book.cells[2].outputs[0].data["text/plain"] == "2" and book.cells[2].outputs[0].execution_count == 2
    assert "executed with profile = 'cifar10'" in book.cells[1].outputs[0].text
    assert "papermill" not in text and "duration" not in text
    files = Record.load(root / "build" / "cifar10", "00_a").files
    again = reading_copy(json.loads((root / "build" / "cifar10" / "00_a.ipynb").read_text()), "cifar10", files)
    assert json.loads(text) == again and source_sha256(again) == book.metadata.gkp.sources_sha256


def test_a_reading_copy_does_not_depend_on_where_the_kernel_cut_what_was_printed(root):
    book = json.loads((root / "build" / "cifar10" / "00_a.ipynb").read_text())
    copies = []
    for pieces in (["one\ntw", "o\n"], ["one\ntwo\n"], ["o", "ne\n", "two\n"]):
        streams = [{"output_type": "stream", "name": "stdout", "text": piece.splitlines(keepends=True)} for piece in pieces]
        other = {"output_type": "stream", "name": "stderr", "text": ["a warning\n"]}
        book["cells"][-1]["outputs"] = [*streams, other, *streams]
        copies.append(reading_copy(book, "cifar10"))
    assert copies[0] == copies[1] == copies[2]
    printed = copies[0]["cells"][-1]["outputs"]
    assert [(one["name"], "".join(one["text"])) for one in printed] == [
        ("stdout", "one\ntwo\n"), ("stderr", "a warning\n"), ("stdout", "one\ntwo\n"),
    ]  # fmt: skip


def test_a_second_publish_changes_nothing(root):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and root / "build" not in path.parents}
    publish.publish(root=root, store=store_of(root))
    assert {path: path.read_bytes() for path in before} == before


# --- what is noticed ------------------------------------------------------------------------------------------------


def edit(file: Path, change: Callable[[dict], None], *, signed: bool) -> None:
    """Edits a result.json; signed: as someone does who knows that it is signed."""
    body = json.loads(file.read_text())
    change(body)
    if signed:
        del body["sha256"]
        body["sha256"] = signature(body)
    write_json(file, body)


def more_robust(body: dict) -> None:
    body["figures"]["accuracy"]["pgd-8/255"] = 0.7


@pytest.mark.parametrize("signed", [False, True])
def test_an_edited_number_is_noticed_even_when_everything_is_signed_again(root, signed):
    edit(root / "data" / "results" / EVALUATED.id / "result.json", more_robust, signed=signed)
    found = problems(root)
    assert f"data/results/{EVALUATED.id}/result.json: differs from data/MANIFEST" in found
    if signed:
        manifest.write(root / "data")
        found = problems(root)
        assert any("pgd-8/255 is 0.7, and 0.6 by its outcomes" in problem for problem in found)
        assert any(problem.startswith("data/verdicts.csv: the cells give: half,0.7,holds") for problem in found)
    else:
        assert any("its sha256 does not fit" in problem for problem in found)


@pytest.mark.parametrize("signed", [False, True])
def test_an_edited_number_is_not_published(root, signed):
    edit(root / "data" / "results" / EVALUATED.id / "result.json", more_robust, signed=signed)
    before = (root / "data" / "MANIFEST").read_bytes()
    with pytest.raises(RunFailed, match=r"^not published: .*(sha256 does not fit|0.7, and 0.6 by its outcomes)"):
        publish.publish(root=root, store=store_of(root), cells_only=True)
    assert (root / "data" / "MANIFEST").read_bytes() == before


def test_a_verdict_that_does_not_follow_from_the_cells_is_noticed(root):
    file = root / "data" / "verdicts.csv"
    file.write_text(file.read_text().replace("half,0.6,holds", "half,0.6,does not hold"))
    manifest.write(root / "data")
    gone, new, opening = problems(root)
    assert gone.startswith("data/verdicts.csv: does not follow from the cells: half,0.6,does not hold")
    assert new.startswith("data/verdicts.csv: the cells give: half,0.6,holds") and opening.startswith("README.md:")


def test_readme_opens_with_the_verdicts_their_cost_and_a_figure_and_an_edited_one_is_noticed(root):
    file = root / "README.md"
    text = file.read_text()
    assert text.startswith("# Title\n") and text.endswith("\nRest\n") and "- Claims: 2 holds." in text
    row = "| They \\| differ | 15 points | 5 points; [1, 9]; n 50 | ResNet-20, 3 epochs | **holds** |"
    assert row in text and "here on 2 cores of hand" in text
    assert f"![Who asks?]({front_page.FIGURE})\n\nYes. All do.\n" in text
    file.write_text(text.replace("5 points; [1, 9]", "6 points; [1, 9]"))
    assert problems(root) == ["README.md: its verdicts do not follow from data/; `gkp publish --cells` writes them"]
    file.write_text(text.replace(front_page.END, ""))
    assert "it needs the lines" in problems(root)[0]


def test_what_is_not_run_says_why_in_readme(root):
    shutil.rmtree(root / "data" / "results" / EVALUATED.id)
    rows = verdicts("cifar10", grid.Store(root / "data" / "results")).points.assign(ours="")
    text = front_page.opening(root, rows.assign(setting=""), "cifar10")
    assert "| They \\| differ | 15 points | not finished |  | **not run** |" in text and "- Claims: 2 not run." in text


def test_the_figures_that_the_notebooks_drew_replace_those_of_before(root):
    figures = root / "figures"
    assert sorted(file.name for file in figures.iterdir()) == [f"robustness.{kind}" for kind in ("csv", "png", "svg", "txt")]
    (figures / "older.png").write_text("no notebook draws it any more")
    publish.publish(root=root, store=store_of(root))
    assert not (figures / "older.png").exists() and (figures / "robustness.png").read_text() == "drawn"


def test_verdicts_come_from_the_committed_cells_alone(root):
    shutil.rmtree(root / "data" / "results" / EVALUATED.id)  # build/cells still has it
    assert any(problem.startswith("data/verdicts.csv: the cells give: half,,not run") for problem in problems(root))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda data: (data / "published" / "t.csv").write_text("a\n2\n"), "data/published/t.csv: differs from data/MANIFEST"),
        (lambda data: (data / "published" / "t.csv").unlink(), "data/published/t.csv: is in the manifest and not there"),
        (lambda data: (data / "new.csv").write_text(""), "data/new.csv: is not in data/MANIFEST"),
        (
            lambda data: (data / "MANIFEST").write_text((data / "MANIFEST").read_text().replace(",the paper,", ",,")),
            "data/published/t.csv: has no source or no licence",
        ),
        (
            lambda data: (data / "results" / PRUNED.id / "run.json").write_text("{}"),
            "run.json: does not say git_commit",
        ),
        (
            lambda data: write_json(data / "results" / PRUNED.id / "spec.json", {**PRUNED.spec, "revision": 99}),
            "spec.json: is the specification of another cell",
        ),
        (
            lambda data: (data / "results" / PRUNED.id / "compact" / "model.safetensors").write_bytes(b""),
            "has 0 bytes, not",
        ),
    ],
)
def test_whatever_is_not_as_it_was_is_noticed(root, harm, said):
    harm(root / "data")
    assert any(said in problem for problem in problems(root)), problems(root)


def test_a_notebook_that_was_edited_after_its_execution_is_noticed_and_one_without_outputs_is_not(root):
    file = root / "notebooks" / "00_a.ipynb"
    book = json.loads(file.read_text())
    book["cells"][2]["source"] = ["1 + 2"]
    edited = json.dumps(book)
    file.write_text(edited)
    assert problems(root) == [
        "notebooks/00_a.ipynb: was edited after it was executed; `make reproduce` and `make publish` for its profile"
    ]
    del book["metadata"]["gkp"]
    file.write_text(json.dumps(book))
    assert "has outputs that `make publish` did not write" in problems(root)[0]
    for cell in book["cells"][1:]:
        cell["outputs"], cell["execution_count"] = [], None
    file.write_text(json.dumps(book))
    assert verify.check_notebooks(root / "notebooks").problems == () and verify.verify(root)[-1].note == "1 without outputs"
    execute(root, "1 + 2")
    file.write_text(edited)  # with the outputs of before, until it is published
    assert not publish.publish(root=root, store=store_of(root)).checks[-1].problems
    assert problems(root) == [] and "1 + 2" in file.read_text()


def test_an_edited_output_or_figure_of_a_notebook_is_noticed(root):
    file = root / "notebooks" / "00_a.ipynb"
    book = json.loads(file.read_text())
    book["cells"][2]["outputs"][0]["data"]["text/plain"] = "3"
    file.write_text(json.dumps(book))
    assert problems(root) == ["notebooks/00_a.ipynb: its outputs are not those of its execution; `make publish` writes them"]
    publish.publish(root=root, store=store_of(root))
    assert problems(root) == []
    (root / "figures" / "robustness.png").write_text("drawn by hand")
    (root / "figures" / "robustness.csv").unlink()
    (root / "figures" / "other.png").write_text("of no notebook")
    assert problems(root) == [
        "figures/other.png: is not what a notebook drew; `make publish` writes it",
        "figures/robustness.csv: is not there; `make publish` writes it",
        "figures/robustness.png: is not what a notebook drew; `make publish` writes it",
    ]


def test_a_verdict_that_stands_twice_and_a_file_that_is_called_as_the_manifest_are_noticed(root):
    file = root / "data" / "verdicts.csv"
    file.write_text(file.read_text() + file.read_text().splitlines(keepends=True)[1])
    (root / "data" / "results" / "MANIFEST").write_text("a file like any other")
    assert "data/results/MANIFEST: is not in data/MANIFEST; `gkp publish --cells` writes it anew" in problems(root)
    assert "data/verdicts.csv: has a line twice or in another order; `gkp publish --cells` writes it anew" in problems(root)


def test_a_publish_that_is_killed_leaves_each_file_old_or_new(root, monkeypatch):
    names = ["verdicts.csv", "minutes.csv", *(f"checkpoints/resnet20-gkp/model.{kind}" for kind in ("json", "safetensors"))]
    before = {name: (root / "data" / name).read_bytes() for name in names}

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    for write in (
        lambda: publish.publish_baselines([BASELINE], root / "data", store_of(root)),
        lambda: publish.publish_minutes(root / "build", root / "data", store_of(root)),
        lambda: publish.publish(root=root, store=store_of(root), cells_only=True),
    ):
        with pytest.raises(KeyboardInterrupt):
            write()
        assert {name: (root / "data" / name).read_bytes() for name in names} == before


def test_outputs_depend_on_the_claims_and_the_page_of_the_leaderboard_too():
    deciding = set(executed._deciding())
    assert {
        "artifact/claims/claims.toml",
        "artifact/leaderboard.html.j2",
        "artifact/page.js",
        "artifact/effects.py",
    } <= deciding
    assert not deciding & {"artifact/report.html.j2", "artifact/publish.py", "artifact/experiments/store.py"}


def test_notebooks_are_only_written_when_all_are_up_to_date(root):
    file = root / "notebooks" / "00_a.ipynb"
    shutil.copy(file, root / "notebooks" / "01_b.ipynb")
    execute(root, "2 + 2")
    before = file.read_bytes()
    with pytest.raises(RunFailed, match=r"no notebook was written, 1 are not up to date \(01_b.ipynb: not executed\)"):
        publish.publish(root=root, store=store_of(root))
    assert file.read_bytes() == before


def test_digits_are_never_committed():
    with pytest.raises(BadInput, match="the cells of quick are computed anew"):
        publish.publish("quick")


# --- the report -----------------------------------------------------------------------------------------------------


def test_the_html_report_loads_nothing_from_anywhere_and_its_index_leads_to_every_page(root):
    report = html_report("cifar10", root=root)
    index, page = report.index.read_text(), report.pages[0].read_text()
    assert '<a href="00_a.html">00_a</a>' in index and "One &amp; two" in index
    assert 'data-verdict="holds"' in index and 'aria-label="Claims: 2 holds."' in index
    assert "<title>One &amp; two</title>" in page and "papermill" not in page
    assert "<script" not in page and index.count("<script>") == 1 and "default-src 'none'" in index
    for text in (index, page):
        assert "<script src" not in text and "@import" not in text
        assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?\s*(?:https?:)?//""", text)
    (mine := root / "mine").mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="has files in it and is not a report"):
        html_report("cifar10", root=root, out=mine)
    assert (mine / "thesis.tex").exists()
    shutil.rmtree(root / "build" / "cifar10")
    assert "committed copies" in html_report("cifar10", root=root).index.read_text()
    shutil.rmtree(root / "notebooks")
    with pytest.raises(BadInput, match=r"no notebook was executed for cifar10; run `make reproduce PROFILE=cifar10` first"):
        html_report("cifar10", root=root)
