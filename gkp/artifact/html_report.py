"""`gkp html`: all executed notebooks as one folder of HTML that needs nothing else, with an index.

Figures are inside the files; nothing is loaded from anywhere (nbconvert's own template asks three CDNs for scripts), so the
report can be read without a network and attached to a review. Formulas are shown as they are typed.

Cost: two seconds, and one a notebook.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from gkp.artifact.executed import read_notebook, sources, was_executed
from gkp.artifact.verify import VERDICTS, root_of
from gkp.errors import BadInput

# What would be loaded from elsewhere is left out; figures and tables need no script.
TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>gkp: {profile}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: left; }}
</style>
</head>
<body>
<h1>gkp, the reproducible artifact of SR-GKP</h1>
<p>{lead}</p>
<table>
<tr><th>notebook</th><th>what it shows</th></tr>
{rows}
</table>
{verdicts}
</body>
</html>
"""


@dataclass(frozen=True)
class Report:
    """The pages written: the index, and one a notebook."""

    index: Path
    pages: tuple[Path, ...]


def html_report(profile: str = "quick", *, out: Path | None = None, root: Path | None = None) -> Report:
    """The report of the notebooks executed for `profile` in build/, or where there are none, of the committed ones.

    out: the folder to write (default: build/html); it is replaced. Raises BadInput when there is no executed notebook.
    """
    import nbformat  # seconds of importing
    from nbconvert import HTMLExporter

    from gkp.artifact.profiles import check_profile

    check_profile(profile)
    root = root_of(root)
    out = out or root / "build" / "html"
    files, lead = _executed(root, profile)
    exporter = HTMLExporter(embed_images=True, raw_template=TEMPLATE)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for file in files:
            body, _ = exporter.from_notebook_node(
                nbformat.read(file, as_version=4), resources={"metadata": {"name": _title(file)}}
            )
            (partial / f"{file.stem}.html").write_text(body, encoding="utf-8")
        index = _index(files, profile, lead, root / "data" / VERDICTS)
        (partial / "index.html").write_text(index, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except OSError as error:
        raise BadInput(f"cannot write to {out} ({error.strerror}); choose another folder with --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Report(out / "index.html", tuple(out / f"{file.stem}.html" for file in files))


def _executed(root: Path, profile: str) -> tuple[list[Path], str]:
    """The executed notebooks to show, and a sentence on what they are."""
    built = [file for file in sorted((root / "build" / profile).glob("[0-9]*.ipynb")) if file.stem.count(".") == 0]
    if built:
        return built, f"Executed here for the profile {profile}: <code>make reproduce PROFILE={escape(profile)}</code>."
    committed = [file for file in sorted((root / "notebooks").glob("[0-9]*.ipynb")) if was_executed(read_notebook(file))]
    if not committed:
        raise BadInput(f"no notebook was executed for {profile}; run `make reproduce PROFILE={profile}` first")
    return committed, "The committed copies: rendered from the cells measured on CIFAR-10, in data/results."


def _title(file: Path) -> str:
    """The first heading of the notebook."""
    return sources(read_notebook(file))[0][1].splitlines()[0].lstrip("# ")


def _index(files: Sequence[Path], profile: str, lead: str, verdicts: Path) -> str:
    rows = "\n".join(
        f'<tr><td><a href="{file.stem}.html">{file.stem}</a></td><td>{escape(_title(file))}</td></tr>' for file in files
    )
    table = ""
    if verdicts.exists():
        import pandas as pd

        shown = pd.read_csv(verdicts, keep_default_na=False, dtype=str).to_html(index=False, escape=True, border=0)
        table = f"<h2>Verdicts, from the committed CIFAR-10 cells</h2>\n{shown}"
    return PAGE.format(profile=escape(profile), lead=lead, rows=rows, verdicts=table)
