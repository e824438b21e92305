"""Choose between the numpy and the compiled search, and run the compiled one in threads.

Numba is optional (`pip install gkp[fast]`). The compiled search gives the same choice, bit for bit, several times as fast, but
importing Numba and loading the machine code takes about half a second, and compiling it, once per installation, some 15 s. So
it is loaded only for searches that would keep numpy busy for longer; once loaded it serves every search of the process. Without
Numba, or if loading it fails, numpy is used silently.

`engine` overrules the choice: "numpy", or "compiled", which raises ImportError without Numba. "auto" is the rule above.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gkp.pruning.sr_gkp.selection import Balance

Floats = NDArray[np.float64]
Offsets = NDArray[np.uint64]
Integers = NDArray[np.int64]
Search = Callable[[Floats, Floats, int, int, "Balance"], Integers]

engine: Literal["auto", "numpy", "compiled"] = "auto"
LOAD_SECONDS = 1.0  # importing Numba and loading machine code from disk takes half of this
COMPILE_SECONDS = 30.0  # compiling it takes half of this
LANES = 8  # partial sums that numpy keeps while it adds a contiguous row;
PAIRWISE_BLOCK = 128  # numpy sums at most this many entries in one go
MOST_BRANCHES = 256  # of one start at a time; wider beams are left to numpy
ALIKE = 32  # starts of a greedy search that go in step and are judged together
AHEAD = 6  # extensions that a greedy search makes from one shortlist
THREADS_PAY = 1 << 18  # multiply-adds of a search from which on threads are worth starting

_loaded: ModuleType | None = None
_unavailable = False


class Rule(NamedTuple):
    """The parameters of a search, equal for all starts; see `gkp.pruning.sr_gkp.selection.Balance`.

    keep, width, every, alpha: as in `smooth_beam_greedy`. nearest: 0 or 1. betas `(keep + 1,)`: the beta for sets of each size.
    blocks `(m, 3)`: how to sum a row; see `summation_blocks`.
    """

    keep: int
    width: int
    every: int
    alpha: float
    nearest: int
    betas: Floats
    blocks: Offsets


class Beam(NamedTuple):
    """The w branches of one start, over I channels, and the b children that they have at the next check.

    Rows come in two halves, which take turns: those of before a check and of after it. A greedy search uses a row for each of
    the starts that go in step.

    rel `(2 w, I)`: summed similarity of each channel to a branch, +inf for its members. near `(2 b, I)`: similarity to the
    nearest member of a child. branch `(w, 2)`: summed similarity of the pairs inside a branch, summed roughness. at `(w,)`: its
    row in near. numbers `(b, 4)`: the same two of each child, its cost (Eq 3), the sum of its row in near. origin `(b, 3)`: the
    branch that it comes from, its row in near, a number that equal sets have in common. path `(b, every)`: the channels added
    since the check. ordered: these in ascending order. score `(b + 64,)`, order `(3, b)`: working memory; the last of order are
    the children that stay. margins `(keep,)`: how far above the smallest entry a shortlist of a set of each size reaches. first
    `(w,)`: a place in the ascending order of channels before which there are members only.
    """

    rel: Floats
    near: Floats
    branch: Floats
    at: Offsets
    numbers: Floats
    origin: Offsets
    path: Offsets
    ordered: Offsets
    score: Floats
    order: Offsets
    margins: Floats
    first: Offsets


class Tree(NamedTuple):
    """The n nodes that a branch grows into, the root first, level by level.

    shortlist `(I + 8,)`: the channels that may be added. values `(n, I + 8)`: their summed similarity to a node. numbers
    `(n, 4)`: as `Beam.branch`, then below what value a choice is certain, and how far that has come from the root's. path
    `(n, depth)`: the channels added.
    """

    shortlist: Offsets
    values: Floats
    numbers: Floats
    path: Offsets


def choose_search(numpy_search: Search, groups: int, channels: int, keep: int, beam_width: int, balance: Balance) -> Search:
    """Return the search that suits `groups` filter groups best.

    Args:
        numpy_search: `(similarity (I, I), roughness (I,), keep, beam_width, balance) -> kept channels (keep,)`.
        groups: number of filter groups to be searched with it.
        channels: I, the grouped kernels of each group.
        keep: how many of them stay.
        beam_width: as in `gkp.pruning.sr_gkp.selection.smooth_beam_greedy`.
        balance: as in `gkp.pruning.sr_gkp.selection.smooth_beam_greedy`.

    Returns:
        `numpy_search`, or a function with the same arguments and the same result.
    """
    if engine == "numpy" or not _can_compile(keep, beam_width, balance):
        return numpy_search
    kernels = prepare(expected_seconds(groups, channels, keep, beam_width, balance))
    if kernels is None:
        return numpy_search

    def search(similarity: Floats, rough: Floats, keep: int, beam_width: int, balance: Balance) -> Integers:
        if not np.isfinite(similarity).all():  # comparisons with NaN differ
            return numpy_search(similarity, rough, keep, beam_width, balance)
        return _search(kernels, similarity, rough, _rule(len(rough), keep, beam_width, balance))

    return search


def expected_seconds(groups: int, channels: int, keep: int, beam_width: int, balance: Balance) -> float:
    """Estimate the seconds that numpy would search `groups` filter groups for, within a factor of about two."""
    every = min(balance.check_every, keep, 50)  # more would take for ever, and is refused
    beam_width = min(beam_width, channels)
    branches = sum(beam_width**k for k in range(2, every + 2)) / every if every and beam_width > 1 else 1.0
    return groups * keep * (5e-5 + 1.7e-9 * branches * channels**2)


def prepare(seconds: float) -> ModuleType | None:
    """Load the compiled search if that pays for searches that would take numpy `seconds`; return it if it is loaded.

    Call it with the time of a whole network, whose layers may each be too small to pay.
    """
    global _loaded, _unavailable
    if engine == "numpy":
        return None
    if engine == "auto" and (_loaded or _unavailable or seconds < LOAD_SECONDS):
        return _loaded
    try:
        kernels = importlib.import_module("gkp.pruning.sr_gkp.selection_kernels")
        if engine == "compiled" or seconds >= COMPILE_SECONDS or kernels_on_disk(kernels):
            _try_out(kernels)
            _loaded = kernels
    except Exception:  # no Numba, one that does not fit this Python, or a full disk where it keeps its machine code
        _unavailable = True
        if engine == "compiled":
            raise
    return _loaded


def kernels_on_disk(kernels: ModuleType) -> bool:
    """Return whether Numba has the machine code in its cache, so that loading it is a matter of moments."""
    folder = kernels.search_starts.stats.cache_path
    name = f"{Path(kernels.__file__ or '').stem}.search_starts-*.nbi"
    return folder is not None and any(Path(folder).glob(name))


def summation_blocks(start: int, length: int, merges: int = 0) -> list[tuple[int, int, int]]:
    """Return how numpy sums a contiguous row of `length` entries from `start` on: blocks `(start, length, merges)`.

    Each block is summed by itself and put on a stack, whose two topmost sums are then added `merges` times. numpy cuts a row of
    more than 128 entries in two, the first part a multiple of 8, and adds the sums of the parts.
    """
    if length <= PAIRWISE_BLOCK:
        return [(start, length, merges)]
    first = length // 2 - length // 2 % LANES
    return summation_blocks(start, first) + summation_blocks(start + first, length - first, merges + 1)


def _can_compile(keep: int, beam_width: int, balance: Balance) -> bool:
    """Return whether the compiled search knows these parameters: not TMI-GKP's several nearest kernels, no endless beam."""
    if keep < 2 or balance.nearest > 1:
        return False
    return beam_width == 1 or (balance.check_every > 0 and beam_width ** (balance.check_every + 1) <= MOST_BRANCHES)


def _search(kernels: ModuleType, similarity: Floats, rough: Floats, rule: Rule) -> Integers:
    """Search one filter group from every start, in as many threads as torch uses; see `choose_search`."""
    channels = len(similarity)
    costs, members = np.empty(channels), np.empty((channels, channels), dtype=np.bool_)
    similarity, rough = np.ascontiguousarray(similarity), np.ascontiguousarray(rough)
    least = np.minimum(similarity.min(axis=0), similarity.min(axis=1))
    ascending = np.argsort(least).astype(np.uint64)

    def search(starts: range) -> None:
        tree, beam = _working_memory(channels, rule)
        kernels.search_starts(similarity, least, ascending, rough, rule, tree, beam, starts.start, starts.stop, costs, members)

    threads = torch.get_num_threads()
    if threads == 1 or channels * channels * rule.keep * rule.width < THREADS_PAY:
        search(range(channels))
    else:
        step = -(-channels // (4 * threads))  # four chunks a thread: none waits long for the last one
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(search, [range(k, min(k + step, channels)) for k in range(0, channels, step)]))
    return np.flatnonzero(members[np.argmin(costs)])  # the first start wins among equal costs


def _working_memory(channels: int, rule: Rule) -> tuple[Tree, Beam]:
    """Allocate what a thread searches in: the kernels count no references, which would take a third of their time."""
    width, depth, rows = (rule.width, rule.every, 2 * rule.width) if rule.width > 1 else (1, AHEAD, ALIKE)
    nodes, most = sum(width**level for level in range(depth + 1)), width ** (depth + 1)

    def floats(*shape: int) -> Floats:
        return np.empty(shape)

    def offsets(*shape: int) -> Offsets:
        return np.empty(shape, dtype=np.uint64)

    tree = Tree(offsets(channels + LANES), floats(nodes, channels + LANES), floats(nodes, 4), offsets(nodes, depth))
    near, numbers, score = floats(2 * most, channels), floats(most, 4), floats(most + 64)
    children = numbers, offsets(most, 3), offsets(max(most, rows), depth), offsets(most, depth), score, offsets(3, most)
    margins = np.full(rule.keep, np.inf)
    return tree, Beam(floats(rows, channels), near, floats(width, 2), offsets(rows), *children, margins, offsets(rows))


def _rule(channels: int, keep: int, beam_width: int, balance: Balance) -> Rule:
    """Return the parameters of a search among `channels` channels."""
    betas = np.array([0.0, 0.0] + [balance.beta_at(size, channels, keep) for size in range(2, keep + 1)])
    blocks = np.array(summation_blocks(0, channels), dtype=np.uint64)
    every, alpha = balance.check_every, float(balance.alpha)
    return Rule(keep, beam_width, every, alpha, balance.nearest, betas, blocks)


def _try_out(kernels: ModuleType) -> None:
    """Compile the search, or load its machine code, here where a failure is caught."""
    blocks = np.array(summation_blocks(0, 3), dtype=np.uint64)
    rule = Rule(keep=2, width=2, every=3, alpha=0.9, nearest=1, betas=np.zeros(3), blocks=blocks)
    _search(kernels, np.eye(3), np.zeros(3), rule)
