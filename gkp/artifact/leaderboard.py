"""RobustBench entries as one self-contained, sortable HTML page, with RobustBench's columns and the cost of each network.

There is a table and a plot for each data set, threat model and eps; accuracies at different eps are never ranked together. As
on RobustBench, entries are ranked by the best known robust accuracy; the range of ranks that the 95 % intervals allow is given
too. The template is leaderboard.html.j2; `standings` makes entries of finished experiments. Cost: a second, and a fraction of a
second for each table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gkp.artifact.leaderboard_plot import is_by_kind, plot
from gkp.artifact.page import render
from gkp.attacks.options import parse_eps
from gkp.errors import BadInput
from gkp.evaluation.robustbench.adapter import THREAT_MODELS
from gkp.evaluation.robustbench.schema import best_known, check_entry
from gkp.files import replace_file


@dataclass(frozen=True)
class Ranked:
    """An entry with its rank.

    Attributes:
        entry: The checked entry.
        accuracy: Its best known robust accuracy, in percent.
        low, high: The ends of its interval, in percent; both equal the accuracy where the entry has no interval.
        rank: From 1.
        best, worst: The best and worst rank that is possible given the intervals.
    """

    entry: Mapping[str, Any]
    accuracy: float
    low: float
    high: float
    rank: int = 0
    best: int = 0
    worst: int = 0


@dataclass(frozen=True)
class Group:
    """The ranked entries of one data set, threat model and radius.

    Attributes:
        dataset: The data set.
        threat_model: "Linf" or "L2".
        eps: The radius, as text.
        rows: The entries, the most robust first.
    """

    dataset: str
    threat_model: str
    eps: str
    rows: tuple[Ranked, ...]

    @property
    def key(self) -> str:
        """Its identifier in the page: "cifar10-Linf-8-255"."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.dataset}-{self.threat_model}-{self.eps}").strip("-")

    @property
    def title(self) -> str:
        """Its heading: "cifar10, Linf, eps = 8/255"."""
        return f"{self.dataset}, {self.threat_model}, eps = {self.eps}"

    @property
    def drawn(self) -> list[Ranked]:
        """The entries with MACs, which can be plotted against them."""
        return [row for row in self.rows if row.entry.get("macs")]


def leaderboard(
    entries: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "Robustness leaderboard", note: str = ""
) -> Path:
    """Write one HTML page that loads no other file; the same entries give the same bytes.

    Args:
        entries: As returned by `gkp.evaluation.robustbench.entry.entry` or `load_entries`.
        path: The HTML file.
        title: The heading of the page.
        note: A remark on all entries, below the heading.

    Returns:
        The path.

    Raises:
        BadInput: There are no entries, an entry does not fit the schema, or the file cannot be written; an old file is kept.
    """
    if not entries:
        raise BadInput("there are no entries to rank; make some with gkp.evaluation.robustbench.entry.entry and save_entry")
    sound = [check_entry(one, f"entry {number} ({one.get('name')!r})") for number, one in enumerate(entries, start=1)]
    columns = [column for column in COLUMNS if column.key != "removes" or any(one.get("removes") for one in sound)]
    values = {
        "title": title,
        "note": note,
        "groups": grouped(sound),
        "columns": columns,
        "plot": plot,
        "is_by_kind": is_by_kind,
    }
    return replace_file(Path(path), render("leaderboard.html.j2", **values))


def grouped(entries: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The entries as one ranked group for each data set, threat model and eps, in that order."""
    groups: dict[tuple[str, bool, float], list[Mapping[str, Any]]] = {}
    for one in entries:
        radius = round(parse_eps(one["eps"], norm=THREAT_MODELS[one["threat_model"]]), 9)
        groups.setdefault((one["dataset"], one["threat_model"] != "Linf", radius), []).append(one)
    members = (groups[key] for key in sorted(groups))
    return [Group(group[0]["dataset"], group[0]["threat_model"], group[0]["eps"], ranked(group)) for group in members]


def ranked(entries: Sequence[Mapping[str, Any]]) -> tuple[Ranked, ...]:
    """Rank entries of one group by their best known robust accuracy, the most robust first.

    Equal accuracies share a rank and are sorted by name. An entry is significantly better than another one if its interval lies
    above the other's.
    """
    found: list[Ranked] = []
    for ours in entries:
        accuracy = best_known(ours)
        assert accuracy is not None  # ensured by check_entry
        low, high = (ours.get("interval") or {}).get("best_known", (accuracy, accuracy))
        found.append(Ranked(ours, accuracy, float(low), float(high)))
    rows = [
        replace(
            one,
            rank=1 + sum(other.accuracy > one.accuracy for other in found),
            best=1 + sum(other.low > one.high for other in found),
            worst=len(found) - sum(other.high < one.low for other in found),
        )
        for one in found
    ]
    return tuple(sorted(rows, key=lambda row: (row.rank, row.entry["name"])))


# --- columns --------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A cell of the page.

    Attributes:
        sort: The value that it is sorted by; "" comes last.
        text: Its text; "" is shown as a dash.
        notes: Lines of small print.
        link: The address that the text links to.
        fold: Text that is collapsed.
    """

    sort: str = ""
    text: str = ""
    notes: Sequence[str] = ()
    link: str = ""
    fold: str = ""


class Column(NamedTuple):
    """A column of the page.

    Attributes:
        key: Its identifier in the page.
        title: Its heading.
        meaning: An explanation of the heading.
        cell: Makes the cell of an entry.
        kind: "number" or "text": how it is sorted.
        first: The order after the first click, "ascending" or "descending".
    """

    key: str
    title: str
    meaning: str
    cell: Callable[[Ranked], Cell]
    kind: str = "number"
    first: str = "descending"


def _method(row: Ranked) -> Cell:
    entry = row.entry
    return Cell(entry["name"].casefold(), entry["name"], (entry["authors"],), entry["link"], entry["footnote"])


def _rank(row: Ranked) -> Cell:
    return Cell(str(row.rank), str(row.rank), (f"{row.best}–{row.worst}",) if row.best < row.worst else ())


def _accuracy(key: str) -> Callable[[Ranked], Cell]:
    def cell(row: Ranked) -> Cell:
        value, span = row.entry.get(key), (row.entry.get("interval") or {}).get(key)
        if value is None:
            return Cell("", "not run")
        return Cell(value, value, (f"{float(span[0]):.2f}–{float(span[1]):.2f}",) if span else ())

    return cell


def _interval(row: Ranked) -> Cell:
    return Cell(f"{row.low:.2f}", f"{row.low:.2f}–{row.high:.2f}") if row.low < row.high else Cell()


def _value(key: str, show: Callable[[Any], str] = str, sort: Callable[[Any], str] = str) -> Callable[[Ranked], Cell]:
    def cell(row: Ranked) -> Cell:
        value = row.entry.get(key)
        return Cell() if value is None else Cell(sort(value), show(value))

    return cell


def _millions(value: int) -> str:
    return f"{value / 1e6:,.3g} M" if value < 1e9 else f"{value / 1e9:,.3g} G"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _latency(row: Ranked) -> Cell:
    measured: Mapping[str, Any] = row.entry.get("latency") or {}
    if not measured:
        return Cell()
    threads, batch = measured.get("threads"), measured.get("batch_size")
    how = f"batch {batch}, {threads} thread{'' if threads == 1 else 's'}" if threads and batch else ""
    took = f"{1000 * measured['seconds']:.3g} ms"
    if "relative" not in measured:
        return Cell(repr(measured["seconds"]), took, (how,))
    return Cell(repr(measured["relative"]), f"{measured['relative']:.2f} x dense", (took, how))


_UP: dict[str, Any] = {"first": "ascending"}
_WORD: dict[str, Any] = {"kind": "text", "first": "ascending"}
_architecture, _venue = (_value(key, sort=str.casefold) for key in ("architecture", "venue"))
_unreliable, _extra_data = (_value(key, _yes, _yes) for key in ("unreliable", "additional_data"))
COLUMNS = (
    Column("rank", "Rank", "by best known robust accuracy; below it the ranks that the intervals leave open", _rank, **_UP),
    Column("method", "Method", "name, authors, and how it was evaluated", _method, **_WORD),
    Column("removes", "Removes", "what the method takes out of the network", _value("removes", sort=str.casefold), **_WORD),
    Column("standard", "Standard acc.", "accuracy without attack", _accuracy("clean_acc")),
    Column("autoattack", "AA robust acc.", "accuracy under standard AutoAttack", _accuracy("autoattack_acc")),
    Column(
        "best",
        "Best known",
        "the lowest robust accuracy known; of several attacks, per image the worst",
        lambda row: Cell(f"{row.accuracy:.2f}", f"{row.accuracy:.2f}"),
    ),
    Column("interval", "95 % interval", "of the best known robust accuracy (Wilson), for n images", _interval),
    Column("parameters", "Parameters", "trainable numbers of the network as shipped", _value("parameters", _millions), **_UP),
    Column("macs", "MACs", "multiply-accumulates for one image", _value("macs", _millions), **_UP),
    Column(
        "latency",
        "Latency",
        "measured on the machine of the entry, in turn with the dense network where it says so",
        _latency,
        **_UP,
    ),
    Column("n", "n", "images evaluated", _value("n", "{:,}".format)),
    Column("unreliable", "AA unreliable", "whether AutoAttack overestimates this network", _unreliable, kind="text"),
    Column("data", "Extra data", "whether it was trained on more than the data set", _extra_data, kind="text"),
    Column("architecture", "Architecture", "of the network", _architecture, **_WORD),
    Column("venue", "Venue", "where it was published", _venue, **_WORD),
    Column("seed", "Seed", "of the attacks", _value("seed"), **_UP),
)
