"""run(): computes what is missing of some cells, in this process, on local workers or on a Dask cluster.

A cell goes out as soon as its parents are finished. One that fails is recorded with its traceback, its descendants are
blocked, everything else goes on. Cells that another runner is computing on the same store are waited for, not repeated.
Whatever is killed, finished cells stay and the rest is computed by the next run.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from gkp.artifact.experiments.cell import Cell, select
from gkp.artifact.experiments.compute import Outcome, make_job
from gkp.artifact.experiments.estimate import Durations, count_kinds, in_words
from gkp.artifact.experiments.executors import Executor, InProcess, SchedulerLost, connect, start_local
from gkp.artifact.experiments.progress import Progress
from gkp.artifact.experiments.provenance import cores
from gkp.artifact.experiments.report import CellsFailed, Report, Result
from gkp.artifact.experiments.store import Entry, Store, default_store
from gkp.artifact.experiments.todo import Plan, make_plan, take_shard
from gkp.errors import BadInput

_ASK_AGAIN = 0.5  # seconds until a cell that another runner has locked is looked at again
_UNTIL_SEEN = 15.0  # seconds a network folder may take to show what another machine wrote


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
) -> Report:
    """The results of the cells, in their order; those that no store has are computed first, with their parents.

    jobs: cells computed at once; None for one per core, 1 for this very process,
    0 to compute nothing. shard: "i/n", this runner's share.
    only: see `select`. scheduler: address or scheduler file of a Dask cluster to use instead of local workers; None for
    DASK_SCHEDULER_ADDRESS, if set. dry_run: only say what would be done, in `Report.lines`. recompute: compute the cells
    asked for although they are finished. progress: a bar (on a terminal) or a line a cell on stderr; False for neither.
    quiet: print no headline. check: raise CellsFailed in the end when a cell has failed; otherwise see `Report.failures`.
    time_limit (seconds), memory_limit (MB): for cells without their own.
    Raises BadInput for a store that cannot be written while something must be computed, for a scheduler that does not
    answer, and for specifications that are no plain values.
    """
    if jobs is not None and jobs < 0:
        raise BadInput(f"jobs is {jobs}; give 1 or more, or 0 to compute nothing")
    store, cells = store or default_store(), take_shard(select(cells, only), shard)
    plan = make_plan(cells, store, recompute=recompute)
    if dry_run:
        report = _dry_report(plan, store, jobs)
    elif not plan.todo or jobs == 0:
        report = _report(plan, store)
    else:
        store.prepare()
        report = _compute(
            plan,
            store,
            jobs,
            scheduler or os.environ.get("DASK_SCHEDULER_ADDRESS"),
            show=progress,
            wishes=_Wishes(recompute, time_limit, memory_limit),
        )
    if not quiet:
        print(*report.lines, report.headline, *(f"damaged: {reason}" for reason in report.damaged.values()), sep="\n")
    if check and report.failures:
        raise CellsFailed(report)
    return report


def load(cells: Iterable[Cell], *, store: Store | None = None) -> Report:
    """The stored results of the cells, computing nothing; `Report.missing` lists those that are not there."""
    store = store or default_store()
    return _report(make_plan(cells, store), store)


def _compute(
    plan: Plan, store: Store, jobs: int | None, scheduler: str | Path | None, *, show: bool, wishes: _Wishes
) -> Report:
    if not plan.todo:
        return _report(plan, store)
    jobs = jobs or cores()
    durations = Durations.of(store) if show else Durations()
    if scheduler:
        executor: Executor = connect(scheduler)
    else:
        executor = InProcess() if jobs == 1 else start_local(min(jobs, len(plan.todo)))
    bar = Progress(plan.todo.values(), durations, show=show)
    running = _Running(plan, store, executor, bar, wishes)
    try:
        running.go()
    except SchedulerLost as error:
        raise BadInput(
            f"the Dask scheduler was lost ({error}); {len(running.computed)} cells were finished and are kept: "
            "start the scheduler and run again"
        ) from error
    finally:
        bar.close()
        executor.close()
    return _report(plan, store, running)


@dataclass(frozen=True)
class _Wishes:
    """What a run asks of its cells beside their specifications: seconds and MB for those without limits of their own."""

    recompute: bool
    time: float | None
    memory: float | None


class _Running:
    """The state of one run: which cells wait, which are out, what came back."""

    def __init__(self, plan: Plan, store: Store, executor: Executor, bar: Progress, wishes: _Wishes) -> None:
        self.plan, self.store, self.executor, self.bar, self.wishes = plan, store, executor, bar, wishes
        self.computed: set[str] = set()
        self.failures: list[Outcome] = []
        self.blocked: dict[str, str] = {}
        self._order = {key: place for place, key in enumerate(plan.todo)}
        self._children = plan.children()
        self._unfinished = {
            key: sum(parent.hash in plan.todo for parent in cell.parents.values()) for key, cell in plan.todo.items()
        }
        self._ready = [(self._order[key], key) for key, count in self._unfinished.items() if not count]
        self._out: dict[str, str] = {}  # id -> hash of the cells that a worker has
        self._elsewhere: dict[str, float] = {}  # hash -> when to look again
        self._asked = {cell.hash for cell in plan.cells}
        self._said_waiting = False

    def go(self) -> None:
        """Runs until every cell is computed, failed or blocked."""
        while self._ready or self._out or self._elsewhere:
            slots = self.executor.slots()
            if not slots and not self._said_waiting:
                self._said_waiting = True
                self.bar.say("the scheduler has no workers yet; waiting for the first")
            while self._ready and len(self._out) < slots:  # no more: Dask would queue short cells behind a long one
                _, key = heapq.heappop(self._ready)
                self._submit(key)
            self.bar.update(slots)
            for outcome in self.executor.wait(_ASK_AGAIN):
                self._settle(self._out.pop(outcome.id), outcome)
            self._look_elsewhere()

    def _submit(self, key: str) -> None:
        cell = self.plan.todo[key]
        parents = {role: self.plan.finished[parent.hash].folder for role, parent in cell.parents.items()}
        self._out[cell.id] = key
        self.executor.submit(
            make_job(
                cell,
                self.store,
                parents,
                jobs_threads=self.executor.threads,
                recompute=self.wishes.recompute and key in self._asked,
                time_limit=self.wishes.time,
                memory_limit=self.wishes.memory,
            )
        )

    def _settle(self, key: str, outcome: Outcome) -> None:
        cell = self.plan.todo[key]
        if outcome.status == "busy":
            self._elsewhere[key] = time.monotonic() + _ASK_AGAIN
            return
        blocked: list[Cell] = []
        if outcome.status != "failed":
            entry = self._find(cell, whole=bool(self._children[key]))
            if entry is None:
                outcome = Outcome(
                    cell.id,
                    "failed",
                    "lost",
                    f"a worker finished it, but {self.store.root} does not show it "
                    "here; use a folder that all machines share (GKP_CELLS)",
                )
        if outcome.status == "failed":
            if outcome.kind == "lost":  # no worker lived to record it
                self.store.record_failure(cell.id, {**asdict(outcome), "hash": key, "traceback": ""})
            self.failures.append(outcome)
            blocked = self._block(key)
        else:
            assert entry is not None
            self.plan.finished[key] = entry
            if outcome.status == "computed":
                self.computed.add(key)
            for child in self._children[key]:
                self._unfinished[child] -= 1
                if not self._unfinished[child] and self.plan.todo[child].id not in self.blocked:
                    heapq.heappush(self._ready, (self._order[child], child))
        self.bar.settle(cell, outcome, blocked=blocked)

    def _find(self, cell: Cell, *, whole: bool) -> Entry | None:
        deadline, written = time.monotonic() + _UNTIL_SEEN, Store(self.store.root)
        while (entry := written.lookup(cell.id, cell.hash, whole=whole)) is None and time.monotonic() < deadline:
            os.listdir(self.store.root)  # makes a network file system look again
            time.sleep(0.1)
        return entry

    def _block(self, key: str) -> list[Cell]:
        """Marks every descendant of a failed cell, and returns those that were not marked before."""
        found, stack = [], list(self._children[key])
        while stack:
            child = stack.pop()
            cell = self.plan.todo[child]
            if cell.id not in self.blocked:
                self.blocked[cell.id] = self.plan.todo[key].id
                found.append(cell)
                stack.extend(self._children[child])
        return found

    def _look_elsewhere(self) -> None:
        """Sends cells that another runner had locked out again: it has finished them, or died, or is still at it."""
        now = time.monotonic()
        for key in [key for key, when in self._elsewhere.items() if when <= now]:
            del self._elsewhere[key]
            heapq.heappush(self._ready, (self._order[key], key))


def _report(plan: Plan, store: Store, running: _Running | None = None) -> Report:
    computed = running.computed if running else set()
    asked = {cell.hash for cell in plan.cells}
    results = tuple(
        Result(cell, entry.figures, entry.folder, cell.hash not in computed)
        for cell in plan.cells
        if (entry := plan.finished.get(cell.hash)) is not None
    )
    return Report(
        results=results,
        computed=sum(not result.cached for result in results),
        extra=len(computed - asked),
        failures=tuple(running.failures) if running else (),
        blocked=dict(running.blocked) if running else {},
        missing=tuple(cell for cell in plan.cells if cell.hash not in plan.finished),
        damaged=dict(store.damaged),
        failed_folder=store.root / ".failed",
    )


def _dry_report(plan: Plan, store: Store, jobs: int | None) -> Report:
    durations, jobs = Durations.of(store), jobs or cores()
    asked = {cell.hash for cell in plan.cells}
    lines = [f"cached   {cell.id}" for cell in plan.cells if cell.hash in plan.finished]
    for key, cell in plan.todo.items():
        seconds = durations.estimate(cell)
        how_long = "never timed" if seconds is None else in_words(seconds)
        lines.append(f"compute  {cell.id}  {how_long}{'' if key in asked else ', as a parent'}")
    seconds, unknown = durations.total(count_kinds(plan.todo.values()))
    rest = f", and {unknown} cells never timed" if unknown else ""
    lines.append(
        f"to compute: {len(plan.todo)} cells, {seconds / 3600:.2f} h of work, about {in_words(seconds / jobs)} "
        f"with {jobs} jobs{rest}"
    )
    report = _report(plan, store)
    return Report(
        results=report.results,
        missing=report.missing,
        damaged=report.damaged,
        lines=tuple(lines),
        failed_folder=report.failed_folder,
    )
