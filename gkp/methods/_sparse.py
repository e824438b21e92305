"""Sparse training: a penalty drives what can go towards zero, and one cut follows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from gkp.methods._filters import FilterMethod
from gkp.plans import Plan
from gkp.training import Callback

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
class SparseTraining(Callback):
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
