"""`gkp html`: all executed notebooks as one folder of HTML that needs nothing else, with a first page.

The first page has the headlines, the main claims, and every claim with its evidence, to be searched, filtered and sorted.
Figures are inside the files and nothing is loaded from anywhere, so the report can be read without a network and attached to
a review. Formulas are shown as they are typed. Cost: two seconds, and one a notebook.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from gkp.artifact import claims
from gkp.artifact.executed import read_notebook, sources, was_executed
from gkp.artifact.page import render
from gkp.artifact.profiles import check_profile
from gkp.artifact.readme import FIGURE, caption
from gkp.artifact.verify import VERDICTS, root_of
from gkp.errors import BadInput

# The template of JupyterLab without what it loads from elsewhere: figures and tables need no script.
_LEFT_OUT = ("html_head_js", "jupyter_widgets", "html_head_js_mathjax", "html_head_js_mermaidjs")
COLUMNS = (  # of the table of all claims: column of verdicts.csv, heading, kind
    *(("statement", "claim", "text"), ("board", "board", "text"), ("item", "in the paper", "text")),
    *(("reported", "reported", "text"), ("ours", "ours", "text"), ("interval", "95 % interval", "text")),
    *(("n", "n", "number"), ("seeds", "seeds", "number"), ("setting", "setting", "text"), ("verdict", "verdict", "text")),
    ("minutes", "minutes", "number"),
)
_TEMPLATE = "{%- extends 'lab/index.html.j2' -%}" + "".join(f"{{% block {name} %}}{{% endblock %}}" for name in _LEFT_OUT)


@dataclass(frozen=True)
class Report:
    """The pages written: the index, and one a notebook."""

    index: Path
    pages: tuple[Path, ...]


def html_report(profile: str = "quick", *, out: Path | None = None, root: Path | None = None) -> Report:
    """Write the notebooks executed for `profile` in build/, or where there are none, the committed ones.

    Args:
        profile: whose notebooks.
        out: the folder to write, build/html by default; it is replaced.
        root: the checkout; by default the one this package runs from.

    Raises:
        BadInput: when there is no executed notebook, or the folder cannot be written.
    """
    import nbformat  # seconds of importing
    from nbconvert import HTMLExporter

    check_profile(profile)
    root = root_of(root)
    files, lead = _executed(root, profile)
    titles = {file: sources(read_notebook(file))[0][1].splitlines()[0].lstrip("# ") for file in files}
    pages = {file.stem: (titles[file], nbformat.read(file, as_version=4)) for file in files}
    index = _index(root, lead, [(file.stem, title) for file, title in titles.items()])
    exporter = HTMLExporter(embed_images=True, raw_template=_TEMPLATE)
    out = out or root / "build" / "html"
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        (partial / "index.html").write_text(index, encoding="utf-8")
        for name, (title, book) in pages.items():
            body, _ = exporter.from_notebook_node(book, resources={"metadata": {"name": title}})
            (partial / f"{name}.html").write_text(body, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except OSError as error:
        raise BadInput(f"cannot write to {out} ({error.strerror}); choose another folder with --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Report(out / "index.html", tuple(out / f"{name}.html" for name in pages))


def _index(root: Path, lead: str, notebooks: Sequence[tuple[str, str]]) -> str:
    """Return the first page; the verdicts are those of the committed CIFAR-10 cells, whatever the notebooks show."""
    found: dict[str, Any] = {"headlines": [], "main": [], "claims": [], "choices": {}, "figure": ""}
    if (file := root / "data" / VERDICTS).exists():
        points = pd.read_csv(file)
        found |= {
            "headlines": claims.headlines(points),
            "main": [_claim(row) for row in claims.main_rows(points)],
            "claims": [_claim(row) for row in claims.rows_of(points)],
            "choices": {name: sorted(set(points[name])) for name in ("board", "verdict")},
        }
    if (drawn := root / FIGURE).exists():
        found["figure"] = "data:image/png;base64," + base64.b64encode(drawn.read_bytes()).decode()
    found |= dict(zip(("question", "answer"), caption(root), strict=True))
    title = "SR-GKP: one less reason for filter pruning? The reproducible artifact"
    return render("report.html.j2", title=title, lead=lead, notebooks=notebooks, columns=COLUMNS, **found)


def _claim(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of verdicts.csv with what the page shows of it."""
    given = {name: "" if pd.isna(value) else value for name, value in row.items()}
    numbers = {"n": f"{int(given['n'] or 0):,}", "seeds": f"{int(given['seeds'] or 0)}", "minutes": f"{given['minutes']:,.0f}"}
    found = claims.in_full(row)
    notebook = next(word.removeprefix("ONLY=") for word in str(given["command"]).split() if word.startswith("ONLY="))
    shown = {**given, **numbers, "ours": given["ours"] or found}
    return {**given, "found": found, "notebook": notebook, "shown": shown}


def _executed(root: Path, profile: str) -> tuple[list[Path], str]:
    """Return the executed notebooks to show, and a sentence on what they are."""
    built = [file for file in sorted((root / "build" / profile).glob("[0-9]*.ipynb")) if file.stem.count(".") == 0]
    if built:
        return built, f"Executed here for the profile {escape(profile)}: `make reproduce PROFILE={escape(profile)}`."
    committed = [file for file in sorted((root / "notebooks").glob("[0-9]*.ipynb")) if was_executed(read_notebook(file))]
    if not committed:
        raise BadInput(f"no notebook was executed for {profile}; run `make reproduce PROFILE={profile}` first")
    return committed, "The committed copies: rendered from the cells measured on CIFAR-10, in data/results."
