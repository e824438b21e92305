"""What the grouped kernel methods share: group the filters of each layer, then select in each group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gkp.grouping import default_grouping
from gkp.plans import GroupedSpec, Plan, kept_count


@dataclass(frozen=True)
class GroupedMethod(ABC):
    """A method that groups as SR-GKP does and selects in its own way. rate, groups: as in `gkp.prune`."""

    rate: float = 7 / 16
    groups: int = 8

    @abstractmethod
    def select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        """The inputs that each group keeps, ascending, `(groups, keep)`; weight `(C_out, C_in, k, k)`."""

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """Per layer: who is in which filter group, and which inputs each group keeps.

        Raises BadInput where rate or groups do not fit.
        """
        return Plan({name: self._layer(name, conv) for name, conv in convs.items()})

    def _layer(self, name: str, conv: nn.Conv2d) -> GroupedSpec:
        keep = kept_count(conv.in_channels, self.rate, name)
        group_of_filter = default_grouping(conv.weight, self.groups)
        return GroupedSpec(group_of_filter, self.select(conv.weight, group_of_filter, keep))
