"""Every interval and test of this project, on counts and arrays: shares, paired comparisons, ranks, and orders that hold.

A difference between two methods has two sources of chance: which images are in the test set, and how each training went. The
first is estimated per image, both networks on the same images; the second from repeated seeds. `difference` puts both into one
interval; `paired_interval` and `mcnemar` compare two single networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy  # its submodules are imported when they are used; so is statsmodels, below

from gkp.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

SHIPPED = 0.0005  # the same weights, the same torch, 10,000 images: 0.05 points
LEVEL = 0.95


# --- shares ---------------------------------------------------------------------------------------------------------


def wilson(count: int, n: int, confidence: float = LEVEL) -> tuple[float, float]:
    """Wilson score interval (low, high) of the share count / n.

    Raises:
        BadInput: for a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise BadInput(f"confidence must lie between 0 and 1, not {confidence}; the usual is 0.95")
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, alpha=1 - confidence, method="wilson")
    share = count / n  # an end of the interval for none and for all, where rounding puts that end 1e-19 inside
    return max(0.0, min(share, float(low))), min(1.0, max(share, float(high)))


def share(count: int, n: int, confidence: float = LEVEL) -> dict[str, float]:
    """The columns accuracy, low, high (Wilson), n of a table, as fractions."""
    low, high = wilson(count, n, confidence)
    return {"accuracy": count / n, "low": low, "high": high, "n": n}


def upper_bound(count: int, n: int, confidence: float = LEVEL) -> float:
    """One-sided exact (Clopper-Pearson) upper bound of the share count / n."""
    return float(scipy.stats.binomtest(count, n).proportion_ci(2 * confidence - 1, method="exact").high)


def exceeds(count: int, n: int, share: float) -> float:
    """One-sided p of the exact binomial test that the true share behind count / n is at most `share`."""
    return float(scipy.stats.binomtest(count, n, share, alternative="greater").pvalue)


def tolerance(p: float, n: int, *, spread: Spread | None = None, trainings: int = 1) -> float:
    """Half-width of the band around a reported accuracy in which ours must lie.

    Args:
        p: The reported accuracy, a fraction.
        n: How many images it was measured on: the band is z * sqrt(p (1 - p) / n).
        spread: Over training seeds, added in quadrature.
        trainings: How many trainings ours is the mean of.
    """
    return math.hypot(quantile() * math.sqrt(p * (1 - p) / n), (spread or Spread()).half_width(1 / trainings))


# --- pairs of networks on the same images ---------------------------------------------------------------------------


def discordant(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """How many images only the first gets right and how many only the second, from (N,) bool each."""
    return int((a & ~b).sum()), int((b & ~a).sum())


def mcnemar(only_a: int, only_b: int, *, one_sided: bool = False) -> float:
    """p of the exact McNemar test that two networks, seen on the same images, are equally accurate.

    Args:
        only_a: Images that only the first gets right.
        only_b: Images that only the second gets right.
        one_sided: Test that the first is no better, instead of either way.
    """
    if one_sided:
        return exceeds(only_a, only_a + only_b, 0.5)
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    return min(1.0, float(exact_test([[0, only_a], [only_b, 0]], exact=True).pvalue))


def holm(p: Sequence[float]) -> np.ndarray:
    """The p values (K,) after Holm's correction for all K tests.

    Not by statsmodels, which collects garbage in each call: half a second in a process with torch.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return corrected


def paired_interval(
    only_a: int, only_b: int, n: int, *, seed: int = 0, resamples: int = 10_000, confidence: float = LEVEL
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the difference of two accuracies measured on the same n images.

    Images are drawn with replacement, each with its two outcomes. Only how many of each kind are drawn matters, and these
    counts are multinomial: drawing them gives the bootstrap's own distribution for the cost of one draw per resample.

    Args:
        only_a: Images that only the first gets right.
        only_b: Images that only the second gets right.
        n: All images.
        seed: Of the draws.
        resamples: How many bootstrap samples, at least 100.
        confidence: Of the interval.

    Raises:
        BadInput: for counts that do not fit n, too few resamples, and a confidence outside (0, 1).
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


# --- methods, averaged over seeds and attacks -----------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Standard deviation of an accuracy over training seeds, pooled over methods, with its degrees of freedom.

    Attributes:
        sd: A fraction.
        df: 0 where no method has several seeds, so that the spread is not known.
        of: The architecture that it was measured on, where that is another than the one in question.
    """

    sd: float = 0.0
    df: int = 0
    of: str = ""

    @classmethod
    def pooled(cls, groups: Sequence[Sequence[float | np.ndarray]]) -> Spread:
        """Pool the spread of several methods; one with a single seed adds nothing.

        Args:
            groups: For each method its seeds, each as an accuracy or as outcomes (N,) in [0, 1], of which the mean is taken.
        """
        several = [np.asarray([np.mean(seed) for seed in group]) for group in groups if len(group) > 1]
        df = sum(len(group) - 1 for group in several)
        return cls(math.sqrt(sum(group.var(ddof=1) * (len(group) - 1) for group in several) / df), df) if df else cls()

    def half_width(self, shares: float, tests: int = 1) -> float:
        """Half the interval that seeds alone give to a sum of means, shares being the sum of 1 / number of seeds."""
        quantile = scipy.stats.t.ppf(1 - (1 - LEVEL) / (2 * tests), self.df) if self.df else 0.0
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
    def interval(self) -> str:
        """The interval in points: "[0.5, 1.9]"."""
        return f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"

    @property
    def text(self) -> str:
        """The difference and its interval in points: "+1.2 [0.5, 1.9]"."""
        return f"{100 * self.value:+.1f} {self.interval}"

    def p(self, tests: int = 1) -> float:
        """Two-sided p of "the difference is 0", its interval being one of so many tests at once."""
        return float(2 * scipy.stats.norm.sf(abs(self.value) / self._error(tests)))

    def equivalence_p(self, margin: float, tests: int = 1) -> float:
        """p of "the difference is `margin`, a fraction, or more", by two one-sided tests (Schuirmann 1987).

        Args:
            margin: Differences within it count as none.
            tests: As in `p`.
        """
        return float(scipy.stats.norm.sf((margin - abs(self.value)) / self._error(tests)))

    def _error(self, tests: int) -> float:
        """The standard error behind the interval, which is one of so many at once."""
        return max((self.high - self.low) / 2 / quantile(tests), 1e-12)


def quantile(tests: int = 1) -> float:
    """The normal quantile of a two-sided interval of `LEVEL`, made wide enough for so many tests at once (Bonferroni)."""
    return float(scipy.stats.norm.ppf(1 - (1 - LEVEL) / (2 * tests)))


def difference(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, spread: Spread | None = None, tests: int = 1, seeds: int | None = None
) -> Estimate:
    """Mean accuracy of the networks `a` minus that of `b`, with an interval.

    Args:
        a: Outcomes of each network of one side, each (N,) in [0, 1].
        b: The other side's, on the same images.
        spread: Over seeds; without it the interval is of the images alone.
        tests: How many such intervals hold together with 95 %.
        seeds: To report; by default the number of networks on the smaller side.
    """
    per_image = np.mean(a, axis=0) - np.mean(b, axis=0)
    n, value = len(per_image), float(per_image.mean())
    of_images = quantile(tests) * float(per_image.std(ddof=1)) / math.sqrt(n) if n > 1 else 1.0
    half = math.hypot(of_images, (spread or Spread()).half_width(1 / len(a) + 1 / len(b), tests))
    return Estimate(value, value - half, value + half, n, min(len(a), len(b)) if seeds is None else seeds)


def judge(estimate: Estimate, *, margin: float | None = None) -> bool | None:
    """Decide whether an order holds: True, False, or None when these data leave it open.

    Args:
        estimate: The difference, as fractions.
        margin: None for the claim "more": it holds when the interval lies above 0 and fails when it lies below. With a margin
            the claim is "not worse by more than that": it holds when the interval lies above -margin, and fails when it lies
            below.
    """
    least = 0.0 if margin is None else -margin
    return True if estimate.low > least else False if estimate.high < least else None


# --- what another number explains -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A least-squares line: the share of the variance it explains, its slope, and the slope's interval."""

    r2: float
    slope: float
    low: float
    high: float


def fit_line(x: np.ndarray, y: np.ndarray, clusters: Sequence[object]) -> Line:
    """The line of y on x through all points, the interval of its slope with errors clustered.

    Args:
        x: (N,), not all the same.
        y: (N,).
        clusters: (N,) what each point belongs to, at least three: points of one are not independent.
    """
    from statsmodels.regression.linear_model import OLS

    codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)[1]
    model = OLS(np.asarray(y), np.stack([np.ones(len(x)), x], axis=1))
    found = model.fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    low, high = found.conf_int(1 - LEVEL)[1]
    return Line(float(found.rsquared), float(found.params[1]), float(low), float(high))


def beside_line(x: np.ndarray, y: np.ndarray, clusters: Sequence[object], *, apart: np.ndarray) -> tuple[float, float, float]:
    """How far some clusters lie above the line through all others, as means of clusters, with a prediction interval.

    The interval is that of as many further clusters of the same kind: it has the scatter of the others around their line, which
    errors clustered in one regression would miss for a cluster with a level of its own.

    Args:
        x, y, clusters: As in `fit_line`.
        apart: (N,) bool, the points of the clusters in question; the others are at least three clusters.

    Returns:
        The distance, and the low and high end of its interval; NaN where nothing is apart.
    """
    from statsmodels.regression.linear_model import OLS

    names = np.asarray(clusters, dtype=str)
    inside = [names == name for name in dict.fromkeys(names)]
    mean_x, mean_y = (np.array([np.mean(np.asarray(values)[chosen]) for chosen in inside]) for values in (x, y))
    mine = np.array([bool(np.asarray(apart)[chosen].all()) for chosen in inside])
    if not mine.any():
        return math.nan, math.nan, math.nan
    found = OLS(mean_y[~mine], np.stack([np.ones((~mine).sum()), mean_x[~mine]], axis=1)).fit()
    at = np.array([1.0, mean_x[mine].mean()])
    distance = float(mean_y[mine].mean() - at @ found.params)
    error = math.sqrt(float(at @ found.cov_params() @ at) + found.mse_resid / mine.sum())
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, found.df_resid)) * error
    return distance, distance - half, distance + half


def mean_rank(accuracies: pd.DataFrame, *, ties: str = "min") -> pd.DataFrame:
    """Rank of each method (row) under each attack (column), 1 being the best, and their "mean rank": the rule of Table 20.

    Any difference counts, however small; `gkp.evaluation.compare.rank_groups` says which are significant.

    Args:
        accuracies: One row per method, one column per attack.
        ties: What equal accuracies get, as in `pandas.DataFrame.rank`: "min" as published, "average", "max".
    """
    ranks = accuracies.rank(ascending=False, method=ties)
    return ranks.assign(**{"mean rank": ranks.mean(axis=1)})
