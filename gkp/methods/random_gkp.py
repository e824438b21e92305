"""Random-GKP: equal filter groups and kept kernels, both drawn; what grouped kernel pruning is worth without any criterion.

No data; milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gkp.methods.registry import register
from gkp.plans import GroupedSpec, Plan, kept_count


@register("random-gkp", reference="control", family="grouped kernel", needs=(), fidelity="faithful")
@dataclass(frozen=True)
class RandomGKP:
    """rate, groups: as in `gkp.prune`. seed: of the draw."""

    rate: float = 7 / 16
    groups: int = 8
    seed: int = 0

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """Per layer: filters dealt at random into equal groups, and the inputs each group keeps."""
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
