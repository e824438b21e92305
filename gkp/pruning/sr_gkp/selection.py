"""Stage 2: which grouped kernels each filter group keeps (paper section 3.3, Figure 4, Eq 2 and 3).

Every selection returns `kept` `(groups, keep)` int64: per filter group, the input channels that stay, ascending.

The beam search is exact against the released code (144 of 144 groups of its ResNet-20), which needs 400-510 s for that network
where this needs about a second on one core. What makes it fast:
- all filter groups, starts and branches of a layer advance together, in blocks that fit the cache;
- the `beam_width` most distant kernels come from as many first-index argmins, which is what a stable sort would give;
- what a branch costs is carried along: the similarity of every channel to the branch, and to its nearest kept kernel. Kept
  channels sit at +inf in the former, which keeps them out of the argmin and later tells who was kept.

This is the reference. `selection_compiled` runs the same search compiled by Numba where that pays, with the same result.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkp.errors import BadInput
from gkp.pruning.sr_gkp.selection_compiled import choose_search

Floats = NDArray[np.float64]
Beta = Literal["released", "paper"] | float
BLOCK_BYTES = 1 << 20  # a block of starts: its largest array should stay in the second-level cache
MOST_NUMBERS = 1 << 25  # one for each channel of each branch of a start: a quarter of a gigabyte
DISTANCE_ROWS = 64  # rows of distances computed in one go


@dataclass(frozen=True)
class Balance:
    """What a branch is judged by (Eq 2 and 3).

    Attributes:
        alpha: The paper's CSB, the weight of the cost rank against the smoothness rank at every check. With beta "released" it
            hardly matters: between 0.1 and 0.9 one of 144, 240 or 432 filter groups of a public ResNet-20, -32 or -56 changes,
            or none, for some start finds the set of largest distances whichever branches go; with "paper" a third do.
        check_every: Extensions between two checks; 0 never checks.
        beta: Weight of the distance from pruned to nearest kept kernels. "paper" is C(|V|, 2) / #pruned of the set that is
            judged, as in Eq 3. "released" is that value at the *first* set judged, then frozen, as in the released code (a
            variable overwritten once): 0.5 where I = 16, 0.214 for 32, 0.1 for 64, instead of the paper's 5.14, 10.9 and 22.5.
            A number is itself.
        nearest: How many of its nearest kept kernels each pruned one is compared with: 1 here, int(0.2 K) in TMI-GKP.

    Raises:
        BadInput: A field is out of range.
    """

    alpha: float = 0.9
    check_every: int = 3
    beta: Beta = "released"
    nearest: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise BadInput(f"alpha must lie in [0, 1], not {self.alpha}; the paper uses 0.9")
        if self.check_every < 0:
            raise BadInput(f"check_every must be 0 (never) or more, not {self.check_every}; the paper uses 3")
        if isinstance(self.beta, str) and self.beta not in ("released", "paper"):
            raise BadInput(f'beta must be "released", "paper" or a number, not {self.beta!r}')
        if not isinstance(self.beta, str) and not math.isfinite(self.beta):
            raise BadInput(f'beta must be "released", "paper" or a finite number, not {self.beta}')
        if self.nearest < 0:
            raise BadInput(f"nearest must be 0 (no outer term) or more, not {self.nearest}; the paper uses 1")

    def beta_at(self, size: int, channels: int, keep: int) -> float:
        """The beta with which sets of `size` out of `channels` are judged, in a search that ends at `keep`."""
        if not isinstance(self.beta, str):
            return float(self.beta)
        if self.beta == "released":
            size = min(1 + self.check_every, keep) if self.check_every else keep
        return size * (size - 1) / 2 / (channels - size) / max(self.nearest, 1)


@dataclass(frozen=True)
class BeamStep:
    """One extension of the beam of one start, for whoever watches a search (Figure 4).

    Attributes:
        size: Kernels in each branch now.
        added: The channel that each branch added, (branches,).
        parent: Which branch of the step before each extends, (branches,).
        cost: Of each branch by Equation 3, (branches,).
        roughness: Of each branch, (branches,).
        stay: The branches that go on, best first.
    """

    size: int
    added: NDArray[np.int64]
    parent: NDArray[np.int64]
    cost: Floats
    roughness: Floats
    stay: NDArray[np.int64]


def watch_beam(
    kernels: Tensor, roughness: Tensor, keep: int, *, start: int, beam_width: int = 2, balance: Balance | None = None
) -> list[BeamStep]:
    """Every step of the search of one filter group from one start (Figure 4).

    Args:
        kernels: The group's grouped kernels, (C_in, D).
        roughness: The smoothness of each by Equation 1, lower being smoother, (C_in,).
        keep: How many are kept.
        start: The one that the search starts from.
        beam_width: How many branches are kept.
        balance: Settings of Equation 2; the paper's by default.
    """
    steps: list[BeamStep] = []
    rough = roughness.detach().double().cpu().numpy()
    similarity = _similarity(kernels.detach().cpu())
    _search_block(similarity, rough, np.array([start]), keep, beam_width, balance or Balance(), steps.append)
    return steps


def smooth_beam_greedy(
    kernels: Tensor, roughness: Tensor, keep: int, *, beam_width: int = 2, balance: Balance | None = None
) -> Tensor:
    """Smooth Beam Greedy search, the paper's choice of grouped kernels (section 3.3, Figure 4).

    It starts from every channel, extends each branch by the `beam_width` channels most distant from it, and after every
    `check_every` extensions keeps the `beam_width` branches that are best by Equation 2. The cheapest candidate of all starts
    wins (Equation 3), the first of equals.

    Args:
        kernels: Grouped kernels, (groups, C_in, D).
        roughness: The smoothness of each by Equation 1, lower being smoother, (groups, C_in).
        keep: How many are kept in each group, 0 < keep < C_in.
        beam_width: How many branches are kept, and by how many each is extended.
        balance: Settings of Equation 2; the paper's by default.

    Returns:
        The kept channels, (groups, keep).

    Raises:
        BadInput: `keep` or `beam_width` is out of range, or the branches would not fit into memory.
    """
    channels = kernels.shape[1]
    if not 0 < keep < channels:
        raise BadInput(f"keep must lie between 1 and {channels - 1} of {channels} grouped kernels, not {keep}")
    if beam_width < 1:
        raise BadInput(f"beam_width must be 1 or more, not {beam_width}; the paper uses 2")
    width, judge = min(beam_width, channels), balance or Balance()
    judge = dataclasses.replace(judge, check_every=min(judge.check_every, keep))  # later there is nothing to check
    _check_memory(channels, keep, width, judge.check_every)
    rough = roughness.detach().double().cpu().numpy()
    search = choose_search(_search_group, len(kernels), channels, keep, width, judge)
    kept = [
        search(_similarity(group), rough_of_group, keep, width, judge)
        for group, rough_of_group in zip(kernels.detach().cpu(), rough, strict=True)
    ]
    return torch.from_numpy(np.stack(kept))


def _check_memory(channels: int, keep: int, width: int, every: int) -> None:
    """Raise BadInput if the branches of one start grow beyond memory before a check."""
    branches = 1
    for size in range(2, keep + 1):
        branches *= min(width, channels - size + 1)
        if branches * channels > MOST_NUMBERS:
            raise BadInput(
                f"beam_width {width} with check_every {every} grows more than {MOST_NUMBERS // channels:,} branches of "
                f"{channels} grouped kernels between two checks; the paper uses 2 and 3"
            )
        branches = min(branches, width) if every and (size - 1) % every == 0 else branches


def greedy(kernels: Tensor, keep: int, *, beta: Beta = "paper", nearest: int = 1) -> Tensor:
    """Plain greedy search: from every start, always add the most distant channel (the ablation of Tables 4 and 5).

    It has no beam and no smoothness, and judges full sets only.

    Args:
        kernels: Grouped kernels, (groups, C_in, D).
        keep: How many are kept in each group.
        beta: As in `Balance`.
        nearest: As in `Balance`; with several nearest kept kernels this is the selection of TMI-GKP.

    Returns:
        The kept channels, (groups, keep).
    """
    nothing = torch.zeros(kernels.shape[:2])
    balance = Balance(check_every=0, beta=beta, nearest=nearest)
    return smooth_beam_greedy(kernels, nothing, keep, beam_width=1, balance=balance)


def least_smooth(roughness: Tensor, keep: int) -> Tensor:
    """The kept channels `(groups, keep)` when the least smooth grouped kernels go (Table 5). Ties go to the lower index."""
    return torch.argsort(roughness.double(), dim=1, stable=True)[:, :keep].sort(dim=1).values


def largest_norm(kernels: Tensor, keep: int) -> Tensor:
    """The kept channels `(groups, keep)` of largest L2 norm: the control without a search. Ties go to the lower index."""
    norm = kernels.detach().double().norm(dim=-1)
    return torch.argsort(norm, dim=1, descending=True, stable=True)[:, :keep].sort(dim=1).values


def _similarity(kernels: Tensor) -> Floats:
    """1 - Euclidean distance between all pairs of `kernels` `(C_in, D)`; 1 on the diagonal."""
    x = kernels.double()
    distance = torch.empty(len(x), len(x), dtype=x.dtype)
    for first in range(0, len(x), DISTANCE_ROWS):  # of a symmetric matrix, little more than one half
        some = slice(first, first + DISTANCE_ROWS)
        strip = torch.cdist(x[some], x[first:], compute_mode="donot_use_mm_for_euclid_dist")
        distance[some, first:], distance[first:, some] = strip, strip.T
    similarity = distance.numpy()
    np.subtract(1, similarity, out=similarity)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def _search_group(similarity: Floats, rough: Floats, keep: int, beam_width: int, judge: Balance) -> NDArray[np.int64]:
    """The kept channels `(keep,)` of one filter group: the cheapest candidate over all starts, the first of equals."""
    channels = len(similarity)
    widest = beam_width ** (min(judge.check_every or keep, keep) + 1) if beam_width > 1 else 1
    block = max(1, BLOCK_BYTES // (8 * channels * min(widest, 1 << 16)))
    best_cost, best = np.inf, np.zeros(channels, dtype=bool)
    for first in range(0, channels, block):
        starts = np.arange(first, min(first + block, channels))
        cost, chosen = _search_block(similarity, rough, starts, keep, beam_width, judge)
        if cost < best_cost:  # strictly: the first of equals wins
            best_cost, best = cost, chosen
    return np.flatnonzero(best)


def _search_block(
    similarity: Floats,
    rough: Floats,
    starts: NDArray[np.int64],
    keep: int,
    beam_width: int,
    judge: Balance,
    watch: Callable[[BeamStep], None] | None = None,
) -> tuple[float, NDArray[np.bool_]]:
    """The cost and the membership mask `(C_in,)` of the cheapest candidate from these starts, in the released code's order.

    Shapes: s starts, b branches of each, I channels. `rel` (s, b, I): summed similarity of each channel to the branch, +inf for
    its members. `near` (s, b, I): similarity to the nearest member, exactly 1 for members. `inner`, `roughs` (s, b): summed
    similarity of the pairs inside, summed roughness.
    """
    s, channels = len(starts), len(similarity)
    rows = np.arange(s)[:, None]
    near = similarity[starts][:, None, :]
    rel = near.copy()
    rel[rows, 0, starts[:, None]] = np.inf
    inner, roughs = np.zeros((s, 1)), rough[starts][:, None]
    cost = np.zeros((s, 1))
    for size in range(2, keep + 1):
        branches = rel.shape[1]
        width = min(beam_width, channels - size + 1)
        nearest, distance = _smallest(rel, width)  # (s, b, width): whom to add, and their `rel`
        inner = (inner[..., None] + distance).reshape(s, -1)
        roughs = (roughs[..., None] + rough[nearest]).reshape(s, -1)
        near = np.maximum(near[:, :, None], similarity[nearest]).reshape(s, -1, channels)
        added = nearest.reshape(s, -1)
        parent = np.broadcast_to(np.repeat(np.arange(branches), width), added.shape)
        check = judge.check_every and (size - 1) % judge.check_every == 0
        if check or size == keep or watch:
            if judge.nearest == 1:
                outer = near.sum(axis=-1) - size  # the members' own 1s are no distance to anyone pruned
            else:
                members = np.isinf(rel[rows, parent])
                members[rows, np.arange(added.shape[1]), added] = True
                outer = _outer(similarity, members, judge.nearest)
            cost = inner - judge.beta_at(size, channels, keep) * outer
        stay = _best_branches(cost, roughs, judge.alpha, beam_width) if check else None
        if watch:
            everyone = np.arange(added.shape[1])
            watch(BeamStep(size, added[0], parent[0], cost[0], roughs[0], everyone if stay is None else stay[0]))
        if stay is not None:
            inner, roughs, cost, near = inner[rows, stay], roughs[rows, stay], cost[rows, stay], near[rows, stay]
            added, parent = added[rows, stay], parent[rows, stay]
        rel = rel[rows, parent]
        if size < keep:
            rel += similarity[added]
        rel[rows, np.arange(rel.shape[1]), added] = np.inf
    if keep == 1:
        cost = -judge.beta_at(1, channels, keep) * (near.sum(axis=-1) - 1) * min(judge.nearest, 1)
    start, branch = np.unravel_index(np.argmin(cost), cost.shape)
    return float(cost[start, branch]), np.isinf(rel[start, branch])


def _outer(similarity: Floats, members: NDArray[np.bool_], count: int) -> Floats:
    """Summed similarity `(s, b)` of everyone outside `members` `(s, b, I)` to the `count` members nearest to each."""
    outer = np.zeros(members.shape[:2])
    for at in np.ndindex(outer.shape) if count else ():
        inside = members[at]
        between = similarity[~inside][:, inside]
        first = max(between.shape[1] - count, 0)
        outer[at] = np.partition(between, first, axis=1)[:, first:].sum()
    return outer


def _smallest(rel: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
    """Indices and values `(s, b, count)` of the `count` smallest along the last axis, ties to the lower index."""
    indices = np.empty((*rel.shape[:2], count), dtype=np.int64)
    values = np.empty(indices.shape)
    for k in range(count):
        at = rel.argmin(axis=-1)[..., None]
        indices[..., k : k + 1], values[..., k : k + 1] = at, np.take_along_axis(rel, at, axis=-1)
        if k + 1 < count:
            np.put_along_axis(rel, at, np.inf, axis=-1)
    np.put_along_axis(rel, indices, values, axis=-1)
    return indices, values


def _best_branches(cost: Floats, roughs: Floats, alpha: float, width: int) -> NDArray[np.int64]:
    """The branches `(s, width)` that stay, best first (Eq 2).

    Ranks count from 0 = worst in descending stable sorts: first by cost, then, on that list, by roughness; the largest
    alpha * rank_cost + (1 - alpha) * rank_smoothness stay, and equal scores keep the order of the second list.
    """
    by_cost = np.argsort(-cost, axis=1, kind="stable")
    then_rough = np.argsort(-np.take_along_axis(roughs, by_cost, axis=1), axis=1, kind="stable")  # positions in by_cost
    score = alpha * then_rough + (1 - alpha) * np.arange(cost.shape[1])
    best = np.argsort(-score, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(np.take_along_axis(by_cost, then_rough, axis=1), best, axis=1)
