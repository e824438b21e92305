"""The callback of a method that prunes while it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from gkp.pruning.plan import Plan
from gkp.training.callback import Callback


class PruningCallback(Callback, ABC):
    """A callback that ends in a plan; `gkp.pruning.prune.train_pruned` runs the training and masks what the plan removes."""

    @abstractmethod
    def plan(self, net: nn.Module) -> Plan:
        """What stays of the trained `net`, asked for after `finish`, which may still change its weights."""
