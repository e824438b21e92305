"""Search one start at a time, compiled by Numba: the inner loops behind `selection_compiled`.

The results are bit-identical to those of `selection`: every sum keeps the order in which numpy adds, every tie goes to the
lower index, and neither fast-math nor fused multiply-add is allowed. What makes it faster:

- The rows of one start's branches stay in the caches of a core, and threads take different starts.
- The smallest entry of a row is found in a tournament tree: the smaller of a row's two halves, of that one's two halves, and so
  on. Halving is vectorised, unlike a search for an index, and the second smallest costs one more descent.
- Rows are built only for branches that will be extended: after a check those are 2 of 16.

All compiled functions stand in this one file, because Numba renews a function's cached machine code only when its own file
changes. Offsets are unsigned: Numba tests every signed index that is no plain counter for a negative value, and a loop with
such tests is not vectorised. Shapes: b branches of one start, I channels; the arrays of a search are those of `Beam`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from gkp.pruning.sr_gkp.selection_compiled import LANES, Beam
from gkp.pruning.sr_gkp.selection_lanes import sum_in_lanes

ALIKE = 32  # starts of a greedy search that are judged together
U = np.uint64


def compiled(function: Callable[..., Any]) -> Any:
    """Compile `function` at its first call, to run without the GIL, and keep the machine code on disk where that is possible.

    Numba looks for a writable folder beside the module, then in the user's cache, and raises RuntimeError if there is none.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


@compiled
def search_starts(similarity, rough, rule, first, last, costs, members):
    """Find the cheapest candidate of each start from `first` to `last`.

    Args:
        similarity: 1 - distance between all pairs of grouped kernels, `(I, I)`, finite, 1 on the diagonal.
        rough: smoothness of each grouped kernel, `(I,)`.
        rule: the parameters of the search.
        first: the first start.
        last: one past the last start.
        costs: filled with the cost of each start's candidate, `(I,)`.
        members: filled with the channels in it, `(I, I)`.
    """
    beam = _new_beam(len(similarity), rule)
    stack = np.empty(64)
    for start in range(first, last):
        for k in range(len(similarity)):
            beam.rel[0, 0, k] = similarity[start, k]
            beam.near[0, 0, k] = similarity[start, k]
        beam.rel[0, 0, start] = np.inf
        if rule.width == 1:
            costs[start] = _greedy_start(similarity, rule, start, beam.rel[0], members)
        else:
            costs[start] = _beam_start(similarity, rough, rule, start, beam, stack, members)
    if rule.width == 1 and rule.nearest:
        near = np.empty((2, len(similarity)))
        for some in range(first, last, ALIKE):
            _judge_greedy(similarity, rule, some, min(some + ALIKE, last), near, stack, costs, members)


@compiled
def _new_beam(channels, rule):
    """Allocate a `Beam`; the branches of the step before a check are judged only and have no rows."""
    most = rule.width ** (rule.every + 1) if rule.width > 1 else 1
    rows = max(1, most // rule.width)
    return Beam(
        np.empty((2, rows, rule.levels[-1])),
        np.empty((2, rows, channels)),
        np.empty((2, most)),
        np.empty((2, most)),
        np.empty(most),
        np.empty(most, np.uint64),
        np.empty(most, np.uint64),
        np.empty(most),
        np.empty((3, most), np.uint64),
    )


@compiled
def _greedy_start(similarity, rule, start, rel, members):
    """Add the most distant channel until `keep` are there; fill members[start] and return the similarity of pairs inside."""
    keep, levels = rule.keep, rule.levels
    inner = 0.0
    for size in range(2, keep + 1):
        _build_tree(rel, 0, levels)
        added = _lowest(rel, 0, levels)
        inner = inner + rel[0, added]
        rel[0, added] = np.inf
        if size < keep:
            for k in range(len(similarity)):
                rel[0, k] += similarity[added, k]
    for k in range(len(similarity)):
        members[start, k] = rel[0, k] == np.inf
    return inner


@compiled
def _judge_greedy(similarity, rule, first, last, near, stack, costs, members):
    """Subtract from the costs of some starts what Eq 3 does; near `(2, I)`: working memory.

    Most starts end in nearly the same set, so the nearest of the members that all share are found once for all.
    """
    common = np.ones(len(similarity), np.bool_)
    for start in range(first, last):
        for k in range(len(similarity)):
            common[k] &= members[start, k]
    near[0] = -np.inf
    for channel in range(len(similarity)):
        if common[channel]:
            _raise(near, 0, similarity, channel)
    for start in range(first, last):
        near[1] = near[0]
        for channel in range(len(similarity)):
            if members[start, channel] and not common[channel]:
                _raise(near, 1, similarity, channel)
        outer = _sum_of_maxima(near, 1, near, 1, rule.blocks, stack) - rule.keep
        costs[start] = costs[start] - rule.betas[rule.keep] * outer


@compiled
def _raise(near, row, similarity, channel):
    """Raise near[row] to the similarity to `channel` where that is larger."""
    for k in range(len(similarity)):
        x, y = near[row, k], similarity[channel, k]
        near[row, k] = x if x > y else y


@compiled
def _beam_start(similarity, rough, rule, start, beam, stack, members):
    """Search from one start; fill members[start] with its cheapest candidate and return the cost of that."""
    rel, cost, added, parent, keep, every = beam.rel, beam.cost, beam.added, beam.parent, rule.keep, rule.every
    _build_tree(rel[0], 0, rule.levels)
    beam.inner[0, 0], beam.roughs[0, 0] = 0.0, rough[start]
    side, branches = 0, 1
    for size in range(2, keep + 1):
        branches = _extend(rough, rule, beam, side, branches, min(rule.width, len(similarity) - size + 1))
        check = every > 0 and (size - 1) % every == 0
        if check or size == keep:
            _judge(similarity, rule, beam, side, branches, size, stack)
        if check:
            branches = _keep_best_branches(rule, beam, 1 - side, branches)
        if size < keep:
            _build_rows(similarity, rule, beam, side, branches)
            side = 1 - side
    best = 0
    for child in range(1, branches):
        if cost[child] < cost[best]:  # strictly: the first of equals wins
            best = child
    for k in range(len(similarity)):
        members[start, k] = rel[side, parent[best], k] == np.inf
    members[start, added[best]] = True
    return cost[best]


@compiled
def _extend(rough, rule, beam, side, branches, width):
    """Add to each branch the `width` channels most distant from it, most distant first; return how many came out."""
    rel, inner, roughs, aside = beam.rel[side], beam.inner, beam.roughs, beam.score
    added, parent, levels = beam.added, beam.parent, rule.levels
    child = 0
    for branch in range(branches):
        for _ in range(width):
            lowest = _lowest(rel, branch, levels)
            similar = rel[branch, lowest]
            added[child], parent[child], aside[child] = lowest, branch, similar
            inner[1 - side, child] = inner[side, branch] + similar
            roughs[1 - side, child] = roughs[side, branch] + rough[lowest]
            _set_infinite(rel, branch, levels, lowest)
            child += 1
        for k in range(child - width, child):
            rel[branch, added[k]] = aside[k]
    return child


@compiled
def _judge(similarity, rule, beam, side, branches, size, stack):
    """Fill the cost of each branch of `size` channels (Eq 3)."""
    near, cost, inner, added, parent = beam.near[side], beam.cost, beam.inner[1 - side], beam.added, beam.parent
    blocks, beta = rule.blocks, rule.betas[size]
    for child in range(branches):
        outer = 0.0
        if rule.nearest:
            outer = _sum_of_maxima(near, parent[child], similarity, added[child], blocks, stack) - size
        cost[child] = inner[child] - beta * outer


@compiled
def _build_rows(similarity, rule, beam, side, branches):
    """Build the rows of each branch from those of its parent and of the channel it added."""
    rel, new_rel, near, new_near = beam.rel[side], beam.rel[1 - side], beam.near[side], beam.near[1 - side]
    levels = rule.levels
    for child in range(branches):
        parent, added = beam.parent[child], beam.added[child]
        for k in range(len(similarity)):
            new_rel[child, k] = rel[parent, k] + similarity[added, k]
        new_rel[child, added] = np.inf
        _build_tree(new_rel, child, levels)
        if rule.nearest:
            for k in range(len(similarity)):
                x, y = near[parent, k], similarity[added, k]
                new_near[child, k] = x if x > y else y


@compiled
def _keep_best_branches(rule, beam, side, branches):
    """Move the branches that stay (Eq 2) to the front, best first, and return how many; see `selection._best_branches`."""
    by_cost, then_rough, best, score = beam.order[0], beam.order[1], beam.order[2], beam.score
    inner, roughs, cost, alpha = beam.inner[side], beam.roughs[side], beam.cost, rule.alpha
    kept = min(branches, rule.width)
    _sort_descending(cost, branches, by_cost)
    for k in range(branches):
        score[k] = roughs[by_cost[k]]
    _sort_descending(score, branches, then_rough)
    for k in range(branches):
        score[k] = alpha * then_rough[k] + (1 - alpha) * k
    _sort_descending(score, branches, best)
    for k in range(kept):
        best[k] = by_cost[then_rough[best[k]]]
    for values in (inner, roughs, cost):
        for k in range(kept):
            score[k] = values[best[k]]
        values[:kept] = score[:kept]
    for indices in (beam.added, beam.parent):
        for k in range(kept):
            by_cost[k] = indices[best[k]]
        indices[:kept] = by_cost[:kept]
    return kept


@compiled
def _sort_descending(values, count, order):
    """Fill order with the indices that sort values[:count] in descending order, equal ones in their order.

    Each index is put where the number of values before its own says: for 16 values faster than a sort with its branches.
    """
    for k in range(count):
        before = 0
        for other in range(k):
            before += values[other] >= values[k]
        for other in range(k + 1, count):
            before += values[other] > values[k]
        order[before] = k


@compiled
def _build_tree(trees, row, levels):
    """Fill the tree over trees[row]: entry k of a level is the smaller of entries k and k + its length of the level before."""
    for level in range(len(levels) - 2):
        before, first, end = levels[level], levels[level + 1], levels[level + 2]
        length = end - first
        pairs = first - before - length
        for k in range(pairs):
            x, y = trees[row, before + k], trees[row, before + length + k]
            trees[row, first + k] = x if x < y else y
        if pairs < length:
            trees[row, first + pairs] = trees[row, before + pairs]


@compiled
def _lowest(trees, row, levels):
    """Return the index of the smallest entry of trees[row], the first of equals. Without branches, which would be guesswork."""
    top = len(levels) - 2
    smallest, at, equal = np.inf, levels[top], 0
    for k in range(levels[top], levels[top + 1]):
        value = trees[row, k]
        smallest = value if value < smallest else smallest
    for k in range(levels[top], levels[top + 1]):
        hit = trees[row, k] == smallest
        at = k if hit else at
        equal += hit
    for level in range(top - 1, -1, -1):
        before, first, end = levels[level], levels[level + 1], levels[level + 2]
        at = at - first + before
        other = at + (end - first)
        other = other if other < first else at
        hit = trees[row, other] == smallest
        equal += hit & (trees[row, at] == smallest) & (other != at)
        at = other if hit else at
    if equal > 1:  # the order in the tree is not that of the row
        for k in range(levels[1]):
            if trees[row, k] == smallest:
                return k
    return at


@compiled
def _set_infinite(trees, row, levels, index):
    """Set trees[row, index] to +inf and renew its path in the tree."""
    trees[row, index] = np.inf
    for level in range(len(levels) - 2):
        before, first, end = levels[level], levels[level + 1], levels[level + 2]
        length = end - first
        index = index if index < length else index - length
        other = before + index + length
        other = other if other < first else before + index
        x, y = trees[row, before + index], trees[row, other]
        trees[row, first + index] = x if x < y else y


@compiled
def _sum_of_maxima(a, row_a, b, row_b, blocks, stack):
    """Sum the larger of a[row_a] and b[row_b], `(I,)`, in the order of `numpy.sum`; blocks: see `Rule`."""
    first_a, first_b = U(row_a) * U(a.shape[1]), U(row_b) * U(b.shape[1])
    top = U(0)
    for block in range(len(blocks)):
        start, length = blocks[block, 0], blocks[block, 1]
        whole = length - length % U(LANES)
        total = sum_in_lanes(a, first_a + start, b, first_b + start, whole)
        for k in range(start + whole, start + length):
            x, y = a[row_a, k], b[row_b, k]
            total += x if x > y else y
        for _ in range(blocks[block, 2]):
            top -= U(1)
            total = stack[top] + total
        stack[top] = total
        top += U(1)
    return stack[0]
