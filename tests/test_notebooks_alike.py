"""Every notebook is built alike, so that a reader finds the same things at the same places."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from gkp.artifact import claims
from gkp.artifact.claims.verdicts import FACTS
from gkp.artifact.tables.table import Table

BOOKS = {
    path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
}
by_notebook = pytest.mark.parametrize("name", BOOKS)


def texts(name: str, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in BOOKS[name]["cells"] if cell["cell_type"] == kind]


@by_notebook
def test_a_notebook_opens_with_its_question_what_the_paper_says_and_what_it_costs(name: str):
    title, claim, cost = texts(name, "markdown")[:3]
    assert re.match(r"# .+\n\n\S", title) and title.count("\n# ") == 0
    assert claim.startswith("**") or name == "99_verdict"
    assert cost.startswith("| profile |") and "| `quick`" in cost and "`cifar10`" in cost
    kinds = [cell["cell_type"] for cell in BOOKS[name]["cells"]]
    assert kinds[:5] == ["markdown"] * 3 + ["code"] * 2 and texts(name, "code")[1].startswith(("from gkp", "import gkp"))


@by_notebook
def test_a_notebook_ends_with_what_it_says_and_what_it_cannot_say(name: str):
    headings = [text.splitlines()[0] for text in texts(name, "markdown")]
    assert headings[-2:] == ["## What this says", "## What it cannot say"] and len(texts(name, "markdown")[-1]) > 60
    if name != "00_start_here":  # which gives no verdict
        said, open_ = texts(name, "code")[-2:]
        assert "claims.says(verdicts)" in said and "claims.cannot_say(verdicts)" in open_
        assert any("verdicts = claims.verdicts(profile" in text for text in texts(name, "code"))


@by_notebook
def test_a_table_or_figure_that_is_shown_is_saved(name: str):
    for text in texts(name, "code"):
        shown = text.splitlines()[-1]
        if shown.isidentifier() and re.search(rf"^{shown} = (tables|figures|standings)\.", text, re.MULTILINE):
            assert f"{shown}.save(" in text, text


def table(*rows: tuple[str, str, str, str]) -> Table:
    """Verdicts of (board, verdict, statement, ours)."""
    blank = dict.fromkeys(FACTS, "")
    measured = {"reason": "no GPU; later", "n": 10_000, "seeds": 3, "interval": "[0.1, 0.9]"}
    columns = ("board", "verdict", "statement", "ours")
    made = [{**blank, **measured, "id": f"c{i}", **dict(zip(columns, row, strict=True))} for i, row in enumerate(rows)]
    return Table("t", pd.DataFrame(), pd.DataFrame(made))


def test_what_is_said_is_decided_and_what_is_open_says_why():
    found = table(
        ("claims", "undecided", "A is better", "+0.1 points"),
        ("claims", "does not hold", "B is free", "-2.4 points"),
        ("claims", "holds", "C is cheap", "9 times"),
        ("consistency", "inconsistent", "Table 2 agrees with Table 9", "no"),
        ("exactness", "not run", "D comes out", ""),
    )
    assert claims.says(found) == [
        "Exactness: 1 not run.",
        "Claims: 1 holds, 1 does not hold, 1 undecided.",
        "Consistency: 1 inconsistent.",
        "Holds: C is cheap: 9 times; [0.1, 0.9]; n 10,000; 3 seeds.",
        "Does not hold: B is free: -2.4 points; [0.1, 0.9]; n 10,000; 3 seeds.",
    ]
    assert claims.cannot_say(found) == [
        "Undecided: A is better: +0.1 points; [0.1, 0.9]; n 10,000; 3 seeds.",
        "Not run: D comes out: no GPU.",
    ]


def test_digits_say_that_they_decide_nothing_and_a_settled_notebook_that_nothing_is_open():
    assert claims.cannot_say(table(("claims", claims.NO_VERDICT, "A", "1"))) == [
        "Digits decide nothing about the paper: every statement stays open."
    ]
    assert claims.cannot_say(table(("claims", "holds", "A", "1"))) == [
        "No statement of this notebook stays open where it was measured."
    ]
