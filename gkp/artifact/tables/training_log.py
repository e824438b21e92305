"""The table of the one log of a fine-tuning that the authors published, and of ours."""

from __future__ import annotations

import math

import pandas as pd

from gkp.artifact.experiments.report import Report
from gkp.artifact.published_log import COLUMNS, STEPS, THEIRS, Curve, authors, curves
from gkp.artifact.results import attack_name, paper_name
from gkp.artifact.tables.table import Table


def published_log(report: Report) -> Table:
    """Best epoch, last epoch, and the jump at the first step of the learning rate, of the log and of our fine-tunings.

    Args:
        report: The results of the group "log"; unfinished trainings are shown with their cost.

    Returns:
        A table whose points are fractions, NaN for epochs that are not trained.
    """
    every = [authors(), *curves(report)]
    points = pd.DataFrame([_row(curve, key) for key in COLUMNS for curve in every])
    rows = points.assign(best=_percent(points["best"]), last=_percent(points["last"]), jump=_percent(points["jump"], "{:+.2f}"))
    best = [
        f"{value} (epoch {epoch:.0f})" if value else "" for value, epoch in zip(rows["best"], rows["best_epoch"], strict=True)
    ]
    shown = pd.DataFrame(
        {
            "best epoch": best,
            "last epoch": rows["last"].to_list(),
            f"jump at epoch {STEPS[0] + 1}": rows["jump"].to_list(),
            "trained": rows["state"].to_list(),
        },
        index=pd.MultiIndex.from_arrays(
            [
                [attack_name(key, "paper") for key in rows["attack"]],
                [row if row == THEIRS else paper_name(row) for row in rows["method"]],
            ],
            names=["accuracy", "network"],
        ),
    )
    legend = "The best of the epochs that were scored: all of theirs; jump: mean of epochs 101 and 102 minus that of 98 to 100."
    title = "The published log and ours · accuracy in percent, n = 10,000, one training each"
    return Table(title, shown, points, legend=legend)


def _row(curve: Curve, key: str) -> dict[str, object]:
    epoch, best = curve.best(key) if len(curve.points) else (math.nan, math.nan)
    facts = {"attack": key, "method": curve.row, "trained": curve.trained, "scored": len(curve.points), "state": curve.state}
    return facts | {"best": best, "best_epoch": epoch, "last": curve.last(key), "jump": curve.jump(key)}


def _percent(values: pd.Series, form: str = "{:.2f}") -> list[str]:
    return ["" if pd.isna(value) else form.format(100 * value) for value in values]
