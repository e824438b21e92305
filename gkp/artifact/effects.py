"""Accuracies of methods and their paired differences over all finished seeds, with intervals.

An interval accounts for both sources of randomness, the test images and the seeds of fine-tuning (`gkp.evaluation.statistics`).
The spread over seeds is pooled over all methods, so a method with a single seed gets an interval of plausible width.

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
    method_of,
    net_seed,
    of_one_budget,
    outcomes_of,
    paper_name,
    row_name,
    trained_for_robustness,
)
from gkp.attacks.options import parse_eps
from gkp.errors import BadInput
from gkp.evaluation.statistics import LEVEL, Estimate, Spread, difference, holm, quantile

ATTACKS = ATTACKED[1:]  # (a), (b), (c): the paper's attacks, without "benign"
UNPRUNED = (BASELINE, CONTINUED)
SETTING = ("model", "rate", "epochs")  # see `setting_of`
RADIUS = "1/255"  # at which networks that were not trained for robustness still differ


@dataclass(frozen=True)
class Scores:
    """The share of attacks under which each image is classified correctly, by method and seed.

    Attributes:
        part: The role of the evaluations, as in `gkp.artifact.results.plays`.
        keys: The attacks whose accuracies are averaged.
        rows: `row_name` -> seed -> shares (N,) in [0, 1], all of the same images.
        of_sizes: Rows whose seeds removed so different parts that their networks are of different sizes.
    """

    part: str
    keys: tuple[str, ...]
    rows: Mapping[str, Mapping[int, np.ndarray]]
    of_sizes: frozenset[str] = frozenset()

    @cached_property
    def spread(self) -> Spread:
        """The spread of an accuracy over seeds, pooled over all methods with several seeds but those of several sizes."""
        return Spread.pooled([list(seeds.values()) for row, seeds in self.rows.items() if row not in self.of_sizes])

    def spread_of(self, *rows: str) -> Spread:
        """The spread for these rows: the pooled one, or that of one of them which is of several sizes and has a wider one."""
        own = [Spread.pooled([list(self.rows[row].values())]) for row in rows if row in self.of_sizes]
        return max([self.spread, *own], key=lambda spread: spread.half_width(1))

    @property
    def pruned(self) -> list[str]:
        """The rows that are not unpruned networks."""
        return [row for row in self.rows if row not in UNPRUNED]

    def accuracy(self, row: str) -> Estimate:
        """The accuracy of a row, a fraction, with its interval."""
        images = list(self.rows[row].values())
        mean = np.mean(images, axis=0)
        of_images = quantile() * float(mean.std(ddof=1)) / len(mean) ** 0.5 if len(mean) > 1 else 1.0
        half, value = np.hypot(of_images, self.spread_of(row).half_width(1 / len(images))), float(mean.mean())
        return Estimate(value, max(0.0, value - half), min(1.0, value + half), len(mean), len(images))

    def minus(self, row: str, other: str) -> Estimate:
        """The accuracy of a row minus that of another one, a fraction, with its interval."""
        return difference(list(self.rows[row].values()), list(self.rows[other].values()), spread=self.spread_of(row, other))

    def differences(self, other: str) -> tuple[dict[str, Estimate], dict[str, float]]:
        """Row -> its difference to another row, and row -> p after Holm's correction over all of them."""
        found = {row: self.minus(row, other) for row in self.pruned if row != other}
        corrected = holm([estimate.p() for estimate in found.values()]) if found else ()
        return found, dict(zip(found, map(float, corrected), strict=True))

    def leaders(self) -> set[str]:
        """The most accurate method and all that do not differ significantly from it (5 %, Holm over the others)."""
        if not self.pruned:
            return set()
        best = max(self.pruned, key=lambda row: self.accuracy(row).value)
        return {best} | {row for row, p in self.differences(best)[1].items() if p > 1 - LEVEL}


def scores(
    results: Sequence[Result], part: str, keys: Sequence[str], *, wanted: Callable[[Evaluation], bool] | None = None
) -> Scores:
    """The scores of finished evaluations under some attacks, on the images of the first of them.

    Args:
        results: Finished networks and their evaluations, of one architecture.
        part: The role of the evaluations, as in `gkp.artifact.results.plays`.
        keys: The attacks, keys of `Outcomes.rows`; evaluations without one of them are left out.
        wanted: Which evaluations are taken; None for `is_tuned`.

    Raises:
        BadInput: A method and seed has several networks, such as those of two rates.
    """
    rows: dict[str, dict[int, np.ndarray]] = {}
    nets: dict[tuple[str, int], str] = {}
    macs: dict[str, list[int]] = {}
    images: np.ndarray | None = None
    for one in evaluations(results, part):
        if not (wanted or is_tuned)(one):
            continue
        try:
            right = mean_right(out := outcomes_of(one.result), keys)
        except BadInput:  # it was not kept, or is of other attacks
            continue
        images = out.indices if images is None else images
        if np.array_equal(out.indices, images):
            row, seed = row_name(one.net), net_seed(one.net)
            if nets.setdefault((row, seed), one.net.hash) != one.net.hash:
                what = "give the results of one network, rate and length of fine-tuning"
                raise BadInput(f"{row}, seed {seed}, stands for several networks, one of them {one.net.id}; {what}")
            rows.setdefault(row, {})[seed] = right
            macs.setdefault(row, []).extend([one.network["paper_macs"]] if one.network else [])
    of_sizes = frozenset(row for row, found in macs.items() if not of_one_budget(found))
    return Scores(part, tuple(keys), rows, of_sizes)


def is_tuned(one: Evaluation) -> bool:
    """Whether the network was neither trained from scratch in a pruned shape nor trained on adversarial images."""
    return not (isinstance(one.net, PruneCell) and (one.net.scratch or trained_for_robustness(one.net.method)))


def setting_of(one: Evaluation) -> tuple[str, float, int]:
    """The setting within which networks are ranked: architecture, rate and epochs of fine-tuning, named in `SETTING`.

    The rate of an unpruned network is 0, and so are the epochs of a network that was not fine-tuned.
    """
    net = one.net
    if isinstance(net, PruneCell):
        return net.model, 0.0 if net.method == "none" else net.rate, net.finetuned
    return net.model, 0.0, 0


def over_seeds(points: pd.DataFrame) -> pd.DataFrame:
    """Average accuracies over seeds.

    Args:
        points: The points of `gkp.artifact.tables.methods_table`, a row for each network, seed and attack, with columns method,
            attack, accuracy, low, high and `SETTING`.

    Returns:
        A row for each network and attack: mean accuracy, low, high, and seeds, their number; other columns are those of the
        first seed. The interval combines that of the images with the spread over seeds, pooled over the methods of a schedule;
        methods that stand apart (seeds of several sizes, as in `Scores.of_sizes`, or trained on adversarial images) lend none
        and have their own where that is wider.
    """
    rows = []
    networks = points.groupby([*SETTING, "method"], sort=False)
    apart = {key for key, group in networks if trained_for_robustness(method_of(key[-1])) or _of_sizes(group)}
    spreads = {
        key: Spread.pooled([list(one["accuracy"]) for own, one in group.groupby([*SETTING, "method"]) if own not in apart])
        for key, group in points.groupby(["model", "epochs", "attack"], sort=False)
    }
    for (*setting, method, attack), group in points.groupby([*SETTING, "method", "attack"], sort=False):
        accuracy = round(float(group["accuracy"].mean()), 12)  # equal whatever the order of seeds
        own = [Spread.pooled([list(group["accuracy"])])] if (*setting, method) in apart else []
        seeds = max(spread.half_width(1 / len(group)) for spread in (spreads[setting[0], setting[2], attack], *own))
        low = accuracy - np.hypot((group["accuracy"] - group["low"]).mean(), seeds)
        high = accuracy + np.hypot((group["high"] - group["accuracy"]).mean(), seeds)
        found = {"accuracy": accuracy, "low": max(0.0, low), "high": min(1.0, high), "seeds": len(group)}
        rows.append(group.iloc[0].to_dict() | found)
    return pd.DataFrame(rows)


def _of_sizes(points: pd.DataFrame) -> bool:
    """Whether the seeds of a network removed so different parts that they are of different sizes."""
    return "paper_macs" in points and not of_one_budget(list(points["paper_macs"].dropna()))


def smallest_radius(results: Sequence[Result]) -> str:
    """`RADIUS` where the evaluations in pixels have it, else their smallest radius; "" where there is none."""
    radii = radii_of(results, "pixel")
    return RADIUS if RADIUS in radii else next(iter(radii), "")


def radii_of(results: Sequence[Result], *parts: str) -> list[str]:
    """The radii of all worst cases in the evaluations of these parts, the smallest first."""
    found = [key for part in parts for one in evaluations(results, part) for key in one.result["accuracy"]]
    return sorted({key.removeprefix("worst-case-") for key in found if key.startswith("worst-case-")}, key=parse_eps)


def exceptions(results: Sequence[Result]) -> str:
    """The networks that are not compared with CONTINUED on equal terms, or not at all, in sentences; "" without any."""
    every = {one.net.hash: one for part in ("pixel", "paper") for one in evaluations(results, part)}.values()
    usual = {setting_of(one)[2] for one in every if row_name(one.net) == CONTINUED}
    told: dict[str, dict[str, None]] = {}
    for one in every:
        name, epochs = paper_name(row_name(one.net)), setting_of(one)[2]
        off = one.network.figures.get("off_budget") if one.network else None
        if not is_tuned(one):
            told.setdefault("Left out", {})[name] = None
        elif row_name(one.net) not in UNPRUNED:
            if usual and epochs not in usual:
                length = f"Fine-tuned for {epochs} epochs, not {' or '.join(map(str, sorted(usual)))}"
                told.setdefault(length, {})[name] = None
            if off is not None:
                told.setdefault("Not at equal MACs", {})[name] = None
    return " ".join(f"{what}: {', '.join(names)}." for what, names in sorted(told.items()))


def worst_case(results: Sequence[Result]) -> Scores:
    """The scores under the worst case of the attacks in pixels, at `smallest_radius`."""
    return scores(results, "pixel", [f"worst-case-{smallest_radius(results)}"])


def printed_differences(keys: Sequence[str] = ATTACKS) -> dict[str, float]:
    """Method -> its printed accuracy in Table 10 minus that of the unpruned network, a fraction, the mean over some columns.

    The paper's unpruned network was not fine-tuned, and each number is of the best epoch in its column. Methods that train on
    adversarial images are left out.

    Args:
        keys: The columns; by default the paper's three attacks.
    """
    best = superscores(10, likely=True)[list(keys)].mean(axis=1) / 100
    known = {name: here for name, here in names_here().items() if not trained_for_robustness(here)}
    return {known[name]: float(best[name] - best["Unpruned"]) for name in best.index if name in known and name != "Unpruned"}
