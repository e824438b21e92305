"""A drawn figure with its points, question and answer, and what all figures share: colours, legends, how they are saved.

Two dozen methods are more than a colour-blind safe palette has, so a colour stands for what kind of thing is removed. SR-GKP
and the unpruned network have colours of their own.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from gkp.artifact.results import BASELINE, CONTINUED, method_of, not_run_yet
from gkp.pruning.registry import methods

PALETTE = sns.color_palette("colorblind")
FAMILIES = {"grouped kernel": PALETTE[2], "filter": PALETTE[0], "channel": PALETTE[1], "residual block": PALETTE[4]}
OWN = {BASELINE: "#333333", CONTINUED: "#777777", "sr-gkp": PALETTE[3]}


@dataclass(frozen=True)
class Figure:
    """A drawn figure and the points it shows.

    Attributes:
        drawing: The matplotlib figure.
        points: What it was drawn from, one point a row; networks by `gkp.artifact.results.row_name`.
        question: What it asks; its title.
        answer: What the points say to that, and how to read the marks.
    """

    drawing: MatplotlibFigure
    points: pd.DataFrame
    question: str = ""
    answer: str = ""

    def save(self, name: str, folder: str | Path | None = None) -> Path:
        """Write `name`.svg, .png and .csv, and question and answer as `name`.txt; the same bytes for the same points.

        Args:
            name: File name without suffix.
            folder: Where to; by default `build/figures`.

        Returns:
            The path of the PNG.
        """
        target = Path(folder or "build/figures")
        target.mkdir(parents=True, exist_ok=True)
        stable = {"Date": None, "Creator": "gkp"}  # the same points give the same bytes
        told = {"Title": self.question, "Description": self.answer} if self.question else {}  # for those who cannot see it
        with matplotlib.rc_context({"svg.hashsalt": name}):
            self.drawing.savefig(target / f"{name}.svg", bbox_inches="tight", metadata=stable | told)
        self.drawing.savefig(target / f"{name}.png", bbox_inches="tight", dpi=150, metadata={"Software": "gkp"})
        self.points.to_csv(target / f"{name}.csv", index=False)
        if self.question:
            (target / f"{name}.txt").write_text(f"{self.question}\n{self.answer}\n", encoding="utf-8")
        return target / f"{name}.png"

    def __repr__(self) -> str:
        return f"{self.question}\n{self.answer}" if self.question else f"Figure of {len(self.points)} points"

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.drawing.savefig(data, format="png", bbox_inches="tight", dpi=110)
        return data.getvalue()

    def _ipython_display_(self) -> None:
        """In a notebook: the drawing, and the answer below it."""
        from IPython.display import display

        display({"image/png": self._repr_png_(), "text/plain": repr(self)}, raw=True)
        if self.answer:
            display({"text/markdown": self.answer, "text/plain": self.answer}, raw=True)


def panels(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[MatplotlibFigure, list[Axes]]:
    """An empty drawing of this size in inches, and its panels row by row; shared: sharex, sharey."""
    drawing = MatplotlibFigure(figsize=(width, height), layout="constrained")
    return drawing, list(np.atleast_1d(drawing.subplots(rows, columns, **shared)).flat)


def finish(drawing: MatplotlibFigure, points: pd.DataFrame, question: str, answer: str) -> Figure:
    """The figure with its question as title."""
    drawing.suptitle(question, fontsize=13, fontweight="bold")
    return Figure(drawing, points.reset_index(drop=True), question, answer)


def not_run(what: str) -> Figure:
    """Placeholder stating that these experiments have not been run."""
    return saying(not_run_yet(what))


def saying(text: str) -> Figure:
    """A figure that is one line of text."""
    drawing, (ax,) = panels(1, 1, 6, 1)
    ax.axis("off")
    ax.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    return Figure(drawing, pd.DataFrame())


def family_of(row: str) -> str:
    """What a network's method removes: a key of `FAMILIES`, "nothing" for unpruned ones, "" where the method is not known."""
    method = method_of(row)
    known = methods().get(method)
    return "nothing" if method in (BASELINE, CONTINUED) else known.family if known else ""


def method_colour(row: str):
    """The colour of a network in every figure: its method's own, or that of the family of what the method removes.

    Args:
        row: As `gkp.artifact.results.row_name` gives it, with options in brackets.
    """
    return OWN.get(method_of(row)) or FAMILIES.get(family_of(row), "#aaaaaa")


def families(drawing: MatplotlibFigure, rows: Iterable[str], *more: Line2D) -> None:
    """Add a legend below: SR-GKP, the families in use, the unpruned networks among the rows, and further entries."""
    rows = list(dict.fromkeys(rows))
    own = {"sr-gkp": "SR-GKP", BASELINE: "unpruned", CONTINUED: "unpruned, fine-tuned"}
    used = {family_of(row) for row in rows if method_of(row) not in OWN}
    entries = [(label, OWN[name]) for name, label in own.items() if name in map(method_of, rows)]
    entries += [(f"{name} pruning", colour) for name, colour in FAMILIES.items() if name in used]
    handles = [Line2D([], [], color=colour, marker="o", linestyle="", label=label) for label, colour in entries]
    drawing.legend(handles=[*handles, *more], loc="outside lower center", ncols=4, frameon=False)


def hollow(label: str) -> Line2D:
    """The legend of what the paper prints."""
    return Line2D([], [], color="#888888", marker="D", markerfacecolor="white", linestyle="", label=label)


def bars(rows: pd.DataFrame, value: str = "accuracy") -> np.ndarray:
    """Error bars (2, rows) in percent, of columns `value`, low and high."""
    return 100 * np.clip(np.stack([rows[value] - rows["low"], rows["high"] - rows[value]]), 0, None)


def log_ticks(axis: Axis, ticks: Iterable[float], low: float, high: float) -> None:
    """Label a logarithmic axis with plain numbers.

    Args:
        axis: `ax.xaxis` or `ax.yaxis`.
        ticks: Where ticks may be.
        low, high: Ticks outside are left out.
    """
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_ticks([], minor=True)


def near(values: pd.Series, least: float = 0.0) -> pd.Series:
    """Which values an axis is made for: within three interquartile ranges of the quartiles, and `least` at any rate."""
    first, third = values.quantile(0.25), values.quantile(0.75)
    reach = max(3 * (third - first), least)
    return values.between(first - reach, third + reach)


def label_dots(
    ax: Axes, x: Sequence[float], y: Sequence[float], names: Sequence[str], *, size: float = 7.5, keep_out: Sequence[float] = ()
) -> None:
    """Write names beside dots, each where it covers neither a dot nor a name; those for which there is no room are left out.

    Args:
        ax: Drawn, with its limits as they stay.
        x, y: Of the dots, in data units.
        names: Of the dots, the most important first.
        size: Of the text, in points.
        keep_out: A rectangle (left, bottom, right, top) in shares of the panel that stays free.
    """
    box = ax.get_window_extent()
    points = 72 / ax.figure.dpi  # in each pixel
    wide, high = box.width * points, box.height * points
    spots = (ax.transData.transform(np.stack([x, y], axis=1)) - (box.x0, box.y0)) * points
    taken = [(px - 3, py - 3, px + 3, py + 3) for px, py in spots]
    taken += [tuple(np.asarray(keep_out) * (wide, high, wide, high))] if len(keep_out) else []
    for spot, (px, py), name in zip(zip(x, y, strict=True), spots, names, strict=True):
        w, h = 0.58 * size * len(name), 1.1 * size
        beside = [
            (5, -h / 2),
            (-5 - w, -h / 2),
            (5, 2),
            (5, -2 - h),
            (-5 - w, 2),
            (-5 - w, -2 - h),
            (-w / 2, 5),
            (-w / 2, -5 - h),
        ]
        for dx, dy in beside:
            here = (px + dx, py + dy, px + dx + w, py + dy + h)
            inside = here[0] > 0 and here[1] > 0 and here[2] < wide and here[3] < high
            if inside and not any(_overlap(here, other) for other in taken):
                taken.append(here)
                halo = [withStroke(linewidth=2, foreground="white")]
                style: dict[str, Any] = {"textcoords": "offset points", "fontsize": size, "va": "bottom", "path_effects": halo}
                ax.annotate(name, spot, (dx, dy), zorder=5, **style)
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
