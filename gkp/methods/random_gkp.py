"""Random-GKP: equal filter groups and kept kernels, both drawn; what grouped kernel pruning is worth without any criterion.

No data; milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.methods._grouped import grouped_plan
from gkp.methods.registry import register
from gkp.plans import Plan


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

        def group(weight: Tensor, groups: int) -> Tensor:
            label = torch.empty(len(weight), dtype=torch.int64)
            label[torch.randperm(len(weight), generator=generator)] = torch.arange(len(weight)) % groups
            return label

        def select(weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
            drawn = torch.rand(self.groups, weight.shape[1], generator=generator)
            return drawn.argsort(dim=1)[:, :keep].sort(dim=1).values

        return grouped_plan(convs, rate=self.rate, groups=self.groups, select=select, group=group)
