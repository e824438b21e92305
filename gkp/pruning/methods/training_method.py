"""The bases of filter methods that prune while they train: soft pruning, and sparse training by a penalty.

In soft pruning the lowest filters are zeroed after each epoch, and the training goes on with all of them. Only the weights of
the convolution are zeroed meanwhile, as in the published code: with its BatchNorm at zero too, a filter would get no gradient
through the ReLU and could never come back. BatchNorm follows at the end, when the filters are cut.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from gkp.networks.classifier import convolutions
from gkp.pruning.callback import PruningCallback
from gkp.pruning.filters import FilterSpec
from gkp.pruning.methods.filter_method import FilterMethod
from gkp.pruning.plan import Plan


class SoftMethod(FilterMethod):
    """A filter method that prunes softly; hold: see `SoftPruning`."""

    hold: ClassVar[bool] = False

    def callback(self, convs: Mapping[str, nn.Conv2d]) -> SoftPruning:
        """The callback that zeroes the lowest filters of these layers."""
        return SoftPruning(self, tuple(convs), hold=self.hold)


@dataclass
class SoftPruning(PruningCallback):
    """Zeroes the filters of lowest score before the first epoch and after each; their number is that of the budget.

    Args:
        method: Its `scores` choose the filters, its `plan` their number.
        layers: Names of the convolutions.
        hold: Whether they are kept at zero until the next choice (FPGM) instead of being trained (SFP).
    """

    method: FilterMethod
    layers: tuple[str, ...]
    hold: bool = False
    _plan: Plan = field(default_factory=lambda: Plan({}), init=False, repr=False)

    def before_training(self, net: nn.Module) -> None:
        """Choose as many filters as the budget allows, and zero the others."""
        self._plan = self.method.plan(net, _named(net, self.layers))
        self._zero(net)

    def after_step(self, net: nn.Module) -> None:
        """Zero again the filters that momentum revived, if they are to be held."""
        if self.hold:
            self._zero(net)

    def after_epoch(self, net: nn.Module, epoch: int) -> None:
        """Choose anew, as many as before, and zero the others."""
        scores = self.method.scores(net, _named(net, self.layers))
        layers = {}
        for name, spec in self._plan.items():
            assert isinstance(spec, FilterSpec)
            best = torch.argsort(scores[name].cpu(), descending=True, stable=True)[: len(spec.kept_filters)]
            layers[name] = FilterSpec(best.sort().values)
        self._plan = Plan(layers, self._plan.input_shape)
        self._zero(net)

    def state(self) -> dict[str, Tensor]:
        """The filters that stay, by layer name."""
        return {name: spec.kept_filters for name, spec in self._plan.items() if isinstance(spec, FilterSpec)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take the filters back."""
        self._plan = Plan({name: FilterSpec(kept) for name, kept in state.items()}, self._plan.input_shape)

    def plan(self, net: nn.Module) -> Plan:
        """The last choice."""
        return self._plan

    @torch.no_grad()
    def _zero(self, net: nn.Module) -> None:
        for name, conv in _named(net, self.layers).items():
            conv.weight[self._plan[name].removed_filters(conv).to(conv.weight.device)] = 0.0


Penalty = Callable[[], Tensor]


class SparseMethod(FilterMethod):
    """A filter method with a penalty while training and one ranking of all filters after it."""

    one_ranking = True

    @abstractmethod
    def penalty(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Penalty:
        """A function that returns the term to add to the loss, from the weights at the time of the call."""

    def callback(self, convs: Mapping[str, nn.Conv2d]) -> SparseTraining:
        """The callback that adds the penalty on these layers."""
        return SparseTraining(self, tuple(convs))


@dataclass
class SparseTraining(PruningCallback):
    """Adds the penalty of `method` on the convolutions `layers` to the loss of each batch."""

    method: SparseMethod
    layers: tuple[str, ...]
    _penalty: Penalty | None = field(default=None, init=False, repr=False)

    def before_training(self, net: nn.Module) -> None:
        """Look up once the weights that are penalised."""
        self._penalty = self.method.penalty(net, _named(net, self.layers))

    def loss_term(self, net: nn.Module) -> Tensor | None:
        """The penalty."""
        return None if self._penalty is None else self._penalty()

    def plan(self, net: nn.Module) -> Plan:
        """The plan of the method for the trained `net`."""
        return self.method.plan(net, _named(net, self.layers))


def _named(net: nn.Module, layers: tuple[str, ...]) -> dict[str, nn.Conv2d]:
    every = convolutions(net)
    return {name: every[name] for name in layers}
