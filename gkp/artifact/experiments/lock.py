"""A lock on one cell that dies with its holder.

`flock` on a small file: the kernel gives it up when the holder's process ends, however it ends (SIGKILL, power cut, a
node that leaves an NFS server), so a dead holder's lock is taken over without heartbeats or guesses about stale files.
It works across machines on NFS (Linux turns it into a lock of the server), Lustre mounted with `flock`, GPFS and CephFS.
Where a file system knows no locks the run goes on without: cells are still published by one rename, so two runners can
then waste time on the same cell but cannot damage it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class Busy(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path` (created here, removed in the end) around the body; Busy when someone else has it."""
    descriptor = _acquire(path)
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone and retries
        finally:
            os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _flock(descriptor, path)
            if _is_same_file(descriptor, path):
                os.ftruncate(descriptor, 0)
                note = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
                os.write(descriptor, json.dumps(note).encode())
                return descriptor
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # the note is for people; the lock itself is held
                return descriptor
            os.close(descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder removed it between our open and our lock: take the new one


def _flock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(str(path)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{path.parent}: this file system has no locks ({error.strerror}); run one runner at a time on it",
            RuntimeWarning,
            stacklevel=2,
        )


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Whether a living process holds this lock file. Changes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False  # no locks here, or not for readers: nobody can be seen to hold it
    finally:
        os.close(descriptor)
