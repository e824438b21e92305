"""The epochs of a training that is not finished: from the checkpoint that it resumes from, or as they were committed.

A training of days is committed as far as it goes, `data/unfinished/<id>.json` for each: the rows of its log, with the hash of
the cell, where they were computed, and a sha256 of all that. The network stays with the checkpoint. Once the cell is finished,
its result has the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.entry import read_json, signature, write_json
from gkp.artifact.experiments.provenance import git_commit, hardware, versions
from gkp.artifact.experiments.store import Store, default_store
from gkp.files import replace_file

TRAINING = "training.pt"  # the checkpoint of a fine-tuning, or of a baseline's training
UNFINISHED = "unfinished"  # the folder of committed logs, beside that of committed cells


def epochs_so_far(cell: Cell, store: Store | None = None) -> list[dict[str, Any]]:
    """The log of a training that is running, was stopped, or was committed as far as it goes; empty where it has not begun.

    Args:
        cell: The cell of the training.
        store: Where it is; None for `default_store()`.
    """
    store = store or default_store()
    return max([_running(cell, store), *(_kept(folder, cell) for folder in _folders(store))], key=len)


def kept_sha256(cell: Cell, store: Store | None = None) -> str:
    """The sha256 of the committed log of an unfinished training; "" where there is none."""
    files = [_sound(folder / f"{cell.id}.json") for folder in _folders(store or default_store())]
    return next((str(body["sha256"]) for body in files if body), "")


def keep_unfinished(cells: Iterable[Cell], folder: Path, store: Store) -> None:
    """Write the logs of trainings that are not finished, and remove all others.

    A log that is there stays unless the checkpoint is further.

    Args:
        cells: The unfinished trainings whose logs are committed.
        folder: The folder of committed logs.
        store: Where the checkpoints are.
    """
    wanted = {cell.id: cell for cell in cells}
    for file in folder.glob("*.json"):
        if file.stem not in wanted:
            file.unlink()
    for cell in wanted.values():
        rows = _running(cell, store)
        if len(rows) > len(_kept(folder, cell)):
            seconds = round(sum(row.pop("seconds", 0.0) for row in rows), 3)
            run = {"git_commit": git_commit(), "versions": versions(), "hardware": hardware(), "seconds": seconds}
            body = {"id": cell.id, "hash": cell.hash, "epochs": rows, "run": run}
            signed = {**body, "sha256": signature(body)}
            replace_file(folder / f"{cell.id}.json", partial(write_json, value=signed))


def problems_of_unfinished(folder: Path, results: Path) -> list[str]:
    """The faults of the committed logs of unfinished trainings, a line each.

    Args:
        folder: The folder of the logs.
        results: The folder of committed cells, among which none of them may be.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        body = _sound(file)
        if body is None or body.get("id") != file.stem:
            found.append(f"{file}: was edited, or is not what its name says; restore it with git")
        elif [row["epoch"] for row in body["epochs"]] != list(range(1, len(body["epochs"]) + 1)):
            found.append(f"{file}: lacks epochs; restore it with git")
        elif (results / file.stem).exists():
            found.append(f"{file}: is finished; `gkp publish --cells` removes it")
    return found


def _folders(store: Store) -> list[Path]:
    return [root.parent / UNFINISHED for root in store.read_only]


def _sound(file: Path) -> dict[str, Any] | None:
    """A committed log; None where there is none, or it was edited."""
    body = read_json(file) or {}
    return body if body.get("sha256") == signature({k: v for k, v in body.items() if k != "sha256"}) else None


def _kept(folder: Path, cell: Cell) -> list[dict[str, Any]]:
    body = _sound(folder / f"{cell.id}.json")
    return body["epochs"] if body and body["hash"] == cell.hash else []


def _running(cell: Cell, store: Store) -> list[dict[str, Any]]:
    from gkp.training.checkpoint import logged_rows  # here, because it imports torch

    return logged_rows(store.scratch(cell.id) / TRAINING)
