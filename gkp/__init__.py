"""The reproducible artifact of SR-GKP: grouped kernel pruning with kernel smoothness, and the attacks it is judged by."""

from gkp import grid, profiles
from gkp.attacks import attack
from gkp.checkpoints import load_model, save_model
from gkp.cost import cost, latency
from gkp.datasets import Dataset, load_dataset
from gkp.errors import BadInput
from gkp.evaluation import benchmark
from gkp.methods import methods, prune
from gkp.plans import Plan, PrunedModel

__all__ = [
    "BadInput",
    "Dataset",
    "Plan",
    "PrunedModel",
    "attack",
    "benchmark",
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
