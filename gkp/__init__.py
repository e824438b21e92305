"""The reproducible artifact of SR-GKP: grouped kernel pruning with kernel smoothness, and the attacks it is judged by.

Names are imported when they are first used: `import gkp` takes milliseconds, and a worker process of the grid that only hands
cells on never loads torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkp import claims, grid, profiles
    from gkp.attacks import attack
    from gkp.checkpoints import load_model, save_model
    from gkp.cost import cost, latency
    from gkp.datasets import Dataset, load_dataset
    from gkp.errors import BadInput
    from gkp.evaluation import benchmark
    from gkp.methods import methods, prune
    from gkp.plans import Plan, PrunedModel

_HOME = {
    "BadInput": "errors",
    "Dataset": "datasets",
    "Plan": "plans",
    "PrunedModel": "plans",
    "attack": "attacks",
    "benchmark": "evaluation",
    "cost": "cost",
    "latency": "cost",
    "load_dataset": "datasets",
    "load_model": "checkpoints",
    "methods": "methods",
    "prune": "methods",
    "save_model": "checkpoints",
}
__all__ = [
    "BadInput",
    "Dataset",
    "Plan",
    "PrunedModel",
    "attack",
    "benchmark",
    "claims",
    "cost",
    "grid",
    "latency",
    "load_dataset",
    "load_model",
    "methods",
    "profiles",
    "prune",
    "save_model",
]


class _Package(ModuleType):
    """Where a function and a submodule share a name (`cost`, `methods`), the function is the public one."""

    def __getattr__(self, name: str) -> Any:
        if name in ("claims", "grid", "profiles"):
            return import_module(f"gkp.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'gkp' has no attribute {name!r}")
        value = getattr(import_module(f"gkp.{_HOME[name]}"), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):  # the import system binds submodules here
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
