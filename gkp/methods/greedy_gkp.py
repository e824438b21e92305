"""Greedy-GKP: smoothness snaking, then plain greedy selection without beam or smoothness (Tables 4 and 5).

The ablation that tells what the smooth beam search adds. Weights only; milliseconds a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gkp.grouping import grouped_kernels
from gkp.methods._grouped import grouped_plan
from gkp.methods.registry import register
from gkp.plans import Plan
from gkp.selection import Beta, greedy


@register(
    "greedy-gkp",
    reference="ablation in Zhong et al., NeurIPS 2023",
    family="grouped kernel",
    needs=("weights",),
    fidelity="faithful",
)
@dataclass(frozen=True)
class GreedyGKP:
    """rate, groups: as in `gkp.prune`. beta: see `gkp.selection.Balance`."""

    rate: float = 7 / 16
    groups: int = 8
    beta: Beta = "paper"

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """Per layer: who is in which filter group, and which inputs each group keeps."""
        return grouped_plan(convs, rate=self.rate, groups=self.groups, select=self._select)

    def _select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        return greedy(grouped_kernels(weight, group_of_filter), keep, beta=self.beta)
