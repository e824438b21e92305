"""The limits of a cell that is being computed: seconds, memory, and the deadline of the run."""

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

POLL_SECONDS = 0.1  # between two checks of the limits
STOPPED = "stopped"  # the outcome at the deadline of the run, which is no failure
_AGAIN = 5.0  # seconds after which a stage that has caught the exception is interrupted again


class LimitExceeded(BaseException):
    """A stage has passed a limit: (kind, message). Not an Exception, so that stages do not catch it by accident."""


@contextmanager
def interrupted_at_limits(job: Job, *, alone: bool) -> Iterator[None]:
    """Raise LimitExceeded in the body when it passes a limit of the job.

    Memory is counted from the start of the body. Nothing is done outside the main thread, and a call that does not return to
    the interpreter is not interrupted; with two jobs or more its process is killed instead.

    Args:
        job: The job.
        alone: Whether the process is supervised from outside; then only the deadline is enforced here.
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
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
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
    """The kind and message of a job that is stopped at the deadline of its run."""
    return STOPPED, "stopped at the deadline of the run"


def too_long(job: Job) -> tuple[str, str]:
    """The kind and message of a job that passed its time limit."""
    return "time limit", f"ran longer than its limit of {job.time_limit:g} s"


def too_large(job: Job) -> tuple[str, str]:
    """The kind and message of a job that passed its memory limit."""
    return "memory limit", f"used more than its limit of {job.memory_limit:g} MB"
