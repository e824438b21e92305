"""Greedy-GKP: smoothness snaking, then plain greedy selection without beam or smoothness (Tables 4 and 5).

The ablation that tells what the smooth beam search adds. Weights only; milliseconds a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gkp.grouping import grouped_kernels
from gkp.methods._grouped import GroupedMethod
from gkp.methods.registry import register
from gkp.selection import Beta, greedy


@register(
    "greedy-gkp",
    reference="ablation in Zhong et al., NeurIPS 2023",
    family="grouped kernel",
    needs=("weights",),
    fidelity="faithful",
)
@dataclass(frozen=True)
class GreedyGKP(GroupedMethod):
    """rate, groups: as in `gkp.prune`. beta: see `gkp.selection.Balance`."""

    beta: Beta = "paper"

    def select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        """The most distant inputs of each group, found greedily."""
        return greedy(grouped_kernels(weight, group_of_filter), keep, beta=self.beta)
