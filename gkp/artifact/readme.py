"""README's opening: the verdicts that most readers come for and one figure, written between two markers.

It follows from data/verdicts.csv and the committed cells alone, so `gkp publish` writes it and `gkp verify` checks it.

Cost: milliseconds, and reading one small file of each committed cell.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import jinja2
import pandas as pd

from gkp.artifact.claims.decision import NOT_RUN, VERDICTS
from gkp.artifact.experiments.store import read_json
from gkp.errors import BadInput
from gkp.files import replace_file

README, BEGIN, END = "README.md", "<!-- verdicts, written by gkp publish -->", "<!-- end of verdicts -->"
FIGURE, CAPTION = "figures/methods_paper.png", "Accuracy of every method without attack and under the paper's attacks"
UNDECIDED = "undecided"
HEADLINES = (  # of the claims, in this order
    "fragility",
    "modern-worse",
    "tmi-free",
    "free-benign",
    "free-robustness",
    "free-robustness-control",
    "free-robustness-pixel",
    "best-or-second-resnet56",
    "sr-over-tmi",
    "sr-over-random-gkp",
    "sr-over-l2-gkp",
    "high-rate-resnet32",
    "snaking-cheaper",
    "snaking-not-worse",
    "beam-over-greedy",
    "beam-over-least-smooth",
    "csb-selects",
    "norm-selects",
    "no-transfer",
    "high-frequencies",
    "fgsm-labels",
    "robust-to-strong-attacks",
    "printed-mean-ranks",
)


def write_opening(root: Path, verdicts: pd.DataFrame, profile: str) -> None:
    """Put the opening that follows from these verdicts into the README of the checkout. BadInput for one without markers."""
    file = root / README
    before, old, after = _parts(file.read_text(encoding="utf-8"))
    if (new := opening(root, verdicts, profile)) != old:
        replace_file(file, before + new + after)


def problems(root: Path, verdicts: pd.DataFrame, profile: str) -> list[str]:
    """Return what is wrong with README's opening, a line each: nothing, or that it does not follow."""
    try:
        found = _parts((root / README).read_text(encoding="utf-8"))[1]
    except (OSError, BadInput) as error:
        return [f"{README}: {error}"]
    expected = opening(root, verdicts, profile)
    return [] if found == expected else [f"{README}: its verdicts do not follow from data/; `gkp publish --cells` writes them"]


def opening(root: Path, verdicts: pd.DataFrame, profile: str) -> str:
    """Return the Markdown between the markers.

    Args:
        root: the checkout.
        verdicts: the rows of `gkp.artifact.claims.verdicts(profile).points`.
        profile: whose verdicts.
    """
    rows, counts = verdicts.set_index("id"), Counter(_word(row) for _, row in verdicts.iterrows())
    environment = jinja2.Environment(loader=jinja2.PackageLoader("gkp.artifact", "."), keep_trailing_newline=True)
    return environment.get_template("readme.md.j2").render(
        verdicts=verdicts,
        counted=", ".join(f"{counts[word]} {word}" for word in (*VERDICTS, UNDECIDED) if counts[word]),
        profile=profile,
        hardware=hardware(root),
        rows=[_cells(rows.loc[name]) for name in HEADLINES if name in rows.index],
        figure=FIGURE if (root / FIGURE).exists() else "",
        caption=CAPTION,
    )


def hardware(root: Path) -> str:
    """Return what the committed cells were computed on."""
    runs = (read_json(file) for file in sorted((root / "data" / "results").glob("*/run.json")))
    machines = {(run["hardware"]["cores"], run["hardware"]["processor"]) for run in runs if run}
    return " and ".join(f"{cores} cores of {processor}" for cores, processor in sorted(machines)) or "nothing measured yet"


def _word(row: pd.Series) -> str:
    """Return the verdict, or UNDECIDED where that is "not run" because what was run says too little."""
    return UNDECIDED if row["verdict"] == NOT_RUN and row["ours"] and pd.notna(row["ours"]) else str(row["verdict"])


def _cells(row: pd.Series) -> list[str]:
    """Return the cells of one row of the table."""
    # what is not there is NaN where the row was read from a file
    text = {str(name): "" if pd.isna(value) else str(value) for name, value in row.items()}
    n, seeds = f"n {int(row['n']):,}" if row["n"] else "", f"{int(row['seeds'])} seeds" if row["seeds"] > 1 else ""
    why_not = re.split(r", about|[;(]", text["reason"])[0].strip()  # the rest is in the other files
    ours = "; ".join(filter(None, [text["ours"], text["interval"], n, seeds])) if text["ours"] else why_not
    only = next(word for word in text["command"].split() if word.startswith("ONLY="))
    word = _word(row)
    verdict = word if word in (NOT_RUN, UNDECIDED) else f"**{word}**"
    estimated = row["minutes"] > 0 and row["minutes"] == row.get("stated_minutes")  # it has those until all cells are recorded
    minutes = f"{'about ' if estimated else ''}{row['minutes']:,.0f}"
    return [text["statement"], text["reported"], ours, verdict, f"`{only}`", minutes]


def _parts(text: str) -> tuple[str, str, str]:
    """Return the README up to the first marker, between the markers, and from the second one on."""
    before, begin, rest = text.partition(BEGIN)
    between, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"it needs the lines {BEGIN!r} and {END!r} around its verdicts")
    return before + begin, between, end + after
