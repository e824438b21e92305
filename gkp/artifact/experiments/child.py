"""The child process in which a worker computes cells; it is killed when a cell passes a limit.

Dask does not provide this: its workers compute in threads of one process, so cells would share random generators, thread counts
and output, and its nanny kills whole workers. A Dask worker runs `supervise`, and its child computes. A cell that hangs, takes
too much memory or crashes in C ends the child only, on local and remote clusters alike. A child computes many cells, so
libraries and data sets are loaded once for each worker; it ends with the worker, however that ends.
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
from functools import partial
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from gkp.artifact.experiments.compute import Job, Outcome, compute, failure
from gkp.artifact.experiments.limits import POLL_SECONDS, STOPPED, passed
from gkp.artifact.experiments.provenance import resident_mb
from gkp.artifact.experiments.store import Store

_GRACE = 20.0  # seconds after the deadline of a run until a cell that does not stop by itself is killed
_here = threading.local()  # one child for each thread of a worker


def supervise(job: Job) -> Outcome:
    """Compute a job in the child process of this worker; failures of the cell become an outcome."""
    child: Child | None = getattr(_here, "child", None)
    if child is not None and child.alive() and job.memory_limit is not None and resident_mb(child.pid) > job.memory_limit / 2:
        child.kill()  # the cell does not answer for what earlier ones left in memory
    if child is None or not child.alive():
        child = _here.child = Child(main)
        if not child.is_ready():
            return _end(child, job, "crashed", f"its process did not start and ended by {child.how_it_ended()}", 0.0)
    started = time.monotonic()
    try:
        child.pipe.send(job)
        while not child.pipe.poll(POLL_SECONDS):
            spent = time.monotonic() - started
            if reason := passed(job, spent, partial(resident_mb, child.pid), grace=_GRACE):
                return _end(child, job, *reason, spent)
        return child.pipe.recv()
    except (EOFError, OSError):
        return _end(child, job, "crashed", f"its process ended by {child.how_it_ended()}", time.monotonic() - started)


def _end(child: Child, job: Job, kind: str, message: str, seconds: float) -> Outcome:
    child.kill()
    _here.child = None
    store = Store(Path(job.root))
    if not job.recompute and store.lookup(job.id, job.hash, whole=True) is not None:  # it was finished before
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
        # Waiting threads should sleep: on a machine with all cores in use, spinning, OpenMP's default, made an epoch with two
        # threads take 17.6 s instead of 0.8 s.
        # Dask makes its workers return memory to the system at once (MALLOC_TRIM_THRESHOLD_). Networks need the same hundred
        # megabytes again in each step, and getting them page by page made a step 1.4 times slower.
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",
            **os.environ,
            "MALLOC_TRIM_THRESHOLD_": str(2**30),
            "MALLOC_MMAP_THRESHOLD_": str(2**25),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        module, name, output = function.__module__, function.__name__, subprocess.DEVNULL if quiet else None
        with theirs:
            self._process = subprocess.Popen(  # not multiprocessing: Dask's workers are daemons, which cannot have children
                [sys.executable, "-P", "-c", f"from {module} import {name}; {name}({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is handled by the runner
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def is_ready(self) -> bool:
        """Wait until a new process is ready; False if it ends before."""
        try:
            return self.pipe.recv() == "ready"
        except (EOFError, OSError):
            return False

    def kill(self) -> None:
        """Kill the process and those that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # the session's leader is the child itself
        self._process.wait()
        self.pipe.close()

    def how_it_ended(self) -> str:
        """The signal or exit status of a process that has closed its pipe, as text."""
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

    def receive() -> None:  # in a thread, to notice during a cell that the worker has ended
        with suppress(EOFError, OSError):
            while True:
                jobs.put(pipe.recv())
        os._exit(1)

    _prefer_oom_kill()
    import_module("torch")  # takes seconds, which do not count for the first cell
    threading.Thread(target=receive, daemon=True).start()
    pipe.send("ready")
    while True:
        pipe.send(compute(jobs.get(), alone=True))


def _prefer_oom_kill() -> None:
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
