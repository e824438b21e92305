"""The state of cells and how long the rest will take: `gkp status`, dry runs, and the progress of a run.

The estimate for a cell is its expected seconds on one core, by the rates below, times the ratio of recorded to expected seconds
of finished cells (from the run.json files of the stores), mainly those of the same kind. So there is an estimate before the
first cell has been computed, and fast kinds of cells do not distort the estimate for slow ones.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Any, NamedTuple

from tqdm import tqdm

from gkp.artifact.experiments.cell import Cell, canonical
from gkp.artifact.experiments.compute import Outcome
from gkp.artifact.experiments.entry import read_json
from gkp.artifact.experiments.provenance import cores
from gkp.artifact.experiments.rates import PASSES, Images, Rates, images_of, part_of
from gkp.artifact.experiments.store import Store, default_store
from gkp.artifact.experiments.todo import blocked_by, family, make_plan

AT_MOST = 2000  # stored cells that are read; more would not change a median
_EVERY = 0.5  # seconds between updates of a bar's estimate
# units of `Cell.work` that one core does per second: training images of ResNet-20, passes of an image through it or
# through all engines, layers timed
_PER_SECOND = {
    **{"train": 170.0, "prune": 200.0, "evaluate": 400.0, "pretrained": 1.0},
    **{"timing": 1 / 45, "latency": 0.4, "speed": 75.0},
}
# ratio of recorded to stated seconds, by part of an evaluation or by stage: medians of the committed results
_USUAL = {
    **{"train": 0.9, "prune": 0.65, "timing": 0.8, "latency": 1.15, "speed": 1.0},
    **{"paper": 0.8, "pixel": 0.65, "cascade": 0.15, "autoattack": 0.25, "unattacked": 0.5},
}
_EVERYTHING = ("", "")  # the group of all cells of stages with a stated rate
_UNSURE = 2  # with so many recorded cells, the pace of a group has the same weight as that of all cells


class Kind(NamedTuple):
    """The kind of a cell for estimates: cells of one kind should take equally long.

    Attributes:
        like: Stage, parameters except the seed, and work, as canonical JSON.
        group: Stage, and for an evaluation its part; within a group, durations are proportional to work.
        expected: Seconds, from the rates and usual ratios above; the work itself for a stage without a rate.
        on_gpu: The images of a training or an evaluation that is meant for a GPU; None for other cells.
    """

    like: bytes
    group: tuple[str, str]
    expected: float
    on_gpu: Images | None = None

    @classmethod
    def of(cls, stage: str, params: Mapping[str, Any], work: float) -> Kind:
        """The kind of a cell, by what a store has recorded of it.

        Args:
            stage: The stage.
            params: The parameters, as in `Cell.params`.
            work: As in `Cell.work`.
        """
        part = part_of(params) if stage == "evaluate" else ""
        seedless = {name: value for name, value in params.items() if name != "seed"}
        usual = _USUAL.get(part or stage, 1.0)
        expected = max(1e-6, usual * _stated_seconds(stage, params, work))  # paces are relative to it
        return cls(canonical([stage, seedless, work]), (stage, part), expected)

    @classmethod
    def of_cell(cls, cell: Cell) -> Kind:
        """The kind of a cell."""
        return cls.of(cell.stage, cell.params, cell.work)._replace(on_gpu=images_of(cell))


def _stated_seconds(stage: str, params: Mapping[str, Any], work: float) -> float:
    if stage == "evaluate":
        work *= PASSES[part_of(params)] / PASSES[params["protocol"]]
    return work / _PER_SECOND.get(stage, 1.0) / max(1, params.get("threads", 1))


def for_gpu(cells: Iterable[Cell]) -> bool:
    """Whether these cells are all meant for a GPU, as in the profile "paper"; minutes on a core say nothing about them."""
    found = list(cells)
    return bool(found) and all(cell.threads == 0 for cell in found)


def stated_minutes(cells: Iterable[Cell]) -> float:
    """Minutes for these cells and their ancestors, one after the other, by the rates of this module."""
    return sum(_stated_seconds(cell.stage, cell.params, cell.work) for cell in family(cells).values()) / 60


class Durations:
    """Recorded seconds by kind of cell, and estimates from them.

    The estimate is the median over cells of the same kind; else the expected seconds times the pace of the group, mixed with
    the pace of all cells while few cells of the group are recorded. A pace is the median ratio of recorded to expected seconds,
    weighted by expected seconds: otherwise many small cells, dominated by start-up, would double the estimate of large ones.

    Args:
        rates: Measured rates of a GPU, for cells that are meant for one; None where they were not measured.
    """

    def __init__(self, rates: Rates | None = None) -> None:
        self.rates = rates
        self._like: dict[bytes, list[float]] = defaultdict(list)
        self._paces: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        self._known: dict[tuple[str, str], float | None] = {}  # paces, until another cell is added

    @classmethod
    def of(cls, store: Store, rates: Rates | None = None) -> Durations:
        """The durations recorded in a store, including its read-only roots."""
        found = cls(rates)
        for root in (*store.read_only, store.root):
            folders = sorted(path for path in root.iterdir() if not path.name.startswith(".")) if root.is_dir() else []
            for folder in folders[:: max(1, len(folders) // AT_MOST)]:
                spec, run = read_json(folder / "spec.json"), read_json(folder / "run.json")
                with suppress(KeyError, TypeError, ValueError, AttributeError):  # damaged, or without some of the values
                    found._add(Kind.of(spec["stage"], spec["params"], run["work"]), float(run["seconds"]))  # type: ignore[index]
        return found

    def add(self, cell: Cell, seconds: float) -> None:
        """Add a cell that has just been computed."""
        self._add(Kind.of_cell(cell), seconds)

    def _add(self, kind: Kind, seconds: float) -> None:
        self._known.clear()
        self._like[kind.like].append(seconds)
        for group in {kind.group, _EVERYTHING if kind.group[0] in _PER_SECOND else kind.group}:
            self._paces[group].append((seconds / kind.expected, kind.expected))

    def estimate(self, cell: Cell | Kind) -> float | None:
        """The expected seconds of a cell; None where its stage has neither a rate nor a recorded cell."""
        kind = Kind.of_cell(cell) if isinstance(cell, Cell) else cell
        if kind.like in self._like:
            return median(self._like[kind.like])
        if self.rates and kind.on_gpu and (seconds := self.rates.seconds(kind.on_gpu)) is not None:
            return seconds
        pace = self._pace(kind.group)
        return None if pace is None else pace * kind.expected

    def _pace(self, group: tuple[str, str]) -> float | None:
        if group not in self._known:
            own, every = self._paces.get(group, []), self._paces.get(_EVERYTHING, [(1.0, 1.0)])
            share = len(own) / (len(own) + _UNSURE) if group[0] in _PER_SECOND else 1.0
            pace = (_weighted_median(own) if own else 1.0) ** share * _weighted_median(every) ** (1 - share)
            self._known[group] = pace if own or group[0] in _PER_SECOND else None
        return self._known[group]

    def total(self, kinds: Mapping[Kind, int]) -> tuple[float, int]:
        """(seconds of all cells with an estimate, number of cells without), for a count of each kind."""
        each = [(self.estimate(kind), count) for kind, count in kinds.items()]
        seconds = sum(found * count for found, count in each if found is not None)
        return seconds, sum(count for found, count in each if found is None)


def _weighted_median(pairs: Iterable[tuple[float, float]]) -> float:
    """The weighted median of (value, weight): the lowest value that, with those below, has half of the weight."""
    ordered = sorted(pairs)
    half = sum(weight for _, weight in ordered) / 2
    return next(value for (value, _), below in zip(ordered, accumulate(w for _, w in ordered), strict=True) if below >= half)


def in_words(seconds: float) -> str:
    """A duration as text: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Status:
    """The ids of cells by state: the requested ones, and ancestors that have to be computed for them.

    Attributes:
        finished: Cells with a result.
        running: Cells that are being computed.
        failed: Cells that failed.
        blocked: Cells with a failed ancestor.
        missing: All others.
        failures: Id -> kind and message of each failed cell.
        damaged: Id -> what is wrong with a stored cell; it counts as missing.
        minutes_left: Estimated minutes for running and missing cells.
        not_timed: The number of cells without an estimate, which `minutes_left` leaves out.
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
        """Counts, minutes left, failures with their reasons, and ids of running cells, as plain JSON types."""
        return {
            **self._counts(),
            "minutes_left": round(self.minutes_left, 1),
            "not_timed": self.not_timed,
            "failures": self.failures,
            "running_cells": list(self.running),
            "damaged": self.damaged,
        }

    def lines(self) -> list[str]:
        """The same as lines of text."""
        counts = ", ".join(f"{count} {name}" for name, count in self._counts().items())
        left = f"; about {in_words(60 * self.minutes_left)} left"
        if self.not_timed:
            left += f", without {self.not_timed} cells that were never timed"
        return [
            counts + (left if self.running + self.missing else ""),
            *(f"running: {cell_id}" for cell_id in self.running),
            *(f"failed: {cell_id}: {reason}" for cell_id, reason in self.failures.items()),
            *(f"damaged: {reason}" for reason in self.damaged.values()),
        ]

    def _counts(self) -> dict[str, int]:
        return {name: len(getattr(self, name)) for name in ("finished", "running", "failed", "blocked", "missing")}


def status(cells: Iterable[Cell], *, jobs: int | None = None, store: Store | None = None) -> Status:
    """The state of some cells. It only reads the store, so it works while others run.

    Args:
        cells: The cells.
        jobs: Workers for the estimate of minutes left; None for one for each core.
        store: None for `default_store()`.
    """
    store = store or default_store()
    plan = make_plan(cells, store)
    alive, recorded = store.running(), store.failures()
    failed = {key for key, cell in plan.todo.items() if recorded.get(cell.id, {}).get("hash") == key and cell.id not in alive}
    blocked = blocked_by(plan.todo, failed)
    states: dict[str, list[Cell]] = {name: [] for name in ("running", "failed", "blocked", "missing")}
    for key, cell in plan.todo.items():
        ended = "failed" if key in failed else "blocked" if key in blocked else "missing"
        states["running" if cell.id in alive else ended].append(cell)
    left = Counter(map(Kind.of_cell, states["running"] + states["missing"]))
    seconds, unknown = Durations.of(store).total(left)
    return Status(
        finished=tuple(cell.id for cell in plan.cells if cell.hash in plan.finished),
        **{name: tuple(cell.id for cell in found) for name, found in states.items()},
        failures={cell.id: f"{recorded[cell.id]['kind']}: {recorded[cell.id]['message']}" for cell in states["failed"]},
        damaged=dict(store.damaged),
        minutes_left=seconds / 60 / (jobs or cores()),
        not_timed=unknown,
    )


class Progress:
    """Shows finished cells and an estimate for the rest: a bar on a terminal, else a line for each cell.

    Args:
        todo: The cells to compute.
        durations: Recorded durations, to which the cells of this run are added.
        show: Whether to show anything.
    """

    def __init__(self, todo: Collection[Cell], durations: Durations, *, show: bool) -> None:
        self._total, self._done, self._slots = len(todo), 0, 1
        self._durations, self._show = durations, show and bool(todo)
        self._left = Counter(map(Kind.of_cell, todo)) if self._show else Counter[Kind]()
        bar_format = "{n_fmt}/{total_fmt} cells |{bar}| {elapsed} {postfix}"
        is_bar = self._show and sys.stderr.isatty()
        self._bar = tqdm(total=self._total, unit="cell", dynamic_ncols=True, bar_format=bar_format, disable=not is_bar)
        self._shown_at = 0.0

    def update(self, slots: int) -> None:
        """Show how long the rest takes on `slots` workers, at most twice per second."""
        self._slots = max(1, slots)
        if not self._bar.disable and time.monotonic() - self._shown_at > _EVERY:
            self._bar.set_postfix_str(self._rest())
            self._shown_at = time.monotonic()

    def settle(self, cell: Cell, outcome: Outcome, *, blocked: Collection[Cell] = ()) -> None:
        """Show the outcome of a cell.

        Args:
            cell: The cell.
            outcome: Its outcome.
            blocked: Cells that cannot be computed because it failed.
        """
        self._done += 1 + len(blocked)
        if not self._show:
            return
        if outcome.status == "computed":
            self._durations.add(cell, outcome.seconds)
        self._left.subtract(map(Kind.of_cell, (cell, *blocked)))
        self._bar.update(1 + len(blocked))
        failed = f"{outcome.kind}: {outcome.message}" if outcome.status == "failed" else ""
        if self._bar.disable:
            end = f"failed ({failed})" if failed else f"{outcome.status} in {in_words(outcome.seconds)}"
            self.say(f"[{self._done}/{self._total}] {cell.id} {end}; {self._rest()}")
        elif failed:
            self.say(f"failed: {cell.id}: {failed}")

    def say(self, message: str) -> None:
        """Print a line of text on stderr."""
        if self._show:
            tqdm.write(message, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()

    def _rest(self) -> str:
        if self._done >= self._total:
            return "nothing left"
        seconds, unknown = self._durations.total(self._left)
        if unknown == self._total - self._done:
            return "no estimate yet"
        return f"about {in_words(seconds / self._slots)} left" + (f" and {unknown} cells never timed" if unknown else "")
