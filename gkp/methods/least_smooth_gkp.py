"""Least-smooth GKP: in every filter group, the least smooth grouped kernels go (Table 5).

The ablation that tells what smoothness alone is worth, without distances. Weights only; milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gkp.methods._grouped import grouped_plan
from gkp.methods.registry import register
from gkp.plans import Plan
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
class LeastSmoothGKP:
    """rate, groups: as in `gkp.prune`."""

    rate: float = 7 / 16
    groups: int = 8

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """Per layer: who is in which filter group, and which inputs each group keeps."""
        return grouped_plan(convs, rate=self.rate, groups=self.groups, select=self._select)

    def _select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        return least_smooth(grouped_roughness(weight, group_of_filter), keep)
