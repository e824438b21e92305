"""SR-GKP: grouped kernel pruning guided by kernel smoothness; the paper's method (section 3).

Weights only, no data, nothing random. About 0.3 s for ResNet-20 on one core (the released code: 400-510 s), and the same
selection in 144 of 144 filter groups of the authors' own ResNet-20.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gkp.pruning.grouped import GroupedSpec, kept_count
from gkp.pruning.plan import Plan
from gkp.pruning.registry import register
from gkp.pruning.sr_gkp.grouping import default_grouping, grouped_kernels
from gkp.pruning.sr_gkp.selection import Balance, Beta, greedy, smooth_beam_greedy
from gkp.pruning.sr_gkp.smoothness import grouped_roughness


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


@register("sr-gkp", reference="Zhong et al., NeurIPS 2023", family="grouped kernel", needs=("weights",), fidelity="faithful")
@dataclass(frozen=True)
class SRGKP(GroupedMethod):
    """rate, groups: as in `gkp.prune`. alpha: the paper's CSB.

    beam_width, check_every, beta: see `gkp.pruning.sr_gkp.selection`.
    """

    alpha: float = 0.9
    beam_width: int = 2
    check_every: int = 3
    beta: Beta = "released"

    def select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        """Smooth Beam Greedy in each group, the filters having been snaked into groups by smoothness.

        A 1x1 convolution has no smoothness: as in the released code it is snaked by magnitude and selected greedily.
        """
        kernels = grouped_kernels(weight, group_of_filter)
        if weight.shape[-2] * weight.shape[-1] == 1:
            return greedy(kernels, keep)
        roughness = grouped_roughness(weight, group_of_filter)
        balance = Balance(self.alpha, self.check_every, self.beta)
        return smooth_beam_greedy(kernels, roughness, keep, beam_width=self.beam_width, balance=balance)
