"""README's opening: the verdicts that most readers come for and one figure, written between two markers.

It follows from data/verdicts.csv and the committed cells alone, so `gkp publish` writes it and `gkp verify` checks it.

Cost: milliseconds, and reading one small file of each committed cell.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

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
    """Puts the opening that follows from these verdicts into the README of the checkout. BadInput for one without markers."""
    file = root / README
    text = file.read_text(encoding="utf-8")
    before, old, after = _parts(text)
    new = opening(root, verdicts, profile)
    if new != old:
        replace_file(file, lambda partial: partial.write_text(before + new + after, encoding="utf-8"))


def problems(root: Path, verdicts: pd.DataFrame, profile: str) -> list[str]:
    """What is wrong with README's opening, a line each: nothing, or that it does not follow."""
    try:
        found = _parts((root / README).read_text(encoding="utf-8"))[1]
    except (OSError, BadInput) as error:
        return [f"{README}: {error}"]
    expected = opening(root, verdicts, profile)
    return [] if found == expected else [f"{README}: its verdicts do not follow from data/; `gkp publish --cells` writes them"]


def opening(root: Path, verdicts: pd.DataFrame, profile: str) -> str:
    """The Markdown between the markers. verdicts: the rows of `gkp.artifact.claims.verdicts(profile).points`."""
    rows = verdicts.set_index("id")
    counts = Counter(_word(row) for _, row in verdicts.iterrows())
    counted = ", ".join(f"{counts[word]} {word}" for word in (*VERDICTS, UNDECIDED) if counts[word])
    figure = [f"![{CAPTION}]({FIGURE})", ""] if (root / FIGURE).exists() else []
    lines = [
        "",
        f"{len(verdicts)} claims: {counted}. The main ones; every one with its reason is in "
        '[data/verdicts.csv](data/verdicts.csv). Minutes are recorded, or estimated from the work where they say "about":',
        "",
        f"| claim | reported | ours | verdict | `make reproduce PROFILE={profile} COMPUTE=1` ... | minutes, {hardware(root)} |",
        "|---|---|---|---|---|---|",
        *(_line(rows.loc[name]) for name in HEADLINES if name in rows.index),
        "",
        *figure,
    ]
    return "\n".join(lines) + "\n"


def hardware(root: Path) -> str:
    """What the committed cells were computed on."""
    runs = (read_json(file) for file in sorted((root / "data" / "results").glob("*/run.json")))
    machines = {(run["hardware"]["cores"], run["hardware"]["processor"]) for run in runs if run}
    return " and ".join(f"{cores} cores of {processor}" for cores, processor in sorted(machines)) or "nothing measured yet"


def _word(row: pd.Series) -> str:
    """The verdict, or UNDECIDED where that is "not run" because what was run says too little."""
    return UNDECIDED if row["verdict"] == NOT_RUN and row["ours"] and pd.notna(row["ours"]) else str(row["verdict"])


def _line(row: pd.Series) -> str:
    """One row of the table."""
    # what is not there is NaN where the row was read from a file
    text = {str(name): "" if pd.isna(value) else str(value) for name, value in row.items()}
    support = [
        text["interval"],
        f"n {int(row['n']):,}" if row["n"] else "",
        f"{int(row['seeds'])} seeds" if row["seeds"] > 1 else "",
    ]
    why_not = re.split(r", about|[;(]", text["reason"])[0].strip()  # the rest is in the other files
    ours = "; ".join([text["ours"], *filter(None, support)]) if text["ours"] else why_not
    only = next(word for word in text["command"].split() if word.startswith("ONLY="))
    word = _word(row)
    verdict = word if word in (NOT_RUN, UNDECIDED) else f"**{word}**"
    estimated = row["minutes"] > 0 and row["minutes"] == row.get("stated_minutes")  # it has those until all cells are recorded
    minutes = f"{'about ' if estimated else ''}{row['minutes']:,.0f}"
    cells = (text["statement"], text["reported"], ours, verdict, f"`{only}`", minutes)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _parts(text: str) -> tuple[str, str, str]:
    """The README up to the first marker, between the markers, and from the second one on."""
    before, begin, rest = text.partition(BEGIN)
    between, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"it needs the lines {BEGIN!r} and {END!r} around its verdicts")
    return before + begin, between, end + after
