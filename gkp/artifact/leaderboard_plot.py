"""The plot of a leaderboard, robust accuracy of each entry, as SVG inside the page.

Entries that state what their method removes are listed by that: under one budget all have about the same MACs, so a plot
against MACs would be a vertical line. Other entries are plotted against MACs. Cost: a fraction of a second.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib
from markupsafe import Markup, escape

from gkp.artifact.figures.figure import PALETTE, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gkp.artifact.leaderboard import Group, Ranked

_INK = "#010203"  # a placeholder for the text colour of the page
_COLOURS = [PALETTE[i] for i in (0, 1, 2, 3, 9, 4)]  # from the colour-blind palette, visible on white and on black
_MARKERS = "osD^vP"
_LABEL = "best known robust accuracy (%)"


def is_by_kind(group: Group) -> bool:
    """Whether every entry states what its method removes."""
    return all(row.entry.get("removes") for row in group.rows)


def plot(group: Group) -> Markup:
    """Draw robust accuracy by what is removed, or else against MACs, as SVG to be placed inside a page.

    Text stays text and takes the colour of the page, light or dark; markers distinguish groups as well as colours do.
    """
    by_kind = is_by_kind(group)
    title = f"Robust accuracy {'by what is removed' if by_kind else 'against MACs'}: {group.title}"
    rows = group.rows if by_kind else group.drawn
    costs = ["" if by_kind else f" at {row.entry['macs'] / 1e6:.4g} M" for row in rows]
    told = zip(rows, costs, strict=True)
    lines = "; ".join(f"rank {row.rank}: {row.entry['name']}, {row.accuracy:.2f} %{cost}" for row, cost in told)
    svg, key = _as_svg(_by_kind if by_kind else _against_macs, rows), group.key
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{key}-", svg).replace(_INK, "currentColor")
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    names = f'role="img" aria-labelledby="{key}-title" aria-describedby="{key}-description"'
    text = f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-description">{escape(lines)}</desc>'
    return Markup(f"{head} {names}>{text}{rest}".strip())


def _as_svg(draw: Callable[[Sequence[Ranked]], Figure], rows: Sequence[Ranked]) -> str:
    """The SVG of a drawing as matplotlib writes it."""
    colours: Any = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "gkp", "font.family": "sans-serif", "font.size": 11}
    with matplotlib.rc_context({**style, "text.parse_math": False, **dict.fromkeys(colours, _INK)}):
        buffer = io.StringIO()
        draw(rows).savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _by_kind(rows: Sequence[Ranked]) -> Figure:
    """A line for each entry, grouped by what is removed, the group with the most robust entry first."""
    drawing, (ax,) = panels(1, 1, 7.5, 0.27 * len(rows) + 1.1)
    kinds = _members(rows, "removes")
    heights = {id(row): -at for at, row in enumerate(row for members in kinds.values() for row in members)}
    for look, (kind, members) in zip(_looks(), kinds.items(), strict=False):
        below, above = _bars(members)
        heights_of = [heights[id(row)] for row in members]
        ax.errorbar([row.accuracy for row in members], heights_of, xerr=[below, above], label=f"removes {kind}", **look)
    ax.set_yticks([*heights.values()], [f" {row.entry['name']}" for members in kinds.values() for row in members])
    ax.set(xlabel=_LABEL, ylim=(-len(rows) + 0.4, 0.6))
    _finish(ax)
    return drawing


def _against_macs(rows: Sequence[Ranked]) -> Figure:
    """A point for each entry, labelled with its rank."""
    drawing, (ax,) = panels(1, 1, 7.5, 4.2)
    for look, (name, members) in zip(_looks(), _members(rows, "architecture").items(), strict=False):
        label = f" {name}" if name.startswith("_") else name  # otherwise matplotlib leaves it out of the legend
        macs = [row.entry["macs"] / 1e6 for row in members]
        ax.errorbar(macs, [row.accuracy for row in members], yerr=_bars(members), label=label, **look)
        for row, value in zip(members, macs, strict=True):
            ax.annotate(str(row.rank), (value, row.accuracy), xytext=(7, 3), textcoords="offset points")
    ax.set(xlabel="MACs (millions)", ylabel=_LABEL)
    ax.set_xlim(left=0)
    ax.margins(x=0.08, y=0.1)
    ax.set_ylim(max(ax.get_ylim()[0], -2), min(ax.get_ylim()[1], 102))
    _finish(ax)
    return drawing


def _members(rows: Sequence[Ranked], key: str) -> dict[str, list[Ranked]]:
    """Value of a key -> entries, in their order."""
    found: dict[str, list[Ranked]] = {}
    for row in rows:
        found.setdefault(row.entry[key] or "unnamed", []).append(row)
    return found


def _bars(rows: Sequence[Ranked]) -> list[list[float]]:
    """Lengths of the intervals below and above."""
    return [[max(0.0, row.accuracy - row.low) for row in rows], [max(0.0, row.high - row.accuracy) for row in rows]]


def _looks() -> Iterator[dict[str, Any]]:
    for colour, marker in zip(cycle(_COLOURS), cycle(_MARKERS), strict=False):
        yield {"fmt": marker, "color": colour, "capsize": 3, "markersize": 7}


def _finish(ax: Axes) -> None:
    ax.grid(alpha=0.15, color=_INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
