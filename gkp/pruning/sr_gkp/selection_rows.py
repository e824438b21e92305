"""Rows of one branch, compiled by Numba: grow it from a shortlist, add rows, sum them; for `selection_kernels`.

Offsets are unsigned: Numba tests every signed index that is no plain counter for a negative value, and a loop with such tests
is not vectorised. Numba does not see a change of this file where another one calls it: after one, touch `selection_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from gkp.pruning.sr_gkp.selection_compiled import LANES
from gkp.pruning.sr_gkp.selection_lanes import below, lowest_bit, lowest_in_lanes, next_lowest, sum_in_lanes

INNER, ROUGH, FLOOR, DROP = 0, 1, 2, 3  # columns of `Tree.numbers`
OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False}
U = np.uint64


def compiled(function: Callable[..., Any]) -> Any:
    """Compile `function` at its first call, to run without the GIL, and keep the machine code on disk where that is possible.

    It counts no references to arrays, which belong to the caller, and so cannot allocate one.
    Numba looks for a writable folder beside the module, then in the user's cache, and raises RuntimeError if there is none.
    """
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:
        return numba.njit(**OPTIONS)(function)


@compiled
def raise_row(near, row, similarity, channel):
    """Raise near[row] to the similarity to `channel` where that is larger."""
    for k in range(len(similarity)):
        x, y = near[row, k], similarity[channel, k]
        near[row, k] = x if x > y else y


@compiled
def first_open(rel, row, ascending, passed):
    """Return the place in `ascending` of the first channel, from `passed` on, that is no member of the branch."""
    while rel[row, ascending[passed]] == np.inf:
        passed += U(1)
    return passed


@compiled
def grow(similarity, least, rough, shortlist, values, nodes, path, rel, row, lowest, width, left, depth):
    """Add to a branch the channels most distant from it, to each of the branches that come out likewise, and so on.

    Only channels whose entry of rel[row] is below bound = nodes[0, FLOOR] are looked at. That suffices as long as each choice
    is below bound + x(a) + x(b) + ..., added in the order in which a, b, ... joined the branch, where x(a), the larger of
    least[a] and `lowest`, is at most the similarity of a to any channel outside the branch, for `lowest` is the smallest of
    `least` among those. Every entry left out began at the bound or more. Rounding is monotone, x <= y gives
    fl(x + z) <= fl(y + z), so the whole row would have there no less than that sum, in floating point too, and strictly more
    than the choice: it is neither smaller nor equal, whatever its index. With a bound of +inf nothing is left out.

    Returns:
        How many of the `depth` levels are certain, the nodes of the last one from first to end, and the bound above which
        all levels are, as far as they went.
    """
    count, stride = _list_below(rel, row, nodes[0, FLOOR], shortlist, values), U(values.shape[1])
    nodes[0, DROP] = 0.0
    first, end, level, needed, certain = 0, 1, 0, -np.inf, True
    while level < depth and certain:
        choices, child = min(width, left - level), end
        for node in range(first, end):
            value, index = -np.inf, -1
            for _ in range(choices):
                chosen = next_lowest(values, U(node) * stride, count, value, index)
                value, index = values[node, chosen], np.int64(chosen)
                needed = max(needed, value - nodes[node, DROP])
                certain &= value < nodes[node, FLOOR]
                channel = shortlist[chosen]
                nodes[child, INNER] = nodes[node, INNER] + value
                nodes[child, ROUGH] = nodes[node, ROUGH] + rough[channel]
                drop = max(least[channel], lowest)
                nodes[child, FLOOR], nodes[child, DROP] = nodes[node, FLOOR] + drop, nodes[node, DROP] + drop
                for k in range(level):
                    path[child, k] = path[node, k]
                path[child, level] = channel
                if level + 1 < depth:
                    for k in range(count):
                        values[child, k] = values[node, k] + similarity[channel, shortlist[k]]
                    values[child, chosen] = np.inf
                child += 1
        if certain:
            first, end, level = end, child, level + 1
    return level, first, end, needed


@compiled
def _list_below(rel, row, bound, shortlist, values):
    """List the channels whose entry of rel[row] is below `bound`, and these entries; return how many.

    The list is filled up to whole vectors with at least one entry of +inf.
    """
    channels, count = U(rel.shape[1]), U(0)
    offset = U(row) * channels
    done = U(0)
    while done + U(64) <= channels:
        bits = U(0)
        for lane in range(8):
            bits |= below(rel, offset + done + U(8 * lane), bound) << U(8 * lane)
        while bits:
            shortlist[count] = done + lowest_bit(bits)
            count += U(1)
            bits &= bits - U(1)
        done += U(64)
    for k in range(done, channels):
        shortlist[count] = k
        count += U(rel[row, k] < bound)
    for k in range(count):
        values[0, k] = rel[row, shortlist[k]]
    for k in range(count, count + U(LANES)):
        shortlist[k], values[0, k] = U(0), np.inf
    return count + U(LANES) - count % U(LANES)


@compiled
def lowest_of(rel, row):
    """Return the smallest entry of rel[row]."""
    channels = U(rel.shape[1])
    whole = channels - channels % U(LANES)
    lowest = lowest_in_lanes(rel, U(row) * channels, whole)
    for k in range(whole, channels):
        lowest = rel[row, k] if rel[row, k] < lowest else lowest
    return lowest


@compiled
def add_rows(rel, row, similarity, path, node, depth, first, last):
    """Add to rel[row], from the first column to the last, the rows of the channels on a path, one after another."""
    for level in range(0, depth - 2, 3):
        a, b, c = path[node, level], path[node, level + 1], path[node, level + 2]
        for k in range(first, last):
            rel[row, k] = rel[row, k] + similarity[a, k] + similarity[b, k] + similarity[c, k]
    for level in range(depth - depth % 3, depth):
        a = path[node, level]
        for k in range(first, last):
            rel[row, k] = rel[row, k] + similarity[a, k]


@compiled
def sum_row(a, row, blocks, stack):
    """Sum a[row] in the order of `numpy.sum`; blocks: see `Rule`."""
    offset, top = U(row) * U(a.shape[1]), U(0)
    for block in range(len(blocks)):
        start, length = blocks[block, 0], blocks[block, 1]
        whole = length - length % U(LANES)
        total = sum_in_lanes(a, offset + start, whole)
        for k in range(start + whole, start + length):
            total += a[row, k]
        for _ in range(blocks[block, 2]):
            top -= U(1)
            total = stack[top] + total
        stack[top] = total
        top += U(1)
    return stack[0]
