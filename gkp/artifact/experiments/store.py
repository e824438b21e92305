"""The store of finished cells: one folder for each cell, written atomically.

    <root>/<id>/spec.json      what the hash covers
                result.json    the values and the sha256 of each file below, with a sha256 of its own; it has no times and no
                               machine, so that the same cell gives the same bytes again
                run.json       when, where and how: git commit, versions, hardware, seconds, peak memory
                log.txt        what the cell printed
                ...            the files of the stage: outcome matrix, checkpoint
    <root>/.failed/<id>/       failure.json and log.txt of a cell that failed
    <root>/.scratch/<id>/      checkpoints from which a long cell resumes; removed when it is finished
    <root>/.locks/<id>.lock    held while the cell is computed

A folder is written under another name (`.<id>.partial-...`), flushed to disk and renamed. A finished cell is checked when it is
looked up: result.json by its own sha256, the other files by their size, and by their sha256 before another cell uses them.
Read-only roots (the committed `data/results`) come first. They may lack large files: their values are used all the same, and
such a cell is computed again when another one needs its files.

A lock is a `flock` on a small file, which the kernel releases when its process ends, however it ends (SIGKILL, power cut, a
node that leaves an NFS server). It works across machines on NFS (where Linux locks on the server), Lustre mounted with `flock`,
GPFS and CephFS. On file systems without locks cells are still published by one rename, so two runners may compute the same cell
but cannot damage it; what killed runners left is then not removed.

GKP_CELLS is the folder for new cells instead of `build/cells` in the checkout.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gkp.artifact.experiments.cell import HASH_DIGITS
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
_INCOMPLETE = re.compile(rf"\.(.+-[0-9a-f]{{{HASH_DIGITS}}})\.(partial|old)-")
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class Busy(Exception):
    """Another process holds the lock of a cell."""


@dataclass
class Store:
    """A writable root, and read-only roots that are looked up before it.

    Attributes:
        root: Where new cells are written.
        read_only: Where finished cells are looked up first.
        damaged: Id -> why `lookup` refused a stored cell.
    """

    root: Path
    read_only: Sequence[Path] = ()
    damaged: dict[str, str] = field(default_factory=dict)

    def names(self) -> set[str]:
        """The ids with a folder in any root."""
        found: set[str] = set()
        for root in (*self.read_only, self.root):
            found.update(name for name in _listdir(root) if not name.startswith("."))
        return found

    def lookup(self, cell_id: str, cell_hash: str, *, whole: bool = False) -> Entry | None:
        """The finished cell; None where there is none.

        Args:
            cell_id: The id of the cell.
            cell_hash: The hash of the cell; a result of another cell with this id is refused.
            whole: Whether all files must be there, with the right sha256.
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
        """Make the writable root and remove what killed runners left in it.

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
        """The ids with a lock file or an incomplete folder, whether or not their writer still runs."""
        return {name.removesuffix(".lock") for name in _listdir(self.root / ".locks")} | {i for i, *_ in self._incomplete()}

    def _incomplete(self) -> list[tuple[str, str, Path]]:
        """(id, "partial" or "old", path) of each folder that is being written or replaced."""
        found = ((_INCOMPLETE.match(name), self.root / name) for name in _listdir(self.root))
        return [(match[1], match[2], path) for match, path in found if match]

    def clear(self, cell_id: str) -> None:
        """Remove the lock and the incomplete folder of a cell, unless its writer still runs."""
        with suppress(Busy, OSError), self.lock(cell_id):
            pass

    @contextmanager
    def lock(self, cell_id: str) -> Iterator[None]:
        """Lock this cell against all other processes, and remove its incomplete folders; the lock file is removed in the end.

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
            if lock.is_locked:  # so the writer of an incomplete folder has ended
                for name, mark, folder in self._incomplete():
                    if name == cell_id and mark == "old" and not (self.root / name).exists():
                        os.rename(folder, self.root / name)  # it is finished: its writer was killed replacing it
                    elif name == cell_id:
                        shutil.rmtree(folder, ignore_errors=True)
            yield
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)  # while it is held: others who opened it notice and retry
            lock.release()

    def partial_name(self, cell_id: str, pid: int) -> Path:
        """The folder in which process `pid` of this machine writes the unfinished cell."""
        return self.root / f".{cell_id}.partial-{socket.gethostname()}-{pid}"

    @contextmanager
    def writing(self, cell_id: str) -> Iterator[Path]:
        """An empty folder to write the cell into, which is removed if the body fails; the record of a failure is removed."""
        shutil.rmtree(self.root / ".failed" / cell_id, ignore_errors=True)
        partial = self.partial_name(cell_id, os.getpid())
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # it does not exist if the cell was published

    def publish(self, partial: Path, cell_id: str, cell_hash: str, *, spec: Mapping, figures: Mapping, run: Mapping) -> Path:
        """Turn the partial folder into the finished cell, replacing a damaged one.

        Args:
            partial: The folder of `writing`, with the files of the stage.
            cell_id, cell_hash: The id and hash of the cell.
            spec, figures, run: The contents of spec.json, of result.json (the values), and of run.json.

        Returns:
            The folder of the finished cell.
        """
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
                if not final.exists():  # without locks another runner may have been faster: its cell is as good
                    raise
        _flush(self.root)
        shutil.rmtree(self.scratch(cell_id), ignore_errors=True)
        return final

    def scratch(self, cell_id: str) -> Path:
        """The folder for checkpoints of the cell; it may not exist."""
        return self.root / ".scratch" / cell_id

    def drop_used_scratch(self, cell_id: str) -> None:
        """Remove checkpoints that are older than the finished cell: its writer was killed before it removed them."""
        with suppress(OSError):
            if self.scratch(cell_id).stat().st_mtime <= (self.root / cell_id / "result.json").stat().st_mtime:
                shutil.rmtree(self.scratch(cell_id))

    # --- failures and who is running --------------------------------------------------------------------------------

    def record_failure(self, cell_id: str, failure: Mapping[str, Any], log: Path | None = None) -> None:
        """Keep why a cell failed, and its log. Does nothing if that cannot be written (a full disk).

        Args:
            cell_id: The id of the cell.
            failure: The contents of failure.json.
            log: The log of the cell; None where there is none.
        """
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
        """Id -> contents of failure.json."""
        folder = self.root / ".failed"
        found = {name: read_json(folder / name / "failure.json") for name in _listdir(folder)}
        return {name: failure for name, failure in found.items() if failure is not None}

    def running(self) -> set[str]:
        """The ids of the cells that are being computed now, on any machine."""
        folder = self.root / ".locks"
        return {name.removesuffix(".lock") for name in _listdir(folder) if _is_held(folder / name)}


def default_store() -> Store:
    """The store of a checkout: `data/results` (read only), and `build/cells` or the folder of GKP_CELLS.

    Outside a checkout, cells are written to `build/cells` below the current folder.
    """
    home = checkout()
    root = os.environ.get("GKP_CELLS") or (home or Path.cwd()) / "build" / "cells"
    return Store(user_path(root).absolute(), (home / "data" / "results",) if home else ())


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception means that the disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_held(path: Path) -> bool:
    """Whether a process holds this lock file; nothing is written, so that it works on read-only stores."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # it has been removed, or the file system has no locks
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
            if (path := Path(here) / name).is_file():  # no link to nowhere, and no pipe, which would wait for its writer
                _flush(path)
        _flush(Path(here))


def _flush(path: Path) -> None:
    """Flush a file or folder to disk, so that a power cut cannot leave a renamed but empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)
