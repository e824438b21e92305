"""Computing one cell in this process: lock, run the stage, publish.

What can leak from one cell into the next is fenced off: thread counts and the global random generators are set from the
cell before the stage runs, and put back after it. So a cell gives the same bytes whichever process computes it and
whatever that process did before.

Threads. A cell computes with `cell.threads` threads, never with "cores / jobs": measured with torch 2.14.1 on CPU, 1 and
2 threads give different last bits in the weight gradients of every convolution (they are summed over threads), and 1, 2, 3
and 4 threads also in the input gradients of convolutions at small batches and in wide linear layers; forward
convolutions agreed. `jobs` decides only how many cells run at once, and with one thread a cell, jobs = cores fills the
machine. A cell whose bits may depend on the machine (on a GPU) says threads=0 and gets cores / jobs.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from gkp.artifact.experiments import provenance
from gkp.artifact.experiments.cell import Cell, canonical, find_stage, load_module
from gkp.artifact.experiments.lock import Busy
from gkp.artifact.experiments.store import Store, is_disk_full
from gkp.errors import BadInput


@dataclass(frozen=True)
class Job:
    """All that a worker needs to compute one cell; plain values, so that it travels between machines."""

    id: str
    hash: str
    stage: str
    module: str  # where the stage is registered, and the file to load when the name cannot be imported
    file: str | None
    spec: dict[str, Any]
    parents: dict[str, str]  # role -> finished folder
    root: str
    threads: int | None  # None: as the worker's environment says
    work: float
    recompute: bool = False  # even if it is finished
    time_limit: float | None = None
    memory_limit: float | None = None

    @property
    def seed(self) -> int:
        """What the global generators start from, for code that uses them against our rules."""
        return int(self.hash[:8], 16)


@dataclass(frozen=True)
class Outcome:
    """What became of a job. status: computed, cached (someone else finished it), busy (someone else is at it), failed."""

    id: str
    status: str
    kind: str = ""  # of a failure: error, bad input, time limit, memory limit, disk full, crashed, lost
    message: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Context:
    """What a stage gets beside its parameters, parents and folder.

    threads: how many CPU threads the stage may use (already set for torch and BLAS). notes: plain values about this run
    that are no figures, such as seconds of a part: they go to run.json. Its "seconds" have those of the note
    "taken_over_seconds", if there is one: what killed runs of the cell had spent on what this one found in `scratch`.
    """

    cell_id: str
    threads: int
    _scratch: Path = field(repr=False)
    _log: TextIO = field(repr=False)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        """A folder that survives a killed run of this cell, for epoch checkpoints; it is removed with success."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def log(self, message: str) -> None:
        """Adds a line to the cell's log.txt."""
        self._log.write(message + "\n")
        self._log.flush()


class LimitExceeded(BaseException):
    """Raised inside a stage by the soft limits of an in-process run. Not an Exception: stages must not swallow it."""


Guard = Callable[[Job], AbstractContextManager[None]]


def compute(job: Job, *, capture: bool, guard: Guard = lambda job: nullcontext()) -> Outcome:
    """Computes the cell and publishes it, unless it is there or locked; never raises for what a stage does.

    capture: send what the process prints, down to C code, to the cell's log.txt (a worker's child process does).
    guard: a context manager around the stage that may raise LimitExceeded in it.
    KeyboardInterrupt passes through and leaves nothing behind.
    """
    store = Store(Path(job.root))
    started = time.perf_counter()
    if not store.root.is_dir():
        return Outcome(
            job.id,
            "failed",
            "bad input",
            f"{socket.gethostname()} has no folder {store.root}; use one that all machines share (GKP_CELLS)",
        )
    try:
        with store.lock(job.id):
            if not job.recompute and store.lookup(job.id, job.hash, whole=True) is not None:
                return Outcome(job.id, "cached")
            with store.writing(job.id) as partial:
                return _compute_locked(job, store, partial, capture, guard)
    except Busy:
        return Outcome(job.id, "busy")
    except OSError as error:
        return failure(job, store, _kind(error), _in_words(error, store), seconds=time.perf_counter() - started)


def _compute_locked(job: Job, store: Store, partial: Path, capture: bool, guard: Guard) -> Outcome:
    started, log = time.perf_counter(), partial / "log.txt"
    try:
        with _logging_to(log, capture) as stream:
            figures, run = _run_stage(job, store, partial, stream, guard)
        seconds = run["seconds"]
        store.publish(partial, job.id, job.hash, spec={**job.spec, "id": job.id}, figures=figures, run=run)
        return Outcome(job.id, "computed", seconds=seconds)
    except (Exception, LimitExceeded, SystemExit) as error:
        return failure(
            job,
            store,
            _kind(error),
            _in_words(error, store),
            trace=traceback.format_exc(),
            log=log,
            seconds=time.perf_counter() - started,
        )


def _run_stage(job: Job, store: Store, partial: Path, stream: TextIO, guard: Guard) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures and the contents of run.json."""
    load_module(job.module, job.file)
    stage = find_stage(job.stage)
    if stage.revision != job.spec["revision"]:
        raise BadInput(
            f"stage {job.stage!r} has revision {stage.revision} here but {job.spec['revision']} where the run "
            "was started; install the same version of the code on both"
        )
    context = Context(job.id, threads_of(job), store.scratch(job.id), stream)
    parents = {role: Path(folder) for role, folder in job.parents.items()}
    peak, started = provenance.PeakMemory(), time.perf_counter()
    with isolated(threads_of(job), job.seed), guard(job):
        figures = dict(stage.function(dict(job.spec["params"]), parents, partial, context))
    try:
        canonical([figures, context.notes])
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"stage {job.stage!r} returned figures that cannot be written as JSON ({error}); return "
            "finite numbers, strings, booleans, None, and lists or dictionaries of those"
        ) from None
    seconds = time.perf_counter() - started + context.notes.get("taken_over_seconds", 0.0)
    return figures, provenance.describe_run(
        seconds=seconds, threads=context.threads, peak=peak, work=job.work, notes=context.notes
    )


def threads_of(job: Job) -> int:
    """The CPU threads the job computes with here: its own number, or what the worker's environment says."""
    return job.threads or int(os.environ.get("OMP_NUM_THREADS") or provenance.cores())


@contextmanager
def isolated(threads: int, seed: int) -> Iterator[None]:
    """Sets the CPU threads of torch and BLAS and seeds the global generators; afterwards all is as it was before."""
    # here, for a Dask worker imports this module and has no use for them; and always, for a stage that is the first to
    # import them would meet generators that nobody has seeded
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
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            for descriptor, target in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, target)
                os.close(descriptor)


def failure(
    job: Job, store: Store, kind: str, message: str, *, trace: str = "", log: Path | None = None, seconds: float = 0.0
) -> Outcome:
    """The outcome of a failed job, recorded in the store too."""
    store.record_failure(
        job.id,
        {"id": job.id, "hash": job.hash, "kind": kind, "message": message, "traceback": trace, "seconds": round(seconds, 3)},
        log,
    )
    return Outcome(job.id, "failed", kind, message, seconds)


def _kind(error: BaseException) -> str:
    if isinstance(error, LimitExceeded):
        return str(error).partition(":")[0]
    if isinstance(error, MemoryError):
        return "memory limit"
    if is_disk_full(error):
        return "disk full"
    return "bad input" if isinstance(error, BadInput) else "error"


def _in_words(error: BaseException, store: Store) -> str:
    if is_disk_full(error):
        return f"no space left for {store.root}; free some, or name another folder in GKP_CELLS, and run again"
    text = " ".join(str(error).split())
    return text if isinstance(error, BadInput | LimitExceeded) else f"{type(error).__name__}: {text}".rstrip(": ")


def make_job(
    cell: Cell,
    store: Store,
    parents: dict[str, Path],
    *,
    jobs_threads: int | None,
    recompute: bool,
    time_limit: float | None,
    memory_limit: float | None,
) -> Job:
    """The job for a cell whose parents are finished in these folders.

    jobs_threads: what a cell with threads=0 gets; recompute: although it is finished; time_limit, memory_limit: for cells
    that set none of their own.
    """
    stage = find_stage(cell.stage)
    return Job(
        id=cell.id,
        hash=cell.hash,
        stage=cell.stage,
        module=stage.module,
        file=stage.file,
        spec=cell.spec,
        parents={role: str(folder) for role, folder in parents.items()},
        root=str(store.root),
        threads=cell.threads or jobs_threads,
        work=cell.work,
        recompute=recompute,
        time_limit=time_limit if cell.time_limit is None else cell.time_limit,
        memory_limit=memory_limit if cell.memory_limit is None else cell.memory_limit,
    )
