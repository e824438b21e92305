"""`gkp verify`: check that everything committed still follows from the committed data.

Seven checks, each of which can fail alone: files against data/MANIFEST, cells against their own hashes, accuracies against
the outcome of every image, logs of unfinished trainings against their hashes, verdicts against the cells, README's opening
against the verdicts, sources, outputs and figures of notebooks against the hashes of their execution. Nothing is written.

Cost: a hash of every file under data/ and the verdicts once, seconds in all; no training, no attack.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gkp.artifact import claims, manifest
from gkp.artifact import readme as front_page
from gkp.artifact.executed import outputs_sha256, read_notebook, source_sha256, was_executed
from gkp.artifact.experiments.copies import check_folder, entry_of
from gkp.artifact.experiments.history import UNFINISHED, problems_of_unfinished
from gkp.artifact.experiments.store import Damaged, Store, read_json
from gkp.artifact.profiles import COMMITTED
from gkp.errors import BadInput
from gkp.evaluation.outcomes import Outcomes
from gkp.files import checkout, file_sha256

VERDICTS = "verdicts.csv"
DIGITS = "%.6g"  # the format of numbers in verdicts.csv, so that last bits of another processor do not matter


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        n: The number of items checked.
        problems: What is wrong, a line each.
        note: A remark.
    """

    name: str
    n: int
    problems: tuple[str, ...] = ()
    note: str = ""

    @property
    def line(self) -> str:
        """The result as one line of text."""
        verdict = f"{len(self.problems)} wrong" if self.problems else "as they should be"
        return f"{self.name}: {self.n}, {verdict}{f' ({self.note})' if self.note else ''}"


def verify(root: Path | None = None) -> list[Check]:
    """Run the seven checks on a checkout, by default that of this package. BadInput where there is none."""
    root = root_of(root)
    return [*check_data(root), check_notebooks(root / "notebooks")]


def check_data(root: Path, profile: str = COMMITTED) -> list[Check]:
    """Run all checks except that of the notebooks, which `gkp publish` replaces.

    Args:
        root: The checkout.
        profile: The profile whose verdicts are committed.
    """
    data = root / "data"
    return [
        Check("files in data/MANIFEST", len(manifest.read(data)), tuple(manifest.problems(data))),
        check_cells(data / "results"),
        check_outcomes(data / "results"),
        check_unfinished(data),
        check_verdicts(data, profile),
        check_opening(root, profile),
    ]


def root_of(root: Path | None) -> Path:
    """The given checkout, or that of this package. Raises BadInput where there is none."""
    if (found := root or checkout()) is None:
        raise BadInput("the data are not installed with the package; run this in a checkout of the repository")
    return found


def check_cells(results: Path) -> Check:
    """Check the hashes of each committed cell, and that it records when, where and how it was computed."""
    folders = cell_folders(results)
    return Check("cells in data/results", len(folders), tuple(line for folder in folders for line in check_folder(folder)))


def check_outcomes(results: Path) -> Check:
    """Compute the accuracies of each committed evaluation again from its outcome matrix."""
    n, wrong = 0, []
    for folder in cell_folders(results):
        stored = (read_json(folder / "result.json") or {}).get("figures", {}).get("accuracy")
        if stored is None or not (folder / "outcomes.npz").exists():
            continue
        n += 1
        try:
            figures, outcomes = entry_of(folder).figures, Outcomes.load(folder)
        except (BadInput, Damaged) as error:
            wrong.append(f"{folder}: {error}")
            continue
        again, ends = outcomes.accuracy(), outcomes.interval()
        wrong += [
            f"{folder / 'result.json'}: {attack} is {value}, and {again.get(attack)} by its outcomes"
            for attack, value in figures["accuracy"].items()
            if attack not in again or not _same([value, *figures["interval"][attack]], [again[attack], *ends[attack]])
        ]
        if outcomes.n != figures["n"]:
            wrong.append(f"{folder / 'result.json'}: n is {figures['n']}, and {outcomes.n} by its outcomes")
    return Check("evaluations computed again from their outcomes", n, tuple(wrong))


def check_unfinished(data: Path) -> Check:
    """Check the committed logs of trainings that are not finished."""
    folder = data / UNFINISHED
    problems = tuple(problems_of_unfinished(folder, data / "results"))
    return Check("logs of unfinished trainings", len(list(folder.glob("*.json"))), problems)


def check_verdicts(data: Path, profile: str = COMMITTED) -> Check:
    """Compare data/verdicts.csv with the verdicts that follow from the committed cells."""
    file = data / VERDICTS
    if not file.exists():
        missing = f"data/{VERDICTS}: is missing although cells are committed; `gkp publish` writes it"
        return Check("verdicts", 0, (missing,) if cell_folders(data / "results") else (), "none were published yet")
    committed, now = file.read_text(encoding="utf-8").splitlines(), verdicts_csv(data, profile).splitlines()
    gone, new = [line for line in committed if line not in now], [line for line in now if line not in committed]
    problems = [f"data/{VERDICTS}: does not follow from the cells: {line}" for line in gone]
    problems += [f"data/{VERDICTS}: the cells give: {line}" for line in new]
    if committed != now and not problems:
        problems = [f"data/{VERDICTS}: has a line twice or in another order; `gkp publish --cells` writes it anew"]
    return Check("verdicts", len(committed) - 1, tuple(problems))


def check_opening(root: Path, profile: str = COMMITTED) -> Check:
    """Compare README's verdicts with data/verdicts.csv."""
    file = root / "data" / VERDICTS
    if not file.exists():
        return Check("verdicts in README", 0, (), "none were published yet")
    verdicts = pd.read_csv(file)
    return Check("verdicts in README", len(claims.MAIN), tuple(front_page.problems(root, verdicts, profile)))


def verdicts_csv(data: Path, profile: str = COMMITTED) -> str:
    """The verdicts as CSV, from the cells committed under `data` alone."""
    found = claims.verdicts(profile, store=Store(data / "results"))
    return found.points.to_csv(index=False, float_format=DIGITS, lineterminator="\n")


def check_notebooks(folder: Path) -> Check:
    """Check that the sources, outputs and figures of committed notebooks are those of their execution.

    Args:
        folder: The notebooks; the figures that they drew are in `figures` beside it.
    """
    books = {file: read_notebook(file) for file in sorted(folder.glob("*.ipynb"))}
    executed = {file: book for file, book in books.items() if was_executed(book)}
    problems: list[str] = []
    drawn: dict[str, str] = {}
    for file, book in executed.items():
        published: dict[str, Any] = book["metadata"].get("gkp", {})
        drawn |= published.get("figures", {})
        if not published:
            problems.append(f"notebooks/{file.name}: has outputs that `make publish` did not write; clear its outputs")
        elif published.get("sources_sha256") != source_sha256(book):
            problems.append(
                f"notebooks/{file.name}: was edited after it was executed; `make reproduce` and `make publish` for its profile"
            )
        elif published.get("outputs_sha256") != outputs_sha256(book):
            problems.append(f"notebooks/{file.name}: its outputs are not those of its execution; `make publish` writes them")
    figures = {file.name: file for file in (folder.parent / "figures").glob("*") if file.is_file()}
    for name in sorted(drawn.keys() | figures.keys() if executed else ()):
        if name not in figures or file_sha256(figures[name]) != drawn.get(name):
            what = "is not there" if name not in figures else "is not what a notebook drew"
            problems.append(f"figures/{name}: {what}; `make publish` writes it")
    rest = len(books) - len(executed)
    note = f"{rest} without outputs" if rest else ""
    return Check("executed notebooks against their sources, outputs and figures", len(executed), tuple(problems), note)


def cell_folders(results: Path) -> list[Path]:
    """The folders of committed cells."""
    return sorted(path for path in results.glob("*") if path.is_dir() and not path.name.startswith("."))


def _same(one: list[float], other: list[float]) -> bool:
    return all(abs(a - b) <= 1e-9 for a, b in zip(one, other, strict=True))
