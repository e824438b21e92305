"""Copying finished cells to where they are committed (`data/results`), and checking the copies without their specifications.

Cells are computed in `build/cells` and copied, not written into `data/results` straight away: networks that begin with somebody
else's weights are needed there by the cells built on them, and are never committed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from gkp.artifact.experiments.cell import HASH_DIGITS, Cell, canonical
from gkp.artifact.experiments.entry import Damaged, Entry, check_files, read_entry, read_json
from gkp.artifact.experiments.store import Store, default_store
from gkp.artifact.experiments.todo import make_plan
from gkp.errors import BadInput

PROVENANCE = ("finished", "seconds", "threads", "peak_memory_mb", "git_commit", "versions", "hardware")  # of every run.json


def publish(cells: Iterable[Cell], folder: Path, *, without: Iterable[str] = (), store: Store | None = None) -> list[Path]:
    """Copy finished cells into `folder`, each whole or not at all; those that are there already are left alone.

    Args:
        cells: finished cells.
        folder: where they are committed.
        without: patterns of names of files to leave out, such as "*.safetensors". Such a copy still serves its numbers, and
            the cell is computed again when another one is built on what was left out. Logs are never copied.
        store: where the cells are; by default the usual one.

    Returns:
        The folder of each cell.

    Raises:
        BadInput: when a cell is not finished, or not as it was written.
    """
    store, target_store, published = store or default_store(), Store(folder), []
    plan = make_plan(cells, store)
    if plan.todo:
        first = next(iter(plan.todo.values())).id
        raise BadInput(f"{len(plan.todo)} cells are not finished, the first is {first}; run them before they are published")
    for cell in plan.cells:
        source, target = plan.finished[cell.hash].folder, folder / cell.id
        published.append(target)
        if source == target or target_store.lookup(cell.id, cell.hash) is not None:
            continue
        if problems := check_folder(source):
            raise BadInput(f"{cell.id} cannot be published: {problems[0]}; compute it again")
        partial = folder / f".{cell.id}.partial-{os.getpid()}"
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns("log.txt", *without), dirs_exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)
    return published


def entry_of(folder: Path) -> Entry:
    """Return the finished cell in this folder, whatever its specification. Raises `Damaged` when it is not what was written."""
    spec = read_json(folder / "spec.json")
    if spec is None:
        raise Damaged(f"{folder / 'spec.json'}: is missing or no JSON")
    cell_hash = hashlib.sha256(canonical({name: value for name, value in spec.items() if name != "id"})).hexdigest()
    if not folder.name.endswith(f"-{cell_hash[:HASH_DIGITS]}"):
        raise Damaged(f"{folder / 'spec.json'}: is the specification of another cell")
    entry = read_entry(folder, cell_hash)
    assert entry is not None
    check_files(entry)
    return entry


def check_folder(folder: Path) -> list[str]:
    """Return what is wrong with the finished cell in this folder, a line each: its hashes, and what run.json must say."""
    try:
        run = entry_of(folder).run()
    except Damaged as error:
        return [str(error)]
    return [f"{folder / 'run.json'}: does not say {name}" for name in PROVENANCE if run.get(name) in (None, "", {})]
