"""What a check returns, and how small samples are judged. Free.

A share k / n that should not exceed a limit: "pass" while it does not; above it, "fail" when the exact binomial test rejects
"the true share is within the limit" at 5 %, otherwise "warn": n images do not decide it. Two attacks on the same images, one of
which should be at least as strong: "pass" while it breaks as many; otherwise "fail" when the exact one-sided McNemar test
rejects at 5 % that both are alike, else "warn". Invariants have no sample: one violation is "fail". What was not measured is
"not run", with the reason. Percent points are of all n images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import wraps
from typing import Any

import numpy as np

from gkp.evaluation.audit.evidence import Evidence, Missing, Probe
from gkp.evaluation.statistics import exceeds, mcnemar

PASS, WARN, FAIL, NOT_RUN = "pass", "warn", "fail", "not run"
LEVEL = 0.05


@dataclass(frozen=True)
class Check:
    """The outcome of one check. status: "pass", "warn", "fail" or "not run". value, threshold: what was compared, in the unit
    that `note` names; None where there is no number. n: images it rests on."""

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


CHECKS: dict[int, Callable[[Evidence], Check]] = {}


def numbered(number: int, name: str) -> Callable[[Callable[[Evidence], Check]], Callable[[Evidence], Check]]:
    """Enters the function in CHECKS; what it misses makes it "not run", and nothing else does."""

    def enter(judge: Callable[[Evidence], Check]) -> Callable[[Evidence], Check]:
        @wraps(judge)
        def numbered(evidence: Evidence) -> Check:
            try:
                return replace(judge(evidence), number=number, name=name)
            except Missing as reason:
                return Check(number, name, NOT_RUN, note=str(reason))

        CHECKS[number] = numbered
        return numbered

    return enter


def finding(status: str, value: float | None, threshold: float | None, n: int, note: str) -> Check:
    """A Check whose number and name are still to be written in. What is not finite JSON cannot hold, and becomes None."""
    value, threshold = (None if x is None or not math.isfinite(x) else round(float(x), 6) for x in (value, threshold))
    return Check(0, "", status, value, threshold, n, note)


def invariant(violations: int, n: int, note: str) -> Check:
    """What must never happen: one violation fails. note: what went wrong, left out if nothing did."""
    return finding(FAIL if violations else PASS, violations, 0, n, note if violations else "")


def share_status(k: int, n: int, limit: float) -> str:
    """Status of k of n that should be a share of at most `limit`."""
    if k <= limit * n:
        return PASS
    return FAIL if limit == 0 or exceeds(k, n, limit) < LEVEL else WARN


def strength_status(strong: np.ndarray, weak: np.ndarray) -> str:
    """Status of "`strong` leaves no more images right than `weak`", (N,) bool each."""
    against, in_favour = int((strong & ~weak).sum()), int((weak & ~strong).sum())
    if against <= in_favour:
        return PASS
    return FAIL if mcnemar(against, in_favour, one_sided=True) < LEVEL else WARN


def at_least_as_strong(strong_name: str, strong: np.ndarray, weak_name: str, weak: np.ndarray) -> Check:
    """`strength_status` as a finding. Value: points of accuracy that the one meant to be strong leaves more."""
    status, n = strength_status(strong, weak), len(strong)
    missed, only = int((strong & ~weak).sum()), int((weak & ~strong).sum())
    note = f"{weak_name} breaks {missed} images that {strong_name} does not, and misses {only}"
    return finding(status, 100 * (int(strong.sum()) - int(weak.sum())) / n, 0, n, "" if status == PASS else note)


def worst_of(statuses: Iterable[str]) -> str:
    """The worst of them: "fail", then "warn"."""
    return max(statuses, key=(PASS, WARN, FAIL).index)


def probes_of(evidence: Evidence) -> Mapping[str, Probe]:
    """Each attack's probe. Raises Missing if there was no image to try attacks on."""
    if not evidence.probes:
        raise Missing("no image is classified correctly without attack, so there was none to try attacks on")
    return evidence.probes


def probed_images(evidence: Evidence) -> int:
    """On how many images each attack's conduct was looked at."""
    return max(probe.n for probe in probes_of(evidence).values())


def named(what: str, counts: Mapping[str, int]) -> str:
    """ "what one (3), other (1)", or "" if there are none."""
    return f"{what} {', '.join(f'{name} ({count})' for name, count in counts.items())}" if counts else ""


def percent(share: float) -> str:
    """A fraction as the card prints it."""
    return f"{100 * share:.2f} %"
