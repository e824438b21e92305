"""L2-GKP: in every filter group, keep the grouped kernels of largest L2 norm.

The control for SR-GKP: same grouping, same budget, no smoothness and no search. Weights only; milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gkp.grouping import grouped_kernels
from gkp.methods._grouped import GroupedMethod
from gkp.methods.registry import register
from gkp.selection import largest_norm


@register("l2-gkp", reference="control", family="grouped kernel", needs=("weights",), fidelity="faithful")
@dataclass(frozen=True)
class L2GKP(GroupedMethod):
    """rate, groups: as in `gkp.prune`."""

    def select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        """The inputs of largest norm in each group."""
        return largest_norm(grouped_kernels(weight, group_of_filter), keep)
