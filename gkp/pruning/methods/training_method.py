"""Soft pruning: after each epoch the lowest filters are zeroed, and the training goes on with all of them.

Only the weights of the convolution are zeroed meanwhile, as in the published code: with its BatchNorm at zero too, a filter
would get no gradient through the ReLU and could never come back. That goes at the end, when the filters are cut.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from gkp.pruning.callback import PruningCallback
from gkp.pruning.filters import FilterSpec
from gkp.pruning.methods.filter_method import FilterMethod
from gkp.pruning.plan import Plan


class SoftMethod(FilterMethod):
    """A filter method that prunes softly. hold: see `SoftPruning`."""

    hold: ClassVar[bool] = False

    def callback(self, convs: Mapping[str, nn.Conv2d]) -> SoftPruning:
        """What zeroes the lowest filters of these layers while training."""
        return SoftPruning(self, tuple(convs), hold=self.hold)


@dataclass
class SoftPruning(PruningCallback):
    """Zeroes the filters that `method` scores lowest, before the first epoch and after each; how many, the budget says once.

    layers: the convolutions. hold: keep them at zero until the next choice (FPGM) instead of letting them train (SFP).
    """

    method: FilterMethod
    layers: tuple[str, ...]
    hold: bool = False
    _plan: Plan = field(default_factory=lambda: Plan({}), init=False, repr=False)

    def before_training(self, net: nn.Module) -> None:
        """Choose as many filters as the budget allows, and zero the others."""
        self._plan = self.method.plan(net, self._convs(net))
        self._zero(net)

    def after_step(self, net: nn.Module) -> None:
        """Zero again what momentum revived, if filters are to be held."""
        if self.hold:
            self._zero(net)

    def after_epoch(self, net: nn.Module, epoch: int) -> None:
        """Choose anew, as many as before, and zero the others."""
        scores = self.method.scores(net, self._convs(net))
        layers = {}
        for name, spec in self._plan.items():
            assert isinstance(spec, FilterSpec)
            best = torch.argsort(scores[name].cpu(), descending=True, stable=True)[: len(spec.kept_filters)]
            layers[name] = FilterSpec(best.sort().values)
        self._plan = Plan(layers, self._plan.input_shape)
        self._zero(net)

    def state(self) -> dict[str, Tensor]:
        """The filters that stay, layer by layer."""
        return {name: spec.kept_filters for name, spec in self._plan.items() if isinstance(spec, FilterSpec)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take the filters back."""
        self._plan = Plan({name: FilterSpec(kept) for name, kept in state.items()}, self._plan.input_shape)

    def plan(self, net: nn.Module) -> Plan:
        """What stays of `net`: the last choice."""
        return self._plan

    def _convs(self, net: nn.Module) -> dict[str, nn.Conv2d]:
        convs: Mapping[str, nn.Module] = {name: net.get_submodule(name) for name in self.layers}
        return {name: conv for name, conv in convs.items() if isinstance(conv, nn.Conv2d)}

    @torch.no_grad()
    def _zero(self, net: nn.Module) -> None:
        for name, conv in self._convs(net).items():
            conv.weight[self._plan[name].removed_filters(conv).to(conv.weight.device)] = 0.0


Penalty = Callable[[], Tensor]


class SparseMethod(FilterMethod):
    """A filter method with a penalty while training and one ranking of all filters after it."""

    one_ranking = True

    @abstractmethod
    def penalty(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Penalty:
        """A function that returns what is added to the loss, from the weights as they are when it is called."""

    def callback(self, convs: Mapping[str, nn.Conv2d]) -> SparseTraining:
        """What adds the penalty on these layers while training."""
        return SparseTraining(self, tuple(convs))


@dataclass
class SparseTraining(PruningCallback):
    """Adds the penalty of `method` on `layers` to the loss of each batch."""

    method: SparseMethod
    layers: tuple[str, ...]
    _penalty: Penalty | None = field(default=None, init=False, repr=False)

    def before_training(self, net: nn.Module) -> None:
        """Look up once what the penalty is on."""
        self._penalty = self.method.penalty(net, self._convs(net))

    def loss_term(self, net: nn.Module) -> Tensor | None:
        """The penalty."""
        return None if self._penalty is None else self._penalty()

    def plan(self, net: nn.Module) -> Plan:
        """What the method keeps of the trained `net`."""
        return self.method.plan(net, self._convs(net))

    def _convs(self, net: nn.Module) -> dict[str, nn.Conv2d]:
        convs = {name: net.get_submodule(name) for name in self.layers}
        return {name: conv for name, conv in convs.items() if isinstance(conv, nn.Conv2d)}
