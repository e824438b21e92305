"""Where a run stands, for `gkp status`: read from the store alone, so it works beside any number of runners."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.estimate import Durations, count_kinds, in_words
from gkp.artifact.experiments.provenance import cores
from gkp.artifact.experiments.store import Store, default_store
from gkp.artifact.experiments.todo import make_plan


@dataclass(frozen=True)
class Status:
    """Ids by state: each cell asked for, and each ancestor that still has to be computed for them, is in one of them.

    failures: id -> kind and message of each failed cell; damaged: id -> what is wrong with a stored cell (these count as
    missing); minutes_left: for running and missing cells, from recorded durations; not_timed: how many of them it
    leaves out because no cell of their stage has been timed.
    """

    finished: tuple[str, ...]
    running: tuple[str, ...]
    failed: tuple[str, ...]
    blocked: tuple[str, ...]
    missing: tuple[str, ...]
    failures: dict[str, str]
    damaged: dict[str, str]
    minutes_left: float
    not_timed: int

    def to_json(self) -> dict[str, Any]:
        """Counts and minutes left, the failures with their reasons, and the ids of running cells."""
        counts = {name: len(getattr(self, name)) for name in ("finished", "running", "failed", "blocked", "missing")}
        return {
            **counts,
            "minutes_left": round(self.minutes_left, 1),
            "not_timed": self.not_timed,
            "failures": self.failures,
            "running_cells": list(self.running),
            "damaged": self.damaged,
        }

    def lines(self) -> list[str]:
        """The same for people."""
        counts = (f"{len(getattr(self, name))} {name}" for name in ("finished", "running", "failed", "blocked", "missing"))
        left = f"about {in_words(60 * self.minutes_left)} left"
        if self.not_timed:
            left += f", without {self.not_timed} cells that were never timed"
        return [
            ", ".join(counts) + ("" if not self.running + self.missing else f"; {left}"),
            *(f"running: {cell_id}" for cell_id in self.running),
            *(f"failed: {cell_id}: {reason}" for cell_id, reason in self.failures.items()),
            *(f"damaged: {reason}" for reason in self.damaged.values()),
        ]


def status(cells: Iterable[Cell], *, jobs: int | None = None, store: Store | None = None) -> Status:
    """The state of each cell; writes nothing. jobs: how many workers the minutes left are for (None: one per core)."""
    store = store or default_store()
    plan = make_plan(cells, store)
    alive, recorded = store.running(), store.failures()
    states: dict[str, list[Cell]] = {name: [] for name in ("running", "failed", "blocked", "missing")}
    hopeless: set[str] = set()  # failed or blocked
    for key, cell in plan.todo.items():
        if cell.id in alive:
            state = "running"
        elif recorded.get(cell.id, {}).get("hash") == key:
            state = "failed"
        else:
            state = "blocked" if any(parent.hash in hopeless for parent in cell.parents.values()) else "missing"
        if state in ("failed", "blocked"):
            hopeless.add(key)
        states[state].append(cell)
    seconds, unknown = Durations.of(store).total(count_kinds(states["running"] + states["missing"]))
    ids = {name: tuple(cell.id for cell in found) for name, found in states.items()}
    return Status(
        finished=tuple(cell.id for cell in plan.cells if cell.hash in plan.finished),
        **ids,
        failures={cell_id: f"{recorded[cell_id]['kind']}: {recorded[cell_id]['message']}" for cell_id in ids["failed"]},
        damaged=dict(store.damaged),
        minutes_left=seconds / 60 / (jobs or cores()),
        not_timed=unknown,
    )
