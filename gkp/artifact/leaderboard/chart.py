"""The plot of a group, robust accuracy against MACs, as SVG that stands inside a page.

Text stays text; ink is the page's own, so it follows light and dark; markers tell architectures apart as well as colours do.
"""

from __future__ import annotations

import io
import re
from html import escape
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from gkp.artifact.figures.figure import PALETTE, panels
from gkp.artifact.leaderboard.ranking import Group, Ranked, interval
from gkp.evaluation.robustbench.schema import best_known

_INK = "#010203"  # stands for the page's colour of text while matplotlib draws
_COLOURS = [PALETTE[i] for i in (0, 1, 2, 3, 9, 4)]  # of the colour-blind palette, those that show on white and on black
_MARKERS = "osD^vP"


def robustness_against_macs(group: Group) -> str:
    """A <figure> for the group, or a sentence where no entry has MACs."""
    drawn = [row for row in group.rows if row.entry.get("macs")]
    if not drawn:
        return "<p>No entry here says how many MACs it needs: nothing to plot.</p>"
    missing = len(group.rows) - len(drawn)
    left_out = f" {missing} without MACs left out." if missing else ""
    caption = f"Best known robust accuracy against MACs; numbers are ranks, bars 95 % intervals.{left_out}"
    lines = "; ".join(
        f"rank {row.rank}: {row.entry['name']}, {best_known(row.entry):.2f} % at {row.entry['macs'] / 1e6:.4g} M"
        for row in drawn
    )
    title = f"Robust accuracy against MACs: {group.title}"
    return f"<figure>\n{_inline(_draw(drawn), group.key, title, lines)}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def _draw(rows: list[Ranked]) -> str:
    """The SVG as matplotlib writes it."""
    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "gkp", "font.family": "sans-serif", "font.size": 11, "text.parse_math": False,
        "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        drawing, (ax,) = panels(1, 1, 7.5, 4.2)
        architectures = dict.fromkeys(row.entry["architecture"] or "unnamed" for row in rows)
        looks = zip(architectures, cycle(_COLOURS), cycle(_MARKERS), strict=False)
        for architecture, colour, marker in looks:
            members = [row for row in rows if (row.entry["architecture"] or "unnamed") == architecture]
            _points(ax, members, architecture, colour, marker)
        ax.set(xlabel="MACs (millions)", ylabel="best known robust accuracy (%)")
        ax.set_xlim(left=0)
        ax.margins(x=0.08, y=0.1)
        ax.set_ylim(max(ax.get_ylim()[0], -2), min(ax.get_ylim()[1], 102))
        ax.grid(alpha=0.15, color=_INK)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _points(ax: Axes, rows: list[Ranked], label: str, colour: object, marker: str) -> None:
    macs = [row.entry["macs"] / 1e6 for row in rows]
    accuracies = [best_known(row.entry) or 0.0 for row in rows]
    spans = [interval(row.entry) for row in rows]
    bars = [
        [max(0.0, accuracy - low) for accuracy, (low, _) in zip(accuracies, spans, strict=True)],
        [max(0.0, high - accuracy) for accuracy, (_, high) in zip(accuracies, spans, strict=True)],
    ]
    label = f" {label}" if label.startswith("_") else label  # or matplotlib would leave it out of the legend
    ax.errorbar(macs, accuracies, yerr=bars, fmt=marker, color=colour, label=label, capsize=3, markersize=7)
    for row, x, y in zip(rows, macs, accuracies, strict=True):
        ax.annotate(str(row.rank), (x, y), xytext=(7, 3), textcoords="offset points")


def _inline(svg: str, key: str, title: str, description: str) -> str:
    """That SVG without prolog and metadata, with names of its own in the page, a title and a description."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{key}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", svg)
    svg = svg.replace(_INK, "currentColor")
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    names = f'role="img" aria-labelledby="{key}-title" aria-describedby="{key}-description"'
    text = f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-description">{escape(description)}</desc>'
    return f"{head} {names}>{text}{rest}".strip()
