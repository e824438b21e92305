"""Least-smooth GKP: in every filter group, the least smooth grouped kernels go (Table 5).

The ablation that tells what smoothness alone is worth, without distances. Weights only; milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gkp.methods._grouped import GroupedMethod
from gkp.methods.registry import register
from gkp.selection import least_smooth
from gkp.smoothness import grouped_roughness


@register(
    "least-smooth-gkp",
    reference="ablation in Zhong et al., NeurIPS 2023",
    family="grouped kernel",
    needs=("weights",),
    fidelity="faithful",
)
@dataclass(frozen=True)
class LeastSmoothGKP(GroupedMethod):
    """rate, groups: as in `gkp.prune`."""

    def select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        """The smoothest inputs of each group."""
        return least_smooth(grouped_roughness(weight, group_of_filter), keep)
