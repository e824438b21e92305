"""The arithmetic of verdicts: intervals of paired differences over images and seeds, tolerances, and when an order holds.

A difference between two methods has two sources of chance: which images are in the test set, and how each training went. The
first is estimated per image, both networks on the same images; the second from repeated seeds. Both go into one interval.
`gkp.evaluation.compare` has the exact tests for two single networks; here several seeds and several attacks are averaged first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student
from statsmodels.stats.proportion import proportion_confint

from gkp.errors import BadInput


def wilson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of count / n. Raises BadInput for a confidence outside (0, 1)."""
    if not 0 < confidence < 1:
        raise BadInput(f"confidence must lie between 0 and 1, not {confidence}; the usual is 0.95")
    low, high = proportion_confint(count, n, alpha=1 - confidence, method="wilson")
    share = count / n  # an end of the interval for none and for all, where rounding puts that end 1e-19 inside
    return max(0.0, min(share, float(low))), min(1.0, max(share, float(high)))


def paired_interval(
    only_a: int, only_b: int, n: int, *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the difference of two accuracies measured on the same n images.

    Images are drawn with replacement, each with its two outcomes. Only how many of each kind are drawn matters, and these
    counts are multinomial: drawing them gives the bootstrap's own distribution for the cost of one draw per resample.
    Raises BadInput for counts that do not fit n, and for a confidence outside (0, 1).
    """
    if min(only_a, only_b) < 0 or n < 1 or only_a + only_b > n:
        raise BadInput(
            f"{only_a} and {only_b} discordant images of {n} are no counts; give whole numbers whose sum is at most n"
        )
    if not 0 < confidence < 1 or resamples < 100:
        raise BadInput(f"confidence {confidence} and {resamples} resamples; give a number between 0 and 1, and 100 or more")
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


SHIPPED = 0.0005  # the same weights, the same torch, 10,000 images: 0.05 points
LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Standard deviation of an accuracy over training seeds, pooled over methods, with its degrees of freedom."""

    sd: float = 0.0
    df: int = 0

    @classmethod
    def pooled(cls, groups: Sequence[Sequence[float]]) -> Spread:
        """From the accuracies of the seeds of each method; methods with one seed say nothing."""
        several = [np.asarray(group) for group in groups if len(group) > 1]
        df = sum(len(group) - 1 for group in several)
        return cls(math.sqrt(sum(group.var(ddof=1) * (len(group) - 1) for group in several) / df), df) if df else cls()

    def half_width(self, shares: float, tests: int = 1) -> float:
        """Half the interval that seeds alone give to a sum of means, shares being the sum of 1 / number of seeds."""
        quantile = student.ppf(1 - (1 - LEVEL) / (2 * tests), self.df) if self.df else 0.0
        return float(quantile) * self.sd * math.sqrt(shares)


@dataclass(frozen=True)
class Estimate:
    """A difference of accuracies as fractions with its interval, from n images and `seeds` trainings on the poorer side."""

    value: float
    low: float
    high: float
    n: int
    seeds: int

    @property
    def text(self) -> str:
        """In points: "+1.2 [0.5, 1.9]"."""
        return f"{100 * self.value:+.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def quantile(tests: int = 1) -> float:
    """The normal quantile of a two-sided interval of `LEVEL`, made wide enough for so many tests at once (Bonferroni)."""
    return float(norm.ppf(1 - (1 - LEVEL) / (2 * tests)))


def difference(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, spread: Spread | None = None, tests: int = 1, seeds: int | None = None
) -> Estimate:
    """Mean accuracy of the networks `a` less that of `b`, which saw the same images; each entry is (N,) in [0, 1] a network.

    spread: over seeds; without it the interval is of the images alone. tests: how many such intervals hold together with 95 %.
    seeds: to report; by default the number of networks on the smaller side.
    """
    per_image = np.mean(a, axis=0) - np.mean(b, axis=0)
    n, value = len(per_image), float(per_image.mean())
    of_images = quantile(tests) * float(per_image.std(ddof=1)) / math.sqrt(n) if n > 1 else 1.0
    half = math.hypot(of_images, (spread or Spread()).half_width(1 / len(a) + 1 / len(b), tests))
    return Estimate(value, value - half, value + half, n, min(len(a), len(b)) if seeds is None else seeds)


def tolerance(p: float, n: int, *, spread: Spread | None = None, trainings: int = 1) -> float:
    """How far from a reported accuracy p ours may be: z * sqrt(p (1 - p) / n) for n images, combined with the seeds' spread."""
    return math.hypot(quantile() * math.sqrt(p * (1 - p) / n), (spread or Spread()).half_width(1 / trainings))


def judge(estimate: Estimate, *, margin: float | None = None, reported: float | None = None) -> bool | None:
    """Whether an order holds: True, False, or None when these data cannot tell.

    Without margin the claim is "more": it holds when the interval lies above 0; it fails when it lies below 0, or when it
    contains 0 but no difference as large as the reported one. With a margin the claim is "not less by more than that": it holds
    when the interval lies above -margin, and fails when it lies below 0. All as fractions.
    """
    if estimate.low > (0.0 if margin is None else -margin):
        return True
    if estimate.high < 0:
        return False
    return False if margin is None and reported is not None and estimate.high < reported else None


def together(parts: Sequence[bool | None]) -> bool | None:
    """A claim of several parts: it holds when all do, fails when one does, and is open otherwise."""
    if any(part is False for part in parts):
        return False
    return True if all(part is True for part in parts) else None
