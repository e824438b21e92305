"""When, where and how a cell was computed: the contents of its run.json. Nothing of it gets into result.json."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from gkp.files import checkout

_OF_HOOKS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
PACKAGES = (
    *("torch", "torchvision", "numpy", "scipy", "scikit-learn", "statsmodels", "numba", "pillow"),
    *("distributed", "pyautoattack", "robustbench", "torch-pruning"),
)


def describe_run(*, seconds: float, threads: int, peak: PeakMemory, work: float, notes: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of run.json for a cell that has just been computed in this process.

    Args:
        seconds: How long it took.
        threads: CPU threads that it used.
        peak: The memory since it was started.
        work: As in `Cell.work`.
        notes: What its stage measured, see `gkp.artifact.experiments.compute.Context`.
    """
    return {
        **notes,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        **peak.mb(),
        "threads": threads,
        "work": work,
        "git_commit": git_commit(),
        "versions": versions(),
        "hardware": hardware(),
    }


@cache
def git_commit() -> str:
    """The commit of this checkout, with "+changes" if its code was changed; "unknown" outside a checkout."""
    root = checkout()
    if root is None or not (root / ".git").exists():
        return "unknown"

    # the hooks of git set variables that name another repository or index
    environment = {name: value for name, value in os.environ.items() if name not in _OF_HOOKS}

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(root / "gkp"), *arguments]  # a commit may be made meanwhile
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, env=environment)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of installed packages that results can depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GB, and the GPU if torch is loaded and sees one."""
    torch = _torch_with_gpu()  # not cached: torch may have been loaded since
    return {**_machine(), **({"gpu": torch.cuda.get_device_name(0)} if torch else {})}


@cache
def _machine() -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):  # Linux: psutil and platform do not know the model's name
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return {
        "processor": processor,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
    }


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident_mb(pid: int) -> float:
    """The resident memory of a process in MB; 0 if it has ended."""
    try:
        return psutil.Process(pid).memory_info().rss / 2**20
    except psutil.Error:
        return 0.0


class PeakMemory:
    """The peak resident memory of this process, and peak GPU memory of torch, since the object was made.

    Where the system cannot reset its peak, the resident memory is the peak since the start of the process.
    """

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
        if torch := _torch_with_gpu():
            torch.cuda.reset_peak_memory_stats()

    def mb(self) -> dict[str, float]:
        """`peak_memory_mb`, and `peak_gpu_memory_mb` where torch uses a GPU."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM"):
                    peak = int(line.split()[1]) / 1024
        found = {"peak_memory_mb": round(peak, 1)}
        if torch := _torch_with_gpu():
            found["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return found


def _torch_with_gpu() -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None
