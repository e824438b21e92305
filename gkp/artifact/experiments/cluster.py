"""Run jobs on the workers of a Dask scheduler, local ones started for the run or those of an existing cluster.

The runner submits one future for each free worker thread, without dependencies. Submitting all cells at once was tried: Dask
then assigns cells to workers ahead of time, counts the death of a worker against all cells assigned to it (so that three deaths
fail innocent cells too), and lets short cells wait behind a long one.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import queue
import time
from asyncio import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask
from distributed import Client, KilledWorker, LocalCluster

from gkp.artifact.experiments.child import supervise
from gkp.artifact.experiments.compute import Job, Outcome, SchedulerLost
from gkp.artifact.experiments.provenance import cores
from gkp.errors import BadInput

CONNECT_SECONDS = 10
ATTEMPTS = 3  # workers that may die while computing a cell before it has failed
_QUIET = {  # Dask's monitoring of itself took a tenth of a core
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
}


class Cluster:
    """Computes cells on the workers of a scheduler, one for each of their threads.

    Args:
        client: A client connected to the scheduler.
        local: Workers that are closed with this object; None if it owns none.
        threads: CPU threads of a cell with threads=0; None for the number in the worker's environment.
    """

    def __init__(self, client: Client, local: LocalCluster | None = None, *, threads: int | None = None) -> None:
        self.threads = threads
        self._client, self._local = client, local
        self._ended: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._slots, self._slots_at = 0, 0.0

    def slots(self) -> int:
        """The number of cells that can be computed at once now."""
        if time.monotonic() - self._slots_at > 2:
            try:
                self._slots = sum(self._client.nthreads().values())
            except (OSError, RuntimeError) as error:
                raise SchedulerLost(str(error)) from error
            self._slots_at = time.monotonic()
        return self._slots

    def submit(self, job: Job) -> None:
        """Submit a cell; `wait` returns its outcome."""
        if job.module == "__main__":
            raise BadInput(
                f"stage {job.stage!r} is defined in a script, which workers do not run; move it to a module of its own"
            )
        try:
            future = self._client.submit(
                supervise, job, key=f"{job.id}-{uuid4().hex}", pure=False
            )  # the scheduler may be shared
        except (OSError, RuntimeError) as error:
            raise SchedulerLost(str(error)) from error
        future.add_done_callback(lambda ended: self._ended.put((job.id, ended)))  # which also keeps the future alive

    def wait(self, seconds: float) -> list[Outcome]:
        """Wait for outcomes for at most `seconds`, and return those that have arrived."""
        ended = []
        with suppress(queue.Empty):
            ended.append(self._ended.get(timeout=seconds))
            while True:
                ended.append(self._ended.get_nowait())
        if not ended and self._client.status not in ("running", "connecting"):
            raise SchedulerLost(f"the connection is {self._client.status}")
        return [_outcome(cell_id, future) for cell_id, future in ended]

    def close(self) -> None:
        """Disconnect from the scheduler, and end the workers that this object owns."""
        logger = logging.getLogger("distributed")
        level = logger.level
        logger.setLevel(logging.CRITICAL)  # closing logs errors
        for part in (self._client, self._local):
            with suppress(OSError, RuntimeError, TimeoutError):
                if part is not None:
                    part.close(timeout=5)
        logger.setLevel(level)


def _outcome(cell_id: str, future: Any) -> Outcome:
    if future.status == "finished":
        try:
            return future.result(timeout=60)
        except (CancelledError, OSError, TimeoutError) as error:  # the worker or scheduler died in the meantime
            raise SchedulerLost(f"cell {cell_id} ended, but its outcome was lost") from error
    if future.status != "error":
        raise SchedulerLost(f"cell {cell_id} was {future.status}")
    reason = future.exception()
    if isinstance(reason, KilledWorker):
        return Outcome(cell_id, "failed", "lost", f"{reason.allowed_failures + 1} workers died while they had it")
    return Outcome(cell_id, "failed", "lost", f"the worker could not start it: {type(reason).__name__}: {reason}")


def start_local(jobs: int) -> Cluster:
    """Start `jobs` single-threaded worker processes on the loopback interface, which end with this process.

    Raises:
        BadInput: They do not start.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise BadInput(
            "this script starts worker processes while it is being imported by one; put its code under "
            'if __name__ == "__main__":'
        )
    try:
        with dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS - 1, **_QUIET}):
            local = LocalCluster(
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
    return Cluster(Client(local, set_as_default=False), local, threads=max(1, cores() // jobs))


def connect(scheduler: str | Path) -> Cluster:
    """Connect to a running scheduler.

    Args:
        scheduler: Its address or scheduler file.

    Raises:
        BadInput: It does not answer within CONNECT_SECONDS.
    """
    address = _address(str(scheduler))
    try:
        return Cluster(Client(address, timeout=CONNECT_SECONDS, name="gkp", set_as_default=False))
    except (OSError, ValueError, TimeoutError, RuntimeError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"no Dask scheduler answers at {address} within {CONNECT_SECONDS} s ({text}); start one with "
            "`dask scheduler`, or unset DASK_SCHEDULER_ADDRESS to compute on this machine"
        ) from error


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
