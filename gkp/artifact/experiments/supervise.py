"""What a worker does with a job: hands it to its child process and ends the child when the cell passes a limit.

A Dask worker runs `supervise`; the heavy work happens in the child (see `gkp.artifact.experiments.child`), so a cell that
hangs, eats memory or crashes in C costs its own process and never the worker, on a local cluster and on a remote one alike.
In-process runs (`--jobs 1`) use `soft_limits` instead, which can stop whatever returns to Python's interpreter.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from gkp.artifact.experiments.compute import Job, LimitExceeded, Outcome, failure
from gkp.artifact.experiments.provenance import resident_mb
from gkp.artifact.experiments.store import Store

POLL_SECONDS = 0.1  # how often memory is looked at; a cell's end is noticed at once
_here = threading.local()  # one child for each thread of a worker


def supervise(job: Job) -> Outcome:
    """The outcome of the job, computed by this worker's child process; never raises for what the cell does."""
    child: Child | None = getattr(_here, "child", None)
    if child is None or not child.alive():
        child = _here.child = Child()
        if not child.is_ready():
            return _end(child, job, "crashed", f"the process for it did not start and ended by {child.how_it_ended()}", 0.0)
    started = time.monotonic()
    try:
        child.jobs.send(asdict(job))
        while not child.outcomes.poll(POLL_SECONDS):
            spent = time.monotonic() - started
            if job.time_limit is not None and spent > job.time_limit:
                return _end(child, job, "time limit", f"ran longer than its limit of {job.time_limit:g} s", spent)
            if job.memory_limit is not None and (used := resident_mb(child.pid)) > job.memory_limit:
                return _end(
                    child, job, "memory limit", f"used {used:.0f} MB, more than its limit of {job.memory_limit:g} MB", spent
                )
        return Outcome(**child.outcomes.recv())
    except (EOFError, OSError):
        return _end(child, job, "crashed", f"its process ended by {child.how_it_ended()}", time.monotonic() - started)


def _end(child: Child, job: Job, kind: str, message: str, seconds: float) -> Outcome:
    child.kill()
    _here.child = None
    store = Store(Path(job.root))
    if not job.recompute and store.lookup(job.id, job.hash, whole=True) is not None:  # the end came after the cell was finished
        return Outcome(job.id, "computed", seconds=seconds)
    outcome = failure(job, store, kind, message, log=store.partial_name(job.id, child.pid) / "log.txt", seconds=seconds)
    store.clear(job.id)
    return outcome


class Child:
    """A running `gkp.artifact.experiments.child` and the three pipes to it."""

    def __init__(self) -> None:
        job_end, jobs = os.pipe()
        outcomes, outcome_end = os.pipe()
        alive_end, self._alive = os.pipe()
        theirs = (job_end, outcome_end, alive_end)
        # Threads that wait should sleep: on a machine whose cores are all taken, OpenMP's default (to spin) made an epoch
        # with two threads take 17.6 s instead of 0.8 s.
        # Dask tells its workers to give memory back to the system at once (MALLOC_TRIM_THRESHOLD_); networks take the same
        # hundred megabytes again in every step, and getting them page by page made a step 1.4 times slower.
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",
            **os.environ,
            "MALLOC_TRIM_THRESHOLD_": str(2**30),
            "MALLOC_MMAP_THRESHOLD_": str(2**25),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gkp.artifact.experiments.child", *map(str, theirs)],
                pass_fds=theirs,
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # Ctrl-C is the runner's to handle
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self.jobs, self.outcomes = Connection(jobs, readable=False), Connection(outcomes, writable=False)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def is_ready(self) -> bool:
        """Waits for a new process to say so; False when it ends instead."""
        try:
            return self.outcomes.recv() == "ready"
        except (EOFError, OSError):
            return False

    def kill(self) -> None:
        """Ends the process and those it started, and closes the pipes."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # the session's leader is the child itself
        self._process.wait()
        self.jobs.close()
        self.outcomes.close()
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def how_it_ended(self) -> str:
        """The signal or exit status of a process whose pipes are closed."""
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closing its pipes"
        if status >= 0:
            return f"exit status {status}"
        hint = " (the system was out of memory?)" if -status == signal.SIGKILL else ""
        return f"signal {signal.Signals(-status).name}{hint}"


@contextmanager
def soft_limits(job: Job) -> Iterator[None]:
    """Raises LimitExceeded in the body when the job passes its limits; the body must run in the main thread.

    A guard for `compute`. Memory is what the process has gained since the body began. A call that does not return to the
    interpreter is not interrupted: with --jobs 2 or more it would be. Outside the main thread, and without limits, this
    does nothing.
    """
    no_limits = job.time_limit is None and job.memory_limit is None
    if no_limits or threading.current_thread() is not threading.main_thread():
        yield
        return
    finished, reason = threading.Event(), []
    main, deadline = threading.get_ident(), time.monotonic() + (job.time_limit or float("inf"))
    allowed = resident_mb(os.getpid()) + (job.memory_limit or float("inf"))

    def watch() -> None:
        while not finished.wait(POLL_SECONDS / 2):
            if time.monotonic() > deadline:
                reason.append(f"time limit: ran longer than its limit of {job.time_limit:g} s")
            elif resident_mb(os.getpid()) > allowed:
                reason.append(f"memory limit: used more than its limit of {job.memory_limit:g} MB")
            else:
                continue
            signal.pthread_kill(main, signal.SIGALRM)
            return

    def interrupt(*_: object) -> None:
        if not finished.is_set():
            raise LimitExceeded(reason[0] if reason else "time limit: interrupted by SIGALRM")

    before = signal.signal(signal.SIGALRM, interrupt)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        signal.signal(signal.SIGALRM, before)
