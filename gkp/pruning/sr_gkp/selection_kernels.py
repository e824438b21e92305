"""Search one start at a time, compiled by Numba: the loops behind `selection_compiled`.

The results are bit-identical to those of `selection`: every sum keeps the order in which numpy adds, every tie goes to the
lower index, and neither fast-math nor fused multiply-add is allowed. What makes it faster:

- The rows of one start's branches stay in the caches of a core, and threads take different starts.
- Between two checks a branch grows from a shortlist of the few channels that can be chosen at all, see `selection_rows.grow`.
  Its whole rows are brought up to date once, after the check, and only for the 2 of 16 children that stay.
- Children that are the same set in another order, which half of them are, are judged once.
- Without reference counts, which took a third of the time: working memory comes from outside, and so nothing is allocated here.

Shapes: b children of one start, I channels; the arrays of a search are those of `Beam` and `Tree`.
"""

from __future__ import annotations

import numpy as np

from gkp.pruning.sr_gkp.selection_rows import (
    FLOOR,
    INNER,
    ROUGH,
    U,
    add_rows,
    compiled,
    first_open,
    grow,
    lowest_of,
    raise_row,
    sum_row,
)

COLUMNS = 256  # of rows that are added for several starts of a greedy search in turn: these stay in the first-level cache
COST, OUTER = 2, 3  # columns of `Beam.numbers`, after INNER and ROUGH
PARENT, ROW, KEY = 0, 1, 2  # columns of `Beam.origin`


@compiled
def search_starts(similarity, least, ascending, rough, rule, tree, beam, first, last, costs, members):
    """Find the cheapest candidate of each start from `first` to `last`.

    Args:
        similarity: 1 - distance between all pairs of grouped kernels, `(I, I)`, finite, 1 on the diagonal.
        least: the smallest entry of each row and column of it, `(I,)`.
        ascending: the channels in ascending order of `least`, `(I,)`.
        rough: smoothness of each grouped kernel, `(I,)`.
        rule: the parameters of the search.
        tree: working memory.
        beam: working memory.
        first: the first start.
        last: one past the last start.
        costs: filled with the cost of each start's candidate, `(I,)`.
        members: filled with the channels in it, `(I, I)`.
    """
    if rule.width > 1:
        for start in range(first, last):
            costs[start] = _beam_start(similarity, least, ascending, rough, rule, start, beam, tree, members)
        return
    alike = len(beam.rel)
    for some in range(first, last, alike):
        end = min(some + alike, last)
        _greedy_starts(similarity, least, ascending, rough, rule.keep, some, end, tree, beam, costs, members)
        if rule.nearest:
            _judge_greedy(similarity, rule, some, end, beam.near, beam.rel, beam.score, costs, members)


@compiled
def _greedy_starts(similarity, least, ascending, rough, keep, first, last, tree, beam, costs, members):
    """Add the most distant channel until `keep` are there; fill members and, with the similarity of pairs inside, costs.

    The starts go in step, for they mostly add the same channels, whose rows then come from the cache.
    """
    shortlist, values, nodes, path = tree.shortlist, tree.values, tree.numbers, tree.path
    rel, passed, added = beam.rel, beam.first, beam.path
    channels, ahead, margin = len(similarity), path.shape[1], np.inf
    for start in range(first, last):
        for k in range(channels):
            rel[start - first, k] = similarity[start, k]
        rel[start - first, start] = np.inf
        costs[start], passed[start - first] = 0.0, 0
    size = 1
    while size < keep:
        depth = min(ahead, keep - size)
        for row in range(last - first):
            passed[row] = first_open(rel, row, ascending, passed[row])
            lowest, left = least[ascending[passed[row]]], channels - size
            low, tries, grown, needed = lowest_of(rel, row), 0, 0, 0.0
            while grown < depth:
                nodes[0, INNER], nodes[0, ROUGH] = costs[first + row], 0.0
                nodes[0, FLOOR] = low + margin if tries == 0 else low + 2 * margin if tries == 1 else np.inf
                grown, _, _, needed = grow(
                    similarity, least, rough, shortlist, values, nodes, path, rel, row, lowest, 1, left, depth
                )
                tries += 1
            margin = max(margin * 0.99 if margin < np.inf else 0.0, (needed - low) * 1.1)
            costs[first + row] = nodes[depth, INNER]
            for level in range(depth):
                added[row, level] = path[depth, level]
        size += depth
        for column in range(0, channels if size < keep else 0, COLUMNS):
            for row in range(last - first):
                add_rows(rel, row, similarity, added, row, depth, U(column), U(min(column + COLUMNS, channels)))
        for row in range(last - first):
            for level in range(depth):
                rel[row, added[row, level]] = np.inf
    for start in range(first, last):
        for k in range(channels):
            members[start, k] = rel[start - first, k] == np.inf


@compiled
def _judge_greedy(similarity, rule, first, last, near, common, stack, costs, members):
    """Subtract from the costs of some starts what Eq 3 does; near `(2, I)`, common `(1, I)`: working memory.

    Most starts end in nearly the same set, so the nearest of the members that all share are found once for all.
    """
    blocks, beta = rule.blocks, rule.betas[rule.keep]
    channels = len(similarity)
    for k in range(channels):
        near[0, k], common[0, k] = -np.inf, 1.0
        for start in range(first, last):
            if not members[start, k]:
                common[0, k] = 0.0
    for channel in range(channels):
        if common[0, channel] > 0:
            raise_row(near, 0, similarity, channel)
    for start in range(first, last):
        for k in range(channels):
            near[1, k] = near[0, k]
        for channel in range(channels):
            if members[start, channel] and common[0, channel] == 0:
                raise_row(near, 1, similarity, channel)
        costs[start] = costs[start] - beta * (sum_row(near, 1, blocks, stack) - rule.keep)


@compiled
def _beam_start(similarity, least, ascending, rough, rule, start, beam, tree, members):
    """Search from one start; fill members[start] with its cheapest candidate and return the cost of that."""
    keep, every, width, alpha = rule.keep, rule.every, rule.width, rule.alpha
    betas, blocks, nearest, passed = rule.betas, rule.blocks, rule.nearest, beam.first
    rel, near, branch, at, numbers = beam.rel, beam.near, beam.branch, beam.at, beam.numbers
    origin, path, ordered, score, order = beam.origin, beam.path, beam.ordered, beam.score, beam.order
    for k in range(len(similarity)):
        rel[0, k] = similarity[start, k]
        near[0, k] = similarity[start, k]
    rel[0, start] = np.inf
    branch[0, INNER], branch[0, ROUGH], at[0], passed[0] = 0.0, rough[start], 0, 0
    side, branches, size = 0, 1, 1
    while True:
        depth = min(every, keep - size)
        children = _grow_all(similarity, least, ascending, rough, width, tree, beam, side, branches, size, depth)
        size, side = size + depth, 1 - side
        for child in range(children):
            if nearest:
                _judge(similarity, near, side, at, numbers, origin, path, ordered, child, depth, blocks, score)
            numbers[child, COST] = numbers[child, INNER] - betas[size] * (numbers[child, OUTER] - size if nearest else 0.0)
        branches = children
        if depth == every:
            branches = _best_branches(width, alpha, numbers, children, order, score)
        else:
            for k in range(children):
                order[2, k] = k
        if size == keep:
            break
        _build_rows(similarity, width, rel, side, branch, branches, at, numbers, origin, path, depth, order)
    best = order[2, 0]
    for k in range(branches):
        if numbers[order[2, k], COST] < numbers[best, COST]:  # strictly: the first of equals wins
            best = order[2, k]
    row = (1 - side) * width + origin[best, PARENT]
    for k in range(len(similarity)):
        members[start, k] = rel[row, k] == np.inf
    for level in range(depth):
        members[start, path[best, level]] = True
    return numbers[best, COST]


@compiled
def _grow_all(similarity, least, ascending, rough, width, tree, beam, side, branches, size, depth):
    """Extend each branch `depth` times; fill what is known of the children and return how many there are."""
    shortlist, values, nodes, node_path = tree.shortlist, tree.values, tree.numbers, tree.path
    rel, branch, numbers, origin, path = beam.rel, beam.branch, beam.numbers, beam.origin, beam.path
    passed, margins = beam.first, beam.margins
    left, children, start_from, passed[0] = len(similarity) - size, 0, passed[0], U(len(similarity))
    for parent in range(branches):
        row = U(side * width + parent)
        outside = first_open(rel, row, ascending, start_from)
        passed[0] = min(passed[0], outside)
        low, margin, grown, first, end, needed, tries = lowest_of(rel, row), margins[size], 0, 0, 0, 0.0, 0
        while grown < depth:
            nodes[0, INNER], nodes[0, ROUGH] = branch[parent, INNER], branch[parent, ROUGH]
            nodes[0, FLOOR] = low + margin if tries == 0 else low + 2 * margin if tries == 1 else np.inf
            grown, first, end, needed = grow(
                similarity,
                least,
                rough,
                shortlist,
                values,
                nodes,
                node_path,
                rel,
                row,
                least[ascending[outside]],
                width,
                left,
                depth,
            )
            tries += 1
        margin = margin * 0.98 if margin < np.inf else 0.0
        margins[size] = max(margin, (needed - low) * 1.1)
        for node in range(first, end):
            numbers[children, INNER], numbers[children, ROUGH] = nodes[node, INNER], nodes[node, ROUGH]
            origin[children, PARENT] = U(parent)
            for level in range(depth):
                path[children, level] = node_path[node, level]
            children += 1
    return children


@compiled
def _judge(similarity, near, side, at, numbers, origin, path, ordered, child, depth, blocks, stack):
    """Fill the row of a child with the similarity of each channel to the nearest member, and OUTER with the sum of it.

    Both depend on the set alone, not on the order in which its members joined, for a maximum is not rounded: a child that is
    known to be the same set as one before shares its row.
    """
    for level in range(depth):
        channel, k = path[child, level], level
        while k > 0 and ordered[child, k - 1] > channel:
            ordered[child, k] = ordered[child, k - 1]
            k -= 1
        ordered[child, k] = channel
    source, key = at[origin[child, PARENT]], U(0)
    for level in range(depth):
        key += (path[child, level] + U(1)) * (path[child, level] + U(1))
    origin[child, KEY] = key
    for other in range(child):
        if origin[other, KEY] == key and at[origin[other, PARENT]] == source:
            alike = True
            for level in range(depth):
                alike &= ordered[other, level] == ordered[child, level]
            if alike:
                origin[child, ROW], numbers[child, OUTER] = origin[other, ROW], numbers[other, OUTER]
                return
    row = U(side * len(numbers) + child)
    if depth < 3:
        for k in range(len(similarity)):
            near[row, k] = near[source, k]
    for level in range(0, depth - 2, 3):
        a, b, c = path[child, level], path[child, level + 1], path[child, level + 2]
        for k in range(len(similarity)):
            x, y, z = near[source, k], similarity[a, k], similarity[b, k]
            x = x if x > y else y
            x, y = x if x > z else z, similarity[c, k]
            near[row, k] = x if x > y else y
        source = row
    for level in range(depth - depth % 3, depth):
        raise_row(near, row, similarity, path[child, level])
    origin[child, ROW], numbers[child, OUTER] = row, sum_row(near, row, blocks, stack)


@compiled
def _build_rows(similarity, width, rel, side, branch, branches, at, numbers, origin, path, depth, order):
    """Move on to the children that stay: build their rows from that of their parent."""
    for k in range(branches):
        child = order[2, k]
        row, parent = U(side * width + k), U((1 - side) * width) + origin[child, PARENT]
        for channel in range(len(similarity)):
            rel[row, channel] = rel[parent, channel]
        add_rows(rel, row, similarity, path, child, depth, U(0), U(len(similarity)))
        for level in range(depth):
            rel[row, path[child, level]] = np.inf
        branch[k, INNER], branch[k, ROUGH], at[k] = numbers[child, INNER], numbers[child, ROUGH], origin[child, ROW]


@compiled
def _best_branches(width, alpha, numbers, children, order, score):
    """Fill order[2] with the children that stay (Eq 2), best first, and return how many; see `selection._best_branches`."""
    by_cost, then_rough, best = order[0], order[1], order[2]
    kept = min(children, width)
    for k in range(children):
        score[k] = numbers[k, COST]
    _sort_descending(score, children, by_cost)
    for k in range(children):
        score[k] = numbers[by_cost[k], ROUGH]
    _sort_descending(score, children, then_rough)
    for k in range(children):
        score[k] = alpha * then_rough[k] + (1 - alpha) * k
    _sort_descending(score, children, best)
    for k in range(kept):
        best[k] = by_cost[then_rough[best[k]]]
    return kept


@compiled
def _sort_descending(values, count, order):
    """Fill order with the indices that sort values[:count] in descending order, equal ones in their order.

    Each index is put where the number of values before its own says: for 16 values faster than a sort with its branches.
    """
    for k in range(count):
        before, value = 0, values[k]
        for other in range(count):
            before += (values[other] > value) | ((values[other] == value) & (other < k))
        order[before] = k
