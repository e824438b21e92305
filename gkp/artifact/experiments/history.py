"""The epochs of a training that is not finished, from the checkpoint that it resumes from."""

from __future__ import annotations

from typing import Any

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.store import Store, default_store

TRAINING = "training.pt"  # the checkpoint of a fine-tuning, or of a baseline's training


def epochs_so_far(cell: Cell, store: Store | None = None) -> list[dict[str, Any]]:
    """The log of a training that is running or was stopped; empty where it has not begun.

    The checkpoint is removed once the cell is finished: its result then has the log.

    Args:
        cell: The cell of the training.
        store: Where it is; None for `default_store()`.
    """
    from gkp.training.checkpoint import logged_rows  # here, because it imports torch

    return logged_rows((store or default_store()).scratch(cell.id) / TRAINING)
