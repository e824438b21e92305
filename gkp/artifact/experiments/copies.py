"""Copying finished cells to where they are committed (`data/results`), and checking the copies without their specifications."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from gkp.artifact.experiments.cell import HASH_DIGITS, Cell, canonical
from gkp.artifact.experiments.entry import Damaged, Entry, check_files, read_entry, read_json
from gkp.artifact.experiments.store import Store, default_store
from gkp.artifact.experiments.todo import make_plan
from gkp.errors import BadInput

PROVENANCE = ("finished", "seconds", "threads", "peak_memory_mb", "git_commit", "versions", "hardware")  # of every run.json


def publish(cells: Iterable[Cell], folder: Path, *, without: Iterable[str] = (), store: Store | None = None) -> list[Path]:
    """The folders of the cells in `folder`, copied from the store where they were not there yet.

    without: patterns of files to leave out, as names or as paths in the cell's folder, e.g. "model/*.safetensors"; such a
    copy still serves its figures, and the cell is recomputed when another one is built on what was left out. Logs are never
    copied. Raises BadInput when a cell is not finished, or not as it was written.
    """
    store, without, published = store or default_store(), ("log.txt", *without), []
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
        if problems := check_folder(source):
            raise BadInput(f"{cell.id} cannot be published: {problems[0]}; compute it again")
        partial = folder / f".{cell.id}.partial-{os.getpid()}"
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            name = path.relative_to(source)
            if any(fnmatch(name.name, pattern) or fnmatch(name.as_posix(), pattern) for pattern in without):
                continue
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, partial / name)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)
    return published


def entry_of(folder: Path) -> Entry:
    """The finished cell in this folder, whatever its specification. Raises `Damaged` when it is not what was written."""
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
    """What is wrong with the finished cell in this folder, one line each: against its own hashes, and with its run.json."""
    try:
        entry = entry_of(folder)
    except Damaged as error:
        return [str(error)]
    run = entry.run()
    return [f"{folder / 'run.json'}: does not say {name}" for name in PROVENANCE if run.get(name) in (None, "", {})]
