"""The words of a verdict, and the decision on one claim with the numbers behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass

REPRODUCED, DIRECTION, DIFFERS, NOT_RUN = "reproduced", "direction holds", "differs", "not run"
VERDICTS = (REPRODUCED, DIRECTION, DIFFERS, NOT_RUN)
NO_VERDICT = "not a verdict: digits show that the pipeline works"
KINDS = ("value", "order at equal MACs", "direction", "cost ratio", "internal")


class NotRun(Exception):
    """Raised while a claim is being decided when what it needs is not there; the message is the reason."""


@dataclass(frozen=True)
class Decision:
    """The answer of the data to one claim.

    ours, interval: text in the units of the statement; n: images, networks or printed numbers, seeds: training runs behind it;
    value, low, high: the first number of `ours` and its interval, NaN where there is none.
    """

    verdict: str
    ours: str
    reason: str
    n: int = 0
    seeds: int = 0
    interval: str = ""
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
