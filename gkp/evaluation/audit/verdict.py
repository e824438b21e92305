"""The result of a check, and how small samples are judged.

A share k / n with a limit: "pass" up to the limit; above it, "fail" if the exact binomial test rejects at 5 % that the true
share is within the limit, else "warn". Two attacks on the same images, one of which should be at least as strong: "pass" if it
breaks at least as many images; else "fail" if the exact one-sided McNemar test rejects at 5 % that both are equally strong,
else "warn". An invariant: "fail" at the first violation. Without the measurements: "not run", with the reason. Percentage
points are of all n images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import wraps
from typing import Any

import numpy as np

from gkp.evaluation.audit.evidence import Evidence, Missing
from gkp.evaluation.statistics import discordant, exceeds, mcnemar

PASS, WARN, FAIL, NOT_RUN = "pass", "warn", "fail", "not run"
LEVEL = 0.05


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        number: 1 to 22.
        name: What is checked.
        status: "pass", "warn", "fail" or "not run".
        value, threshold: The numbers compared, in the unit named in the docstring of the check; None where there are none.
        n: The number of images it rests on.
        note: The reason of a status other than "pass".
    """

    number: int
    name: str
    status: str
    value: float | None = None
    threshold: float | None = None
    n: int = 0
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)


Judge = Callable[[Evidence], Check]


def numbered(number: int, name: str, judge: Judge) -> Judge:
    """Add number and name to a check, and make it "not run" where evidence is missing.

    Args:
        number: Its number.
        name: Its name.
        judge: The function of the check.
    """

    @wraps(judge)
    def check(evidence: Evidence) -> Check:
        try:
            return replace(judge(evidence), number=number, name=name)
        except Missing as reason:
            return Check(number, name, NOT_RUN, note=str(reason))

    return check


CHECKS: dict[int, Judge] = {}  # number -> the function that decides it


def check(number: int, name: str) -> Callable[[Judge], Judge]:
    """Add the decorated function to CHECKS."""
    return lambda judge: CHECKS.setdefault(number, numbered(number, name, judge))


def finding(status: str, value: float | None, threshold: float | None, n: int, note: str = "") -> Check:
    """A check without number and name.

    Args:
        status, n, note: As in `Check`.
        value, threshold: As in `Check`; numbers that are not finite become None, because JSON has none.
    """
    value, threshold = (None if x is None or not math.isfinite(x) else round(float(x), 6) for x in (value, threshold))
    return Check(0, "", status, value, threshold, n, note)


def invariant(violations: int, n: int, note: str) -> Check:
    """The finding for an invariant, which fails at the first violation.

    Args:
        violations: How many there are.
        n: The number of images.
        note: What went wrong; left out if there are no violations.
    """
    return finding(FAIL if violations else PASS, violations, 0, n, note if violations else "")


def share_status(k: int, n: int, limit: float) -> str:
    """The status of a share k / n that should not exceed a limit.

    Args:
        k, n: The counts.
        limit: The limit, a fraction.
    """
    if k <= limit * n:
        return PASS
    return FAIL if limit == 0 or exceeds(k, n, limit) < LEVEL else WARN


def strength_status(strong: np.ndarray, weak: np.ndarray) -> str:
    """The status of "no more images are correct under `strong` than under `weak`", outcomes (N,) bool each."""
    against, in_favour = discordant(strong, weak)
    if against <= in_favour:
        return PASS
    return FAIL if mcnemar(against, in_favour, one_sided=True) < LEVEL else WARN


def at_least_as_strong(strong_name: str, strong: np.ndarray, weak_name: str, weak: np.ndarray) -> Check:
    """The finding for two attacks, one of which should be at least as strong.

    Args:
        strong_name, weak_name: Their names.
        strong, weak: The outcomes under them, (N,) bool.

    Returns:
        A finding whose value is the accuracy under the strong attack minus that under the weak one, in points.
    """
    status, n = strength_status(strong, weak), len(strong)
    missed, only = discordant(strong, weak)
    note = f"{weak_name} breaks {missed} images that {strong_name} does not, and misses {only}"
    return finding(status, 100 * (int(strong.sum()) - int(weak.sum())) / n, 0, n, "" if status == PASS else note)


def worst_of(statuses: Iterable[str]) -> str:
    """The worst status: "fail" before "warn" before "pass"."""
    return max(statuses, key=(PASS, WARN, FAIL).index)


def named(what: str, counts: Mapping[str, int]) -> str:
    """The counts above 0 as text: "what one (3), other (1)"; "" if there are none."""
    found = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
    return f"{what} {found}" if found else ""


def percent(share: float) -> str:
    """A fraction in percent, as on the card."""
    return f"{100 * share:.2f} %"
