"""How much each layer is to save: one marginal price for all (CC's global compression rate optimisation)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MOST = 0.95  # of a layer's MACs
STEEPEST = 1e-6  # of a fit that does not rise; its layer then gives all it may


def exponential(saved: Tensor, metric: Tensor) -> tuple[float, float]:
    """(a, b) of a * exp(b * saved) fitted to a layer's redundancy curve: a line through log metric, weighted by its root."""
    y = metric.double().numpy()
    slope, intercept = np.polyfit(saved.double().numpy(), np.log(y + 1e-10), 1, w=y**0.25)  # polyfit squares its weights
    return float(np.exp(intercept)), max(float(slope), STEEPEST)


def savings(fits: Sequence[tuple[float, float]], macs: Sequence[float], total: float) -> NDArray[np.float64]:
    """The MACs that each layer is to save, `(L,)`, together `total`, so that the last MAC saved costs every layer the same.

    fits: (a, b) of each layer. A layer saves between 0 and 95 % of its macs; a total beyond what that allows gives the 95 %.
    """
    a, b = np.array(fits).T
    most = MOST * np.asarray(macs, dtype=float)

    def at(log_price: float) -> NDArray[np.float64]:
        return np.clip(np.asarray(macs) / b * (log_price - np.log(a * b)), 0, most)

    low, high = float(np.log(a * b).min()), float((np.log(a * b) + b).max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).sum() < total else (low, middle)
    return at(high)
