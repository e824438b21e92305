"""L2-GKP: in every filter group, keep the grouped kernels of largest L2 norm.

The control for SR-GKP: same grouping, same budget, no smoothness and no search. Weights only; milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gkp.grouping import grouped_kernels
from gkp.methods._grouped import grouped_plan
from gkp.methods.registry import register
from gkp.plans import Plan
from gkp.selection import largest_norm


@register("l2-gkp", reference="control", family="grouped kernel", needs=("weights",), fidelity="faithful")
@dataclass(frozen=True)
class L2GKP:
    """rate, groups: as in `gkp.prune`."""

    rate: float = 7 / 16
    groups: int = 8

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """Per layer: who is in which filter group, and which inputs each group keeps."""
        return grouped_plan(convs, rate=self.rate, groups=self.groups, select=self._select)

    def _select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        return largest_norm(grouped_kernels(weight, group_of_filter), keep)
