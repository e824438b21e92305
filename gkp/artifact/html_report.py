"""`gkp html`: all executed notebooks as one folder of HTML that needs nothing else, with an index.

Figures are inside the files and nothing is loaded from anywhere, so the report can be read without a network and attached to
a review. Formulas are shown as they are typed. Cost: two seconds, and one a notebook.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from gkp.artifact.executed import read_notebook, sources, was_executed
from gkp.artifact.profiles import check_profile
from gkp.artifact.verify import VERDICTS, root_of
from gkp.errors import BadInput

# The template of JupyterLab without what it loads from elsewhere: figures and tables need no script.
_LEFT_OUT = ("html_head_js", "jupyter_widgets", "html_head_js_mathjax", "html_head_js_mermaidjs")
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
    rows = "\n".join(f"| [{file.stem}]({file.stem}.html) | {title} |" for file, title in titles.items())
    index = f"# gkp, the reproducible artifact of SR-GKP\n\n{lead}\n\n| notebook | what it shows |\n|---|---|\n{rows}\n"
    if (verdicts := root / "data" / VERDICTS).exists():
        table = pd.read_csv(verdicts, keep_default_na=False, dtype=str).to_html(index=False, border=0)
        index += f"\n## Verdicts, from the committed CIFAR-10 cells\n\n{table}\n"
    pages = {file.stem: (titles[file], nbformat.read(file, as_version=4)) for file in files}
    first = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(index)])
    exporter = HTMLExporter(embed_images=True, raw_template=_TEMPLATE)
    out = out or root / "build" / "html"
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, (title, book) in {**pages, "index": (f"gkp: {profile}", first)}.items():
            body, _ = exporter.from_notebook_node(book, resources={"metadata": {"name": title}})
            (partial / f"{name}.html").write_text(body, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except OSError as error:
        raise BadInput(f"cannot write to {out} ({error.strerror}); choose another folder with --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Report(out / "index.html", tuple(out / f"{name}.html" for name in pages))


def _executed(root: Path, profile: str) -> tuple[list[Path], str]:
    """Return the executed notebooks to show, and a sentence on what they are."""
    built = [file for file in sorted((root / "build" / profile).glob("[0-9]*.ipynb")) if file.stem.count(".") == 0]
    if built:
        return built, f"Executed here for the profile {escape(profile)}: `make reproduce PROFILE={escape(profile)}`."
    committed = [file for file in sorted((root / "notebooks").glob("[0-9]*.ipynb")) if was_executed(read_notebook(file))]
    if not committed:
        raise BadInput(f"no notebook was executed for {profile}; run `make reproduce PROFILE={profile}` first")
    return committed, "The committed copies: rendered from the cells measured on CIFAR-10, in data/results."
