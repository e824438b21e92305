"""The artifact checklist: one test for each line that reviewers check, A1 to U2; `make check` runs them.

Heavier tests of the same promises are elsewhere and named where they are.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import test_readme
import tomllib
import yaml
from grid_stages import Number, Trouble
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from test_cluster import RUNNER, end, nothing_left_running, pids_in, python, until

from gkp.artifact import claims, executed, manifest, verify
from gkp.artifact import experiments as grid
from gkp.artifact.experiments.copies import PROVENANCE
from gkp.artifact.experiments.kinds import EvaluateCell, PruneCell, TrainCell
from gkp.artifact.profiles import PROFILES
from gkp.cli import gkp as command_line
from gkp.cli import main
from gkp.evaluation.outcomes import Outcomes

__all__ = ["nothing_left_running"]  # a fixture: ends what a failing test left

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "gkp").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RESULTS = verify.cell_folders(ROOT / "data" / "results")
by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@cache
def project_files() -> tuple[Path, ...]:
    """Every file git tracks or would add; in a copy without git, every file outside scratch folders."""
    git = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if git.returncode == 0:
        paths = sorted({ROOT / file for file in git.stdout.split("\0") if file})
        return tuple(path for path in paths if path.is_file())  # git lists deleted files too
    lines = (ROOT / ".gitignore").read_text().split()
    scratch = {".git", *(line.rstrip("/") for line in lines if "*" not in line), "gkp.egg-info"}
    return tuple(path for path in sorted(ROOT.rglob("*")) if path.is_file() and not scratch & set(path.relative_to(ROOT).parts))


# --- A: what it is and where numbers come from ----------------------------------------------------------------------


def test_A1_licence_citation_title_and_link_are_there():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert paper["title"] in readme().replace("\n", " ") and paper["url"] in readme() and "Pjky9XG8zP" in paper["url"]


def test_A2_every_result_says_with_what_code_packages_and_hardware_and_in_how_long(tmp_path):
    fresh = grid.run([Number(x=1)], jobs=1, progress=False, quiet=True, store=grid.Store(tmp_path))[0].folder
    for folder in (fresh, *RESULTS):
        run = json.loads((folder / "run.json").read_text())
        assert set(PROVENANCE) <= run.keys(), folder
        assert {"torch", "numpy", "python"} <= run["versions"].keys() and run["hardware"]["processor"], folder
        assert run["seconds"] >= 0 and re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", run["git_commit"]), folder


# --- F: it works, and it is all there -------------------------------------------------------------------------------


@cache
def pages() -> str:
    """README and docs/, one after the other."""
    return "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))


def section(heading: str, page: str = "README.md") -> str:
    """The text under the first heading of a page that contains `heading`, up to the next heading outside a code block."""
    lines, inside, fenced = [], False, False
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            if inside:
                break
            inside = heading in line
        elif inside:
            lines.append(line)
    assert lines, f"{page} has no section called {heading}"
    return "\n".join(lines)


def fenced_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text + "\n", re.MULTILINE | re.DOTALL)


def layout() -> dict[str, str]:
    """Description by path, from the map in docs/layout.md: `path  description`, a path below a folder being inside it."""
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in fenced_blocks(section("Layout", "docs/layout.md"), r"\w*")[0].splitlines():
        if not line.strip():
            continue
        indent, (path, _, text) = len(line) - len(line.lstrip()), line.strip().partition(" ")
        parents = [(depth, folder) for depth, folder in parents if depth < indent]
        whole = (parents[-1][1] if parents else "") + path
        if path.endswith("/"):
            parents.append((indent, whole))
        found[whole] = text.strip()
    return found


def test_F1_the_map_of_the_layout_lists_every_module_and_folder_and_nothing_that_is_not_there():
    tree = {name(path) for path in (ROOT / "gkp").glob("*.py")}
    tree |= {f"{name(path.parent)}/" for path in (ROOT / "gkp").glob("*/__init__.py")}
    assert {path for path in layout() if re.fullmatch(r"gkp/[^/]+/?", path)} == tree
    missing = {path for path in layout() if path not in {"build/", ".venv/"} and not (ROOT / path).exists()}
    assert not missing
    assert all(layout().values()), [path for path, text in layout().items() if not text]
    folders = {f"{path.relative_to(ROOT).parts[0]}/" for path in project_files() if path.parent != ROOT}
    assert folders <= {path.partition("/")[0] + "/" for path in layout()}


def test_F2_ci_runs_the_readme_s_own_two_commands_in_a_new_environment(tmp_path):
    """The real run is .ci/run itself; here a `make` that only notes what it is asked for plays along."""
    (tmp_path / ".ci").mkdir()
    for file in (".ci/run", "README.md"):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "bin").mkdir()
    make = tmp_path / "bin" / "make"
    make.write_text(f'#!/bin/sh\necho "$@ $PYTHONPATH" >> "{tmp_path}/calls"\n')
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{make.parent}{os.pathsep}{os.environ['PATH']}", "PROFILE": "paper"}
    environment.pop("PYTHONPATH", None)
    finished = subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stdout
    calls = (tmp_path / "calls").read_text().splitlines()
    offline = tmp_path / "tests" / "offline"
    assert calls == ["distclean ", "check ", f"reproduce {offline}", f"test {offline}"]
    assert fenced_blocks(section("Two commands"), "sh")[0] == "make reproduce\nmake test\n"


TINY = """
from gkp.artifact.experiments.kinds import EvaluateCell, PruneCell, TrainCell

def cells():
    baseline = TrainCell(dataset="digits", epochs=1, schedule="one-cycle", batch_size=128)
    pruned = PruneCell(net=baseline, epochs=0)
    return [baseline, pruned, EvaluateCell(net=pruned, examples=20, eps=("8/255",))]
"""


def tiny() -> list[grid.Cell]:
    """The cells of TINY."""
    scope: dict = {}
    exec(TINY, scope)
    return scope["cells"]()


@pytest.fixture(scope="module")
def without_network(tmp_path_factory) -> Path:
    """A folder with the cells of TINY, computed by a notebook of its own where no socket leaves the machine."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "notebooks").mkdir()
    (folder / "out").mkdir()
    (folder / "tiny.py").write_text(TINY)
    cells = [
        nbformat.v4.new_code_cell("profile = ''\njobs = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "from gkp.artifact import experiments, profiles\n"
            "print(experiments.run(profiles.cells(profile), jobs=jobs, progress=False))"
        ),
    ]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / "notebooks" / "00_tiny.ipynb")
    script = (
        "import sys; from pathlib import Path; from gkp.artifact.notebooks import run_notebook; folder = Path(sys.argv[1])\n"
        "done = run_notebook(folder / 'notebooks' / '00_tiny.ipynb', folder / 'out',"
        " {'profile': str(folder / 'tiny.py'), 'jobs': 2})\n"
        "print(done.file)"
    )
    paths = os.pathsep.join([str(Path(__file__).parent / "offline"), str(ROOT)])
    cells_folder = {"GKP_CELLS": str(folder / "cells"), "GKP_OFFLINE_LOG": str(folder / "asked"), "GKP_DATA": ""}
    finished = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, **cells_folder, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stderr
    (said,) = nbformat.read(finished.stdout.strip(), as_version=4).cells[-1].outputs
    assert said.text.endswith("3 cells: 0 cached, 3 computed\n")
    return folder


def test_F3_a_notebook_trains_prunes_and_attacks_without_a_network(without_network):
    """.ci/run has `make reproduce` itself run so."""
    assert not (without_network / "asked").exists(), (without_network / "asked").read_text()
    blocked = "import urllib.request; urllib.request.urlopen('https://example.org', timeout=5)"
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment["PYTHONPATH"] = str(Path(__file__).parent / "offline")
    refused = subprocess.run([sys.executable, "-c", blocked], env=environment, capture_output=True, text=True, timeout=60)
    assert "no network in this test: example.org" in refused.stderr  # the barrier stands
    assert "/tests/offline" in (ROOT / ".ci" / "run").read_text()


@cache
def verdicts(profile: str) -> pd.DataFrame:
    """The rows of `gkp.artifact.claims`."""
    claims = pytest.importorskip("gkp.artifact.claims", exc_type=ImportError)
    found = claims.verdicts(profile)
    return getattr(found, "points", found)


def test_F4_every_table_and_figure_of_the_paper_has_a_claim_with_a_verdict_or_a_reason():
    rows = verdicts("cifar10")
    items = {item for items in rows["item"] for item in items.split(", ")}
    assert {*(f"Table {i}" for i in range(1, 21)), *(f"Figure {i}" for i in range(1, 10))} <= items
    assert all(row["verdict"] in claims.VERDICTS[row["board"]] for _, row in rows.iterrows())
    assert all(rows.loc[rows["verdict"] == "not run", "reason"])


def shell_commands(text: str) -> list[list[str]]:
    """Every command of the sh blocks, as words, without comments, prompts, VAR=value before it, | and > after it."""
    commands = []
    for block in fenced_blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", re.sub(r"(^|\s)#.*$|^\$ ", "", line)):
                words = shlex.split(re.split(r"[|>]", part)[0])
                while words and re.match(r"\w+=", words[0]):
                    words.pop(0)
                if words:
                    commands.append(words)
    return commands


def inline_code() -> list[list[str]]:
    prose = re.sub(r"^```.*?^```$", "", pages(), flags=re.MULTILINE | re.DOTALL)
    return [code.split() for code in re.findall(r"`([^`\n]+)`", prose)]


def test_F5_every_make_command_of_readme_and_docs_exists():
    makefile = (ROOT / "Makefile").read_text()
    (targets,) = (line.split() for line in re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE))
    (variables,) = (line.split() for line in re.findall(r"^KNOWN +:=(.*)$", makefile, re.MULTILINE))
    commands = [words[1:] for words in shell_commands(pages()) + inline_code() if words[0] == "make"]
    assert ["reproduce"] in commands
    for word in (re.sub(r"[\[\]]", "", word) for words in commands for word in words):
        assert word in targets or ("=" in word and word.partition("=")[0] in variables), f"make {word}"


def test_F5_every_gkp_command_of_readme_and_docs_is_understood_by_the_parser():
    shown = [words[1:] for words in shell_commands(pages()) if words[0] == "gkp"]
    assert shown
    for words in shown:
        command_line.commands[words[0]].make_context(words[0], words[1:])  # click's UsageError names what it does not know
    for words in inline_code():
        if words[0] == "gkp" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in command_line.commands, words


@pytest.mark.parametrize(
    "what, pattern",
    [
        ("a path of one machine", r"(?<![\w.:/~-])/(?:home|Users|root|tmp|work|workspace|content|mnt|opt|scratch)/\w"),
        ("a path of one Windows machine", r"\b[A-Z]:\\\\?Users\\"),
        ("a Google Drive", r"drive\.google\.com|google[.]colab|/content/drive"),
        ("a download by hand", r"\bwget\b"),
    ],
)
def test_F6_no_file_names(what: str, pattern: str):
    found = []
    for path in project_files():
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # an image or weights
        if path != Path(__file__).resolve():
            found += [f"{name(path)}: {match.group()}" for match in re.finditer(pattern, text)]
    assert not found, f"{what}: {found}"


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def version_of(requirement: Requirement) -> str:
    (clause,) = requirement.specifier
    assert clause.operator == "==" and "*" not in clause.version, f"{requirement} is not one exact version"
    return clause.version


@cache
def locked() -> dict[str, str]:
    """Version by package, for the lines of the lock that apply on this machine."""
    lines = (line.strip() for line in (ROOT / "requirements.lock").read_text().splitlines())
    lock = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): version_of(r) for r in lock if r.marker is None or r.marker.evaluate()}


def test_F7_the_lock_pins_whatever_pyproject_asks_for_and_environment_yml_installs_it():
    declared = [*project()["project"]["dependencies"], *project()["build-system"]["requires"]]
    for extra in project()["project"]["optional-dependencies"].values():
        declared += extra
    for wanted in map(Requirement, declared):
        if wanted.marker is None or wanted.marker.evaluate():
            assert wanted.specifier.contains(locked()[canonicalize_name(wanted.name)]), wanted
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(entry.partition("=")[::2] for entry in dependencies if isinstance(entry, str))
    (pip,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert SpecifierSet(project()["project"]["requires-python"]).contains(conda.pop("python"))
    assert pip == ["-r requirements.lock", "-e ."]
    assert all(locked().get(package, pin) == pin for package, pin in conda.items() if pin)


def code_of(cell: nbformat.NotebookNode) -> str:
    """The cell's Python: the one magic a notebook may use is the backend of its figures."""
    return "\n".join(
        line for line in cell.source.splitlines() if not re.match(r"%matplotlib inline$|%config InlineBackend\.", line.strip())
    )


@by_notebook
def test_F8_a_notebook_defines_nothing_and_has_ids_and_one_cell_of_literal_parameters(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len({cell["id"] for cell in notebook.cells}) == len(notebook.cells)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:  # a leftover ! or % is a syntax error here
        defined = [
            node
            for node in ast.walk(ast.parse(code_of(cell), name(path)))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        ]
        assert not defined, f"{path.name} defines {defined[0].name}: its place is in gkp"
    (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    for statement in ast.parse(parameters.source).body:
        assert isinstance(statement, (ast.Assign, ast.AnnAssign))
        assert statement.value is not None
        ast.literal_eval(statement.value)


@by_notebook
def test_F8_a_notebook_holds_no_error_and_was_run_from_top_to_bottom_or_not_at_all(path: Path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert [cell.execution_count for cell in cells] in ([None] * len(cells), list(range(1, len(cells) + 1)))


def test_F8_there_is_a_notebook_to_start_from_and_outputs_are_those_of_the_sources_beside_them():
    assert "00_start_here.ipynb" in {path.name for path in NOTEBOOKS}
    assert not verify.check_notebooks(ROOT / "notebooks").problems
    for path in NOTEBOOKS:
        book = executed.read_notebook(path)
        for record in (ROOT / "build").glob(f"*/.executed/{path.stem}.json"):
            out = record.parents[1]
            kept = executed.Record.load(out, path.stem)
            if kept and (out / path.name).exists() and kept.origin["the notebook"] == executed.source_sha256(book):
                assert executed.sources(executed.read_notebook(out / path.name)) == executed.sources(book), out


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, ROOT / "data" / "verdicts.csv", *(ROOT / "figures").glob("*.txt")], ids=lambda p: p.name
)
def test_what_is_committed_names_no_folder_of_the_machine_that_made_it(path: Path):
    text = path.read_text(encoding="utf-8")
    text = re.sub(r'"image/(png|svg\+xml)": .*', "", text)  # base64 has slashes
    assert not re.search(r"(?<![\w./-])/(root|home|work|tmp|Users|mnt|private|var)/[\w.]", text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["reproduce", "--profile", "quik"],
        ["reproduce", "--only", "05_magic"],
        ["run", "--profile", "quik"],
        ["run", "--profile", "quick", "--only", "magic"],
        ["prune", "--model", "resnet20", "--weights", "akamaster", "--method", "magic", "--out", "{out}"],
        ["prune", "--checkpoint", "{net}", "--method", "sr-gkp", "--option", "magic=1", "--out", "{out}"],
        ["benchmark", "--checkpoint", "{net}", "--dataset", "magic"],
        ["publish", "--profile", "quik"],
        ["html", "--profile", "quik", "--out", "{out}"],
    ],
    ids=" ".join,
)
def test_F9_what_is_unknown_is_refused_in_one_line(arguments, tmp_path, capsys):
    import gkp

    gkp.save_model(gkp.load_model("resnet20"), tmp_path / "net")
    status = main([word.format(net=tmp_path / "net", out=tmp_path / "out") for word in arguments])
    said = capsys.readouterr().err.splitlines()
    assert status == 2 and len(said) == 1 and said[0].startswith("gkp: "), said
    assert not (tmp_path / "out").exists()


def test_F10_every_file_under_data_has_a_source_a_licence_a_size_and_a_hash():
    assert manifest.read(ROOT / "data") and not manifest.problems(ROOT / "data")


def test_F11_digits_never_give_a_verdict_on_the_paper():
    assert set(verdicts("quick")["verdict"]) == {claims.NO_VERDICT}


# --- R: the results -------------------------------------------------------------------------------------------------


def test_R1_every_claim_says_what_is_reported_how_to_see_it_what_it_costs_and_what_counts_as_agreement():
    rows = verdicts("cifar10")
    assert rows["id"].is_unique
    for column in ("id", "item", "statement", "reported", "tolerance", "command"):
        assert rows[column].map(bool).all(), column
    assert (rows["minutes"] >= 0).all()
    names = {path.stem for path in NOTEBOOKS}
    for command in rows["command"]:
        words = dict(word.partition("=")[::2] for word in command.split() if "=" in word)
        assert words["PROFILE"] in PROFILES and words.get("ONLY", NOTEBOOKS[0].stem) in names, command


def test_R2_committed_cells_verdicts_and_notebooks_follow_from_the_committed_data():
    """tests/test_verify.py has what `make verify` must notice."""
    assert [problem for check in verify.verify(ROOT) for problem in check.problems] == []


def test_R3_every_number_has_n_seeds_and_an_interval():
    for folder in RESULTS:
        figures = json.loads((folder / "result.json").read_text())["figures"]
        if "accuracy" in figures:
            assert figures["n"] > 0 and isinstance(figures["seed"], int), folder
            assert figures["interval"].keys() == figures["accuracy"].keys(), folder
            ends = Outcomes.load(folder).interval()  # R2 holds those of the file to it; older ones have 0 of n from 2e-19 on
            assert all(ends[key][0] <= value <= ends[key][1] for key, value in figures["accuracy"].items()), folder
    rows = verdicts("cifar10")
    decided = rows[rows["verdict"] != "not run"]
    assert {"n", "seeds", "interval"} <= set(rows.columns) and (decided["n"] > 0).all()


def test_R4_fewer_images_widen_the_tolerance():
    paired = pytest.importorskip("gkp.evaluation.statistics", exc_type=ImportError)
    assert paired.tolerance(0.9, 10_000) == pytest.approx(1.959964 * (0.9 * 0.1 / 10_000) ** 0.5, rel=1e-6)
    assert paired.tolerance(0.9, 100) == pytest.approx(10 * paired.tolerance(0.9, 10_000))


def test_R5_the_same_cell_twice_gives_the_same_bytes(without_network, tmp_path):
    cells, again = tiny(), grid.Store(tmp_path)
    assert [type(cell) for cell in cells] == [TrainCell, PruneCell, EvaluateCell]
    once = grid.load(cells, store=grid.Store(without_network / "cells"))
    twice = grid.run(cells, jobs=1, progress=False, quiet=True, store=again)
    for one, two in zip(once, twice, strict=True):
        files = sorted(path.relative_to(one.folder) for path in one.folder.rglob("*") if path.is_file())
        assert len(files) > 3 and not two.cached
        for file in files:
            if file.name not in ("run.json", "log.txt"):
                assert (one.folder / file).read_bytes() == (two.folder / file).read_bytes(), (one.cell.id, file)


def test_R6_an_interrupted_run_resumes_and_leaves_finished_cells_untouched(tmp_path):
    """tests/test_cluster.py kills runners, workers and schedulers in every other way too."""
    store, note, counter = grid.Store(tmp_path / "cells"), tmp_path / "note", tmp_path / "counter"
    note.touch()
    runner = python("-c", RUNNER, str(store.root), "1", str(note), str(counter))
    until(lambda: pids_in(tmp_path / "note.begun"), "the last cell to begin")
    runner.send_signal(signal.SIGKILL)
    end(runner)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in store.root.glob("number-*/*")}
    note.unlink()
    cells = [*(Number(x=x, counter=str(counter)) for x in range(20)), Trouble(how="wait", note=str(note))]
    report = grid.run(cells, jobs=1, progress=False, quiet=True, store=store)
    assert (report.cached, report.computed) == (20, 1)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before


def test_R7_cached_or_computed_is_printed_and_make_clean_forces_recomputation(tmp_path, monkeypatch, capsys):
    """tests/test_reproduce.py has the same for notebooks."""
    for _ in range(2):
        grid.run([Number(x=1)], jobs=1, progress=False, store=grid.Store(tmp_path))
    assert capsys.readouterr().out == "1 cell: 0 cached, 1 computed\n1 cell: 1 cached, 0 computed\n"
    monkeypatch.delenv("GKP_CELLS", raising=False)
    assert grid.default_store().root == ROOT / "build" / "cells"
    assert re.search(r"^clean:\n\t@rm -rf build notebooks/build$", (ROOT / "Makefile").read_text(), re.MULTILINE)


UNITS = {"second": 1 / 60, "minute": 1, "hour": 60}


def stated(path: Path) -> dict[str, float]:
    """Profile -> minutes, from the table of costs in a notebook's first cells; "seconds" without a number are none."""
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells[:4])
    rows = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \|.*\| (?:about (\d+(?:\.\d+)?) (second|minute|hour)s?|seconds) \|$", text, re.MULTILINE
    )
    return {
        profile: float(number or 0) * UNITS[unit or "second"]
        for profiles, number, unit in rows
        for profile in re.findall(r"\w+", profiles)
    }


def test_R8_stated_minutes_are_within_a_factor_of_two_of_the_recorded_ones():
    claims = verdicts("cifar10")
    recorded = claims[(claims["minutes"] != claims["stated_minutes"]) & (claims[["minutes", "stated_minutes"]].max(axis=1) > 1)]
    far = (recorded["minutes"] / recorded["stated_minutes"]).sub(1.25).abs() > 0.75
    assert not list(recorded.loc[far, "id"])
    file = ROOT / "data" / "minutes.csv"
    if not file.exists():
        pytest.skip("no minutes were recorded yet: make publish writes data/minutes.csv")
    told = {path.stem: stated(path) for path in NOTEBOOKS}
    whole = re.search(r"\(about (\d+) minutes on two cores\)", section("Two commands"))
    assert whole is not None
    told["all"] = {"quick": float(whole[1])}
    wrong = []
    for row in pd.read_csv(file).to_dict("records"):
        minutes = told.get(row["notebook"], {}).get(row["profile"])
        if row["notebook"] in told and (row["notebook"] != "all" or row["profile"] == "quick"):
            close = minutes is not None and (
                row["minutes"] / 2 <= minutes <= row["minutes"] * 2 or minutes + row["minutes"] < 1
            )
            wrong += (
                [] if close or row["missing"] else [f"{row['notebook']}, {row['profile']}: {row['minutes']}, not {minutes}"]
            )
    assert not wrong


@pytest.mark.parametrize("cheat", ["keeps everything", "plans nothing"])
def test_a_method_that_returns_the_unpruned_network_is_refused(cheat, monkeypatch):
    from dataclasses import dataclass

    import torch

    import gkp
    from gkp.errors import BadInput
    from gkp.pruning import registry
    from gkp.pruning.grouped import GroupedSpec
    from gkp.pruning.plan import Plan
    from gkp.pruning.registry import register
    from gkp.pruning.sr_gkp.grouping import default_grouping

    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register("cheat", reference="none", family="grouped kernel", needs=("weights",), fidelity="faithful")
    @dataclass(frozen=True)
    class Cheat:
        rate: float = 7 / 16
        groups: int = 8

        def plan(self, net, convs):
            if cheat == "plans nothing":
                return Plan({})
            whole = {name: torch.arange(conv.in_channels).repeat(self.groups, 1) for name, conv in convs.items()}
            return Plan({name: GroupedSpec(default_grouping(convs[name].weight, 8), kept) for name, kept in whole.items()})

    with pytest.raises(BadInput, match=r"cheat .*75\.0% more than the budget"):
        gkp.prune(gkp.load_model("resnet20"), "cheat")


# --- U: for one's own work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["torchvision.models.resnet18", "gkp.Dataset(", "def plan(self, net, convs)"])
def test_U1_own_model_own_dataset_and_own_method_take_at_most_20_lines_and_run(mark):
    """tests/test_readme.py runs every block of README and docs/; here they are found and counted."""
    blocks = [block for _, block in test_readme.BLOCKS if mark in block]
    assert blocks and all(len([line for line in block.splitlines() if line.strip()]) <= 20 for block in blocks)
    assert test_readme.test_a_block_of_a_page_runs


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(path: Path) -> Iterator[tuple[Definition, bool]]:
    """Every public function, class and method of a module, and whether it is a method of a class with bases."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node, False
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (
                (item, bool(node.bases)) for item in node.body if isinstance(item, Definition) and not item.name.startswith("_")
            )


def test_U2_every_public_function_class_and_module_has_a_docstring():
    found = [(path, node, inherits) for path in MODULES for node, inherits in public_definitions(path)]
    documented = {node.name for _, node, _ in found if ast.get_docstring(node)}
    documented.add("forward")  # its class says what it computes
    bare = [
        f"{name(path)}:{node.lineno} {node.name}"
        for path, node, inherits in found
        if not ast.get_docstring(node) and not (inherits and node.name in documented)
    ]
    bare += [name(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert found
    assert not bare


# --- the list itself ------------------------------------------------------------------------------------------------


def test_every_line_of_the_checklist_has_its_test():
    lines = {*(f"A{i}" for i in (1, 2)), *(f"F{i}" for i in range(1, 12)), *(f"R{i}" for i in range(1, 9)), "U1", "U2"}
    assert {match[1] for match in (re.match(r"test_([AFRU]\d+)_", item) for item in globals()) if match} == lines
