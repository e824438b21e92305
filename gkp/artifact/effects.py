"""Effects of methods over all seeds, from finished evaluations: accuracies and paired differences, with intervals.

An interval has both sources of chance, the images and the seeds of fine-tuning (`gkp.evaluation.statistics`). Seeds are pooled
over all methods at hand, so a method with one seed gets as wide an interval as the others' seeds make plausible.

Cost: a few milliseconds for each outcome matrix that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from gkp.artifact.experiments.kinds import PruneCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import ATTACKED, names_here, superscores
from gkp.artifact.results import (
    BASELINE,
    CONTINUED,
    Evaluation,
    evaluations,
    mean_right,
    net_seed,
    outcomes_of,
    row_name,
    trained_for_robustness,
)
from gkp.attacks.options import parse_eps
from gkp.errors import BadInput
from gkp.evaluation.statistics import LEVEL, Estimate, Spread, difference, holm, quantile

ATTACKS = ATTACKED[1:]  # (a), (b), (c): the paper's attacks, without "benign"
UNPRUNED = (BASELINE, CONTINUED)
SETTING = ("model", "rate", "epochs")  # see `setting_of`
RADIUS = "1/255"  # where networks that were not trained for robustness still differ


@dataclass(frozen=True)
class Scores:
    """Shares of attacks under which each image is classified correctly, by method and seed, in one part.

    Attributes:
        part: A role of `gkp.artifact.results.plays`.
        keys: The attacks whose accuracies are averaged.
        rows: `row_name` -> seed -> (N,) in [0, 1], of the same images.
    """

    part: str
    keys: tuple[str, ...]
    rows: Mapping[str, Mapping[int, np.ndarray]]

    @cached_property
    def spread(self) -> Spread:
        """The spread of an accuracy over seeds, pooled over every method that has several."""
        return Spread.pooled([list(seeds.values()) for seeds in self.rows.values()])

    @property
    def pruned(self) -> list[str]:
        """The methods among the rows: all but the unpruned networks."""
        return [row for row in self.rows if row not in UNPRUNED]

    def accuracy(self, row: str) -> Estimate:
        """The accuracy of a method, as a fraction, with its interval."""
        images = list(self.rows[row].values())
        mean = np.mean(images, axis=0)
        of_images = quantile() * float(mean.std(ddof=1)) / len(mean) ** 0.5 if len(mean) > 1 else 1.0
        half, value = np.hypot(of_images, self.spread.half_width(1 / len(images))), float(mean.mean())
        return Estimate(value, max(0.0, value - half), min(1.0, value + half), len(mean), len(images))

    def minus(self, row: str, other: str) -> Estimate:
        """The accuracy of a method minus that of another on the same images, with its interval."""
        return difference(list(self.rows[row].values()), list(self.rows[other].values()), spread=self.spread)

    def differences(self, other: str) -> tuple[dict[str, Estimate], dict[str, float]]:
        """Every method's difference to another row, and its p after Holm's correction for all of them."""
        found = {row: self.minus(row, other) for row in self.pruned if row != other}
        corrected = holm([estimate.p() for estimate in found.values()]) if found else ()
        return found, dict(zip(found, map(float, corrected), strict=True))

    def leaders(self) -> set[str]:
        """The most accurate method, and all that cannot be told apart from it (Holm over the others, at 5 %)."""
        if not self.pruned:
            return set()
        best = max(self.pruned, key=lambda row: self.accuracy(row).value)
        return {best} | {row for row, p in self.differences(best)[1].items() if p > 1 - LEVEL}


def scores(
    results: Sequence[Result], part: str, keys: Sequence[str], *, wanted: Callable[[Evaluation], bool] | None = None
) -> Scores:
    """The finished evaluations in this part that have these attacks, on the images of the first of them.

    Args:
        results: Finished networks and their evaluations, of one architecture.
        part: As in `gkp.artifact.results.plays`.
        keys: The attacks, rows of `Outcomes.rows`.
        wanted: Which evaluations; by default all but those of shapes trained from scratch, of which nothing was pruned, and of
            methods that are trained for robustness, which are no cost of pruning.
    """
    rows: dict[str, dict[int, np.ndarray]] = {}
    images: np.ndarray | None = None
    for one in evaluations(results, part):
        if not (wanted or is_tuned)(one):
            continue
        try:
            right = mean_right(out := outcomes_of(one.result), keys)
        except BadInput:  # it was not kept, or met other attacks
            continue
        images = out.indices if images is None else images
        if np.array_equal(out.indices, images):
            rows.setdefault(row_name(one.net), {})[net_seed(one.net)] = right
    return Scores(part, tuple(keys), rows)


def is_tuned(one: Evaluation) -> bool:
    """Whether the network was neither trained anew in a pruned network's shape nor trained for robustness."""
    return not (isinstance(one.net, PruneCell) and (one.net.scratch or trained_for_robustness(one.net.method)))


def setting_of(one: Evaluation) -> tuple[str, float, int]:
    """The setting that networks must share to be ranked: architecture, rate, epochs of fine-tuning; `SETTING` names the three.

    The rate of an unpruned network is 0, and so are the epochs of one that was not fine-tuned.
    """
    net = one.net
    if isinstance(net, PruneCell):
        return net.model, 0.0 if net.method == "none" else net.rate, net.finetuned
    return net.model, 0.0, 0


def over_seeds(points: pd.DataFrame) -> pd.DataFrame:
    """One row for each network and attack, of points with one row a seed: mean accuracy, its interval, and how many seeds.

    Args:
        points: Those of `gkp.artifact.tables.methods_table`: columns method, seed, attack, accuracy, low, high and `SETTING`.

    Returns:
        The other columns are those of the first seed. The interval of a mean has the images' part, which seeds share, and the
        spread over seeds, pooled over the methods of a schedule; that of one seed among single ones is its own.
    """
    rows = []
    spreads = {
        key: Spread.pooled([list(seeds) for _, seeds in group.groupby(["method", "rate"], sort=False)["accuracy"]])
        for key, group in points.groupby(["model", "epochs", "attack"], sort=False)
    }
    for (model, _, epochs, _, attack), group in points.groupby([*SETTING, "method", "attack"], sort=False):
        accuracy = float(group["accuracy"].mean())
        seeds = spreads[model, epochs, attack].half_width(1 / len(group))
        low = accuracy - np.hypot((group["accuracy"] - group["low"]).mean(), seeds)
        high = accuracy + np.hypot((group["high"] - group["accuracy"]).mean(), seeds)
        found = {"accuracy": accuracy, "low": max(0.0, low), "high": min(1.0, high), "seeds": len(group)}
        rows.append(group.iloc[0].to_dict() | found)
    return pd.DataFrame(rows)


def smallest_radius(results: Sequence[Result], part: str = "pixel") -> str:
    """`RADIUS` where the evaluations of this part have it, else their smallest radius; "" where there is none."""
    radii = radii_of(results, part)
    return RADIUS if RADIUS in radii else next(iter(radii), "")


def radii_of(results: Sequence[Result], *parts: str) -> list[str]:
    """The radii of all worst cases in the evaluations of these parts, the smallest first."""
    found = [key for part in parts for one in evaluations(results, part) for key in one.result["accuracy"]]
    return sorted({key.removeprefix("worst-case-") for key in found if key.startswith("worst-case-")}, key=parse_eps)


def worst_case(results: Sequence[Result]) -> Scores:
    """Accuracy under the worst of the attacks in pixels, at `smallest_radius`."""
    return scores(results, "pixel", [f"worst-case-{smallest_radius(results)}"])


def printed_differences(keys: Sequence[str] = ATTACKS) -> dict[str, float]:
    """Method -> what Table 10 prints for it minus what it prints for the unpruned network, as a fraction, over these columns.

    The paper's unpruned network was not fine-tuned, and every number is that of the epoch that is best in its column. As in
    `scores`, methods that are trained for robustness are left out.
    """
    best = superscores(10, likely=True)[list(keys)].mean(axis=1) / 100
    known = {name: here for name, here in names_here().items() if not trained_for_robustness(here)}
    return {known[name]: float(best[name] - best["Unpruned"]) for name in best.index if name in known and name != "Unpruned"}
