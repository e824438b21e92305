"""The places of gates: a residual block, or a filter of VGG-16; where its factor goes, and which plan gates lead to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.pruning.blocks import BlockSpec, blocks_of, last_norm
from gkp.pruning.budget import Counter, match_macs
from gkp.pruning.coupling import Couplings
from gkp.pruning.filters import FilterSpec
from gkp.pruning.methods.filter_method import Budgeted, filter_plan, lowest_of_all
from gkp.pruning.plan import Plan


class Gates(ABC):
    """The gates of a network.

    Args:
        net: The dense network; only its shapes are looked at.
        layers: Names of the convolutions that may go.
        counter: Of its cost.
        goal: The budget in paper_macs.
        limits: Tolerance, round_to and input_shape.

    Attributes:
        sparsity, mu: The authors' weights of the L1 penalty and of the difference of logits.
        sizes: Number of gates at each place.

    Raises:
        BadInput: The budget cannot be met.
    """

    sparsity: ClassVar[float]
    mu: ClassVar[float]
    sizes: list[int]

    def __init__(self, net: nn.Module, layers: Sequence[str], counter: Counter, goal: float, limits: Budgeted):
        self.layers, self.counter, self.goal, self.limits = tuple(layers), counter, goal, limits
        self._known: dict[str, int] = {}
        self.find(net)

    @abstractmethod
    def find(self, net: nn.Module) -> None:
        """Set `sizes`. Raises BadInput where the budget cannot be met."""

    @abstractmethod
    def places(self, net: nn.Module) -> list[nn.Module]:
        """The modules of `net` whose outputs `(N, C, H, W)` the gates multiply."""

    @abstractmethod
    def fold(self, net: nn.Module, gates: Sequence[Tensor]) -> None:
        """Multiply the gates, 0 or more, into weights of `net` for good, in place."""

    @abstractmethod
    def open(self, gates: Sequence[Tensor]) -> Plan:
        """The plan that removes whatever has gate 0."""

    @abstractmethod
    def decide(self, net: nn.Module, gates: Sequence[Tensor]) -> Plan:
        """The plan that removes what has the lowest gates, so much that the budget is met."""

    def macs(self, plan: Plan) -> int:
        """The paper_macs of a plan."""
        key = str(plan.to_json())
        if key not in self._known:
            self._known[key] = self.counter(plan).paper_macs
        return self._known[key]


class BlockGates(Gates):
    """One gate on the branch of each residual block, before the addition."""

    sparsity, mu = 0.6, 1.0

    @staticmethod
    def fit(net: nn.Module, layers: Sequence[str]) -> bool:
        """Whether these layers make up residual blocks."""
        return bool(blocks_of(net, layers))

    def find(self, net: nn.Module) -> None:
        self.blocks = list(blocks_of(net, self.layers))
        self.sizes = [1] * len(self.blocks)
        self.most = (1 + self.limits.tolerance) * self.goal
        if (least := self.macs(self._without(self.blocks))) > self.most:
            raise BadInput(
                f"gal keeps at least {least:,} paper MACs of {type(net).__name__}, with all {len(self.blocks)} blocks gone: "
                f"{least / self.goal - 1:.1%} more than the budget of {self.goal:,.0f}; ask for {least:,} or more"
            )

    def places(self, net: nn.Module) -> list[nn.Module]:
        return [last_norm(net.get_submodule(name)) for name in self.blocks]

    @torch.no_grad()
    def fold(self, net: nn.Module, gates: Sequence[Tensor]) -> None:
        for norm, gate in zip(self.places(net), gates, strict=True):
            for p in norm.parameters():
                p.mul_(gate)

    def open(self, gates: Sequence[Tensor]) -> Plan:
        return self._without(name for name, gate in zip(self.blocks, gates, strict=True) if not gate > 0)

    def decide(self, net: nn.Module, gates: Sequence[Tensor]) -> Plan:
        """Of equal gates the later block goes first."""
        values = [gate.item() for gate in gates]
        order = [self.blocks[i] for i in sorted(range(len(values)), key=lambda i: (values[i], -i))]
        fits = [self._without(order[:count]) for count in range(len(order) + 1)]
        return fits[bisect_left(fits, True, key=lambda plan: self.macs(plan) <= self.most)]

    def _without(self, blocks: Iterable[str]) -> Plan:
        return Plan(dict.fromkeys(blocks, BlockSpec()), self.limits.input_shape)


class FilterGates(Gates):
    """One gate on each filter of VGG-16, behind its ReLU."""

    sparsity, mu = 1e-3, 0.1

    def find(self, net: nn.Module) -> None:
        self.sizes = [net.get_submodule(name).get_parameter("weight").shape[0] for name in self.layers]
        self.decide(net, [torch.ones(size) for size in self.sizes])

    def places(self, net: nn.Module) -> list[nn.Module]:
        modules = dict(net.named_modules())
        names = list(modules)
        behind = [names[names.index(layer) :] for layer in self.layers]
        return [modules[next(name for name in rest if isinstance(modules[name], nn.ReLU))] for rest in behind]

    @torch.no_grad()
    def fold(self, net: nn.Module, gates: Sequence[Tensor]) -> None:
        """Into the columns of the next layer: with its BatchNorm at 0 a filter would stay at 0 behind the ReLU for ever."""
        couplings = Couplings(net, self.counter.input_shape)
        for name, gate in zip(self.layers, gates, strict=True):
            for cut, of_filter in couplings.followers(name):
                reader = net.get_submodule(cut.layer)
                if cut.axis == "in" and isinstance(reader, nn.Conv2d | nn.Linear):
                    factor = gate[of_filter.to(gate.device)]
                    reader.weight[:, cut.channels] *= factor.view(-1, *[1] * (reader.weight.ndim - 2))

    def open(self, gates: Sequence[Tensor]) -> Plan:
        """A layer without any keeps its first filter, as released."""
        kept = {name: (gate > 0).nonzero().flatten().cpu() for name, gate in zip(self.layers, gates, strict=True)}
        specs = {name: FilterSpec(filters if len(filters) else torch.tensor([0])) for name, filters in kept.items()}
        return Plan(specs, self.limits.input_shape)

    def decide(self, net: nn.Module, gates: Sequence[Tensor]) -> Plan:
        """Of equal gates the filter of a later layer goes first."""
        scores = dict(zip(self.layers, gates, strict=True))
        last_first = dict(reversed(scores.items()))
        limits = self.limits

        def make(factor: float) -> Plan:
            removed = lowest_of_all(last_first, factor)
            return filter_plan(scores, removed, round_to=limits.round_to, input_shape=limits.input_shape)

        return match_macs(net, make, self.goal, tolerance=limits.tolerance, input_shape=self.counter.input_shape)
