"""The limits of a cell that is being computed: seconds, memory, and the deadline of the run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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
    job = replace(job, time_limit=None, memory_limit=None) if alone else job
    unlimited = (job.time_limit, job.memory_limit, job.deadline) == (None, None, None)
    if unlimited or threading.current_thread() is not threading.main_thread():
        yield
        return
    started, mb_before = time.monotonic(), resident_mb(os.getpid())

    def look(*_: object) -> None:
        if reason := passed(job, time.monotonic() - started, lambda: resident_mb(os.getpid()) - mb_before):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            raise LimitExceeded(*reason)

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, POLL_SECONDS, POLL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def passed(job: Job, seconds: float, mb: Callable[[], float], *, grace: float = 0.0) -> tuple[str, str] | None:
    """The kind and message of a job that has passed a limit; None where it has not.

    Args:
        job: The job.
        seconds: How long it has been computed.
        mb: Measures its resident memory in MB.
        grace: Seconds that it may go on after the deadline of its run.
    """
    if job.deadline is not None and time.time() > job.deadline + grace:
        return STOPPED, "stopped at the deadline of the run"
    if job.time_limit is not None and seconds > job.time_limit:
        return "time limit", f"ran longer than its limit of {job.time_limit:g} s"
    if job.memory_limit is not None and mb() > job.memory_limit:
        return "memory limit", f"used more than its limit of {job.memory_limit:g} MB"
    return None
