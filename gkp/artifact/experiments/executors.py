"""Where jobs are computed: in this process, on a local Dask cluster, or on one that is already there."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import queue
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from gkp.artifact.experiments.compute import Job, Outcome, compute
from gkp.artifact.experiments.provenance import cores
from gkp.artifact.experiments.supervise import soft_limits, supervise
from gkp.errors import BadInput

CONNECT_SECONDS = 10
ATTEMPTS = 3  # workers that may die with a cell before it is given up


class Executor(Protocol):
    """Takes jobs, gives outcomes back in any order."""

    threads: int | None  # of a cell that asks for cores / jobs

    def slots(self) -> int:
        """How many cells can be computed at once."""
        ...

    def submit(self, job: Job) -> None:
        """Takes a job."""
        ...

    def wait(self, seconds: float) -> list[Outcome]:
        """The outcomes that have come in, waiting at most this long for the first one (in-process: for its end)."""
        ...

    def close(self) -> None:
        """Ends the workers that this object started."""
        ...


class InProcess:
    """Computes one cell after the other in this process: no Dask, no other process, breakpoints work."""

    def __init__(self) -> None:
        self.threads: int | None = cores()
        self._jobs: deque[Job] = deque()

    def slots(self) -> int:
        """How many cells can be computed at once."""
        return 1

    def submit(self, job: Job) -> None:
        """Hand out a cell; what became of it comes from `wait`."""
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[Outcome]:
        """What became of cells since the last call, after at most so many seconds."""
        if self._jobs:
            return [compute(self._jobs.popleft(), capture=False, guard=soft_limits)]
        time.sleep(seconds)
        return []

    def close(self) -> None:
        """Let go of the workers and of what was not computed."""
        self._jobs.clear()


class OnDask:
    """Computes cells on the workers of a Dask scheduler, as many at once as these have threads."""

    def __init__(self, client: Any, cluster: Any = None, *, threads: int | None = None) -> None:
        self.threads = threads
        self._client, self._cluster = client, cluster
        self._futures: dict[str, Any] = {}
        self._ended: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._submitted = 0
        self._slots, self._slots_at = 0, 0.0

    def slots(self) -> int:
        """How many cells can be computed at once."""
        if time.monotonic() - self._slots_at > 2:  # workers come and go
            try:
                self._slots = sum(self._client.nthreads().values())
            except (OSError, RuntimeError) as error:
                raise SchedulerLost(str(error)) from error
            self._slots_at = time.monotonic()
        return self._slots

    def submit(self, job: Job) -> None:
        """Hand out a cell; what became of it comes from `wait`."""
        self._submitted += 1
        try:
            future = self._client.submit(supervise, job, key=f"{job.id}-{os.getpid()}-{self._submitted}", pure=False)
        except (OSError, RuntimeError) as error:
            raise SchedulerLost(str(error)) from error
        self._futures[job.id] = future
        future.add_done_callback(lambda ended: self._ended.put((job.id, ended)))

    def wait(self, seconds: float) -> list[Outcome]:
        """What became of cells since the last call, after at most so many seconds."""
        ended: list[tuple[str, Any]] = []
        try:
            ended.append(self._ended.get(timeout=seconds))
            while True:
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            pass
        if not ended and self._client.status not in ("running", "connecting"):
            raise SchedulerLost(f"the connection is {self._client.status}")
        return [self._outcome(cell_id, future) for cell_id, future in ended]

    def _outcome(self, cell_id: str, future: Any) -> Outcome:
        from asyncio import CancelledError

        from distributed import KilledWorker

        self._futures.pop(cell_id, None)
        if future.status == "finished":
            try:
                return future.result(timeout=60)
            except (CancelledError, OSError, TimeoutError) as error:  # between its end and now, worker or scheduler died
                raise SchedulerLost(f"cell {cell_id} ended, but nobody has its outcome") from error
        if future.status != "error":
            raise SchedulerLost(f"cell {cell_id} was {future.status}")
        reason = future.exception()
        if isinstance(reason, KilledWorker):
            return Outcome(cell_id, "failed", "lost", f"{reason.allowed_failures + 1} workers died while they had it")
        return Outcome(cell_id, "failed", "lost", f"the worker could not start it: {type(reason).__name__}: {reason}")

    def close(self) -> None:
        """Let go of the workers and of what was not computed."""
        logger = logging.getLogger("distributed")
        level = logger.level
        logger.setLevel(logging.CRITICAL)  # what it says about being closed helps nobody
        for part in (self._client, self._cluster):
            with suppress(OSError, RuntimeError, TimeoutError):
                if part is not None:
                    part.close(timeout=5)
        logger.setLevel(level)


class SchedulerLost(Exception):
    """The Dask scheduler went away in the middle of a run."""


_QUIET = {  # what Dask watches itself with took a tenth of a core from the cells
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
}


def start_local(jobs: int) -> OnDask:
    """A local cluster of `jobs` single-threaded worker processes on the loopback interface, gone with this process."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise BadInput(
            "this script starts worker processes while it is being imported by one; put its code under "
            'if __name__ == "__main__":'
        )
    import dask
    from distributed import Client, LocalCluster

    try:
        with dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS - 1, **_QUIET}):
            cluster = LocalCluster(
                n_workers=jobs,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                memory_limit=0,
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL,
            )
    except (OSError, RuntimeError, TimeoutError) as error:
        raise BadInput(
            f"the {jobs} local workers did not start ({error}); in a script of your own, call run() under "
            'if __name__ == "__main__":; jobs=1 needs no workers'
        ) from error
    return OnDask(Client(cluster, set_as_default=False), cluster, threads=max(1, cores() // jobs))


def connect(scheduler: str | Path) -> OnDask:
    """The workers of a running scheduler, given its address or its scheduler file. BadInput when none answers in 10 s."""
    from distributed import Client

    address = _address(str(scheduler))
    try:
        client = Client(address, timeout=CONNECT_SECONDS, name="gkp", set_as_default=False)
    except (OSError, ValueError, TimeoutError, RuntimeError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"no Dask scheduler answers at {address} within {CONNECT_SECONDS} s ({text}); start one with "
            "`dask scheduler`, or unset DASK_SCHEDULER_ADDRESS to compute on this machine"
        ) from error
    return OnDask(client)


def _address(scheduler: str) -> str:
    path = Path(scheduler)
    if not (scheduler.endswith(".json") or path.is_file()):
        return scheduler
    try:
        return json.loads(path.read_text(encoding="utf-8"))["address"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path}: is not the file of a running scheduler ({error}); start one with `dask scheduler --scheduler-file {path}`"
        ) from error
