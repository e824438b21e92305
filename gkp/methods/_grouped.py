"""What every grouped kernel method shares: group the filters of each layer, then select in each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from gkp.grouping import default_grouping
from gkp.plans import GroupedSpec, Plan, kept_count

Grouping = Callable[[Tensor, int], Tensor]  # (weight, groups) -> group_of_filter (C_out,)
Selection = Callable[[Tensor, Tensor, int], Tensor]  # (weight, group_of_filter, keep) -> kept (groups, keep)


def grouped_plan(
    convs: Mapping[str, nn.Conv2d], *, rate: float, groups: int, select: Selection, group: Grouping = default_grouping
) -> Plan:
    """The plan that `group` and `select` make of `convs`, layer by layer. Raises BadInput where rate or groups do not fit."""
    layers = {}
    for name, conv in convs.items():
        keep = kept_count(conv.in_channels, rate, name)
        group_of_filter = group(conv.weight, groups)
        layers[name] = GroupedSpec(group_of_filter, select(conv.weight, group_of_filter, keep))
    return Plan(layers)
