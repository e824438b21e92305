"""`gkp publish`: measured cells, verdicts and executed notebooks to where they are committed, in that order.

    data/results/<cell>/   finished cells of the profile, without logs, without networks that begin with somebody else's
                           public weights, nor those of seeds beyond 0 (some committed earlier keep theirs)
    data/checkpoints/      the baseline trained here, as `gkp.load_model` reads it
    data/verdicts.csv      what `gkp.artifact.claims` concludes from those cells
    data/minutes.csv       what each notebook costs, from the seconds recorded in its cells
    README.md              its opening: the main verdicts
    data/MANIFEST          size, sha256, source and licence of every file under data/
    notebooks/, figures/   the executed notebooks, times stripped, and their figures; only when nothing is wrong with the data

What is committed already is checked first: an edited number is refused, not made official.

Cost: copying, and the verdicts once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gkp.artifact import experiments as grid
from gkp.artifact import manifest
from gkp.artifact import readme as front_page
from gkp.artifact.executed import Record, origin, read_notebook, reading_copy
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import Network, PretrainedCell, PruneCell, TrainCell
from gkp.artifact.experiments.store import Store, default_store, read_json
from gkp.artifact.profiles import COMMITTED
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
from gkp.files import replace_files

MINUTES, CORES = "minutes.csv", 2  # the machine that costs are stated for
_NETWORKS = ("*.safetensors",)


@dataclass(frozen=True)
class Published:
    """What `publish` did: finished cells of the profile of all it has, MB under data/, notebooks written, what verify found."""

    finished: int
    cells: int
    megabytes: float
    notebooks: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def lines(self) -> list[str]:
        """The same for people."""
        first = f"{self.finished} of {self.cells} cells are committed, {self.megabytes:.1f} MB in data/"
        return [first, *(check.line for check in self.checks), f"{len(self.notebooks)} notebooks written"]


def publish(
    profile: str = COMMITTED, *, cells_only: bool = False, root: Path | None = None, store: Store | None = None
) -> Published:
    """Copies what is finished of the profile to data/, and the notebooks that were executed for it back to notebooks/.

    cells_only: leave the notebooks alone. root: the checkout, and store: where its cells are, if not those of this package.
    Raises BadInput for a profile whose cells are not committed; RunFailed when something committed was edited, and when a
    notebook is not up to date or something is wrong with the data (cells are copied all the same, notebooks are not).
    """
    from gkp.artifact.profiles import cells, check_profile  # torch comes with it

    check_profile(profile)
    if profile == "quick":
        raise BadInput("the cells of quick are computed anew by everyone who runs it, never committed; publish cifar10")
    root, store = root_of(root), store or default_store()
    data = root / "data"
    refuse_edited(data)
    wanted = cells(profile)
    finished = [result.cell for result in grid.load(wanted, store=store)]
    publish_cells(finished, data / "results", store)
    publish_baselines(finished, data, store)
    (data / VERDICTS).write_text(verdicts_csv(data, profile), encoding="utf-8")
    publish_minutes(root / "build", data, store)
    front_page.write_opening(root, pd.read_csv(data / VERDICTS), profile)
    rows = manifest.write(data)
    checks = check_data(root, profile)
    notebooks: tuple[str, ...] = ()
    if not cells_only:
        refuse_problems(checks)
        executed = root / "build" / Path(profile).stem
        notebooks = publish_notebooks(root / "notebooks", executed, profile, store)
        publish_figures(executed / "figures", root / "figures")
        front_page.write_opening(root, pd.read_csv(data / VERDICTS), profile)  # its figure may be new
    checks.append(check_notebooks(root / "notebooks"))
    return Published(len(finished), len(wanted), sum(row.bytes for row in rows) / 1e6, notebooks, tuple(checks))


def refuse_edited(data: Path) -> None:
    """Raises RunFailed when a committed cell is not as it was written, or another measured file not as in the manifest."""
    refuse_problems((check_cells(data / "results"), check_outcomes(data / "results")))
    rows = manifest.read(data)
    edited = [
        path
        for path in manifest.files(data)
        if path.startswith(("results/", "checkpoints/"))
        and path in rows
        and manifest.sha256_of_file(data / path) != rows[path].sha256
    ]
    if edited:
        raise RunFailed(f"data/{edited[0]} differs from data/MANIFEST; restore it with git, or remove its cell and compute it")


def refuse_problems(checks: Iterable[Check]) -> None:
    """Raises RunFailed with the first problem of these checks, if they have one."""
    if problems := [problem for check in checks for problem in check.problems]:
        more = f" (and {len(problems) - 1} more: gkp verify)" if len(problems) > 1 else ""
        raise RunFailed(f"not published: {problems[0]}{more}")


def publish_cells(cells: Iterable[Cell], results: Path, store: Store) -> None:
    """Copies the finished cells into `results`, each with the networks that are kept of it."""
    results.mkdir(parents=True, exist_ok=True)
    kept: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        kept.setdefault(left_out(cell), []).append(cell)
    for without, members in kept.items():
        grid.publish(members, results, without=without, store=store)


def left_out(cell: Cell) -> tuple[str, ...]:
    """The patterns of the files of a cell that are not committed."""
    if isinstance(cell, PretrainedCell) or (isinstance(cell, PruneCell) and isinstance(cell.net, PretrainedCell)):
        return _NETWORKS  # whoever has the public weights prunes them in a second; their licence is not ours to pass on
    if isinstance(cell, PruneCell) and cell.seed > 0:
        return _NETWORKS  # further seeds are for intervals: their outcomes are kept, the network can be computed again
    return ()


def publish_baselines(cells: Iterable[Cell], data: Path, store: Store) -> None:
    """Copies each baseline that was trained here to checkpoints/MODEL-gkp, whole or not at all."""
    for result in grid.load([cell for cell in cells if isinstance(cell, TrainCell)], store=store):
        assert isinstance(result.cell, Network)
        target = data / "checkpoints" / f"{result.cell.model}-gkp"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(result.file("model"), partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)


def publish_minutes(build: Path, data: Path, store: Store) -> None:
    """Writes what each notebook of each profile under `build` costs; profiles that were not executed here keep their rows.

    minutes: seconds of all cells that it ran, ancestors included, times the threads of each, on CORES cores; plus its own
    seconds, where it computed none of them. The row "all" counts each cell once. missing: cells it asked for in vain.
    Cells that verdicts only looked at are no cost of the notebook.
    """
    found: dict[str, list[Record]] = {}
    for file in sorted(build.glob("*/.executed/*.json")):
        if (record := Record.load(file.parents[1], file.stem)) and record.cells:
            found.setdefault(file.parents[1].name, []).append(record)
    rows = [
        {"profile": profile, "notebook": name, **_cost(records, store)}
        for profile, every in found.items()
        for name, records in [*((record.name, [record]) for record in every), ("all", every)]
    ]
    old = pd.read_csv(data / MINUTES).to_dict("records") if (data / MINUTES).exists() else []
    rows += [{str(name): value for name, value in row.items()} for row in old if row["profile"] not in found]
    if rows:
        table = pd.DataFrame(rows).sort_values(["profile", "notebook"])
        table.to_csv(data / MINUTES, index=False, lineterminator="\n")


def _cost(records: Sequence[Record], store: Store) -> dict[str, Any]:
    """What these notebooks cost together, as a row of minutes.csv."""
    cells = {used.id: used for record in records for used in record.cells if not used.looked_at}
    runs = [run for used in cells.values() if used.sha256 and (run := _run_of(used.id, store))]
    seconds = sum(run["seconds"] * max(1, run["threads"]) for run in runs) / CORES
    own = sum(record.seconds for record in records if not any(used.computed for used in record.cells))
    return {
        "cells": len(runs),
        "missing": sum(used.asked and used.sha256 is None for used in cells.values()),
        "minutes": round((seconds + own) / 60, 2),
        "cores": CORES,
        "hardware": "; ".join(sorted({run["hardware"]["processor"] for run in runs})),
    }


def _run_of(cell_id: str, store: Store) -> dict | None:
    found = (read_json(root / cell_id / "run.json") for root in (*store.read_only, store.root))
    return next((run for run in found if run), None)


def publish_notebooks(notebooks: Path, executed: Path, profile: str, store: Store) -> tuple[str, ...]:
    """Replaces each notebook by the reading copy of its execution; RunFailed, with none replaced, unless all are up to date."""
    copies, stale = dict[str, bytes](), []
    for file in sorted(notebooks.glob("[0-9]*.ipynb")):
        record = Record.load(executed, file.stem)
        why = "not executed" if record is None else record.outdated(origin(file, {"profile": profile}), executed, store)
        if why:
            stale.append(f"{file.name}: {why}")
        else:
            book = reading_copy(read_notebook(executed / file.name), profile)
            copies[file.name] = (json.dumps(book, indent=1, ensure_ascii=False) + "\n").encode()
    if stale:
        again = f"run `make reproduce PROFILE={profile}` first"
        raise RunFailed(f"no notebook was written, {len(stale)} are not up to date ({'; '.join(stale)}); {again}")
    replace_files(notebooks, copies, "notebooks")
    return tuple(copies)


def publish_figures(drawn: Path, figures: Path) -> None:
    """Replaces what is in `figures` by what the notebooks have drawn."""
    new = {file.name: file.read_bytes() for file in drawn.iterdir() if file.suffix in {".svg", ".png", ".csv"}}
    for file in replace_files(figures, new, "figures").iterdir():
        if file.name not in new:
            file.unlink()
