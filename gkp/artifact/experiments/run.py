"""Compute missing cells, in this process, on local workers or on a Dask cluster.

A cell is submitted as soon as its parents are finished. A failure is recorded with its traceback, the descendants of the cell
are blocked, and everything else goes on. A cell that another runner is computing on the same store is waited for. When a run is
killed, finished cells are kept and the next run computes the others.
"""

from __future__ import annotations

import heapq
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkp.artifact.experiments.cell import Cell, select
from gkp.artifact.experiments.compute import Job, Outcome, SchedulerLost, compute
from gkp.artifact.experiments.entry import Entry
from gkp.artifact.experiments.limits import STOPPED
from gkp.artifact.experiments.probe import rates_for
from gkp.artifact.experiments.provenance import cores
from gkp.artifact.experiments.rates import Rates
from gkp.artifact.experiments.report import CellsFailed, Report, Result
from gkp.artifact.experiments.status import Durations, Kind, Progress, in_words
from gkp.artifact.experiments.store import Store, default_store
from gkp.artifact.experiments.todo import Plan, blocked_by, leave_out_absent, make_plan, take_shard
from gkp.errors import BadInput

if TYPE_CHECKING:
    from gkp.artifact.experiments.cluster import Cluster

_ASK_AGAIN = 0.5  # seconds until a cell that another runner has locked is tried again
_TO_BEGIN = 10.0  # seconds before the deadline in which no cell is started
_GIVE_UP = 60.0  # seconds after the deadline until cells whose workers have gone are given up
_UNTIL_SEEN = 15.0  # seconds a network folder may take to show a cell that another machine wrote


def run(
    cells: Iterable[Cell],
    *,
    jobs: int | None = None,
    shard: str | None = None,
    only: str | None = None,
    scheduler: str | Path | None = None,
    dry_run: bool = False,
    recompute: bool = False,
    progress: bool = True,
    quiet: bool = False,
    check: bool = True,
    store: Store | None = None,
    time_limit: float | None = None,
    memory_limit: float | None = None,
    seconds: float | None = None,
    probe: bool | None = None,
    skip_absent: bool = False,
) -> Report:
    """Compute the missing ones among some cells and their parents, and return the results of all.

    Args:
        cells: The requested cells.
        jobs: Cells computed at once; 1 for this process alone, 0 to compute nothing; None for one for each core, or the best
            number that the probe of a GPU found.
        shard: "i/n", the share of this runner, see `gkp.artifact.experiments.todo.take_shard`.
        only: As in `gkp.artifact.experiments.cell.select`.
        scheduler: Address or scheduler file of a Dask cluster to use instead of local workers; None for
            DASK_SCHEDULER_ADDRESS, if set.
        dry_run: Whether only to report what would be computed, in `Report.lines`.
        recompute: Whether to compute the requested cells again although they are finished.
        progress: Whether to show a bar (on a terminal) or a line for each cell on stderr.
        quiet: Whether to print no headline.
        check: Whether to raise CellsFailed in the end when a cell has failed; otherwise see `Report.failures`.
        store: None for `default_store()`.
        time_limit: Seconds, for cells without a limit of their own.
        memory_limit: MB, for cells without a limit of their own.
        seconds: How long the run may take; None for no deadline. A cell is started only if it can be finished or resumed;
            unfinished trainings and evaluations keep their checkpoints, and the next run continues them.
        probe: Whether to measure the speed of this machine first (`gkp.artifact.experiments.probe`), for estimates and the
            number of jobs; None: if there is a GPU and all missing cells are meant for one.
        skip_absent: Whether to leave cells missing whose images or public weights are not here and cannot be downloaded, with a
            line for each reason, instead of letting them fail. Not used with a cluster, whose workers may have them.

    Returns:
        The results in the order of the cells, with failures.

    Raises:
        BadInput: The store cannot be written although cells must be computed, the scheduler does not answer, a limit is not
            above 0, or a parameter of a cell is not a plain value.
        CellsFailed: A cell has failed; all others were computed.
    """
    if jobs is not None and jobs < 0:
        raise BadInput(f"jobs is {jobs}; give 1 or more, or 0 to compute nothing")
    _check_limits("", seconds=seconds, time_limit=time_limit, memory_limit=memory_limit)
    deadline = None if seconds is None else time.time() + seconds
    store, cells = store or default_store(), take_shard(select(cells, only), shard)
    plan, scheduler = make_plan(cells, store, recompute=recompute), scheduler or os.environ.get("DASK_SCHEDULER_ADDRESS")
    for cell in plan.todo.values():
        _check_limits(f"{cell.id}: ", time_limit=cell.time_limit, memory_limit=cell.memory_limit)
    absent = leave_out_absent(plan) if skip_absent and jobs != 0 and not scheduler else ()
    rates = rates_for(plan.todo.values(), probe) if plan.todo and jobs != 0 else None
    if jobs is None:
        jobs = rates.jobs if rates else cores()
    if dry_run:
        report = _dry_report(plan, store, jobs, rates)
    elif not plan.todo or jobs == 0:
        report = _report(plan, store, lines=absent)
    else:
        store.prepare()
        limits = {"time_limit": time_limit, "memory_limit": memory_limit}
        running = _Run(plan, store, show=progress, recompute=recompute, limits=limits, deadline=deadline, rates=rates)
        running.go(jobs, scheduler)
        report = _report(plan, store, running, lines=absent)
    if not quiet:
        print(*report.lines, report.headline, *(f"damaged: {reason}" for reason in report.damaged.values()), sep="\n")
    if check and report.failures:
        raise CellsFailed(report)
    return report


def _check_limits(where: str, **limits: float | None) -> None:
    for name, limit in limits.items():
        if limit is not None and not 0 < limit < math.inf:
            raise BadInput(f"{where}{name} is {limit}; give a number above 0, or None for no limit")


def load(cells: Iterable[Cell], *, store: Store | None = None) -> Report:
    """The stored results of some cells, without computing any; `Report.missing` lists those that are not finished."""
    store = store or default_store()
    return _report(make_plan(cells, store), store)


class _InProcess:
    """Computes one cell after the other in this process, without Dask, so that breakpoints work."""

    def __init__(self) -> None:
        self.threads: int | None = cores()
        self._jobs: list[Job] = []

    def slots(self) -> int:
        return 1

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[Outcome]:
        if self._jobs:
            return [compute(self._jobs.pop(), alone=False)]
        time.sleep(seconds)
        return []

    def close(self) -> None:
        self._jobs.clear()


def _executor(jobs: int, cells: int, scheduler: str | Path | None) -> _InProcess | Cluster:
    if jobs == 1 and not scheduler:
        return _InProcess()
    from gkp.artifact.experiments.cluster import connect, start_local  # Dask takes most of a second to import

    return connect(scheduler) if scheduler else start_local(min(jobs, cells))


class _Run:
    """The state of one run: cells that are ready, submitted, and done, by hash."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        *,
        show: bool,
        recompute: bool,
        limits: Mapping[str, float | None],
        deadline: float | None = None,
        rates: Rates | None = None,
    ) -> None:
        self.plan, self.store, self.limits, self.deadline = plan, store, limits, deadline
        self.stopped: set[str] = set()  # hashes of cells that were stopped at the deadline, or not started because of it
        self.recompute = {cell.hash for cell in plan.cells} if recompute else set()
        self.computed: set[str] = set()
        self.failures: dict[str, Outcome] = {}
        self.blocked: dict[str, str] = {}
        self._durations = Durations.of(store, rates) if show or deadline else Durations()
        self._progress = Progress(plan.todo.values(), self._durations, show=show)
        self._order = {key: place for place, key in enumerate(plan.todo)}
        waits_for = {key: [p.hash for p in cell.parents.values() if p.hash in plan.todo] for key, cell in plan.todo.items()}
        self._with_children = {parent for parents in waits_for.values() for parent in parents}
        self._sorter = TopologicalSorter(waits_for)
        self._sorter.prepare()
        self._ready: list[tuple[int, str]] = []  # a heap: cells are submitted in the order of the plan
        self._out: dict[str, str] = {}  # id -> hash of the cells that a worker has
        self._elsewhere: dict[str, float] = {}  # when to ask again for a cell that another runner has

    def go(self, jobs: int, scheduler: str | Path | None) -> None:
        """Run until every cell is computed, failed or blocked."""
        executor = _executor(jobs, len(self.plan.todo), scheduler)
        try:
            self._loop(executor)
        except SchedulerLost as error:
            raise BadInput(
                f"the Dask scheduler was lost ({error}); {len(self.computed)} cells were finished and are kept: "
                "start the scheduler and run again"
            ) from error
        finally:
            self._progress.close()
            executor.close()

    def _loop(self, executor: _InProcess | Cluster) -> None:
        said = False
        while self._gather() or self._out or self._elsewhere:
            slots = executor.slots()
            if not slots and not said:
                said = True
                self._progress.say("the scheduler has no workers; waiting for one")
            while self._ready and (len(self._out) < slots or self._left() <= _TO_BEGIN):
                _, key = heapq.heappop(self._ready)
                if not self._in_time(self.plan.todo[key]):
                    self.stopped.add(key)
                    continue
                self._out[self.plan.todo[key].id] = key
                executor.submit(self._job(key, executor.threads))
            if not slots and self._left() < -_GIVE_UP:  # all workers have gone, and nobody waits for another one
                self.stopped.update(self._out.values())
                return
            self._progress.update(slots)
            for outcome in executor.wait(_ASK_AGAIN):
                self._settle(self._out.pop(outcome.id), outcome)

    def _in_time(self, cell: Cell) -> bool:
        """Whether to start a cell before the deadline: it will be finished by then, or can be resumed."""
        if self.deadline is None:
            return True
        left, needed = self._left(), self._durations.estimate(cell)
        return left > _TO_BEGIN and (cell.resumable or (needed is not None and needed < left))

    def _left(self) -> float:
        """Seconds until the deadline."""
        return math.inf if self.deadline is None else self.deadline - time.time()

    def _gather(self) -> bool:
        """Collect cells whose parents are finished, and locked ones to be tried again; returns whether there are any."""
        again = [key for key, when in self._elsewhere.items() if when <= time.monotonic()]
        for key in (*self._sorter.get_ready(), *again):
            self._elsewhere.pop(key, None)
            heapq.heappush(self._ready, (self._order[key], key))
        return bool(self._ready)

    def _job(self, key: str, threads: int | None) -> Job:
        cell = self.plan.todo[key]
        parents = {role: self.plan.finished[parent.hash].folder for role, parent in cell.parents.items()}
        again = key in self.recompute
        return Job.of(cell, self.store, parents, threads=threads, recompute=again, deadline=self.deadline, **self.limits)

    def _settle(self, key: str, outcome: Outcome) -> None:
        cell, blocked = self.plan.todo[key], {}
        if outcome.status == "busy":
            self._elsewhere[key] = time.monotonic() + _ASK_AGAIN
            return
        if outcome.status == STOPPED:
            self.stopped.add(key)
            self._progress.say(f"stopped: {cell.id}: {outcome.message}")
            return
        if outcome.status != "failed":
            if entry := self._find(cell, whole=key in self._with_children):
                self.plan.finished[key] = entry
                self._sorter.done(key)
                if outcome.status == "computed":
                    self.computed.add(key)
            else:
                unseen = f"a worker finished it, but {self.store.root} does not show it here"
                outcome = Outcome(cell.id, "failed", "lost", f"{unseen}; use a folder that all machines share (GKP_CELLS)")
        if outcome.status == "failed":
            if outcome.kind == "lost":  # no worker could record it
                self.store.record_failure(cell.id, {**asdict(outcome), "hash": key, "traceback": ""})
            self.failures[key] = outcome
            blocked = {child: key for child in blocked_by(self.plan.todo, {key}) if child not in self.blocked}
            self.blocked |= blocked
        self._progress.settle(cell, outcome, blocked=[self.plan.todo[child] for child in blocked])

    def _find(self, cell: Cell, *, whole: bool) -> Entry | None:
        deadline, written = time.monotonic() + _UNTIL_SEEN, Store(self.store.root)
        while (entry := written.lookup(cell.id, cell.hash, whole=whole)) is None and time.monotonic() < deadline:
            os.listdir(self.store.root)  # makes a network file system look again
            time.sleep(0.1)
        return entry


def _report(plan: Plan, store: Store, running: _Run | None = None, **more: Any) -> Report:
    computed = running.computed if running else set()
    results = tuple(
        Result(cell, entry.figures, entry.folder, cell.hash not in computed, entry.files)
        for cell in plan.cells
        if (entry := plan.finished.get(cell.hash)) is not None
    )
    blocked = running.blocked if running else {}
    return Report(
        results=results,
        computed=sum(not result.cached for result in results),
        extra=len(computed - {cell.hash for cell in plan.cells}),
        failures=tuple(running.failures.values()) if running else (),
        blocked={plan.todo[key].id: plan.todo[failed].id for key, failed in blocked.items()},
        stopped=tuple(cell.id for key, cell in plan.todo.items() if running and key in running.stopped),
        missing=tuple(cell for cell in plan.cells if cell.hash not in plan.finished),
        damaged=dict(store.damaged),
        failed_folder=store.root / ".failed",
        **more,
    )


def _dry_report(plan: Plan, store: Store, jobs: int, rates: Rates | None) -> Report:
    durations, asked = Durations.of(store, rates), {cell.hash for cell in plan.cells}
    lines = [f"cached   {cell.id}" for cell in plan.cells if cell.hash in plan.finished]
    for key, cell in plan.todo.items():
        seconds = durations.estimate(cell)
        how_long = "never timed" if seconds is None else in_words(seconds)
        lines.append(f"compute  {cell.id}  {how_long}{'' if key in asked else ', as a parent'}")
    seconds, unknown = durations.total(Counter(map(Kind.of_cell, plan.todo.values())))
    wall = seconds / (rates.gain(jobs) if rates else max(1, jobs))
    time_left = f"{seconds / 3600:.2f} h of work, about {in_words(wall)} with {jobs} jobs"
    rest = f", and {unknown} cells never timed" if unknown else ""
    lines += [rates.line] if rates else []
    return _report(plan, store, lines=(*lines, f"to compute: {len(plan.todo)} cells, {time_left}{rest}"))
