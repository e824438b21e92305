"""When, where and how a cell was computed: the contents of its run.json. Nothing here reaches result.json."""

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

from gkp.files import checkout

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "statsmodels",
    "distributed",
    "pyautoattack",
    "robustbench",
    "torch-pruning",
)


def describe_run(*, seconds: float, threads: int, peak: PeakMemory, work: float, notes: Mapping[str, Any]) -> dict[str, Any]:
    """The run.json of a cell that has just been computed in this process; notes: what its stage measured of this run."""
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
    """The commit of the checkout this package runs from, "+changes" when its code differs from it; "unknown" outside one."""
    root = checkout()
    if root is None or not (root / ".git").exists():
        return "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root / "gkp"), *arguments], capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def versions() -> dict[str, str]:
    """Python's version and those of the installed packages that figures can depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GB, and the GPU if torch is loaded and sees one."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "memory_gb": _memory_gb(),
    }
    if torch := _torch_with_gpu():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


class PeakMemory:
    """The largest resident memory of this process since the object was made (since the process began on systems that
    cannot reset the mark), and the largest GPU memory that torch held since then."""

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
        if torch := _torch_with_gpu():
            torch.cuda.reset_peak_memory_stats()

    def mb(self) -> dict[str, float]:
        """`peak_memory_mb`, and `peak_gpu_memory_mb` where torch uses a GPU."""
        found = {"peak_memory_mb": round(self._resident(), 1)}
        if torch := _torch_with_gpu():
            found["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return found

    def _resident(self) -> float:
        try:
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
        except OSError:
            pass
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _torch_with_gpu() -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None


def resident_mb(pid: int) -> float:
    """The resident memory of a process in MB; 0 when it has ended."""
    import psutil

    try:
        return psutil.Process(pid).memory_info().rss / 2**20
    except psutil.Error:
        return 0.0
