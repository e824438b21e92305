"""README's opening: the main verdicts and one figure, between two markers.

It follows from data/verdicts.csv and the committed cells alone; `gkp publish` writes it and `gkp verify` checks it.

Cost: milliseconds, and reading one small file of each committed cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from gkp.artifact import claims
from gkp.artifact.experiments.store import read_json
from gkp.errors import BadInput
from gkp.files import replace_file

README, BEGIN, END = "README.md", "<!-- verdicts, written by gkp publish -->", "<!-- end of verdicts -->"
FIGURE = "figures/robustness.png"  # its question and answer are in the .txt beside it


def write_opening(root: Path, verdicts: pd.DataFrame, profile: str) -> None:
    """Write the opening into the README of a checkout.

    Args:
        root, verdicts, profile: As in `opening`.

    Raises:
        BadInput: The README has no markers.
    """
    file = root / README
    before, old, after = _parts(file.read_text(encoding="utf-8"))
    if (new := opening(root, verdicts, profile)) != old:
        replace_file(file, before + new + after)


def problems(root: Path, verdicts: pd.DataFrame, profile: str) -> list[str]:
    """Check README's opening; the fault found, as a list of at most one line.

    Args:
        root, verdicts, profile: As in `opening`.
    """
    try:
        found = _parts((root / README).read_text(encoding="utf-8"))[1]
    except (OSError, BadInput) as error:
        return [f"{README}: {error}"]
    expected = opening(root, verdicts, profile)
    return [] if found == expected else [f"{README}: its verdicts do not follow from data/; `gkp publish --cells` writes them"]


def opening(root: Path, verdicts: pd.DataFrame, profile: str) -> str:
    """The Markdown between the markers.

    Args:
        root: The checkout.
        verdicts: The rows of `gkp.artifact.claims.verdicts(profile).points`.
        profile: The profile of the verdicts.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("gkp.artifact", "."), keep_trailing_newline=True)
    return environment.get_template("readme.md.j2").render(
        verdicts=verdicts,
        headlines=claims.headlines(verdicts),
        profile=profile,
        hardware=hardware(root),
        rows=[_cells(row) for row in claims.main_rows(verdicts)],
        figure=FIGURE if (root / FIGURE).exists() else "",
        caption=caption(root),
    )


def caption(root: Path) -> list[str]:
    """The question and the answer of the figure."""
    file = (root / FIGURE).with_suffix(".txt")
    question, _, answer = file.read_text(encoding="utf-8").partition("\n") if file.exists() else ("", "", "")
    return [question, answer.strip()]


def hardware(root: Path) -> str:
    """The hardware that the committed cells were computed on, as text."""
    runs = (read_json(file) for file in sorted((root / "data" / "results").glob("*/run.json")))
    machines = {(run["hardware"]["cores"], run["hardware"]["processor"]) for run in runs if run}
    return " and ".join(f"{cores} cores of {processor}" for cores, processor in sorted(machines)) or "nothing measured yet"


def _cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of one row of the table."""
    setting = "" if pd.isna(row["setting"]) else row["setting"]
    return [row["statement"], row["reported"], claims.in_full(row), setting, f"**{row['verdict']}**"]


def _parts(text: str) -> tuple[str, str, str]:
    """The README up to the first marker, between the markers, and from the second one on."""
    before, begin, rest = text.partition(BEGIN)
    between, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"it needs the lines {BEGIN!r} and {END!r} around its verdicts")
    return before + begin, between, end + after
