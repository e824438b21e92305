"""The choice among clusterings of a layer: a vote of snapshots by tickets magnitude increase (TMI-GKP, step 2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from torch import Tensor


def vote(changes: Tensor, candidates: Mapping[str, Tensor]) -> str:
    """The name of the clustering that wins at most snapshots; of equals, the one with the longest run, then the earlier one.

    Args:
        changes: `(E, C_out)`, per snapshot and filter the sum of | |w_final| - |w_epoch| |.
        candidates: Labels `(C_out,)` by name.
    """
    names = list(candidates)
    winners = [names[winner(at_epoch, list(candidates.values()))] for at_epoch in changes]
    counts = Counter(winners)  # in order of first appearance
    runs = [(name, len(list(run))) for name, run in groupby(winners)]
    longest = {name: max(length for other, length in runs if other == name) for name in counts}
    return max(counts, key=lambda name: (counts[name], longest[name]))


def winner(changes: Tensor, candidates: Sequence[Tensor]) -> int:
    """The position of the candidate labels `(C_out,)` that split `changes` `(C_out,)` of one snapshot most evenly among
    clusters.

    The smallest 0.5 rank(mean interval) + rank(variance of intervals) wins (equal values share their mean rank), the first of
    equals.
    """
    from scipy import stats

    means, variances = zip(*(intervals(changes, labels) for labels in candidates), strict=True)
    return int(np.argmin(0.5 * stats.rankdata(means) + stats.rankdata(variances)))


def intervals(changes: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean and variance of the steps between the clusters' summed `changes` `(C_out,)`, sorted; 0 and 0 for one cluster."""
    sums = np.bincount(labels.numpy(), weights=changes.double().numpy())
    steps = np.diff(np.sort(sums))
    return (float(steps.mean()), float(steps.var())) if len(steps) else (0.0, 0.0)
