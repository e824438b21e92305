"""`gkp html`: the report, a folder of self-contained HTML: an index page and the executed notebooks.

The index has the headlines, the main claims, and a table of every claim with its evidence that can be searched, filtered and
sorted. Figures are embedded and nothing is loaded, so the report can be read offline and attached to a review. Formulas are
shown as source text. Cost: two seconds, and one second for each notebook.
"""

from __future__ import annotations

import base64
import shutil
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from gkp.artifact import claims
from gkp.artifact.executed import read_notebook, sources, was_executed
from gkp.artifact.page import render
from gkp.artifact.profiles import COMMITTED, check_profile
from gkp.artifact.readme import FIGURE, caption
from gkp.artifact.verify import VERDICTS, root_of
from gkp.errors import BadInput

COLUMNS = (  # the table of all claims: column of verdicts.csv, heading, kind
    *(("statement", "claim", "text"), ("verdict", "verdict", "text"), ("board", "board", "text")),
    *(("item", "in the paper", "text"), ("reported", "reported", "text"), ("ours", "ours", "text")),
    *(("interval", "95 % interval", "text"), ("n", "n", "number"), ("seeds", "seeds", "number")),
    *(("setting", "setting", "text"), ("minutes", "minutes", "number")),
)
QUESTIONS = {
    "exactness": "Does what was published come out of this code?",
    "claims": "Is the statement true where it was measured?",
    "consistency": "Do the paper's own numbers agree with each other?",
}
TONES = {  # verdict -> class of its colours; the page has the words too
    **dict.fromkeys(("reproduced", "holds", "consistent"), "yes"),
    **dict.fromkeys(("not reproduced", "does not hold", "inconsistent"), "no"),
    **{"no difference": "even", "undecided": "open", claims.NOT_RUN: "not", claims.NO_VERDICT: "not"},
}
BOARD = "leaderboard.html"  # what notebook 08 saves, shown beside the notebooks


@dataclass(frozen=True)
class Report:
    """The pages of a report.

    Attributes:
        index: The index page.
        pages: The page of each notebook.
    """

    index: Path
    pages: tuple[Path, ...]


def html_report(profile: str = COMMITTED, *, out: Path | None = None, root: Path | None = None) -> Report:
    """Write the report with the notebooks executed in build/, or with the committed ones where there are none.

    Args:
        profile: The profile of the notebooks.
        out: The folder to write: a new or empty one, or a report, which is replaced; None for build/report.
        root: The checkout; None for that of this package.

    Raises:
        BadInput: There is no executed notebook, or the folder cannot be written or has other files in it.
    """
    import nbformat  # takes seconds to import
    from nbconvert import HTMLExporter

    check_profile(profile)
    root = root_of(root)
    files, lead = _executed(root, profile)
    titles = {file.stem: sources(read_notebook(file))[0][1].splitlines()[0].lstrip("# ") for file in files}
    pages = {file.stem: nbformat.read(file, as_version=4) for file in files}
    board = next((file.parent / BOARD for file in files if (file.parent / BOARD).is_file()), None)
    index = _index(root, lead, titles, board)
    exporter = HTMLExporter(
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        raw_template=(Path(__file__).parent / "notebook.html.j2").read_text(encoding="utf-8"),
    )
    out = (out or root / "build" / "report").resolve()
    if out.is_dir() and any(out.iterdir()) and not (out / "index.html").is_file():
        raise BadInput(f"{out} has files in it and is not a report, and it would be replaced; choose another folder with --out")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        (partial / "index.html").write_text(index, encoding="utf-8")
        if board:
            shutil.copy(board, partial)
        for name, book in pages.items():
            body, _ = exporter.from_notebook_node(book, resources={"metadata": {"name": titles[name]}})
            body = body.replace("<th></th>", "<td></td>")  # the corner of a table is no header
            (partial / f"{name}.html").write_text(body, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except OSError as error:
        raise BadInput(f"cannot write to {out} ({error.strerror}); choose another folder with --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Report(out / "index.html", tuple(out / f"{name}.html" for name in pages))


def _index(root: Path, lead: str, notebooks: Mapping[str, str], board: Path | None) -> str:
    """The index page; its verdicts are those of the committed CIFAR-10 cells, whatever the notebooks show."""
    found: dict[str, Any] = {"boards": [], "main": [], "claims": [], "choices": {}, "figure": ""}
    if (file := root / "data" / VERDICTS).exists():
        points = pd.read_csv(file)
        found |= {
            "boards": _boards(points),
            "main": [_claim(row, notebooks) for row in claims.main_rows(points)],
            "claims": [_claim(row, notebooks) for row in claims.rows_of(points)],
            "choices": {name: sorted(set(points[name])) for name in ("board", "verdict")},
        }
    if (drawn := root / FIGURE).exists():
        found["figure"] = "data:image/png;base64," + base64.b64encode(drawn.read_bytes()).decode()
    found |= dict(zip(("question", "answer"), caption(root), strict=True))
    found |= {"lead": lead, "notebooks": notebooks.items(), "columns": COLUMNS, "tones": TONES, "board": board and BOARD}
    return render("report.html.j2", title="SR-GKP: one less reason for filter pruning?", **found)


def _boards(points: pd.DataFrame) -> list[dict[str, Any]]:
    """Each board with its question, its headline, and the number of claims with each verdict."""
    given = {name: Counter(rows) for name, rows in points.groupby("board")["verdict"]}
    there = [name for name in claims.BOARDS if name in given]
    return [
        {
            "name": name,
            "question": QUESTIONS[name],
            "headline": headline,
            "counts": [(one, given[name][one]) for one in TONES if given[name][one]],
        }
        for name, headline in zip(there, claims.headlines(points), strict=True)
    ]


def _claim(row: Mapping[str, Any], pages: Container[str]) -> dict[str, Any]:
    """A row of verdicts.csv with the text that the page shows; pages: the notebooks that can be linked to."""
    given = {name: "" if pd.isna(value) else value for name, value in row.items()}
    numbers = {"n": f"{int(given['n'] or 0):,}", "seeds": f"{int(given['seeds'] or 0)}", "minutes": f"{given['minutes']:,.0f}"}
    found = claims.in_full(row)
    notebook = next(word.removeprefix("ONLY=") for word in str(given["command"]).split() if word.startswith("ONLY="))
    shown = {**given, **numbers, "ours": given["ours"] or found}
    return {**given, "found": found, "notebook": notebook, "page_there": notebook in pages, "shown": shown}


def _executed(root: Path, profile: str) -> tuple[list[Path], str]:
    """The executed notebooks to show, and a sentence on their origin."""
    built = [file for file in sorted((root / "build" / profile).glob("[0-9]*.ipynb")) if file.stem.count(".") == 0]
    if built:
        return built, f"Executed here, from the cells of the profile {escape(profile)}."
    committed = [file for file in sorted((root / "notebooks").glob("[0-9]*.ipynb")) if was_executed(read_notebook(file))]
    if not committed:
        raise BadInput(f"no notebook was executed for {profile}; run `make reproduce PROFILE={profile}` first")
    return committed, "The committed copies: rendered from the cells measured on CIFAR-10, in data/results."
