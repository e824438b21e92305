"""Grouped kernel pruning with kernel smoothness (SR-GKP), the methods it competes with, and the attacks it is judged by.

The library is `gkp.data`, `gkp.networks`, `gkp.training`, `gkp.pruning`, `gkp.engine`, `gkp.attacks` and `gkp.evaluation`;
the names below are what most users need of it. The artifact is built on it, and nothing here imports that.

Names are imported on first use: `import gkp` takes milliseconds and loads neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkp.attacks import attack
    from gkp.checkpoints import load_model, save_model
    from gkp.data.dataset import Dataset
    from gkp.data.sources import load_dataset
    from gkp.engine.compile import compile
    from gkp.errors import BadInput
    from gkp.evaluation.benchmark import benchmark
    from gkp.pruning.cost import cost, latency
    from gkp.pruning.export import export
    from gkp.pruning.plan import Plan
    from gkp.pruning.prune import prune
    from gkp.pruning.registry import methods
    from gkp.pruning.twin import PrunedModel

__all__ = [
    "BadInput",
    "Dataset",
    "Plan",
    "PrunedModel",
    "attack",
    "benchmark",
    "compile",
    "cost",
    "export",
    "latency",
    "load_dataset",
    "load_model",
    "methods",
    "prune",
    "save_model",
]

_HOME = {
    "BadInput": "errors",
    "Dataset": "data.dataset",
    "Plan": "pruning.plan",
    "PrunedModel": "pruning.twin",
    "attack": "attacks",
    "benchmark": "evaluation.benchmark",
    "compile": "engine.compile",
    "cost": "pruning.cost",
    "export": "pruning.export",
    "latency": "pruning.cost",
    "load_dataset": "data.sources",
    "load_model": "checkpoints",
    "methods": "pruning.registry",
    "prune": "pruning.prune",
    "save_model": "checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gkp' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"gkp.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
