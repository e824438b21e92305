"""SR-GKP: grouped kernel pruning guided by kernel smoothness; the paper's method (section 3).

Weights only, no data, nothing random. About 0.3 s for ResNet-20 on one core (the released code: 400-510 s), and the same
selection in 144 of 144 filter groups of the authors' own ResNet-20.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gkp.grouping import grouped_kernels
from gkp.methods._grouped import grouped_plan
from gkp.methods.registry import register
from gkp.plans import Plan
from gkp.selection import Balance, Beta, greedy, smooth_beam_greedy
from gkp.smoothness import grouped_roughness


@register("sr-gkp", reference="Zhong et al., NeurIPS 2023", family="grouped kernel", needs=("weights",), fidelity="faithful")
@dataclass(frozen=True)
class SRGKP:
    """rate, groups: as in `gkp.prune`. alpha: the paper's CSB. beam_width, check_every, beta: see `gkp.selection`."""

    rate: float = 7 / 16
    groups: int = 8
    alpha: float = 0.9
    beam_width: int = 2
    check_every: int = 3
    beta: Beta = "released"

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """Per layer: filters snaked into groups by smoothness, then Smooth Beam Greedy in each group.

        A 1x1 convolution has no smoothness: as in the released code it is snaked by magnitude and selected greedily.
        """
        return grouped_plan(convs, rate=self.rate, groups=self.groups, select=self._select)

    def _select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        kernels = grouped_kernels(weight, group_of_filter)
        if weight.shape[-2] * weight.shape[-1] == 1:
            return greedy(kernels, keep)
        roughness = grouped_roughness(weight, group_of_filter)
        balance = Balance(self.alpha, self.check_every, self.beta)
        return smooth_beam_greedy(kernels, roughness, keep, beam_width=self.beam_width, balance=balance)
