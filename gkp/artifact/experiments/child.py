"""A worker's side of a run: the process of its own in which it computes cells, ended when a cell passes a limit.

By hand, for Dask keeps none of this: its workers compute in threads of one process, whose random generators, thread counts
and output the cells would share, and its nanny ends whole workers. A Dask worker runs `supervise`; the work happens in the
child, so a cell that hangs, eats memory or crashes in C costs its own process and never the worker, on a local cluster and
on a remote one alike. A child stays for many cells, so libraries are imported and data sets loaded once per worker; it ends
with the worker, however that ends.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from gkp.artifact.experiments.compute import Job, Outcome, compute, failure
from gkp.artifact.experiments.limits import POLL_SECONDS, STOPPED, is_over, too_large, too_late, too_long
from gkp.artifact.experiments.provenance import resident_mb
from gkp.artifact.experiments.store import Store

_GRACE = 20.0  # seconds after the deadline of a run until a cell that does not stop by itself is ended
_here = threading.local()  # one child for each thread of a worker


def supervise(job: Job) -> Outcome:
    """The outcome of the job, computed by this worker's child process; never raises for what the cell does."""
    child: Child | None = getattr(_here, "child", None)
    if child is None or not child.alive():
        child = _here.child = Child(main)
        if not child.is_ready():
            return _end(child, job, "crashed", f"its process did not start and ended by {child.how_it_ended()}", 0.0)
    started = time.monotonic()
    try:
        child.pipe.send(job)
        while not child.pipe.poll(POLL_SECONDS):
            spent = time.monotonic() - started
            if is_over(job, grace=_GRACE):
                return _end(child, job, *too_late(), spent)
            if job.time_limit is not None and spent > job.time_limit:
                return _end(child, job, *too_long(job), spent)
            if job.memory_limit is not None and resident_mb(child.pid) > job.memory_limit:
                return _end(child, job, *too_large(job), spent)
        return child.pipe.recv()
    except (EOFError, OSError):
        return _end(child, job, "crashed", f"its process ended by {child.how_it_ended()}", time.monotonic() - started)


def _end(child: Child, job: Job, kind: str, message: str, seconds: float) -> Outcome:
    child.kill()
    _here.child = None
    store = Store(Path(job.root))
    if not job.recompute and store.lookup(job.id, job.hash, whole=True) is not None:  # the end came after the cell was finished
        return Outcome(job.id, "computed", seconds=seconds)
    if kind == STOPPED:
        store.clear(job.id)
        return Outcome(job.id, STOPPED, message=message, seconds=seconds)
    outcome = failure(job, store, kind, message, log=store.partial_name(job.id, child.pid) / "log.txt", seconds=seconds)
    store.clear(job.id)
    return outcome


class Child:
    """A process that runs one function on its end of a pipe, and the other end of it.

    Args:
        function: A function of the file descriptor of the process's end.
        quiet: Whether what the process prints is thrown away.

    Attributes:
        pipe: The end of this process.
    """

    def __init__(self, function: Callable[[int], None], *, quiet: bool = False) -> None:
        self.pipe, theirs = Pipe()
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
        module, name, output = function.__module__, function.__name__, subprocess.DEVNULL if quiet else None
        with theirs:
            self._process = subprocess.Popen(  # not multiprocessing: Dask's workers are daemons, which may not have children
                [sys.executable, "-P", "-c", f"from {module} import {name}; {name}({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is the runner's to handle
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def is_ready(self) -> bool:
        """Wait for a new process to say so; False when it ends instead."""
        try:
            return self.pipe.recv() == "ready"
        except (EOFError, OSError):
            return False

    def kill(self) -> None:
        """End the process and those it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # the session's leader is the child itself
        self._process.wait()
        self.pipe.close()

    def how_it_ended(self) -> str:
        """The signal or exit status of a process whose pipe is closed."""
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closing its pipe"
        if status >= 0:
            return f"exit status {status}"
        hint = " (the system was out of memory?)" if -status == signal.SIGKILL else ""
        return f"signal {signal.Signals(-status).name}{hint}"


def main(descriptor: int) -> None:
    """Compute the jobs that arrive on a pipe, one after the other, until its other end is closed."""
    pipe = Connection(descriptor)
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def receive() -> None:  # in a thread, to notice the worker's death during a cell
        with suppress(EOFError, OSError):
            while True:
                jobs.put(pipe.recv())
        os._exit(1)

    _prefer_oom_kill()
    import_module("torch")  # seconds that are not the first cell's
    threading.Thread(target=receive, daemon=True).start()
    pipe.send("ready")
    while True:
        pipe.send(compute(jobs.get(), alone=True))


def _prefer_oom_kill() -> None:
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
