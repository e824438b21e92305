"""What a check returns, and how small samples are judged.

A share k / n that should not exceed a limit passes while it does not. Above it, the check fails when the exact binomial test
rejects "the true share is within the limit" at 5 %; otherwise it warns: n images do not decide it. Of two attacks on the same
images, one of which should be at least as strong, the check passes while that one misclassifies as many; otherwise it fails
when the exact one-sided McNemar test rejects at 5 % that both are equally strong, and warns when it does not. Invariants have
no sample: one violation fails. What was not measured is "not run", with the reason. Percentage points are of all n images.
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
        value, threshold: What was compared, in the unit that the check's docstring names; None where there is no number.
        n: How many images it rests on.
        note: The reason of anything but "pass".
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
    """`judge` with its number and name; evidence that is missing makes it "not run", and nothing else does."""

    @wraps(judge)
    def check(evidence: Evidence) -> Check:
        try:
            return replace(judge(evidence), number=number, name=name)
        except Missing as reason:
            return Check(number, name, NOT_RUN, note=str(reason))

    return check


def finding(status: str, value: float | None, threshold: float | None, n: int, note: str = "") -> Check:
    """A Check without its number and name. Values that are not finite, which JSON cannot hold, become None."""
    value, threshold = (None if x is None or not math.isfinite(x) else round(float(x), 6) for x in (value, threshold))
    return Check(0, "", status, value, threshold, n, note)


def invariant(violations: int, n: int, note: str) -> Check:
    """A finding that fails at the first violation; `note` says what went wrong and is left out if nothing did."""
    return finding(FAIL if violations else PASS, violations, 0, n, note if violations else "")


def share_status(k: int, n: int, limit: float) -> str:
    """Status of k of n that should be a share of at most `limit`."""
    if k <= limit * n:
        return PASS
    return FAIL if limit == 0 or exceeds(k, n, limit) < LEVEL else WARN


def strength_status(strong: np.ndarray, weak: np.ndarray) -> str:
    """Status of "`strong` leaves no more images right than `weak`", (N,) bool each."""
    against, in_favour = discordant(strong, weak)
    if against <= in_favour:
        return PASS
    return FAIL if mcnemar(against, in_favour, one_sided=True) < LEVEL else WARN


def at_least_as_strong(strong_name: str, strong: np.ndarray, weak_name: str, weak: np.ndarray) -> Check:
    """`strength_status` as a finding. Value: points of accuracy that the attack meant to be strong leaves more."""
    status, n = strength_status(strong, weak), len(strong)
    missed, only = discordant(strong, weak)
    note = f"{weak_name} breaks {missed} images that {strong_name} does not, and misses {only}"
    return finding(status, 100 * (int(strong.sum()) - int(weak.sum())) / n, 0, n, "" if status == PASS else note)


def worst_of(statuses: Iterable[str]) -> str:
    """The worst of them: "fail", then "warn"."""
    return max(statuses, key=(PASS, WARN, FAIL).index)


def named(what: str, counts: Mapping[str, int]) -> str:
    """The text "what one (3), other (1)" of the counts above 0, or "" if there are none."""
    found = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
    return f"{what} {found}" if found else ""


def percent(share: float) -> str:
    """A fraction as the card prints it."""
    return f"{100 * share:.2f} %"
