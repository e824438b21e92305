"""What the grid costs: overhead a cell on two workers, planning 100,000 cells, and answering from the cache.

`python tests/bench_grid.py` prints the rows; tests/bench.py has them among its own. Each row is measured in a process of its
own, so that memory and imports are those of the grid.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

CELLS, MANY = 200, 100_000

# (what, unit, budget) of each measurement; the names are those of the functions below
BUDGETS = {
    "overhead": (f"grid: overhead a cell, {CELLS} trivial cells on 2 workers, their start included", "ms", 50.0),
    "cached": (f"grid: a second run of {CELLS} cells, all cached", "s", 1.0),
    "planning": (f"grid: planning {MANY:,} cells", "s", 10.0),
    "planning_memory": (f"grid: peak memory of planning {MANY:,} cells", "MB", 1024.0),
    "planning_finished": (f"grid: planning {MANY:,} cells that are all finished, per 10,000", "s", 10.0),
}


def rows() -> list[tuple[str, float, str, float]]:
    """(what, value, unit, budget) of every measurement."""
    measured: dict[str, float] = {}
    for part in ("running", "planning"):
        here = Path(__file__).resolve()
        path = os.pathsep.join([str(here.parents[1]), str(here.parent), *filter(None, sys.path)])
        found = subprocess.run(
            [sys.executable, str(here), part],
            env={**os.environ, "PYTHONPATH": path},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        measured.update(json.loads(found.splitlines()[-1]))
    return [(BUDGETS[name][0], value, *BUDGETS[name][1:]) for name, value in measured.items()]


def measure_running(folder: Path) -> dict[str, float]:
    """Wall time of whole runs, from planning to the end of the last worker; medians of three."""
    from grid_stages import Number

    from gkp.artifact import experiments as grid

    cells = [Number(x=x) for x in range(CELLS)]

    def run(name: str) -> float:
        started = time.perf_counter()
        report = grid.run(cells, jobs=2, store=grid.Store(folder / name), progress=False, quiet=True)
        assert len(report) == CELLS
        return time.perf_counter() - started

    names = "abc"
    return {"overhead": 1000 * median(map(run, names)) / CELLS, "cached": median(map(run, names))}


def measure_planning(folder: Path) -> dict[str, float]:
    """A dry run over 100,000 cells, a tenth of them children of others, with estimates; then 10,000 that are finished."""
    import resource

    from grid_stages import Number

    from gkp.artifact import experiments as grid
    from gkp.artifact.experiments.store import signature, write_json

    parents = [Number(x=x) for x in range(MANY // 10)]
    cells = [
        *parents,
        *(Number(x=x % 1000, seed=seed, source=parents[x % len(parents)]) for seed in range(9) for x in range(MANY // 10)),
    ]
    assert len(cells) == MANY
    store = grid.Store(folder)
    started = time.perf_counter()
    report = grid.run(cells, store=store, dry_run=True, quiet=True)
    planning = time.perf_counter() - started
    assert len(report.missing) == MANY
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    for cell in parents:  # as a finished cell looks, without computing it
        (folder / cell.id).mkdir(parents=True)
        body = {"id": cell.id, "hash": cell.hash, "figures": {"value": cell.x}, "files": {}}
        write_json(folder / cell.id / "result.json", {**body, "sha256": signature(body)})
    started = time.perf_counter()
    assert grid.load(parents, store=store).cached == len(parents)
    return {"planning": planning, "planning_memory": memory, "planning_finished": time.perf_counter() - started}


def main(part: str | None) -> int:
    """Prints the rows, or as JSON what one part measured; 1 when a budget is missed."""
    if part:
        with tempfile.TemporaryDirectory() as folder:
            measure = {"running": measure_running, "planning": measure_planning}[part]
            print(json.dumps(measure(Path(folder) / "cells")))
        return 0
    missed = 0
    for what, value, unit, budget in rows():
        missed += value > budget
        print(f"{what}: {value:.1f} {unit} (at most {budget:g}){'  MISSED' if value > budget else ''}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1] if len(sys.argv) > 1 else None))
