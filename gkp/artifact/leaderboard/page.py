"""The page: one section per group, each a table that is readable without the script, and a plot."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

from gkp.artifact.leaderboard.assets import SCRIPT, STYLE
from gkp.artifact.leaderboard.chart import robustness_against_macs
from gkp.artifact.leaderboard.ranking import Group, Ranked, interval
from gkp.evaluation.robustbench.schema import best_known

_NONE = "–"  # what an empty cell shows


class Cell(NamedTuple):
    """What a cell is sorted by ("" is last) and its HTML."""

    sort: str
    html: str


class Column(NamedTuple):
    """A column: its key in addresses, its title, what it means, its cells, and how it is sorted at the first click."""

    key: str
    title: str
    meaning: str
    cell: Callable[[Ranked], Cell]
    kind: str = "number"
    first: str = "descending"


def render(groups: Sequence[Group], title: str) -> str:
    """The HTML page."""
    contents = "".join(f'<li><a href="#section-{group.key}">{escape(group.title)}</a></li>' for group in groups)
    meanings = "".join(f"<li><b>{escape(column.title)}</b>: {escape(column.meaning)}</li>" for column in COLUMNS)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>Ranked by the best known robust accuracy, within one data set, threat model and eps. Accuracies in percent, with 95 %
intervals where they are known; a range of ranks is what those intervals leave open.</p>
<nav aria-label="Tables"><ul>{contents}</ul></nav>
<details><summary>What the columns mean</summary><ul>{meanings}</ul></details>
</header>
<main>
{"".join(_section(group) for group in groups)}</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _section(group: Group) -> str:
    heading = f"heading-{group.key}"
    head = "".join(
        f'<th scope="col" class="{column.kind} {column.key}" data-key="{column.key}" data-kind="{column.kind}" '
        f'data-first="{column.first}" aria-sort="{"ascending" if column.key == "rank" else "none"}">{escape(column.title)}</th>'
        for column in COLUMNS
    )
    return f"""<section id="section-{group.key}" aria-labelledby="{heading}">
<h2 id="{heading}">{escape(group.title)}</h2>
<div class="scroll" role="region" tabindex="0" aria-labelledby="{heading}">
<table id="{group.key}" aria-labelledby="{heading}">
<thead><tr>{head}</tr></thead>
<tbody>
{"".join(_row(row) for row in group.rows)}</tbody>
</table>
</div>
{robustness_against_macs(group)}
</section>
"""


def _row(row: Ranked) -> str:
    cells = []
    for column in COLUMNS:
        cell = column.cell(row)
        tag, scope = ("th", ' scope="row"') if column.key == "method" else ("td", "")
        classes = f"{column.kind} {column.key}"
        cells.append(f'<{tag}{scope} class="{classes}" data-sort="{escape(cell.sort)}">{cell.html}</{tag}>')
    return f"<tr>{''.join(cells)}</tr>\n"


def _rank(row: Ranked) -> Cell:
    open_ranks = f"<small>{row.best}–{row.worst}</small>" if row.best < row.worst else ""
    return Cell(str(row.rank), f"{row.rank}{open_ranks}")


def _method(row: Ranked) -> Cell:
    entry = row.entry
    name = escape(entry["name"])
    if entry["link"]:
        name = f'<a href="{escape(entry["link"])}" rel="noopener noreferrer">{name}</a>'
    notes = "".join(f"<small>{escape(entry[key])}</small>" for key in ("authors", "footnote") if entry[key])
    return Cell(entry["name"].casefold(), name + notes)


def _accuracy(key: str) -> Callable[[Ranked], Cell]:
    def cell(row: Ranked) -> Cell:
        value = row.entry.get(key)
        span = (row.entry.get("interval") or {}).get(key)
        around = f"<small>{float(span[0]):.2f}–{float(span[1]):.2f}</small>" if span else ""
        return Cell("", "not run") if value is None else Cell(value, escape(value) + around)

    return cell


def _best_known(row: Ranked) -> Cell:
    value = f"{best_known(row.entry):.2f}"
    return Cell(value, f"<b>{value}</b>")


def _interval(row: Ranked) -> Cell:
    low, high = interval(row.entry)
    return Cell(f"{low:.2f}", f"{low:.2f}–{high:.2f}") if low < high else Cell("", _NONE)


def _flag(key: str) -> Callable[[Ranked], Cell]:
    def cell(row: Ranked) -> Cell:
        value = row.entry.get(key)
        word = "" if value is None else "yes" if value else "no"
        return Cell(word, word or _NONE)

    return cell


def _text(key: str) -> Callable[[Ranked], Cell]:
    return lambda row: Cell(row.entry[key].casefold(), escape(row.entry[key]) or _NONE)


def _count(key: str) -> Callable[[Ranked], Cell]:
    def cell(row: Ranked) -> Cell:
        value = row.entry.get(key)
        return Cell("", _NONE) if value is None else Cell(str(value), _millions(value))

    return cell


def _plain(key: str) -> Callable[[Ranked], Cell]:
    def cell(row: Ranked) -> Cell:
        value = row.entry.get(key)
        return Cell("", _NONE) if value is None else Cell(str(value), f"{value:,}" if key == "n" else str(value))

    return cell


def _millions(value: int) -> str:
    return f"{value / 1e6:,.3g} M" if value < 1e9 else f"{value / 1e9:,.3g} G"


def _latency(row: Ranked) -> Cell:
    measured: dict[str, Any] | None = row.entry.get("latency")
    if measured is None:
        return Cell("", _NONE)
    threads, batch = measured.get("threads"), measured.get("batch_size")
    how = f"batch {batch}, {threads} thread{'' if threads == 1 else 's'}" if threads and batch else ""
    return Cell(
        repr(measured["seconds"]), f"{1000 * measured['seconds']:.3g} ms" + (f"<small>{escape(how)}</small>" if how else "")
    )


_UP: dict[str, Any] = {"first": "ascending"}
_WORD: dict[str, Any] = {"kind": "text", "first": "ascending"}
COLUMNS = (
    Column("rank", "Rank", "by best known robust accuracy; below it the ranks that the intervals leave open", _rank, **_UP),
    Column("method", "Method", "name, authors, and how it was evaluated", _method, **_WORD),
    Column("standard", "Standard acc.", "accuracy without attack", _accuracy("clean_acc")),
    Column("autoattack", "AA robust acc.", "accuracy under standard AutoAttack", _accuracy("autoattack_acc")),
    Column("best", "Best known", "the lowest robust accuracy known; of several attacks, per image the worst", _best_known),
    Column("interval", "95 % interval", "of the best known robust accuracy (Wilson), for n images", _interval),
    Column("unreliable", "AA unreliable", "whether AutoAttack overestimates this network", _flag("unreliable"), kind="text"),
    Column("data", "Extra data", "whether it was trained on more than the data set", _flag("additional_data"), kind="text"),
    Column("architecture", "Architecture", "of the network", _text("architecture"), **_WORD),
    Column("venue", "Venue", "where it was published", _text("venue"), **_WORD),
    Column("parameters", "Parameters", "trainable numbers of the network as it is shipped", _count("parameters"), **_UP),
    Column("macs", "MACs", "multiply-accumulates for one image", _count("macs"), **_UP),
    Column("latency", "Latency", "measured on the machine of the entry: compare within one machine only", _latency, **_UP),
    Column("n", "n", "images evaluated", _plain("n")),
    Column("seed", "Seed", "of the attacks", _plain("seed"), **_UP),
)
