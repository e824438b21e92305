"""Copying finished cells to where they are committed (`data/results`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from gkp.errors import BadInput
from gkp.grid.cell import Cell
from gkp.grid.plan import make_plan
from gkp.grid.store import Store, default_store


def publish(cells: Iterable[Cell], folder: Path, *, without: Iterable[str] = (), store: Store | None = None) -> list[Path]:
    """The folders of the cells in `folder`, copied from the store where they were not there yet.

    without: patterns of files to leave out, e.g. "*.safetensors"; such a copy still serves its figures, and the cell is
    recomputed when another one is built on what was left out. Logs are never copied. Raises BadInput when a cell is not
    finished.
    """
    store, without, published = store or default_store(), tuple(without), []
    plan = make_plan(cells, store)
    if plan.todo:
        raise BadInput(
            f"{len(plan.todo)} cells are not finished, the first is {next(iter(plan.todo.values())).id}; "
            "run them before they are published"
        )
    for cell in plan.cells:
        source, target = plan.finished[cell.hash].folder, folder / cell.id
        published.append(target)
        if source == target or Store(folder).lookup(cell.id, cell.hash) is not None:
            continue
        partial = folder / f".{cell.id}.partial-{os.getpid()}"
        shutil.copytree(
            source,
            partial,
            ignore=lambda here, names: [
                name for name in names if name == "log.txt" or any(fnmatch(name, pattern) for pattern in without)
            ],
        )
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)
    return published
