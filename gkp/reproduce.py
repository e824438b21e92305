"""Runs the notebooks by papermill, with the traps of papermill closed.

A parameter that a notebook does not have is refused (papermill only warns). A notebook is written under its final name only
when every cell has run: until then it is `NAME.partial.ipynb`, and `NAME.failed.ipynb` where a cell failed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from gkp.errors import BadInput, RunFailed
from gkp.files import checkout, given_folders


@dataclass(frozen=True)
class Executed:
    """One notebook that ran: its name, the executed copy, the seconds it took, and what it said of its cells."""

    name: str
    file: Path
    seconds: float
    cells: str


def notebook_files(only: str | None = None) -> list[Path]:
    """The notebooks of this checkout in order; with `only`, those whose name contains it. Raises BadInput where none does."""
    root = checkout()
    if root is None:
        raise BadInput("the notebooks are not installed with the package; run this in a checkout of the repository")
    every = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    chosen = [file for file in every if only is None or only in file.stem]
    if not chosen:
        raise BadInput(f"no notebook matches {only!r}; there are {', '.join(file.stem for file in every)}")
    return chosen


def run_notebook(file: Path, out: Path, parameters: Mapping[str, Any], *, progress: bool = False) -> Executed:
    """The executed copy of `file`, in the folder `out`. Raises BadInput for a parameter that the notebook does not have, and
    RunFailed when a cell raises; then nothing stands under the final name."""
    known = papermill.inspect_notebook(str(file))
    if unknown := sorted(set(parameters) - set(known)):
        raise BadInput(f"{file.name} has no parameter {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    final, partial = out / file.name, out / f"{file.stem}.partial.ipynb"
    failed = out / f"{file.stem}.failed.ipynb"
    for stale in (final, partial, failed):
        stale.unlink(missing_ok=True)
    started = time.perf_counter()
    root = file.parent.parent
    try:
        papermill.execute_notebook(
            str(file), str(partial), parameters=dict(parameters), kernel_name="python3", cwd=str(root), progress_bar=progress
        )
    except PapermillExecutionError as error:
        partial.replace(failed)
        raise RunFailed(f"{file.name}: {error.ename}: {error.evalue} (cell by cell in {failed})") from error
    partial.replace(final)
    return Executed(file.stem, final, time.perf_counter() - started, _headline(final))


def _headline(executed: Path) -> str:
    """What `gkp.grid.run` printed in the notebook, e.g. "42 cells: 42 cached, 0 computed"; empty if it was not called."""
    outputs = (output for cell in nbformat.read(executed, as_version=4).cells for output in cell.get("outputs", []))
    lines = (line for output in outputs for line in output.get("text", "").splitlines())
    return "; ".join(line for line in lines if re.match(r"\d+ cells: ", line))


def reproduce(
    profile: str = "quick",
    *,
    only: str | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> list[Executed]:
    """Every notebook executed for `profile`; executed copies, figures and tables stand in `out` (default build/PROFILE).

    only: part of a notebook's name. jobs: workers side by side (default: the number of cores).
    Raises BadInput for an unknown profile or notebook, RunFailed at the first notebook that fails.
    """
    from gkp.profiles import check_profile  # the grid is only needed here

    check_profile(profile)
    files = notebook_files(only)
    folder = Path(out or Path("build") / profile).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write to {folder} ({error.strerror}); choose another folder with --out") from error
    os.environ["GKP_OUT"] = str(folder)
    os.environ["GKP_DATA"] = os.pathsep.join(str(given) for given in given_folders())  # the kernels start in another folder
    parameters = {"profile": profile, "jobs": jobs or os.cpu_count() or 1}
    executed = []
    for number, file in enumerate(files, start=1):
        print(f"[{number}/{len(files)}] {file.stem} ({profile}) ...", flush=True)
        executed.append(run_notebook(file, folder, parameters, progress=progress))
        print(f"    {executed[-1].cells or 'no cells'}; {executed[-1].seconds:.0f} s -> {executed[-1].file}", flush=True)
    return executed
