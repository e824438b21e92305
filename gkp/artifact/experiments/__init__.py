"""The experiments: cells, each computed once, on one core or on a cluster.

    results = experiments.run(cells)            # 42 cells: 42 cached, 0 computed
    experiments.run(cells, jobs=8)              # eight local workers; scheduler="tcp://..." for a Dask cluster
    experiments.status(cells).to_json()         # finished, running, failed, blocked, missing, minutes left

`cell` defines a cell; `kinds` and `stages` have the built-in ones; `store` and `entry` keep results; `todo` finds the cells
that are needed; `compute` computes one of them; `run`, `cluster` and `child` compute many at once.
"""

from gkp.artifact.experiments.cell import Cell, find_kind, select
from gkp.artifact.experiments.compute import Context
from gkp.artifact.experiments.copies import publish
from gkp.artifact.experiments.kinds import EvaluateCell, PretrainedCell, PruneCell, TrainCell
from gkp.artifact.experiments.report import CellsFailed, Report, Result
from gkp.artifact.experiments.run import load, run
from gkp.artifact.experiments.status import Status, status
from gkp.artifact.experiments.store import Store, default_store

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
    "find_kind",
    "load",
    "publish",
    "run",
    "select",
    "status",
]
