"""SR-GKP, the paper's method: smoothness (Eq 1), grouping (stage 1), selection (stage 2), and their ablations."""

from gkp.pruning.sr_gkp import ablations, method

__all__ = ["ablations", "method"]
