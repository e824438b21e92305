"""Find the cells that have to be computed, on demand as make does.

Requested cells need their values. A cell that must be computed needs its parents with all their files. Other ancestors are left
alone: values can be used although the networks behind them were not kept.

Cost: 100,000 cells in about 3 s and 130 MB with an empty store (tests/bench_grid.py measures it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import PretrainedCell
from gkp.artifact.experiments.store import Entry, Store
from gkp.errors import BadInput


@dataclass
class Plan:
    """The plan of a run. Dictionaries are keyed by hash and list parents before children.

    Attributes:
        cells: The requested cells, in the caller's order.
        finished: Cells with a stored result.
        todo: Cells to compute, including ancestors.
    """

    cells: list[Cell]
    finished: dict[str, Entry] = field(default_factory=dict)
    todo: dict[str, Cell] = field(default_factory=dict)


def family(cells: Iterable[Cell]) -> dict[str, Cell]:
    """Hash -> cell of these cells and all their ancestors, parents first.

    Raises:
        BadInput: Two of them share an id.
    """
    found: dict[str, Cell] = {}
    ids: dict[str, str] = {}
    stack = list(cells)[::-1]
    while stack:
        cell = stack[-1]
        if cell.hash in found:
            stack.pop()
            continue
        waiting = [parent for parent in cell.parents.values() if parent.hash not in found]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        if ids.setdefault(cell.id, cell.hash) != cell.hash:
            raise BadInput(f"two different cells have the id {cell.id}; change the label of one of them")
        found[cell.hash] = cell
    return found


def make_plan(cells: Iterable[Cell], store: Store, *, recompute: bool = False) -> Plan:
    """Plan the computation of some cells. The store is only read.

    Args:
        cells: The requested cells.
        store: Where finished cells are looked up.
        recompute: Whether to ignore stored results of the requested cells; those of their ancestors are used.
    """
    plan = Plan(list(cells))
    everything = family(plan.cells)
    asked = {cell.hash for cell in plan.cells}
    names = store.names()
    to_build_on: set[str] = set()
    for key, cell in reversed(everything.items()):  # children first, which decide whether a parent is needed
        if key not in asked and key not in to_build_on:
            continue
        known = cell.id in names and not (recompute and key in asked)
        entry = store.lookup(cell.id, key, whole=key in to_build_on) if known else None
        if entry is not None:
            plan.finished[key] = entry
        else:
            plan.todo[key] = cell
            to_build_on.update(parent.hash for parent in cell.parents.values())
    plan.finished = dict(reversed(plan.finished.items()))
    plan.todo = dict(reversed(plan.todo.items()))
    return plan


def leave_out_absent(plan: Plan) -> tuple[str, ...]:
    """Remove the cells from `plan.todo` whose images or public weights are not here and cannot be downloaded.

    Returns:
        A line for each reason: how many cells, what is missing, and where it was looked for.
    """
    from gkp.data import folders  # here, because they import torch
    from gkp.networks import public

    needs = {key: _needs(cell, plan.todo) for key, cell in plan.todo.items()}
    reasons: dict[tuple[str, ...], str] = {}
    for need in sorted(set().union(*needs.values())):
        reasons[need] = folders.why_absent(*need) if len(need) == 1 else public.why_absent(*need)
    found = {key: next((reasons[need] for need in sorted(wanted) if reasons[need]), "") for key, wanted in needs.items()}
    plan.todo = {key: cell for key, cell in plan.todo.items() if not found[key]}
    counts = Counter(reason for reason in found.values() if reason)
    return tuple(f"not computed: {count} cells; {reason}" for reason, count in counts.items())


def _needs(cell: Cell, todo: Container[str]) -> set[tuple[str, ...]]:
    """The needs of a cell and of its ancestors in `todo`: (data set,) and (architecture, public weights)."""
    found: set[tuple[str, ...]] = {(name.rpartition("/")[0],) for name in cell.data}
    if isinstance(cell, PretrainedCell):
        found |= {(cell.dataset,), (cell.model, cell.weights)}
    return found.union(*(_needs(parent, todo) for parent in cell.parents.values() if parent.hash in todo))


def blocked_by(todo: Mapping[str, Cell], failed: Container[str]) -> dict[str, str]:
    """Hash -> hash of a failed ancestor, for each cell of `todo` (parents first) that has one."""
    found: dict[str, str] = {}
    for key, cell in todo.items():
        for parent in cell.parents.values():
            if parent.hash in failed or parent.hash in found:
                found.setdefault(key, found.get(parent.hash, parent.hash))
    return found


def take_shard(cells: Iterable[Cell], shard: str | None) -> list[Cell]:
    """One of n disjoint shares of some cells.

    The division depends on the cells only, so shards that are started at different times agree. Cells with common parents stay
    together as far as equal shares allow; a parent that two shards need is computed by the first of them.

    Args:
        cells: The cells to divide.
        shard: "i/n", i from 1 to n; None for all cells.

    Raises:
        BadInput: `shard` is not of that form.
    """
    cells = list(cells)
    if shard is None:
        return cells
    index, count = _parse_shard(shard)
    everything = family(cells)
    position = {key: place for place, key in enumerate(everything)}
    with_children = {parent.hash for cell in everything.values() for parent in cell.parents.values()}
    ends = sorted(
        (key for key in everything if key not in with_children),
        key=lambda key: ([position[parent.hash] for parent in everything[key].parents.values()], position[key]),
    )
    share = {key: place * count // len(ends) for place, key in enumerate(ends)}
    for key, cell in reversed(everything.items()):  # a parent goes where its first child went
        for parent in cell.parents.values():
            share[parent.hash] = min(share[key], share.get(parent.hash, count))
    return [cell for cell in cells if share[cell.hash] == index - 1]


def _parse_shard(shard: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in shard.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise BadInput(f"shard {shard!r} is not of the form i/n with i from 1 to n; for an array of 8 jobs use 1/8 to 8/8")
    return index, count
