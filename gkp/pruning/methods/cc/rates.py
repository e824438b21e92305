"""The share that each layer saves: one marginal price for all (CC's global compression rate optimisation)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MOST = 0.95  # of a layer's MACs
STEEPEST = 1e-6  # of a fit that does not rise; its layer then gives all it may


def exponential(saved: Tensor, metric: Tensor) -> tuple[float, float]:
    """Fit a * exp(b * saved) to a layer's redundancy curve: a line through log metric, weighted by its root. Returns (a, b)."""
    y = metric.double().numpy()
    if y.max(initial=0) <= 0:  # a layer of zeros loses nothing
        return 1e-10, STEEPEST
    slope, intercept = np.polyfit(saved.double().numpy(), np.log(y + 1e-10), 1, w=y**0.25)  # polyfit squares its weights
    return float(np.exp(intercept)), max(float(slope), STEEPEST)


def savings(fits: Sequence[tuple[float, float]], macs: Sequence[float], total: float) -> NDArray[np.float64]:
    """The MACs that each layer saves, `(L,)`, such that the last one saved costs every layer the same.

    Args:
        fits: (a, b) of each layer.
        macs: Of each layer; it saves between 0 and 95 % of them.
        total: MACs to save together; a total beyond what is possible gives the 95 %.
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
