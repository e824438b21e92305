"""Three ways to cluster the filters of a layer into groups of equal size (TMI-GKP, step 1).

Each takes a weight `(C_out, C_in, k_h, k_w)` and returns labels `(C_out,)` int64, C_out / groups of each. Kernels, graph,
search grid and its ranks are those of the released code. The difference: sizes are made equal by optimal assignment
(scipy.optimize.linear_sum_assignment), where the released code moves filters one by one: in its k-means greedily, in its DBSCAN
to the centre *farthest* away that is not full (it sorts distances downwards), so that filters grouped there are hardly alike.
Two more of its traits: with 16 filters its graph of mutual 16 nearest neighbours is complete, so the spectral clustering of a
first stage carries no information; and its t-SNE runs with perplexities as small as 2.

One core, a layer of 16, 32 or 64 filters: kpca and spectral 0.01-0.03 s, dbscan 0.8, 1.2 and 2.3 s (a search over clusterings
by the thousand).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkp.errors import BadInput

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
NEIGHBOURS = 16  # of the spectral graph
STARTS, ROUNDS = 10, 300  # of equal k-means
DIMENSIONS, EPS_STEP = range(2, 8), 0.05  # of the t-SNE embeddings and the DBSCAN radii tried


def kpca(weight: Tensor, groups: int, *, seed: int = 0) -> Tensor:
    """Labels `(C_out,)` by kernel PCA on 0.5 (W W^T)^2 + 0.5 RBF, then equal k-means."""
    from sklearn.decomposition import KernelPCA  # here and below late: scikit-learn and scipy take seconds to import
    from sklearn.metrics.pairwise import rbf_kernel

    filters = _filters(weight)
    kernel = 0.5 * (filters @ filters.T) ** 2 + 0.5 * rbf_kernel(filters)
    return torch.from_numpy(equal_k_means(KernelPCA(kernel="precomputed").fit_transform(kernel), groups, seed=seed))


def spectral(weight: Tensor, groups: int, *, seed: int = 0) -> Tensor:
    """Labels `(C_out,)` by spectral embedding of the mutual nearest neighbour graph (cosine), then equal k-means.

    The embedding is the first C_out / groups eigenvectors of the random-walk Laplacian.
    """
    from scipy import linalg
    from scipy.spatial.distance import pdist, squareform

    filters = _unit_length(_filters(weight))
    distance = np.nan_to_num(squareform(pdist(filters, metric="cosine")), nan=1.0)  # a dead filter is orthogonal to all
    near = np.zeros(distance.shape, dtype=bool)
    np.put_along_axis(near, np.argsort(distance, axis=1, kind="stable")[:, : NEIGHBOURS + 1], True, axis=1)
    mutual = (near & near.T) | np.eye(len(near), dtype=bool)
    degree = np.diag(mutual.sum(axis=1).astype(float))
    _, vectors = linalg.eigh(degree - mutual, degree)  # generalised: the eigenvectors of degree^-1 (degree - mutual)
    embedding = vectors[:, : max(1, len(filters) // groups)]
    return torch.from_numpy(equal_k_means(_unit_length(embedding.T).T, groups, seed=seed))


def dbscan(weight: Tensor, groups: int, *, seed: int = 0) -> Tensor:
    """Labels `(C_out,)` by t-SNE and DBSCAN, tuned towards `groups` clusters of equal size, then equal assignment.

    Tuned over embeddings of 2 to 7 dimensions, radii in steps of 0.05 and core sizes of 0.5 to 1.1 times the wanted cluster
    size: the smallest rank(|labels - groups - 1|) + 0.5 rank(variance of sizes) wins, noise being a label too.
    """
    from scipy import stats

    filters = _unit_length(_filters(weight))
    trials = [trial for dimensions in DIMENSIONS for trial in _trials(_embed(filters, groups, dimensions, seed), groups)]
    rank_of_number = stats.rankdata([abs(trial.number - (groups + 1)) for trial in trials])
    rank_of_variance = stats.rankdata([trial.variance for trial in trials])
    best = trials[int(np.argmin(rank_of_number + 0.5 * rank_of_variance))]
    return torch.from_numpy(assign_equally(best.points, _centres(best.points, best.labels, groups)))


CLUSTERINGS: dict[str, Callable[..., Tensor]] = {"kpca": kpca, "spectral": spectral, "dbscan": dbscan}


def cluster(name: str, weight: Tensor, groups: int, *, seed: int = 0) -> Tensor:
    """Labels `(C_out,)` int64 by the clustering `name`, one of `CLUSTERINGS`.

    One group, or as many groups as filters, leave nothing to cluster. Raises BadInput if the filters do not divide by `groups`.
    """
    filters = len(weight)
    if groups < 1 or filters % groups:
        raise BadInput(f"{filters} filters do not divide into {groups} equal groups; use groups that divide {filters}")
    if groups in (1, filters):
        return torch.arange(filters) % groups
    return CLUSTERINGS[name](weight, groups, seed=seed)


def equal_k_means(points: Floats, groups: int, *, seed: int = 0) -> Labels:
    """Labels `(N,)` of k-means on `points` `(N, D)` with N / groups points in each cluster: the best of 10 k-means++ starts."""
    from sklearn.cluster import kmeans_plusplus

    random = np.random.RandomState(seed)  # what scikit-learn takes
    best, least = np.zeros(len(points), dtype=np.int64), np.inf
    for _ in range(STARTS):
        centres, _ = kmeans_plusplus(points, groups, random_state=random)
        labels = assign_equally(points, centres)
        for _ in range(ROUNDS):
            centres = np.stack([points[labels == group].mean(axis=0) for group in range(groups)])
            before, labels = labels, assign_equally(points, centres)
            if np.array_equal(before, labels):
                break
        inertia = float(((points - centres[labels]) ** 2).sum())
        if inertia < least:
            best, least = labels, inertia
    return best


def assign_equally(points: Floats, centres: Floats) -> Labels:
    """Labels `(N,)` that assign N / len(centres) of the `points` `(N, D)` to each centre with the least squared distances."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    size = len(points) // len(centres)
    places = np.repeat(cdist(points, centres, "sqeuclidean"), size, axis=1)
    _, place = linear_sum_assignment(places)  # rows come back in order
    return place // size


@dataclass(frozen=True, eq=False)
class _Trial:
    """One DBSCAN clustering of `points`: labels (noise is -1), their number, and the variance of the clusters' sizes."""

    points: Floats
    labels: Labels
    number: int
    variance: float


def _trials(points: Floats, groups: int) -> Iterator[_Trial]:
    """Every clustering tried on one embedding.

    A scan of radii ends early, as in the released code: once a quarter of them gave two labels or less, or a tenth of a quarter
    after half the wanted number had been seen.
    """
    from scipy.spatial.distance import pdist, squareform

    distance = squareform(pdist(points))
    radii = np.arange(math.floor(distance.max() / 2 / EPS_STEP) + 2) * EPS_STEP + sys.float_info.min
    patience = len(radii) // 4
    for ratio in np.arange(0.5, 1.11, 0.1):
        core = max(1, math.ceil(len(points) / groups * ratio - 1e-9))
        merged, seen_enough = 0, False
        for radius in radii:
            labels = _dbscan(distance, radius, core)
            sizes = np.unique(labels, return_counts=True)[1]
            if groups > 2 and len(sizes) <= 2:
                merged += 1
                if merged >= patience or (seen_enough and merged >= patience * 0.1):
                    break
            elif len(sizes) >= groups / 2:
                seen_enough = True
            yield _Trial(points, labels, len(sizes), float(sizes.var()))


def _dbscan(distance: Floats, radius: float, core: int) -> Labels:
    import sklearn
    from sklearn.cluster import dbscan

    with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):  # halves the time of thousands of calls
        return dbscan(distance, eps=radius, min_samples=core, metric="precomputed")[1]


def _embed(filters: Floats, groups: int, dimensions: int, seed: int) -> Floats:
    """The filters in a t-SNE space of so many dimensions, each of mean 0 and variance 1, by the defaults of those days."""
    from sklearn.manifold import TSNE

    size = len(filters) / groups
    tsne = TSNE(dimensions, perplexity=size, init="random", learning_rate=200.0, method="exact", random_state=seed)
    points = tsne.fit_transform(filters).astype(np.float64)
    return (points - points.mean(axis=0)) / np.maximum(points.std(axis=0), 1e-300)


def _centres(points: Floats, labels: Labels, groups: int) -> Floats:
    """Exactly `groups` centres of labelled `points`.

    Too few labels: the highest oversized one loses as many members as a group has, those farthest from its centre, to a new
    label. Too many: the lowest labels, noise first, are dissolved.
    """
    labels, size = labels.copy(), len(points) // groups
    while len(names := np.unique(labels)) < groups:
        oversized = max(name for name in names if (labels == name).sum() > size)
        members = np.flatnonzero(labels == oversized)
        far = np.linalg.norm(points[members] - points[members].mean(axis=0), axis=1)
        labels[members[np.argsort(-far, kind="stable")[:size]]] = names[-1] + 1
    return np.stack([points[labels == name].mean(axis=0) for name in names[-groups:]])


def _filters(weight: Tensor) -> Floats:
    return weight.detach().flatten(1).double().cpu().numpy()


def _unit_length(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
