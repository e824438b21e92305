"""The 22 checks, each a pure function from an `Evidence` to a `Check`; see `verdict` for how small samples are judged."""

from __future__ import annotations

from gkp.evaluation.audit import attack_checks  # noqa: F401  # its functions enter CHECKS
from gkp.evaluation.audit.evidence import Evidence
from gkp.evaluation.audit.report_checks import MASKING, SELECTIONS
from gkp.evaluation.audit.verdict import CHECKS, Check

__all__ = ["CHECKS", "MASKING", "SELECTIONS", "run_checks"]


def run_checks(evidence: Evidence) -> tuple[Check, ...]:
    """All 22 checks, in order."""
    return tuple(CHECKS[number](evidence) for number in sorted(CHECKS))
