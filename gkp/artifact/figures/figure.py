"""A figure with its points, question and answer, and what all figures share: colours, legends, file formats.

There are more methods than colours in a colour-blind safe palette, so a colour stands for the kind of structure that a method
removes. SR-GKP and the unpruned networks have colours of their own.
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

from gkp.artifact.results import BASELINE, CONTINUED, SR, method_of, not_run_yet
from gkp.pruning.registry import methods

PALETTE = sns.color_palette("colorblind")
FAMILIES = {"grouped kernel": PALETTE[2], "filter": PALETTE[0], "channel": PALETTE[1], "residual block": PALETTE[4]}
OWN = {BASELINE: "#333333", CONTINUED: "#777777", SR: PALETTE[3]}


@dataclass(frozen=True)
class Figure:
    """A drawn figure and the points it shows.

    Attributes:
        drawing: The matplotlib figure.
        points: The numbers, one point a row, with networks by `gkp.artifact.results.row_name`.
        question: The question that it answers; its title.
        answer: The answer, and the meaning of bars and marks.
    """

    drawing: MatplotlibFigure
    points: pd.DataFrame
    question: str = ""
    answer: str = ""

    def save(self, name: str, folder: str | Path | None = None) -> Path:
        """Write `name`.svg, .png and .csv, and question and answer as `name`.txt; the same bytes for the same points.

        Args:
            name: The file name without suffix.
            folder: The folder; None for `build/figures`.

        Returns:
            The path of the PNG.
        """
        target = Path(folder or "build/figures")
        target.mkdir(parents=True, exist_ok=True)
        stable = {"Date": None, "Creator": "gkp"}  # the same points give the same bytes
        told = {"Title": self.question, "Description": self.answer} if self.question else {}  # for accessibility
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
        """Show the drawing in a notebook, with the answer below."""
        from IPython.display import display

        display({"image/png": self._repr_png_(), "text/plain": repr(self)}, raw=True)
        if self.answer:
            display({"text/markdown": self.answer, "text/plain": self.answer}, raw=True)


def panels(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[MatplotlibFigure, list[Axes]]:
    """Make an empty drawing.

    Args:
        rows, columns: The grid of panels.
        width, height: The size in inches.
        shared: sharex and sharey of `matplotlib.figure.Figure.subplots`.

    Returns:
        The drawing, and its panels row by row.
    """
    drawing = MatplotlibFigure(figsize=(width, height), layout="constrained")
    return drawing, list(np.atleast_1d(drawing.subplots(rows, columns, **shared)).flat)


def finish(drawing: MatplotlibFigure, points: pd.DataFrame, question: str, answer: str) -> Figure:
    """Add the question as title and make the `Figure`.

    Args:
        drawing: The drawing.
        points, question, answer: As in `Figure`.
    """
    drawing.suptitle(question, fontsize=13, fontweight="bold")
    return Figure(drawing, points.reset_index(drop=True), question, answer)


def not_run(what: str) -> Figure:
    """Placeholder stating that these experiments have not been run."""
    return saying(not_run_yet(what))


def saying(text: str) -> Figure:
    """A figure with one line of text and no points."""
    drawing, (ax,) = panels(1, 1, 6, 1)
    ax.axis("off")
    ax.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    return Figure(drawing, pd.DataFrame())


def family_of(row: str) -> str:
    """The part that the method of a row removes: a key of `FAMILIES`, "nothing" if unpruned, "" for unknown methods."""
    method = method_of(row)
    known = methods().get(method)
    return "nothing" if method in (BASELINE, CONTINUED) else known.family if known else ""


def method_colour(row: str):
    """The colour of a network in every figure: its method's own, or that of the family that the method removes.

    Args:
        row: The network, as `gkp.artifact.results.row_name` gives it.
    """
    return OWN.get(method_of(row)) or FAMILIES.get(family_of(row), "#aaaaaa")


def families(drawing: MatplotlibFigure, rows: Iterable[str], *more: Line2D) -> None:
    """Add a legend below: SR-GKP, unpruned networks and families among the rows, and further entries."""
    rows = list(dict.fromkeys(rows))
    own = {SR: "SR-GKP", BASELINE: "unpruned", CONTINUED: "unpruned, fine-tuned"}
    used = {family_of(row) for row in rows if method_of(row) not in OWN}
    entries = [(label, OWN[name]) for name, label in own.items() if name in map(method_of, rows)]
    entries += [(f"{name} pruning", colour) for name, colour in FAMILIES.items() if name in used]
    handles = [Line2D([], [], color=colour, marker="o", linestyle="", label=label) for label, colour in entries]
    drawing.legend(handles=[*handles, *more], loc="outside lower center", ncols=4, frameon=False)


def hollow(label: str) -> Line2D:
    """The legend entry of values that the paper prints, drawn as hollow diamonds."""
    return Line2D([], [], color="#888888", marker="D", markerfacecolor="white", linestyle="", label=label)


def bars(rows: pd.DataFrame, value: str = "accuracy") -> np.ndarray:
    """The lengths of error bars (2, rows) in percent, from columns `value`, low and high in fractions."""
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
    """Mark values that are no outliers: within three interquartile ranges of the quartiles, or `least` where that is more."""
    first, third = values.quantile(0.25), values.quantile(0.75)
    reach = max(3 * (third - first), least)
    return values.between(first - reach, third + reach)


def label_dots(ax: Axes, x: Sequence[float], y: Sequence[float], names: Sequence[str], *, size: float = 7.5) -> None:
    """Write names beside dots without covering dots or other names; names without room are left out.

    Args:
        ax: The panel, drawn and with its final limits.
        x, y: The dots, in data units, the most important first.
        names: The name of each dot.
        size: The font size in points.
    """
    box = ax.get_window_extent()
    points = 72 / ax.figure.dpi  # points in a pixel
    wide, high = box.width * points, box.height * points
    spots = (ax.transData.transform(np.stack([x, y], axis=1)) - (box.x0, box.y0)) * points
    taken = [(px - 3, py - 3, px + 3, py + 3) for px, py in spots]
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
