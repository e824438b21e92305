"""The one log of a fine-tuning that the authors published, and our fine-tunings of the same network by the same recipe.

Theirs is of SR-GKP on their ResNet-20: 300 epochs, after each of which the whole test set is scored without attack and under
FGSM at two radii, with predicted labels, in normalised space. Ours are scored in the same protocol, on a CPU only after the
epochs `gkp.artifact.groups.LOG_EPOCHS`. The random variation of an epoch is estimated from neighbouring epochs of the log.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from gkp.artifact.experiments.history import epochs_so_far
from gkp.artifact.experiments.kinds import PruneCell
from gkp.artifact.experiments.report import Report
from gkp.artifact.experiments.status import for_gpu, in_words, stated_minutes
from gkp.artifact.groups import LOG_LENGTH, LOGGED, is_logged
from gkp.artifact.published import published_file
from gkp.artifact.results import row_name
from gkp.evaluation.statistics import Spread

THEIRS = "the authors' log"
COLUMNS = {"clean": "benign", "fgsm-0.01": "fgsm_0.01", "fgsm-0.1": "fgsm_0.1"}  # our names -> names in their file
STEPS = (100, 200)  # epochs after which the learning rate is divided by ten
BEFORE, AFTER = 3, 2  # epochs on each side of a step that are averaged for its jump
_QUIET = 50  # epochs at the end of each learning rate, where differences of neighbours are random
MEASURES = ("last", "best", "jump")


@dataclass(frozen=True)
class Curve:
    """Accuracy on the test set over a fine-tuning.

    Attributes:
        row: `gkp.artifact.results.row_name` of the network, or `THEIRS`.
        points: Accuracies as fractions, one column for each key of `COLUMNS`, indexed by the epoch.
        trained: Epochs so far.
        cost: What the training costs, in words; "" once it is finished.
    """

    row: str
    points: pd.DataFrame
    trained: int
    cost: str = ""

    @property
    def whole(self) -> bool:
        """Whether the training is finished."""
        return not self.cost

    @property
    def state(self) -> str:
        """The progress of the training: "300 epochs", "120 of 300 epochs so far", "not run, 24 h"."""
        if self.whole:
            return f"{self.trained} epochs"
        return f"{self.trained} of {LOG_LENGTH} epochs so far" if self.trained else f"not run, {self.cost}"

    def best(self, key: str, among: Collection[int] | None = None) -> tuple[int, float]:
        """The epoch with the highest accuracy, the first of equal ones, and that accuracy; `among` limits the epochs."""
        column = self.points[key] if among is None else self.points.loc[self.points.index.isin(list(among)), key]
        return int(column.idxmax()), float(column.max())

    def last(self, key: str) -> float:
        """The accuracy after the last epoch, NaN while it is not trained."""
        return float(self.points[key].get(LOG_LENGTH, math.nan))

    def jump(self, key: str, step: int = STEPS[0]) -> float:
        """By how much the accuracy rises at a step of the learning rate: the mean after it minus the mean before it.

        The means are of `AFTER` and `BEFORE` epochs; NaN unless all of them were scored.
        """
        column = self.points[key].reindex(range(step - BEFORE + 1, step + AFTER + 1))
        return float(column.loc[step + 1 :].mean(skipna=False) - column.loc[:step].mean(skipna=False))

    def noise(self, key: str, epoch: int) -> Spread:
        """The random variation of an epoch, at the learning rate of this epoch.

        It is estimated from differences of neighbouring epochs (von Neumann), which a slow drift does not widen; they have two
        thirds of the degrees of freedom of independent numbers.
        """
        end = next(end for end in (*STEPS, LOG_LENGTH) if epoch <= end)
        steps = np.diff(self.points.loc[end - _QUIET + 1 : end, key])
        return Spread(float(np.sqrt((steps**2).mean() / 2)), round(2 / 3 * len(steps)))


@cache
def authors() -> Curve:
    """The authors' log."""
    frame = pd.read_csv(published_file("official_resnet20_log.csv")).set_index("epoch")
    points = frame[list(COLUMNS.values())].set_axis(list(COLUMNS), axis=1) / 100
    return Curve(THEIRS, points, int(points.index[-1]))


def curve_of(cell: PruneCell, rows: list[dict[str, Any]], *, finished: bool) -> Curve:
    """The curve of a fine-tuning of ours.

    Args:
        cell: The fine-tuning.
        rows: The rows of its log, one an epoch.
        finished: Whether these are all epochs.
    """
    scored = {row["epoch"]: {key: row[key] for key in COLUMNS} for row in rows if all(key in row for key in COLUMNS)}
    points = pd.DataFrame.from_dict(scored, orient="index", columns=list(COLUMNS), dtype=float)
    return Curve(row_name(cell), points, int(rows[-1]["epoch"]) if rows else 0, "" if finished else _cost(cell))


def curves(report: Report) -> list[Curve]:
    """Our fine-tunings by the recipe of the log, in the order of `gkp.artifact.groups.LOGGED`.

    A training that is not finished has the epochs of its checkpoint.

    Args:
        report: The results of the group "log".
    """
    found = {
        result.cell.method: curve_of(result.cell, result["epochs"], finished=True)
        for result in report
        if is_logged(result.cell)
    }
    for cell in report.missing:
        if is_logged(cell):
            found[cell.method] = curve_of(cell, epochs_so_far(cell), finished=False)
    return [found[method] for method in LOGGED if method in found]


def _cost(cell: PruneCell) -> str:
    if for_gpu([cell]):
        from gkp.artifact.claims.gpu_hours import gpu_hours, hours_in_words  # here, because the claims import this module

        return hours_in_words(gpu_hours(cell.model, 1))
    return f"about {in_words(60 * stated_minutes([cell]))}"


def compared(ours: Curve, spreads: Mapping[str, Spread] | None = None) -> Iterator[dict[str, Any]]:
    """Compare a finished curve with the log: the last epoch, the best one, and the jump at the first step.

    The best epoch of the log is chosen among the epochs after which ours was scored. `allowed` is the half-width of
    simultaneous 95 % intervals for the difference of two such logs, from the random variation of epochs and of seeds.

    Args:
        ours: A finished curve.
        spreads: Key of `COLUMNS` -> spread of the accuracy over seeds; None for no spread.

    Yields:
        measure (one of `MEASURES`), attack, and theirs, ours and allowed as fractions.
    """
    log, tests = authors(), len(MEASURES) * len(COLUMNS)
    for key in COLUMNS:
        seeds = (spreads or {}).get(key, Spread()).half_width(2, tests)
        epoch, best = log.best(key, ours.points.index)
        at_step = math.hypot(
            log.noise(key, STEPS[0]).half_width(2 / BEFORE, tests), log.noise(key, STEPS[0] + 1).half_width(2 / AFTER, tests)
        )
        found = {
            "last": (log.last(key), ours.last(key), math.hypot(log.noise(key, LOG_LENGTH).half_width(2, tests), seeds)),
            "best": (best, ours.best(key)[1], math.hypot(log.noise(key, epoch).half_width(2, tests), seeds)),
            "jump": (log.jump(key), ours.jump(key), at_step),
        }
        for measure, (theirs, here, allowed) in found.items():
            yield {"measure": measure, "attack": key, "theirs": theirs, "ours": here, "allowed": allowed}
