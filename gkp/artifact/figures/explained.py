"""The figure of how much of attacked accuracy benign accuracy explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from gkp.artifact.effects import smallest_radius
from gkp.artifact.experiments.report import Result
from gkp.artifact.explained import QUESTION, of_both, shown_columns, told
from gkp.artifact.figures.figure import OWN, PALETTE, Figure, bars, finish, panels
from gkp.artifact.results import SR

_MARKS = "osD^vP"
_COLOURS = [colour for colour in PALETTE if colour != OWN[SR]]  # columns are no networks: none has the colour of SR-GKP


def explained(results: Sequence[Result]) -> Figure:
    """The variance of attacked accuracy that benign accuracy explains, and the residual of SR-GKP, ours and the paper's.

    Args:
        results: Finished networks and their evaluations, of any number of architectures and schedules; the paper's tables are
            shown even without any.
    """
    every = of_both(results)
    columns = shown_columns(every, smallest_radius(results))
    points = pd.concat([rows.assign(column=name) for name, rows in columns.items()], ignore_index=True)
    sources = list(every["source"].unique())
    heights = {source: len(sources) - 1 - at for at, source in enumerate(sources)}
    drawing, (left, right) = panels(1, 2, 12, 0.55 * len(sources) + 2.2, sharey=True)
    for at, rows in enumerate(columns.values()):
        y = np.array([heights[source] for source in rows["source"]]) + 0.6 * (0.5 - (at + 0.5) / len(columns))
        _dots(left, right, rows, y, _COLOURS[at], _MARKS[at])
    right.axvline(0, color="#999999", linewidth=1)
    left.set(xlim=(-3, 103), xlabel="Variance explained by benign accuracy, R² (%)", title="Explained")
    right.set(xlabel="SR-GKP above the line through all others (points)", title="Left for SR-GKP, with 95 %")
    left.set_yticks(list(heights.values()), list(heights))
    left.set_ylim(-0.6, len(sources) - 0.4)
    for ax in (left, right):
        ax.grid(axis="x", color="#eeeeee")
        sns.despine(ax=ax)
    handles = [
        Line2D([], [], color=_COLOURS[at], marker=_MARKS[at], linestyle="", label=name) for at, name in enumerate(columns)
    ]
    drawing.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    note = "Bars: where one more method would lie, 95 % each, not corrected for their number."
    return finish(drawing, points, QUESTION, f"{told(points)} {note}")


def _dots(left: Axes, right: Axes, rows: pd.DataFrame, y: np.ndarray, colour: tuple, mark: str) -> None:
    left.plot(100 * rows["r2"], y, color=colour, marker=mark, linestyle="", markersize=5)
    known = rows["left"].notna().to_numpy()
    some, at = rows[known], y[known]
    right.errorbar(100 * some["left"], at, xerr=bars(some, "left"), color=colour, fmt=mark, markersize=5, linewidth=1)
