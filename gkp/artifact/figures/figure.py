"""A drawn figure with its points, and what all figures share: palette, panels, how they are saved."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure

from gkp.artifact.results import not_run_yet

PALETTE = sns.color_palette("colorblind")


@dataclass(frozen=True)
class Figure:
    """A drawn figure and the points it shows.

    Attributes:
        drawing: The matplotlib figure.
        points: What it was drawn from, one point a row; networks by `gkp.artifact.results.row_name`.
    """

    drawing: MatplotlibFigure
    points: pd.DataFrame

    def save(self, name: str, folder: str | Path | None = None) -> Path:
        """Write `name`.svg, .png and .csv, the same bytes for the same points.

        Args:
            name: File name without suffix.
            folder: Where to; by default `build/figures`.

        Returns:
            The path of the PNG.
        """
        target = Path(folder or "build/figures")
        target.mkdir(parents=True, exist_ok=True)
        stable = {"Date": None, "Creator": "gkp"}  # the same points give the same bytes
        with matplotlib.rc_context({"svg.hashsalt": name}):
            self.drawing.savefig(target / f"{name}.svg", bbox_inches="tight", metadata=stable)
        self.drawing.savefig(target / f"{name}.png", bbox_inches="tight", dpi=150, metadata={"Software": "gkp"})
        self.points.to_csv(target / f"{name}.csv", index=False)
        return target / f"{name}.png"

    def __repr__(self) -> str:
        return f"Figure of {len(self.points)} points"

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.drawing.savefig(data, format="png", bbox_inches="tight", dpi=110)
        return data.getvalue()


def panels(rows: int, columns: int, width: float, height: float) -> tuple[MatplotlibFigure, list[Axes]]:
    """An empty drawing of this size in inches, and its panels row by row."""
    drawing = MatplotlibFigure(figsize=(width, height), layout="constrained")
    return drawing, list(np.atleast_1d(drawing.subplots(rows, columns)).flat)


def not_run(what: str) -> Figure:
    """Placeholder stating that these experiments have not been run."""
    return saying(not_run_yet(what))


def saying(text: str) -> Figure:
    """A figure that is one line of text."""
    drawing, (ax,) = panels(1, 1, 6, 1)
    ax.axis("off")
    ax.text(0.5, 0.5, text, ha="center", va="center")
    return Figure(drawing, pd.DataFrame())
