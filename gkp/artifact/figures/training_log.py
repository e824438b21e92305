"""The figure of the one log of a fine-tuning that the authors published, and of ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from gkp.artifact.experiments.report import Report
from gkp.artifact.figures.figure import Figure, finish, method_colour, panels
from gkp.artifact.groups import LOG_LENGTH
from gkp.artifact.published_log import COLUMNS, STEPS, THEIRS, Curve, authors, curves
from gkp.artifact.results import SR, attack_name, paper_name


def published_log(report: Report) -> Figure:
    """Benign accuracy and accuracy under FGSM over 300 epochs: the authors' log and our curves.

    Args:
        report: The results of the group "log". An unfinished training is drawn as far as its checkpoint goes; one that has not
            begun is listed with its cost.
    """
    question = "Is the published log reproduced at full length?"
    theirs, ours = authors(), curves(report)
    every = [theirs, *ours]
    points = pd.concat(
        [
            curve.points.rename_axis("epoch").reset_index().assign(curve=curve.row, state=curve.state)
            for curve in every
            if len(curve.points)
        ],
        ignore_index=True,
    )
    drawing, axes = panels(1, len(COLUMNS), 13, 4.2)
    for ax, key in zip(axes, COLUMNS, strict=True):
        _panel(ax, theirs, ours, key)
        ax.set(title=attack_name(key, "paper"), xlabel="Epoch", ylabel="Accuracy (%)", xlim=(0, LOG_LENGTH + 3))
        sns.despine(ax=ax)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return finish(drawing, points, question, _answer(theirs, ours))


def _panel(ax: Axes, theirs: Curve, ours: list[Curve], key: str) -> None:
    for step in STEPS:
        ax.axvline(step + 0.5, color="#cccccc", linewidth=1, linestyle=":")
    line = 100 * theirs.points[key]
    ax.plot(line.index, line, color="#b0b0b0", linewidth=1, label=f"{THEIRS}, SR-GKP")
    for curve in reversed(ours):  # the most important one on top
        style: dict[str, Any] = {"color": method_colour(curve.row), "markersize": 4 if curve.row == SR else 3}
        style |= {"linewidth": 1.6 if curve.row == SR else 1.0, "zorder": 4 if curve.row == SR else 3}
        line = 100 * curve.points[key]
        ax.plot(line.index, line, marker="o", label=f"{paper_name(curve.row)}: {curve.state}", **style)
    settled = pd.concat([100 * curve.points.loc[10:, key] for curve in (theirs, *ours) if len(curve.points)])
    low, high = settled.min(), settled.max()  # without the first epochs, which have a wide range
    ax.set_ylim(low - 0.15 * (high - low), high + 0.15 * (high - low))


def _answer(theirs: Curve, ours: list[Curve]) -> str:
    """The answer: our curve of SR-GKP compared with theirs, and the trainings that are not finished."""
    told = []
    for curve in ours:
        if curve.row == SR and curve.whole:
            told.append("; ".join(_ends(key, curve, theirs) for key in COLUMNS) + " (theirs in brackets)")
        elif curve.row == SR and len(curve.points):
            gaps = (curve.points - theirs.points.reindex(curve.points.index)).abs().mean()
            each = ", ".join(f"{100 * gaps[key]:.2f} ({attack_name(key, 'paper')})" for key in COLUMNS)
            told.append(f"As far as it goes, epoch by epoch {each} points from theirs on average")
    left = [f"{paper_name(curve.row)}: {curve.state}" for curve in ours if not curve.whole]
    missing = "only the authors' curve: ours are not part of this profile" if not ours else "; ".join(left)
    told += [missing[0].upper() + missing[1:]] if missing else []
    key = "fgsm-0.01"
    (epoch, best), last = theirs.best(key), theirs.last(key)
    told.append(
        f"In theirs, {attack_name(key, 'paper')} jumps by {100 * theirs.jump(key):+.1f} points at epoch {STEPS[0] + 1}, where "
        f"the learning rate falls; its best epoch, {epoch}, has {100 * best:.2f} %, its last {100 * last:.2f} %"
    )
    return ". ".join(told) + ". Ten thousand test images; one training each."


def _ends(key: str, ours: Curve, theirs: Curve) -> str:
    jumps = [f"{100 * curve.jump(key):+.1f}" for curve in (ours, theirs)]
    lasts = [f"{100 * curve.last(key):.2f}" for curve in (ours, theirs)]
    bests = [f"{100 * curve.best(key, ours.points.index)[1]:.2f}" for curve in (ours, theirs)]
    name = attack_name(key, "paper")
    told = f"{name}: last {lasts[0]} [{lasts[1]}] %, best {bests[0]} [{bests[1]}] %"
    return told + ("" if np.isnan(ours.jump(key)) else f", jump {jumps[0]} [{jumps[1]}]")
