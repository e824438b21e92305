"""Ablations and controls of SR-GKP: greedy selection without beam or smoothness, least smooth, largest norm, random.

The first two are the paper's (Tables 4 and 5). All use weights only, milliseconds a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.pruning.grouped import GroupedSpec, kept_count
from gkp.pruning.plan import Plan
from gkp.pruning.registry import register
from gkp.pruning.sr_gkp.grouping import grouped_kernels
from gkp.pruning.sr_gkp.method import GroupedMethod
from gkp.pruning.sr_gkp.selection import Balance, Beta, greedy, largest_norm, least_smooth
from gkp.pruning.sr_gkp.selection_compiled import expected_seconds
from gkp.pruning.sr_gkp.smoothness import grouped_roughness


@register(
    "greedy-gkp",
    reference="ablation in Zhong et al., NeurIPS 2023",
    family="grouped kernel",
    needs=("weights",),
    fidelity="faithful",
)
@dataclass(frozen=True)
class GreedyGKP(GroupedMethod):
    """Smoothness snaking, then plain greedy selection. beta: see `gkp.pruning.sr_gkp.selection.Balance`."""

    beta: Beta = "paper"

    def select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        """The most distant inputs of each group, found greedily."""
        return greedy(grouped_kernels(weight, group_of_filter), keep, beta=self.beta)

    def search_seconds(self, conv: nn.Conv2d, keep: int) -> float:
        """Estimate how long numpy searches this layer."""
        return expected_seconds(self.groups, conv.in_channels, keep, 1, Balance(check_every=0, beta=self.beta))


@register(
    "least-smooth-gkp",
    reference="ablation in Zhong et al., NeurIPS 2023",
    family="grouped kernel",
    needs=("weights",),
    fidelity="faithful",
)
@dataclass(frozen=True)
class LeastSmoothGKP(GroupedMethod):
    """Smoothness snaking, then the least smooth grouped kernels go."""

    def select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        """The smoothest inputs of each group."""
        return least_smooth(grouped_roughness(weight, group_of_filter), keep)


@register("l2-gkp", reference="control", family="grouped kernel", needs=("weights",), fidelity="faithful")
@dataclass(frozen=True)
class L2GKP(GroupedMethod):
    """Smoothness snaking, then the grouped kernels of smallest norm go."""

    def select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        """The inputs of largest norm in each group."""
        return largest_norm(grouped_kernels(weight, group_of_filter), keep)


@register("random-gkp", reference="control", family="grouped kernel", needs=(), fidelity="faithful")
@dataclass(frozen=True)
class RandomGKP:
    """Random filter groups and random kept inputs. rate, groups: as in `gkp.prune`; seed: of the draw."""

    rate: float = 7 / 16
    groups: int = 8
    seed: int = 0

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """Filters dealt at random into equal groups, and the inputs that each group keeps, layer by layer."""
        generator = torch.Generator().manual_seed(self.seed)
        layers = {}
        for name, conv in convs.items():
            keep = kept_count(conv.in_channels, self.rate, name)
            group_of_filter = torch.empty(conv.out_channels, dtype=torch.int64)
            dealt = torch.arange(conv.out_channels) % self.groups
            group_of_filter[torch.randperm(conv.out_channels, generator=generator)] = dealt
            drawn = torch.rand(self.groups, conv.in_channels, generator=generator).argsort(dim=1)
            layers[name] = GroupedSpec(group_of_filter, drawn[:, :keep].sort(dim=1).values)
        return Plan(layers)
