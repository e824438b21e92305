"""The 22 checks of the audit, each a function of an `Evidence` that returns a `Check`. Pure and free.

| module | checks |
|---|---|
| `conduct` | 1 to 5: were the attacks given the right network, and did they keep to the rules? |
| `masking` | 6 to 12: do the attacks see the gradient? |
| `reporting` | 13 to 22: is the right figure reported, and can it be had again? |

`verdict` says how small samples are judged.
"""

from __future__ import annotations

from gkp.evaluation.audit import conduct, masking, reporting  # each enters its checks
from gkp.evaluation.audit.evidence import Evidence
from gkp.evaluation.audit.verdict import CHECKS, Check

__all__ = ["CHECKS", "Check", "conduct", "masking", "reporting", "run_checks"]


def run_checks(evidence: Evidence) -> tuple[Check, ...]:
    """All 22 checks, in order."""
    return tuple(CHECKS[number](evidence) for number in sorted(CHECKS))
