"""`gkp publish`: copy measured cells, verdicts and executed notebooks to where they are committed, in that order.

    data/results/<cell>/   finished cells of the profile, without logs; without networks that start from public weights of
                           others and networks of seeds other than 0 (some committed earlier keep theirs)
    data/unfinished/       the log, so far, of a training of days that is not finished, without its network
    data/checkpoints/      the baseline trained here, as `gkp.load_model` reads it
    data/verdicts.csv      the verdicts of `gkp.artifact.claims` on these cells
    data/minutes.csv       the cost of each notebook, from the seconds recorded in its cells
    README.md              its opening: the main verdicts
    data/MANIFEST          size, sha256, source and licence of every file under data/
    notebooks/, figures/   the executed notebooks without times, and their figures; only if the checks of the data pass

Files that are committed already are checked first: an edited number is refused.

Cost: copying, and the verdicts once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gkp.artifact import experiments as grid
from gkp.artifact import manifest, profiles
from gkp.artifact import readme as front_page
from gkp.artifact.executed import RECORDS, Record, cells_run, finished, origin, read_notebook, reading_copy
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.history import UNFINISHED, keep_unfinished
from gkp.artifact.experiments.kinds import PretrainedCell, PruneCell, TrainCell
from gkp.artifact.experiments.store import Store, default_store
from gkp.artifact.experiments.todo import family
from gkp.artifact.groups import is_logged
from gkp.artifact.verify import (
    VERDICTS,
    Check,
    check_cells,
    check_data,
    check_notebooks,
    check_outcomes,
    root_of,
    verdicts_csv,
)
from gkp.errors import BadInput, RunFailed
from gkp.files import file_sha256, replace_file, replace_files

MINUTES, CORES = "minutes.csv", 2  # costs are stated for a machine with two cores


@dataclass(frozen=True)
class Published:
    """The outcome of `publish`.

    Attributes:
        finished, cells: The numbers of finished and of all cells of the profile.
        megabytes: The size of data/.
        notebooks: The names of the notebooks written.
        checks: The checks of `gkp verify`.
    """

    finished: int
    cells: int
    megabytes: float
    notebooks: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def lines(self) -> list[str]:
        """The outcome as lines of text."""
        first = f"{self.finished} of {self.cells} cells are committed, {self.megabytes:.1f} MB in data/"
        return [first, *(check.line for check in self.checks), f"{len(self.notebooks)} notebooks written"]


def publish(
    profile: str = profiles.COMMITTED, *, cells_only: bool = False, root: Path | None = None, store: Store | None = None
) -> Published:
    """Copy the finished cells of a profile to data/, and the notebooks executed for it to notebooks/.

    Args:
        profile: The profile whose cells are committed.
        cells_only: Whether to leave the notebooks alone.
        root: The checkout; None for that of this package.
        store: Where the cells are; None for `gkp.artifact.experiments.default_store()`.

    Raises:
        BadInput: The cells of this profile are never committed.
        RunFailed: A committed file was edited. Or a notebook is not up to date or a check of the data fails; cells are then
            copied, but notebooks are not.
    """
    profiles.check_profile(profile)
    if profile == "quick":
        raise BadInput("the cells of quick are computed anew by everyone who runs it, never committed; publish cifar10")
    root, store = root_of(root), store or default_store()
    data = root / "data"
    refuse_edited(data)
    wanted = profiles.cells(profile)
    stored = finished(wanted, store)
    done = [cell for cell in wanted if cell.hash in stored]
    publish_cells(done, data / "results", store)
    keep_unfinished([c for c in wanted if is_logged(c) and c.hash not in stored], data / UNFINISHED, store)
    publish_baselines(done, data, store)
    replace_file(data / VERDICTS, verdicts_csv(data, profile))
    publish_minutes(root / "build", data, store)
    front_page.write_opening(root, pd.read_csv(data / VERDICTS), profile)
    rows = manifest.write(data)
    checks = check_data(root, profile)
    notebooks: tuple[str, ...] = ()
    if not cells_only:
        refuse_problems(checks)
        executed = root / "build" / Path(profile).stem
        notebooks = publish_notebooks(root / "notebooks", executed, profile)
        publish_figures(executed / "figures", root / "figures")
        front_page.write_opening(root, pd.read_csv(data / VERDICTS), profile)  # again, because its figure may be new
    checks.append(check_notebooks(root / "notebooks"))
    return Published(len(done), len(wanted), sum(row.bytes for row in rows) / 1e6, notebooks, tuple(checks))


def refuse_edited(data: Path) -> None:
    """Raise RunFailed if a committed cell differs from its hashes, or another measured file from the manifest."""
    refuse_problems((check_cells(data / "results"), check_outcomes(data / "results")))
    rows = manifest.read(data)
    edited = [
        path
        for path in manifest.files(data)
        if path.startswith(("results/", "checkpoints/")) and path in rows and file_sha256(data / path) != rows[path].sha256
    ]
    if edited:
        raise RunFailed(f"data/{edited[0]} differs from data/MANIFEST; restore it with git, or remove its cell and compute it")


def refuse_problems(checks: Iterable[Check]) -> None:
    """Raise RunFailed with the first problem of these checks, if there is one."""
    if problems := [problem for check in checks for problem in check.problems]:
        more = f" (and {len(problems) - 1} more: gkp verify)" if len(problems) > 1 else ""
        raise RunFailed(f"not published: {problems[0]}{more}")


def publish_cells(cells: Sequence[Cell], results: Path, store: Store) -> None:
    """Copy finished cells into `results`, some of them without their network.

    Networks that start from public weights of others are left out: their licence does not allow passing them on, and pruning
    takes a second. So are networks of seeds other than 0; their outcomes are enough for intervals.

    Args:
        cells: Finished cells.
        results: The folder of committed cells.
        store: Where the cells are.
    """
    results.mkdir(parents=True, exist_ok=True)
    grid.publish([cell for cell in cells if _network_is_kept(cell)], results, store=store)
    grid.publish([cell for cell in cells if not _network_is_kept(cell)], results, without=["*.safetensors"], store=store)


def _network_is_kept(cell: Cell) -> bool:
    source = cell.net if isinstance(cell, PruneCell) else cell
    return not isinstance(source, PretrainedCell) and not (isinstance(cell, PruneCell) and cell.seed > 0)


def publish_baselines(cells: Iterable[Cell], data: Path, store: Store) -> None:
    """Copy each baseline that was trained here to checkpoints/MODEL-gkp, each file atomically.

    Args:
        cells: Finished cells, of which those of baselines are taken.
        data: The folder data/.
        store: Where the cells are.
    """
    for cell in cells:
        if isinstance(cell, TrainCell):
            files = grid.load([cell], store=store)[0].file("model").iterdir()
            target = data / "checkpoints" / f"{cell.model}-gkp"
            replace_files(target, {file.name: file.read_bytes() for file in files}, "the baseline")


def publish_minutes(build: Path, data: Path, store: Store) -> None:
    """Write the cost of each notebook to minutes.csv; profiles that were not executed here keep their rows.

    The minutes of a notebook are those of its cells and their ancestors (seconds times threads, on CORES cores) plus its own.
    The row "all" counts each cell once. A notebook without cells has no row.

    Args:
        build: The folder with a folder of executed notebooks for each profile.
        data: The folder data/.
        store: Where the cells are.
    """
    found: dict[str, list[tuple[Record, list[Cell]]]] = {}
    for file in sorted(build.glob(f"*/{RECORDS}/*.json")):
        out, profile = file.parents[1], file.parents[1].name
        record, book = Record.load(out, file.stem), out / f"{file.stem}.ipynb"
        known = record is not None and book.exists() and profile in profiles.PROFILES
        if record and known and (cells := cells_run(read_notebook(book), profile)):
            found.setdefault(profile, []).append((record, cells))
    rows = [
        {"profile": profile, "notebook": name, **_cost(members, store)}
        for profile, every in found.items()
        for name, members in [*((record.name, [(record, cells)]) for record, cells in every), ("all", every)]
    ]
    old = pd.read_csv(data / MINUTES).to_dict("records") if (data / MINUTES).exists() else []
    rows += [{str(name): value for name, value in row.items()} for row in old if row["profile"] not in found]
    if rows:
        table = pd.DataFrame(rows).sort_values(["profile", "notebook"])
        replace_file(data / MINUTES, table.to_csv(index=False, lineterminator="\n"))


def _cost(members: Sequence[tuple[Record, list[Cell]]], store: Store) -> dict[str, Any]:
    """The cost of these notebooks together, as a row of minutes.csv; missing: cells that are not finished."""
    asked = {cell.hash: cell for _, cells in members for cell in cells}
    done = finished(family(asked.values()).values(), store)
    runs = [entry.run() for entry in done.values()]
    seconds = sum(run["seconds"] * max(1, run["threads"]) for run in runs) / CORES
    return {
        "cells": len(done),
        "missing": len(asked.keys() - done.keys()),
        "minutes": round((seconds + sum(record.seconds for record, _ in members)) / 60, 2),
        "cores": CORES,
        "hardware": "; ".join(sorted({run["hardware"]["processor"] for run in runs})),
    }


def publish_notebooks(notebooks: Path, executed: Path, profile: str) -> tuple[str, ...]:
    """Replace each notebook by the reading copy of its execution.

    Args:
        notebooks: The folder of committed notebooks.
        executed: The folder of executed notebooks.
        profile: The profile that they were executed for.

    Returns:
        The names of the notebooks.

    Raises:
        RunFailed: A notebook is not up to date; then none is replaced.
    """
    copies, stale = dict[str, bytes](), []
    for file in sorted(notebooks.glob("[0-9]*.ipynb")):
        record = Record.load(executed, file.stem)
        why = "not executed" if record is None else record.outdated(origin(file, {"profile": profile}), executed)
        if why:
            stale.append(f"{file.name}: {why}")
        else:
            book = reading_copy(read_notebook(executed / file.name), profile, record.files if record else None)
            copies[file.name] = (json.dumps(book, indent=1, ensure_ascii=False) + "\n").encode()
    if stale:
        again = f"run `make reproduce PROFILE={profile}` first"
        raise RunFailed(f"no notebook was written, {len(stale)} are not up to date ({'; '.join(stale)}); {again}")
    replace_files(notebooks, copies, "notebooks")
    return tuple(copies)


def publish_figures(drawn: Path, figures: Path) -> None:
    """Replace the files in `figures` by those that the notebooks have saved in `drawn`."""
    new = {file.name: file.read_bytes() for file in drawn.glob("*") if file.suffix in {".svg", ".png", ".csv", ".txt"}}
    for file in replace_files(figures, new, "figures").iterdir():
        if file.name not in new:
            file.unlink()
