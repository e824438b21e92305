"""Execute the notebooks that are not up to date, several at once.

Notebooks that are up to date (`gkp.artifact.executed`) are left alone. The cells that the others need are computed first,
once, with all workers. A notebook and its tables and figures get their final names only when all of its code has run; a failed
one leaves `NAME.failed.ipynb` and does not stop the others.

A notebook is executed in a folder of its own, so that its files in `build/` can be moved when it is complete, and in a kernel
of this interpreter. Papermill checks and injects the parameters; nbclient executes, because papermill can neither be given a
kernel nor run two notebooks in one process.

Cost: a few seconds when everything is up to date; three seconds of start-up for each notebook that is executed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gkp.artifact import claims
from gkp.artifact import experiments as grid
from gkp.artifact.executed import (
    Record,
    cells_run,
    cells_shown,
    finished,
    origin,
    read_notebook,
    record_file,
)
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.provenance import cores
from gkp.artifact.experiments.store import Entry
from gkp.artifact.profiles import COMMITTED, PROFILES, check_profile
from gkp.errors import BadInput, RunFailed
from gkp.files import checkout, file_sha256


@dataclass(frozen=True)
class Executed:
    """A notebook after `reproduce`.

    Attributes:
        name: Its name without suffix.
        file: The executed copy.
        seconds: How long the execution took.
        ran: Whether it was executed now; False where it was up to date.
    """

    name: str
    file: Path
    seconds: float
    ran: bool = True


def notebook_files(only: str | None = None) -> list[Path]:
    """The notebooks of this checkout, in order; with `only`, those whose name contains it. BadInput where none does."""
    root = checkout()
    if root is None:
        raise BadInput("the notebooks are not installed with the package; run this in a checkout of the repository")
    every = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    chosen = [file for file in every if only is None or only in file.stem]
    if not chosen:
        raise BadInput(f"no notebook matches {only!r}; there are {', '.join(file.stem for file in every)}")
    return chosen


def run_notebook(
    file: Path, out: Path, parameters: Mapping[str, Any], *, came_from: Mapping[str, str] | None = None
) -> Executed:
    """Execute one notebook into a folder, with its tables and figures and a record of what they depend on.

    Args:
        file: The notebook.
        out: The output folder, which gets NAME.ipynb, tables/ and figures/.
        parameters: Name -> value of the notebook's parameters.
        came_from: The `origin` of the notebook, if the caller knows it.

    Raises:
        BadInput: The notebook does not have one of the parameters.
        RunFailed: The code of the notebook fails; then no file gets its final name.
    """
    import nbformat  # here, because with papermill and nbclient it takes two seconds
    import papermill
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    from gkp.artifact.kernel import execute

    book, known = load_notebook_node(str(file)), papermill.inspect_notebook(str(file))
    if unknown := sorted(set(parameters) - set(known)):
        raise BadInput(f"{file.name} has no parameter {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    _forget(out, file.stem)
    started, came_from = time.perf_counter(), dict(came_from or origin(file, parameters))
    folder, failed = out / f".{file.stem}.partial", out / f"{file.stem}.failed.ipynb"
    folder.mkdir(parents=True)
    try:
        if parameters:
            book = parameterize_notebook(book, dict(parameters))
        execute(book, folder)
        _relink(book, out)
        (saved := folder / "build").mkdir(exist_ok=True)
        nbformat.write(book, saved / file.name)
        _check_names(file, out, saved)
        files = _move(saved, out)
    except CellExecutionError as error:
        nbformat.write(book, failed)
        raise RunFailed(f"{file.name}: {error.ename}: {error.evalue} (cell by cell in {failed})") from None
    except DeadKernelError:
        raise RunFailed(f"{file.name}: its process was killed, perhaps for lack of memory; finished cells are kept") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.perf_counter() - started
    Record(file.stem, came_from, {path: file_sha256(out / path) for path in files}, round(seconds, 1)).save(out)
    return Executed(file.stem, out / file.name, seconds)


def reproduce(
    profile: str = "quick",
    *,
    only: str | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
    compute: bool | None = None,
    conclude: bool = True,
) -> list[Executed]:
    """Execute the notebooks for a profile.

    Args:
        profile: "quick", "cifar10", "paper", or the path of a Python file.
        only: Part of the name of the notebooks to execute; None for all.
        jobs: Notebooks executed at once, and workers that compute cells; None for the number of cores.
        out: The folder for executed copies, figures and tables; None for build/PROFILE.
        force: Whether to execute notebooks that are up to date.
        compute: Whether to compute missing cells; without them tables show the others, and verdicts are "not run". None: yes,
            unless the cells of the profile are committed.
        conclude: Whether to print the verdicts and the number of missing cells in the end.

    Raises:
        BadInput: The profile or notebook is not known.
        RunFailed: A cell or a notebook has failed.
    """
    check_profile(profile)
    files, jobs = notebook_files(only), jobs or cores()
    compute = profile != COMMITTED if compute is None else compute
    folder = Path(out or Path("build") / Path(profile).stem).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write to {folder} ({error.strerror}); choose another folder with --out") from error
    wanted = {file: cells_run(read_notebook(file), profile) for file in files}
    every = list({cell.hash: cell for cells in wanted.values() for cell in cells}.values())
    report = grid.run(every, jobs=jobs if compute else 0, quiet=True)
    computed = {result.cell.hash for result in report if not result.cached}
    results = finished({cell.hash: cell for file in files for cell in cells_shown(read_notebook(file), profile)}.values())
    parameters = {"profile": profile if profile in PROFILES else str(Path(profile).resolve()), "jobs": jobs if compute else 0}
    run = _Reproduction(folder, parameters, results, computed, {file: wanted[file] for file in files})
    run.execute(force=force, side_by_side=jobs)
    said = [*verdict_lines(folder), *run.missing_lines(every, compute)] if conclude else []
    print(*said, run.headline(every), sep="\n", flush=True)
    if run.failures:
        raise RunFailed(" | ".join(run.failures))
    return [run.done[file] for file in files]


def counts(cells: Collection[Cell], results: Collection[str], computed: Collection[str]) -> str:
    """Counts as one line: "42 cells: 40 cached, 1 computed, 1 missing"; "no cells" where there are none.

    Args:
        cells: The cells to count.
        results: Hashes of all finished cells.
        computed: Hashes of the cells that were computed now.
    """
    if not cells:
        return "no cells"
    there = [cell for cell in cells if cell.hash in results]
    new, missing = sum(cell.hash in computed for cell in there), len(cells) - len(there)
    found = f"{len(there) - new} cached, {new} computed" + (f", {missing} missing" if missing else "")
    return f"{len(cells)} cell{'' if len(cells) == 1 else 's'}: {found}"


def verdict_lines(out: Path) -> list[str]:
    """The verdicts that the last notebook saved in `out`, as text: the main claims, then a headline for each board."""
    file = out / "tables" / "verdicts.csv"
    if not file.is_file():
        return []
    points = pd.read_csv(file, dtype={"ours": str, "interval": str})
    main = [row for row in claims.main_rows(points) if row["verdict"] != claims.NO_VERDICT]
    return [*(f"{row['verdict']:<14} {row['statement']}: {claims.in_full(row)}" for row in main), *claims.headlines(points)]


class _Reproduction:
    """The state of one `reproduce`."""

    def __init__(
        self,
        out: Path,
        parameters: Mapping[str, Any],
        results: Mapping[str, Entry],
        computed: Collection[str],
        cells: Mapping[Path, Collection[Cell]],
    ) -> None:
        self.out, self.parameters, self.results, self.computed, self.cells = out, parameters, results, computed, cells
        self.done: dict[Path, Executed] = {}
        self.failures: list[str] = []
        self._started = time.perf_counter()

    def execute(self, *, force: bool, side_by_side: int) -> None:
        """Execute the notebooks that are not up to date, `side_by_side` at once."""
        from gkp.artifact.kernel import kill_all

        origins = {file: origin(file, self.parameters, self.results) for file in self.cells}
        stale = {file: found for file, found in origins.items() if not self.is_up_to_date(file, found, force=force)}
        with ThreadPoolExecutor(max(1, side_by_side)) as pool:
            waiting = {
                pool.submit(run_notebook, file, self.out, self.parameters, came_from=found): file
                for file, found in stale.items()
            }
            try:
                for future in as_completed(waiting):
                    self._settle(waiting[future], future.result)
            except BaseException:  # Ctrl-C
                pool.shutdown(wait=False, cancel_futures=True)
                kill_all()
                raise

    def is_up_to_date(self, file: Path, came_from: Mapping[str, str], *, force: bool) -> bool:
        """Whether a notebook is up to date; prints the answer and the reason."""
        record = Record.load(self.out, file.stem)
        why = "for the first time" if record is None else "as asked" if force else record.outdated(came_from, self.out)
        if record is not None and not why:
            self.done[file] = Executed(file.stem, self.out / file.name, 0.0, ran=False)
        self._say(file, f"to be executed, {why}" if why else f"up to date; {self._counts(file)}")
        return not why

    def headline(self, every: Collection[Cell]) -> str:
        """One line on all notebooks and their cells."""
        total, ran, seconds = len(self.cells), sum(done.ran for done in self.done.values()), time.perf_counter() - self._started
        parts = [f"{len(self.done) - ran} up to date, {ran} executed"]
        parts += [f"{len(self.failures)} failed"] if self.failures else []
        said = f"{', '.join(parts)}; {counts(every, self.results, self.computed)}; {seconds:.0f} s; all in {self.out}"
        return f"{total} notebook{'' if total == 1 else 's'}: {said}"

    def missing_lines(self, every: Collection[Cell], compute: bool) -> list[str]:
        """A line on missing cells where they are not to be computed; else nothing."""
        missing = sum(cell.hash not in self.results for cell in every)
        if compute or not missing:
            return []
        command = f"make reproduce PROFILE={self.parameters['profile']} COMPUTE=1"
        return [f"{missing} of {len(every)} cells are not finished, what they decide is not run; `{command}` computes them"]

    def _settle(self, file: Path, result: Callable[[], Executed]) -> None:
        try:
            done = self.done[file] = result()
        except RunFailed as error:
            self.failures.append(str(error))
            self._say(file, f"FAILED: {error}")
        else:
            self._say(file, f"executed in {done.seconds:.0f} s; {self._counts(file)}")

    def _counts(self, file: Path) -> str:
        return counts(self.cells[file], self.results, self.computed)

    def _say(self, file: Path, what: str) -> None:
        number = [*self.cells].index(file) + 1
        print(f"[{number}/{len(self.cells)}] {file.stem} ({Path(self.parameters['profile']).stem}): {what}", flush=True)


def _forget(out: Path, name: str) -> None:
    """Remove what an earlier execution of the notebook left."""
    record = Record.load(out, name)
    record_file(out, name).unlink(missing_ok=True)
    for path in record.files if record else ():
        (out / path).unlink(missing_ok=True)
    for suffix in ("", ".failed"):
        (out / f"{name}{suffix}.ipynb").unlink(missing_ok=True)
    shutil.rmtree(out / f".{name}.partial", ignore_errors=True)


def _relink(book: Any, out: Path) -> None:
    """Change links to files in build/ into links to `out`, valid from there and from the folders beside it."""
    for output in (output for cell in book.cells for output in cell.get("outputs", ())):
        if html := output.get("data", {}).get("text/html"):
            output["data"]["text/html"] = html.replace('href="build/', f'href="../{out.resolve().name}/')


def _check_names(file: Path, out: Path, saved: Path) -> None:
    """Raise RunFailed if the notebook has saved a file under a name that another notebook uses."""
    for other in file.parent.glob("[0-9]*.ipynb"):
        record = Record.load(out, other.stem) if other != file else None
        if record and (both := sorted(record.files.keys() & set(_paths(saved)))):
            raise RunFailed(f"{file.name} saves {both[0]}, and so does {other.name}; one of them needs another name")


def _paths(folder: Path) -> list[str]:
    """The paths of all files below the folder, relative to it."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _move(source: Path, target: Path) -> list[str]:
    """Move every file of one folder to the same place in another one, and return their relative paths."""
    moved = _paths(source)
    for path in moved:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).replace(target / path)
    return moved
