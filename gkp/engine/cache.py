"""The compiled kernels, which are kept in the user's cache under a key of everything that they depend on.

Cost: compiling takes about 15 seconds, loading about one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from gkp.errors import BadInput
from gkp.files import cache_folder

_SOURCES = ("emitter.py", "vectors.py", "layout.py", "kernels.py", "narrow.py", "steps.py")


def kernel_folder() -> Path | None:
    """The folder for the kernels of this processor, these versions and these sources, which may not exist yet.

    None for a user without a cache folder.
    """
    import llvmlite
    import numba
    from numba.core.registry import cpu_target

    key, here = hashlib.sha256(), Path(__file__).parent
    features = cpu_target.target_context.codegen().magic_tuple()
    # The last two are compared by numba itself: the path of the source and when it was written.
    changed = (here / "steps.py").stat().st_mtime_ns
    for part in (numba.__version__, llvmlite.__version__, sys.version, features, str(here), changed):
        key.update(repr(part).encode())
    for name in _SOURCES:
        key.update((here / name).read_bytes())
    try:
        return cache_folder() / "kernels" / key.hexdigest()[:16]
    except BadInput:
        return None


_alone = threading.Lock()


def kernel() -> Callable[..., None]:
    """`steps.run`, compiled once for each process; see `_kernel`."""
    with _alone:
        return _kernel()


@cache
def _kernel() -> Callable[..., None]:
    """`steps.run`, loaded from the cache or compiled now, with a line on stderr.

    A cache that cannot be written is read all the same; if it is empty, every process compiles. Two processes that compile at
    once write the same files, which numba renames into place. Damaged files are compiled again.
    """
    folder = kernel_folder()
    if folder is not None and any(name.endswith(".nbi") for _, _, names in os.walk(folder) for name in names):
        try:
            with _readable(folder) as files:
                return _compiled(files)
        except Exception:  # unpickling damaged files can raise anything
            shutil.rmtree(folder, ignore_errors=True)
    print("gkp: compiling the engine's kernels for this processor, once ...", end=" ", file=sys.stderr, flush=True)
    compiled = _compiled(folder if folder is not None and _writable(folder) else None)
    print("done", file=sys.stderr, flush=True)
    return compiled


def _compiled(folder: Path | None) -> Any:
    from numba import config, int64, njit, types

    from gkp.engine.steps import run

    settings: Any = config
    before, settings.CACHE_DIR = settings.CACHE_DIR, str(folder or "")
    try:
        return njit(types.void(*[int64] * 13), nogil=True, cache=folder is not None)(run)
    finally:
        settings.CACHE_DIR = before


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[Path]:
    """The folder, or a copy where it cannot be written, because numba only reads from folders that it can write to."""
    if _writable(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copied:
        yield Path(shutil.copytree(folder, Path(copied) / "kernels", copy_function=shutil.copyfile))


def _writable(folder: Path) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
