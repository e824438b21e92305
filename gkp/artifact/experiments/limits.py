"""The limits of a cell that is being computed: its seconds and memory, and the deadline of the run."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gkp.artifact.experiments.provenance import resident_mb

if TYPE_CHECKING:
    from gkp.artifact.experiments.compute import Job

POLL_SECONDS = 0.1  # between two looks at a cell's limits
STOPPED = "stopped"  # the kind of an end that is no failure: the deadline of the run


class LimitExceeded(BaseException):
    """Raised inside a stage that has passed a limit: (kind, message). Not an Exception: stages must not swallow it."""


@contextmanager
def interrupted_at_limits(job: Job, *, alone: bool) -> Iterator[None]:
    """Raises LimitExceeded in the body when it passes a limit of the job; memory is what the process has gained since.

    Does nothing outside the main thread. A call that does not return to the interpreter is not interrupted: with two jobs
    or more, its process is killed. alone: the process is supervised from outside, which leaves the deadline to be seen to here.
    """
    limited = not alone and (job.time_limit, job.memory_limit) != (None, None)
    if not (limited or job.deadline is not None) or threading.current_thread() is not threading.main_thread():
        yield
        return
    end = time.monotonic() + (job.time_limit or math.inf)
    allowed = resident_mb(os.getpid()) + (job.memory_limit or math.inf)

    def look(*_: object) -> None:
        if is_over(job):
            reason = too_late()
        elif limited and time.monotonic() > end:
            reason = too_long(job)
        elif limited and resident_mb(os.getpid()) > allowed:
            reason = too_large(job)
        else:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise LimitExceeded(*reason)

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, POLL_SECONDS, POLL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_over(job: Job, *, grace: float = 0.0) -> bool:
    """Whether the deadline of the job's run has passed, by `grace` seconds."""
    return job.deadline is not None and time.time() > job.deadline + grace


def too_late() -> tuple[str, str]:
    """The kind and message of the end of a job at the deadline of its run."""
    return STOPPED, "stopped at the deadline of the run"


def too_long(job: Job) -> tuple[str, str]:
    """The kind and message of the failure of a job that passed its time limit."""
    return "time limit", f"ran longer than its limit of {job.time_limit:g} s"


def too_large(job: Job) -> tuple[str, str]:
    """The kind and message of the failure of a job that passed its memory limit."""
    return "memory limit", f"used more than its limit of {job.memory_limit:g} MB"
