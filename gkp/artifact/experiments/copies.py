"""Copy finished cells to where they are committed (`data/results`), and check the copies without their specifications.

Cells are computed in `build/cells` and then copied, because networks that start from the weights of others are needed by the
cells built on them but are never committed.
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
    """Copy finished cells into a folder, each atomically; cells that are there already are left alone.

    Args:
        cells: Finished cells.
        folder: Where they are committed.
        without: Patterns of file names to leave out, such as "*.safetensors". The values of such a copy can still be used; the
            cell is computed again when another one needs the files. Logs are never copied.
        store: Where the cells are; None for `default_store()`.

    Returns:
        The folder of each cell.

    Raises:
        BadInput: A cell is not finished or is damaged, or the folder cannot be written.
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
        try:
            with target_store.writing(cell.id) as partial:
                shutil.copytree(source, partial, ignore=shutil.ignore_patterns("log.txt", *without), dirs_exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                os.rename(partial, target)
        except OSError as error:
            reason = error.strerror or error.args[0][-1][-1]  # shutil.Error lists (source, target, reason)
            raise BadInput(f"{cell.id} cannot be copied to {folder} ({reason}); make it writable and make room") from error
    return published


def entry_of(folder: Path) -> Entry:
    """The finished cell in a folder, without knowing its specification. Raises `Damaged` where hashes do not match."""
    spec = read_json(folder / "spec.json")
    if spec is None:
        raise Damaged(f"{folder / 'spec.json'}: is missing or is not JSON")
    cell_hash = hashlib.sha256(canonical({name: value for name, value in spec.items() if name != "id"})).hexdigest()
    if not folder.name.endswith(f"-{cell_hash[:HASH_DIGITS]}"):
        raise Damaged(f"{folder / 'spec.json'}: is the specification of another cell")
    entry = read_entry(folder, cell_hash)
    assert entry is not None
    check_files(entry)
    return entry


def check_folder(folder: Path) -> list[str]:
    """Check the finished cell in a folder; the faults found, a line each: wrong hashes, or fields missing from run.json."""
    try:
        run = entry_of(folder).run()
    except Damaged as error:
        return [str(error)]
    return [f"{folder / 'run.json'}: does not say {name}" for name in PROVENANCE if run.get(name) in (None, "", {})]
