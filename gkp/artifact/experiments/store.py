"""Where finished cells live: one folder per cell, whole or not there at all.

    <root>/<id>/spec.json      what the id's hash covers
                result.json    the values and the sha256 of each file below, signed with a sha256 of its own; no times or
                               machine in it, so that the same cell gives the same bytes again
                run.json       when, where and how: git commit, versions, hardware, seconds, peak memory
                log.txt        what the cell printed
                ...            the stage's own files: outcome matrix, checkpoint
    <root>/.failed/<id>/       failure.json and log.txt of a cell that did not finish
    <root>/.scratch/<id>/      what a long cell keeps to resume from (epoch checkpoints); gone when it is finished
    <root>/.locks/<id>.lock    held while the cell is computed

A folder is written beside (`.<id>.partial-...`), flushed to disk and renamed. A finished cell is checked when it is
looked up: result.json against its own sha256, the other files by their size, and by their sha256 before a child builds
on them. Read-only roots (the committed `data/results`) come first, and may leave out large files: their values count,
and a cell that needs such a file as a parent has it recomputed.

A lock is a `flock` on a small file: the kernel gives it up when its holder's process ends, however it ends (SIGKILL, power
cut, a node that leaves an NFS server). It works across machines on NFS (Linux turns it into a lock of the server), Lustre
mounted with `flock`, GPFS and CephFS. Where a file system knows no locks the run goes on without: cells are still published
by one rename, so two runners can then waste time on the same cell but cannot damage it.

GKP_CELLS names another folder for new cells than the checkout's `build/cells`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gkp.artifact.experiments.entry import (
    Damaged,
    Entry,
    check_files,
    read_entry,
    read_json,
    signature,
    write_json,
)
from gkp.errors import BadInput
from gkp.files import checkout, file_sha256, user_path

_OWN = ("spec.json", "result.json", "run.json", "log.txt")
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class Busy(Exception):
    """Another process holds the lock of a cell."""


@dataclass
class Store:
    """One writable root and the read-only ones looked up before it.

    Args:
        root: Where new cells are written.
        read_only: Where finished cells are looked up first.
        damaged: Collects, by id, why `lookup` refused a stored cell.
    """

    root: Path
    read_only: Sequence[Path] = ()
    damaged: dict[str, str] = field(default_factory=dict)

    def names(self) -> set[str]:
        """The ids that have a folder in any root."""
        found: set[str] = set()
        for root in (*self.read_only, self.root):
            found.update(name for name in _listdir(root) if not name.startswith("."))
        return found

    def lookup(self, cell_id: str, cell_hash: str, *, whole: bool = False) -> Entry | None:
        """The finished cell, or None.

        Args:
            cell_id: The cell's id.
            cell_hash: The cell's hash: a result of another cell under this id is refused.
            whole: Accept only a copy that has all its files, each checked by sha256.
        """
        for root in (*self.read_only, self.root):
            try:
                entry = read_entry(root / cell_id, cell_hash)
                if entry is not None and whole:
                    check_files(entry)
            except Damaged as error:
                self.damaged[cell_id] = str(error)
                continue
            if entry is not None and not (whole and entry.absent):
                return entry
        return None

    # --- writing ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the writable root and clear what dead runners left in it.

        Raises:
            BadInput: It cannot be written.
        """
        try:
            for folder in (self.root, self.root / ".locks", self.root / ".failed", self.root / ".scratch"):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{socket.gethostname()}-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise BadInput(
                f"{self.root}: new cells cannot be written here ({error.strerror or error}); make it writable, "
                "or name another folder in GKP_CELLS"
            ) from error
        for cell_id in self._left_behind():
            self.clear(cell_id)

    def _left_behind(self) -> set[str]:
        """The ids with a lock file or a half-written folder, whether or not their writer lives."""
        found = {name.removesuffix(".lock") for name in _listdir(self.root / ".locks")}
        for name in _listdir(self.root):
            for mark in (".partial-", ".old-"):
                if name.startswith(".") and mark in name:
                    found.add(name[1:].rsplit(mark, 1)[0])
        return found

    def clear(self, cell_id: str) -> None:
        """Remove what a dead writer of the cell left, its lock and half-written folder; does nothing while it lives."""
        with suppress(Busy, OSError), self.lock(cell_id):
            self._remove_partials(cell_id)

    def _remove_partials(self, cell_id: str) -> None:
        for name in _listdir(self.root):
            if name.startswith((f".{cell_id}.partial-", f".{cell_id}.old-")):  # the lock is ours: their writer is dead
                shutil.rmtree(self.root / name, ignore_errors=True)

    @contextmanager
    def lock(self, cell_id: str) -> Iterator[None]:
        """Hold this cell against every other process; the lock file is removed in the end.

        Raises:
            Busy: Another process holds it.
        """
        path = self.root / ".locks" / f"{cell_id}.lock"
        lock = FileLock(path, blocking=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            raise Busy(str(path)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            message = f"{path.parent}: this file system has no locks ({error.strerror}); run one runner at a time on it"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone and retries
            lock.release()

    def partial_name(self, cell_id: str, pid: int) -> Path:
        """The folder in which process `pid` of this machine writes the cell before it is finished."""
        return self.root / f".{cell_id}.partial-{socket.gethostname()}-{pid}"

    @contextmanager
    def writing(self, cell_id: str) -> Iterator[Path]:
        """An empty folder to write the cell into, removed when the body fails; call it with the cell locked."""
        self._remove_partials(cell_id)
        partial = self.partial_name(cell_id, os.getpid())
        partial.mkdir()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # nothing is there when it was published

    def publish(self, partial: Path, cell_id: str, cell_hash: str, *, spec: Mapping, figures: Mapping, run: Mapping) -> Path:
        """Turn the partial folder into the finished cell, in place of a damaged one, and return its folder."""
        files = {
            name: {"sha256": file_sha256(partial / name), "bytes": (partial / name).stat().st_size}
            for name in _files_of(partial)
            if name not in _OWN
        }
        body = {"id": cell_id, "hash": cell_hash, "figures": figures, "files": files}
        write_json(partial / "spec.json", spec)
        write_json(partial / "run.json", run)
        write_json(partial / "result.json", {**body, "sha256": signature(body)})
        _flush_tree(partial)
        final = self.root / cell_id
        if final.exists():
            old = self.root / f".{cell_id}.old-{os.getpid()}"
            os.rename(final, old)
            os.rename(partial, final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            try:
                os.rename(partial, final)
            except OSError:
                if not final.exists():  # where there are no locks, another runner may have been faster: its cell serves
                    raise
        _flush(self.root)
        shutil.rmtree(self.root / ".failed" / cell_id, ignore_errors=True)
        shutil.rmtree(self.scratch(cell_id), ignore_errors=True)
        return final

    def scratch(self, cell_id: str) -> Path:
        """A folder that outlives a killed run of the cell, to resume from; it may not exist."""
        return self.root / ".scratch" / cell_id

    # --- failures and who is running --------------------------------------------------------------------------------

    def record_failure(self, cell_id: str, failure: Mapping[str, Any], log: Path | None = None) -> None:
        """Keep why the cell failed, and its log; silent when even that cannot be written (a full disk)."""
        folder = self.root / ".failed" / cell_id
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            if log is not None and log.is_file():
                shutil.copyfile(log, folder / "log.txt")
            write_json(folder / "failure.json", failure)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)

    def failures(self) -> dict[str, dict[str, Any]]:
        """id -> what `record_failure` kept."""
        folder = self.root / ".failed"
        found = {name: read_json(folder / name / "failure.json") for name in _listdir(folder)}
        return {name: failure for name, failure in found.items() if failure is not None}

    def running(self) -> set[str]:
        """The ids that a living process is computing now, on whatever machine."""
        folder = self.root / ".locks"
        return {name.removesuffix(".lock") for name in _listdir(folder) if _is_held(folder / name)}


def default_store() -> Store:
    """The checkout's `data/results` (read only) and `build/cells`, or the folder of GKP_CELLS instead of the latter.

    Outside a checkout, cells go to `build/cells` below the current folder.
    """
    home = checkout()
    root = os.environ.get("GKP_CELLS") or (home or Path.cwd()) / "build" / "cells"
    return Store(user_path(root).absolute(), (home / "data" / "results",) if home else ())


def is_disk_full(error: BaseException) -> bool:
    """Whether this is the operating system saying that nothing more can be stored."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_held(path: Path) -> bool:
    """Whether a living process holds this lock file. Changes nothing, so that readers of a read-only store can ask."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # it is gone, or there are no locks here: nobody can be seen to hold it
    return False


def _listdir(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _flush_tree(folder: Path) -> None:
    for here, _, names in os.walk(folder):
        for name in names:
            _flush(Path(here) / name)
        _flush(Path(here))


def _flush(path: Path) -> None:
    """Waits until the file or folder is on the disk, so that a power cut cannot leave a renamed but empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)
