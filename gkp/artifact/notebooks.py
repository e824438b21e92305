"""Runs the notebooks that are not up to date, side by side, with the traps of papermill closed.

A notebook whose executed copy still follows from what is there (`gkp.artifact.executed`) is left alone. When several are to
be executed, the cells of the profile are computed first, in one run with all workers; then the notebooks find them, on as
many kernels as there are jobs. A notebook that computes all the same waits for its turn (`gkp.artifact.experiments.ledger`),
so that two kernels never start four workers. The last notebook sums the others up and waits for them.

A parameter that a notebook does not have is refused (papermill only warns). A notebook is written under its final name only
when every cell has run: until then it is `NAME.partial.ipynb`, and `NAME.failed.ipynb` where a cell failed; its tables and
figures appear with it. One that fails does not stop the others.

Cost: about a second when everything is up to date; three seconds of starting and importing for a notebook that is not.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gkp.artifact.executed import Record, origin, record_file, sha256_of_file
from gkp.artifact.experiments import ledger
from gkp.artifact.experiments.provenance import cores
from gkp.errors import BadInput, RunFailed
from gkp.files import checkout, given_folders

SUMMARY = "99_"  # the notebook that sums the others up begins with this


@dataclass(frozen=True)
class Executed:
    """One notebook of a `reproduce`: its name, the executed copy, seconds, the cells it used, and whether it ran just now."""

    name: str
    file: Path
    seconds: float
    used: tuple[ledger.Used, ...]
    ran: bool = True

    @property
    def cells(self) -> str:
        """The cells in one line: "42 cells: 42 cached, 0 computed"."""
        return ledger.headline(self.used)


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


def run_notebook(
    file: Path,
    out: Path,
    parameters: Mapping[str, Any],
    *,
    came_from: Mapping[str, str] | None = None,
    compute: bool = True,
    progress: bool = False,
) -> Executed:
    """The executed copy of `file`, in the folder `out`, with the tables and figures it saved and a record of what it used.

    came_from: the notebook's `origin`, where the caller has looked at it already; compute: whether it computes the cells that
    are missing; progress: a bar on stderr.
    Raises BadInput for a parameter that the notebook does not have, and RunFailed when a cell raises; then neither a notebook
    nor a table of its own stands under its final name.
    """
    import papermill  # two seconds, which a run with nothing to do need not spend
    from papermill.exceptions import PapermillExecutionError

    known = papermill.inspect_notebook(str(file))
    if unknown := sorted(set(parameters) - set(known)):
        raise BadInput(f"{file.name} has no parameter {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    _forget(out, file.stem)
    started, came_from = time.perf_counter(), dict(came_from or origin(file, parameters))
    unfinished, saved = out / f"{file.stem}.partial.ipynb", out / f".{file.stem}.partial"
    used = saved / ".ledger"
    saved.mkdir(parents=True)
    try:
        environment = {"GKP_OUT": str(saved), ledger.LEDGER: str(used), ledger.TURN: str(out / ".turn")}
        with _environment(environment if compute else {**environment, ledger.FINISHED: "1"}):
            papermill.execute_notebook(
                str(file),
                str(unfinished),
                parameters=dict(parameters),
                kernel_name="python3",
                cwd=str(file.parent.parent),
                progress_bar=progress,
                extra_arguments=["--log-level=ERROR"],  # of the kernel, which warns that it listens to this machine
            )
        cells = tuple(ledger.read(used))
        used.unlink(missing_ok=True)
        _check_names(file, out, saved)
        files = [*_move(saved, out), file.name]
    except PapermillExecutionError as error:
        failed = unfinished.replace(out / f"{file.stem}.failed.ipynb")
        raise RunFailed(f"{file.name}: {error.ename}: {error.evalue} (cell by cell in {failed})") from None
    finally:
        shutil.rmtree(saved, ignore_errors=True)
    final, seconds = unfinished.replace(out / file.name), time.perf_counter() - started
    Record(file.stem, came_from, cells, {path: sha256_of_file(out / path) for path in files}, round(seconds, 1)).save(out)
    return Executed(file.stem, final, seconds, cells)


def reproduce(
    profile: str = "quick",
    *,
    only: str | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
    compute: bool | None = None,
    progress: bool = False,
) -> list[Executed]:
    """Every notebook executed for `profile`; executed copies, figures and tables stand in `out` (default build/PROFILE).

    only: part of a notebook's name. jobs: notebooks side by side, and workers of the one that computes (default: the number of
    cores). force: execute notebooks that are up to date too. compute: whether cells that are missing are computed; if not,
    tables show the others, and verdicts say "not run". None: computed, unless the profile's cells are committed.
    Raises BadInput for an unknown profile or notebook; RunFailed in the end when a notebook has failed.
    """
    from gkp.artifact.profiles import COMMITTED, PROFILES, check_profile  # the grid is only needed here

    check_profile(profile)
    files = notebook_files(only)
    folder = Path(out or Path("build") / Path(profile).stem).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write to {folder} ({error.strerror}); choose another folder with --out") from error
    os.environ["GKP_DATA"] = os.pathsep.join(str(given) for given in given_folders())  # the kernels start in another folder
    jobs = jobs or cores()
    parameters = {"profile": profile if profile in PROFILES else str(Path(profile).resolve()), "jobs": jobs}
    compute = profile != COMMITTED if compute is None else compute
    run = _Reproduction(files, folder, parameters, force=force, compute=compute)
    summary = [file for file in files if file.stem.startswith(SUMMARY)]
    stale = run.stale(file for file in files if file not in summary)
    if compute and only is None and len(stale) > 1:
        run.computed_before = compute_cells(profile, jobs)
    run.execute(stale, side_by_side=jobs, progress=progress)
    run.execute(run.stale(summary), side_by_side=jobs, progress=progress)
    print(*verdict_lines(folder), *run.missing_lines(), run.headline(), sep="\n", flush=True)
    if run.failures:
        raise RunFailed(" | ".join(run.failures))
    return [run.done[file.stem] for file in files]


def compute_cells(profile: str, jobs: int) -> frozenset[str]:
    """The hashes of those of the profile's cells that had to be computed, now finished. Raises RunFailed if one fails."""
    from gkp.artifact import experiments as grid  # torch comes with them
    from gkp.artifact import profiles

    report = grid.run(profiles.cells(profile), jobs=jobs)
    return frozenset(result.cell.hash for result in report if not result.cached)


def verdict_lines(out: Path) -> list[str]:
    """The verdicts that the summary has saved in `out` as tables/verdicts.csv: a line each, then one that counts them."""
    file = out / "tables" / "verdicts.csv"
    if not file.exists():
        return []
    with open(file, encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    counts = Counter(row["verdict"] for row in rows)
    given = [row for row in rows if not row["verdict"].startswith("not a verdict")]  # digits give none
    lines = [f"{row['verdict']:<16} {row['item']:<28} {row['statement']}" for row in given]
    return [*lines, f"{len(rows)} claims: {', '.join(f'{count} {verdict}' for verdict, count in counts.most_common())}"]


class _Reproduction:
    """What has been done of one `reproduce`, and what it says about it."""

    def __init__(self, files: Sequence[Path], out: Path, parameters: Mapping[str, Any], *, force: bool, compute: bool) -> None:
        self.out, self.parameters, self.force, self.compute = out, parameters, force, compute
        self.done: dict[str, Executed] = {}
        self.computed_before: frozenset[str] = frozenset()  # hashes of the cells that were computed before any notebook ran
        self.failures: list[str] = []
        self._number = {file: f"[{place}/{len(files)}] {file.stem}" for place, file in enumerate(files, start=1)}
        self._started = time.perf_counter()

    def stale(self, files: Iterable[Path]) -> dict[Path, Callable[..., Executed]]:
        """Those of the notebooks that are not up to date, each with what executes it."""
        origins = {file: origin(file, self.parameters) for file in files}
        return {
            file: partial(run_notebook, file, self.out, self.parameters, came_from=came_from, compute=self.compute)
            for file, came_from in origins.items()
            if not self.is_up_to_date(file, came_from)
        }

    def execute(self, stale: Mapping[Path, Callable[..., Executed]], *, side_by_side: int, progress: bool) -> None:
        """Executes these notebooks, so many at once."""
        if min(side_by_side, len(stale)) <= 1:
            for file, run in stale.items():
                self._settle(file, partial(run, progress=progress))
            return
        pool = ProcessPoolExecutor(
            min(side_by_side, len(stale)), multiprocessing.get_context("spawn"), initializer=_end_with_parent
        )
        with pool:
            waiting: dict[Future[Executed], Path] = {pool.submit(run): file for file, run in stale.items()}
            for future in as_completed(waiting):
                self._settle(waiting[future], future.result)

    def headline(self) -> str:
        """One line on all notebooks and the distinct cells they used."""
        ran = sum(done.ran for done in self.done.values())
        counts = f"{len(self.done) - ran} up to date, {ran} executed"
        counts += f", {len(self.failures)} failed" if self.failures else ""
        cells = [replace(cell, computed=cell.computed or cell.hash in self.computed_before) for cell in self._cells()]
        total = len(self._number)
        seconds = time.perf_counter() - self._started
        return (
            f"{total} notebook{'' if total == 1 else 's'}: {counts}; {ledger.headline(cells)}; "
            f"{seconds:.0f} s; all in {self.out}"
        )

    def _cells(self) -> list[ledger.Used]:
        """The distinct cells that the notebooks asked for."""
        return ledger.merged(cell for done in self.done.values() for cell in done.used if cell.asked)

    def missing_lines(self) -> list[str]:
        """A line on the cells that are not finished, where they are not computed."""
        used = self._cells()
        missing = sum(cell.sha256 is None for cell in used)
        if self.compute or not missing:
            return []
        command = f"make reproduce PROFILE={self.parameters['profile']} COMPUTE=1"
        return [f"{missing} of {len(used)} cells are not finished, what they decide is not run; `{command}` computes them"]

    def is_up_to_date(self, file: Path, came_from: Mapping[str, str]) -> bool:
        """Whether the notebook need not be executed; says so, or why it must."""
        record = Record.load(self.out, file.stem)
        if self.force:
            why = "as asked"
        elif record is None:
            why = "for the first time"
        else:
            missing = sum(cell.needed and cell.sha256 is None for cell in record.cells) if self.compute else 0
            why = record.outdated(came_from, self.out) or (f"{missing} cells were missing" if missing else "")
        if why or record is None:
            print(f"{self._number[file]} ({self._profile}): to be executed, {why}", flush=True)
            return False
        cells = tuple(replace(cell, computed=False) for cell in record.cells)
        self.done[file.stem] = done = Executed(file.stem, self.out / file.name, 0.0, cells, ran=False)
        print(f"{self._number[file]} ({self._profile}): up to date; {done.cells}", flush=True)
        return True

    def _settle(self, file: Path, result: Callable[[], Executed]) -> None:
        try:
            done = self.done[file.stem] = result()
        except RunFailed as error:
            self.failures.append(str(error))
            print(f"{self._number[file]}: FAILED: {error}", flush=True)
        except BrokenProcessPool:
            self.failures.append(f"{file.name}: its process was killed, by a lack of memory perhaps; finished cells are kept")
            print(f"{self._number[file]}: FAILED: {self.failures[-1]}", flush=True)
        else:
            print(f"{self._number[file]}: executed in {done.seconds:.0f} s; {done.cells} -> {done.file}", flush=True)

    @property
    def _profile(self) -> str:
        return Path(self.parameters["profile"]).stem


def _forget(out: Path, name: str) -> None:
    """Removes what an earlier execution left: the copy, its record, the tables and figures that only it has written."""
    record = Record.load(out, name)
    record_file(out, name).unlink(missing_ok=True)
    for path in record.files if record else ():
        (out / path).unlink(missing_ok=True)
    for suffix in ("", ".partial", ".failed"):
        (out / f"{name}{suffix}.ipynb").unlink(missing_ok=True)
    shutil.rmtree(out / f".{name}.partial", ignore_errors=True)


def _check_names(file: Path, out: Path, saved: Path) -> None:
    """Raises RunFailed when the notebook has saved a table or figure under a name that another one uses."""
    for other in file.parent.glob("[0-9]*.ipynb"):
        record = Record.load(out, other.stem) if other != file else None
        if record and (both := sorted(record.files.keys() & set(_paths(saved)))):
            raise RunFailed(f"{file.name} saves {both[0]}, and so does {other.name}; one of them needs another name")


def _paths(folder: Path) -> list[str]:
    """Every file below the folder, relative to it."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _move(source: Path, target: Path) -> list[str]:
    """Moves every file of one folder to the same place in another; their paths."""
    moved = _paths(source)
    for path in moved:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).replace(target / path)
    return moved


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """These environment variables while the body runs: kernels take them over."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
