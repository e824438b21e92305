"""Compute one cell in this process: lock it, run its stage, publish the result.

Thread counts and the global random generators are set from the cell before the stage runs and restored afterwards. So a cell
gives the same bytes whichever process computes it and whatever that process did before.

Threads. A cell computes with `cell.threads` threads, never with "cores / jobs": measured with torch 2.14.1 on CPU, 1 and
2 threads give different last bits in the weight gradients of every convolution (they are summed over threads), and 1, 2, 3
and 4 threads also in the input gradients of convolutions at small batches and in wide linear layers; forward
convolutions agreed. `jobs` is only the number of cells computed at once; with one thread per cell, jobs = cores uses the
whole machine. A cell whose bits may depend on the machine (on a GPU) has threads=0 and gets cores / jobs.
"""

from __future__ import annotations

import copy
import json
import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from gkp.artifact.experiments import provenance
from gkp.artifact.experiments.cell import SOURCES, Cell, canonical, find_kind, load_module
from gkp.artifact.experiments.entry import read_json, write_json
from gkp.artifact.experiments.limits import STOPPED, LimitExceeded, interrupted_at_limits
from gkp.artifact.experiments.store import Busy, Store, is_disk_full
from gkp.errors import BadInput, OutOfTime


@dataclass(frozen=True)
class Job:
    """The request to compute one cell, in plain values that can be sent to other machines.

    Attributes:
        id, hash, stage, spec, work: Of the cell.
        module: The module that defines the kind of cell.
        file: The source file of `module`, for a worker that cannot import it by name.
        source: The sha256 of that file where the module was executed from it, as the file of a profile is.
        parents: Role -> folder of the finished parent.
        root: The root of the store.
        threads: CPU threads; None for the number in the worker's environment.
        recompute: Whether to compute the cell although it is finished.
        time_limit: Seconds after which the cell is killed; None for no limit.
        memory_limit: MB of resident memory above which the cell is killed; None for no limit.
        deadline: When the cell is stopped, to be resumed by another run, by `time.time`; None for no deadline.
    """

    id: str
    hash: str
    stage: str
    module: str
    file: str | None
    spec: dict[str, Any]
    parents: dict[str, str]
    root: str
    threads: int | None
    work: float
    recompute: bool = False
    time_limit: float | None = None
    memory_limit: float | None = None
    deadline: float | None = None
    source: str | None = None

    @classmethod
    def of(cls, cell: Cell, store: Store, parents: Mapping[str, Path], **options: Any) -> Job:
        """The job for a cell.

        Args:
            cell: The cell.
            store: Where its result is written.
            parents: Role -> folder of the finished parent.
            options: Further fields of the job; threads and limits are for cells that do not set their own.
        """
        kind = find_kind(cell.stage)
        for limit in ("time_limit", "memory_limit"):
            if (own := getattr(cell, limit)) is not None:
                options[limit] = own
        return cls(
            id=cell.id,
            hash=cell.hash,
            stage=cell.stage,
            module=kind.__module__,
            file=getattr(sys.modules.get(kind.__module__), "__file__", None),
            spec=cell.spec,
            parents={role: str(folder) for role, folder in parents.items()},
            root=str(store.root),
            work=cell.work,
            source=SOURCES.get(kind.__module__),
            **{**options, "threads": cell.threads or options.get("threads")},
        )


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        id: The id of the cell.
        status: "computed", "cached" (finished by another process), "busy" (locked by another process), "stopped" (at the
            deadline of the run) or "failed".
        kind: For a failure: "error", "bad input", "time limit", "memory limit", "disk full", "crashed" or "lost".
        message: Why it failed or was stopped.
        seconds: How long it took.
    """

    id: str
    status: str
    kind: str = ""
    message: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Context:
    """The surroundings of a stage, besides its parameters, parents and folder.

    Attributes:
        cell_id: The id of the cell.
        threads: CPU threads that the stage may use, already set for torch and BLAS.
        notes: A dictionary that the stage may fill with plain values about this run that are not results, such as seconds; they
            are written to run.json. "taken_over_seconds", the time that stopped runs spent on what this one found in `scratch`,
            is added to the recorded seconds.
        deadline: When the run ends, by `time.time`; None for no deadline. A stage that can stop before raises OutOfTime; the
            next run finds what it left in `scratch`.
    """

    cell_id: str
    threads: int
    _scratch: Path = field(repr=False)
    _log: TextIO = field(repr=False)
    notes: dict[str, Any] = field(default_factory=dict)
    deadline: float | None = None
    _started: float = field(default_factory=time.perf_counter, repr=False)

    @cached_property
    def scratch(self) -> Path:
        """A folder for checkpoints, which is kept when the run is stopped or killed and removed when the cell is finished.

        A hidden file notes when work on it began, so that the next run knows how long this one took until its last checkpoint.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        clock, before = self._scratch / ".clock", 0.0
        if known := read_json(clock):
            last = max(path.stat().st_mtime for path in self._scratch.rglob("*"))
            before = self.notes["taken_over_seconds"] = round(known["seconds"] + last - clock.stat().st_mtime, 3)
        write_json(clock, {"seconds": before + time.perf_counter() - self._started})
        return self._scratch

    def log(self, message: str) -> None:
        """Add a line to the cell's log.txt."""
        self._log.write(message + "\n")
        self._log.flush()


class SchedulerLost(Exception):
    """The connection to the Dask scheduler was lost during a run."""


def compute(job: Job, *, alone: bool) -> Outcome:
    """Compute a cell and publish its result, unless it is finished or locked.

    Exceptions of the stage become an outcome; KeyboardInterrupt is passed on after cleaning up.

    Args:
        job: The cell.
        alone: Whether this process only computes cells and is supervised from outside: all that it prints, even from C code,
            then goes to the cell's log.txt. Otherwise limits are enforced here, when the stage returns to the interpreter.
    """
    store, started = Store(Path(job.root)), time.perf_counter()
    if not store.root.is_dir():
        message = f"{socket.gethostname()} has no folder {store.root}; use one that all machines share (GKP_CELLS)"
        return Outcome(job.id, "failed", "bad input", message)
    try:
        with store.lock(job.id):
            if not job.recompute and store.lookup(job.id, job.hash, whole=True) is not None:
                return Outcome(job.id, "cached")
            store.drop_used_scratch(job.id)  # to compute the cell anew, unless a later run began that
            with store.writing(job.id) as partial:
                return _compute_locked(job, store, partial, alone)
    except Busy:
        return Outcome(job.id, "busy")
    except OSError as error:
        return failure(job, store, *_reason(error, store), seconds=time.perf_counter() - started)


def _compute_locked(job: Job, store: Store, partial: Path, alone: bool) -> Outcome:
    started, log = time.perf_counter(), partial / "log.txt"
    try:
        with _logging_to(log, alone) as stream:
            figures, run = _run_stage(job, store, partial, stream, alone)
        store.publish(partial, job.id, job.hash, spec={**job.spec, "id": job.id}, figures=figures, run=run)
        return Outcome(job.id, "computed", seconds=run["seconds"])
    except (Exception, LimitExceeded, SystemExit) as error:
        spent = time.perf_counter() - started
        if (reason := _reason(error, store))[0] == STOPPED:
            return Outcome(job.id, STOPPED, message=reason[1], seconds=spent)
        return failure(job, store, *reason, trace=traceback.format_exc(), log=log, seconds=spent)


def _run_stage(job: Job, store: Store, partial: Path, stream: TextIO, alone: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values and the contents of run.json."""
    function = _stage_function(job)
    threads = job.threads or int(os.environ.get("OMP_NUM_THREADS") or provenance.cores())
    parents = {role: Path(folder) for role, folder in job.parents.items()}
    provenance.git_commit()  # now, because the code may be changed while the stage runs
    with isolated(threads, seed=int(job.hash[:8], 16)), interrupted_at_limits(job, alone=alone):
        peak, started = provenance.PeakMemory(), time.perf_counter()
        context = Context(job.id, threads, store.scratch(job.id), stream, deadline=job.deadline)
        figures = dict(function(copy.deepcopy(job.spec["params"]), parents, partial, context))
        seconds = time.perf_counter() - started
    try:
        figures = json.loads(canonical(figures))  # as they will be read back: keys are strings
        canonical(context.notes)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"stage {job.stage!r} returned figures that cannot be written as JSON ({error}); return "
            "finite numbers, strings, booleans, None, and lists or dictionaries of those"
        ) from None
    seconds += context.notes.get("taken_over_seconds", 0.0)
    return figures, provenance.describe_run(seconds=seconds, threads=threads, peak=peak, work=job.work, notes=context.notes)


def _stage_function(job: Job) -> Callable[..., Mapping[str, Any]]:
    load_module(job.module, job.file, job.source)
    kind = find_kind(job.stage)
    if kind.revision != job.spec["revision"]:
        raise BadInput(
            f"stage {job.stage!r} has revision {kind.revision} here but {job.spec['revision']} where the run "
            "was started; install the same version of the code on both"
        )
    if kind.compute is not None:
        return kind.compute
    from gkp.artifact.experiments.stages import STAGES  # here, because it imports torch

    if job.stage not in STAGES:
        raise BadInput(f"stage {job.stage!r}: {kind.__name__} has no static method compute(params, parents, folder, context)")
    return STAGES[job.stage]


@contextmanager
def isolated(threads: int, seed: int) -> Iterator[None]:
    """Set the CPU threads of torch and BLAS and seed the global generators; restore both afterwards."""
    # imported here, because a Dask worker imports this module without needing them; and always, so that a stage that imports
    # them first finds seeded generators
    import numpy as np
    import torch
    from threadpoolctl import threadpool_limits

    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002  (the global one is the point)
    torch_threads = torch.get_num_threads()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    try:
        with threadpool_limits(limits=threads):
            torch.set_num_threads(threads)
            yield
    finally:
        torch.set_num_threads(torch_threads)
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.random.set_rng_state(before[2])


@contextmanager
def _logging_to(path: Path, capture: bool) -> Iterator[TextIO]:
    """The open log file; with `capture`, file descriptors 1 and 2 point to it too."""
    with open(path, "w", encoding="utf-8", errors="replace", buffering=1) as stream:
        if not capture:
            yield stream
            return
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        try:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            yield stream
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, target in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, target)
                os.close(descriptor)


def failure(
    job: Job, store: Store, kind: str, message: str, *, trace: str = "", log: Path | None = None, seconds: float = 0.0
) -> Outcome:
    """Record the failure of a job in the store and return its outcome.

    Args:
        job: The job.
        store: The store.
        kind, message, seconds: As in `Outcome`.
        trace: The traceback.
        log: The log of the cell, which is kept; None where there is none.
    """
    record = {"id": job.id, "hash": job.hash, "kind": kind, "message": message, "traceback": trace}
    store.record_failure(job.id, {**record, "seconds": round(seconds, 3)}, log)
    return Outcome(job.id, "failed", kind, message, seconds)


def _reason(error: BaseException, store: Store) -> tuple[str, str]:
    """The kind and message of an exception as a failure."""
    if isinstance(error, LimitExceeded):
        return error.args[0], error.args[1]
    if isinstance(error, OutOfTime):
        return STOPPED, str(error)
    if is_disk_full(error):
        return "disk full", f"no space left for {store.root}; free some, or name another folder in GKP_CELLS, and run again"
    text = " ".join(str(error).split())
    if isinstance(error, BadInput):
        return "bad input", text
    kind = "memory limit" if isinstance(error, MemoryError) else "error"
    return kind, f"{type(error).__name__}: {text}".rstrip(": ")
