"""The epochs of a training, finished or not: what its cell says, or the checkpoint that it resumes from."""

from __future__ import annotations

from typing import Any

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.store import Store, default_store

TRAINING = "training.pt"  # the checkpoint of a fine-tuning, or of a baseline's training


def epochs_so_far(cell: Cell, store: Store | None = None) -> list[dict[str, Any]]:
    """The rows of the log of a training that is under way or was killed; none where it has not begun.

    They are not a result: they are gone once the cell is finished, whose figures have them.

    Args:
        cell: A network that is trained.
        store: None for `default_store()`.
    """
    from gkp.training.checkpoint import logged_rows  # late: torch comes with it, and plans of cells need none

    return logged_rows((store or default_store()).scratch(cell.id) / TRAINING)
