"""The experiment grid: cells that are computed once, on one core or on a cluster, and never again.

    results = gkp.grid.run(cells)            # 42 cells: 42 cached, 0 computed
    gkp.grid.run(cells, jobs=8)              # eight local workers; scheduler="tcp://..." for a Dask cluster
    gkp.grid.status(cells).to_json()         # finished, running, failed, blocked, missing, minutes left

`cell` says what a cell is, `store` where results live, `compute` how one is made, `plan` which are needed, `runner` how
many are made at once.
"""

from gkp.grid.cell import Cell, find_stage, select, stage
from gkp.grid.cells import EvaluateCell, PretrainedCell, PruneCell, TrainCell
from gkp.grid.compute import Context
from gkp.grid.publish import publish
from gkp.grid.report import CellsFailed, Report, Result
from gkp.grid.runner import load, run
from gkp.grid.status import Status, status
from gkp.grid.store import Store, default_store

__all__ = [
    "Cell",
    "CellsFailed",
    "Context",
    "EvaluateCell",
    "PretrainedCell",
    "PruneCell",
    "Report",
    "Result",
    "Status",
    "Store",
    "TrainCell",
    "default_store",
    "find_stage",
    "load",
    "publish",
    "run",
    "select",
    "stage",
    "status",
]
