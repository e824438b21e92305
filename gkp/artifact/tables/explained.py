"""The table of how much of attacked accuracy benign accuracy explains."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gkp.artifact.effects import smallest_radius
from gkp.artifact.experiments.report import Result
from gkp.artifact.explained import QUESTION, of_both, shown_columns
from gkp.artifact.tables.table import Table


def explained(results: Sequence[Result]) -> Table:
    """The regression of attacked on benign accuracy, ours and the paper's: explained variance and SR-GKP's residual.

    Args:
        results: Finished networks and their evaluations, of any number of architectures and schedules.

    Returns:
        A table whose points are those of `gkp.artifact.explained.of_both`, with all attacks and radii.
    """
    points = of_both(results)
    columns = shown_columns(points, smallest_radius(results))
    sources = list(points["source"].unique())
    shown = pd.DataFrame(index=sources)
    shown["methods"] = [str(points.loc[points["source"] == source, "methods"].max()) for source in sources]
    for name, rows in columns.items():
        shown[name] = pd.Series({row["source"]: _cell(row) for row in rows.to_dict("records")}).reindex(sources).fillna("")
    legend = (
        "R² of the line of attacked on benign accuracy through all networks; then SR-GKP's attacked accuracy minus what the "
        "line through all other methods gives it, in points, with the 95 % interval of one more method"
    )
    return Table(QUESTION, shown, points, legend=legend)


def _cell(row: dict) -> str:
    share = f"{100 * row['r2']:.0f} %"
    left = "" if pd.isna(row["left"]) else f"; {100 * row['left']:+.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return share + left
