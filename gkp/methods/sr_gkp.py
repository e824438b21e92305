"""SR-GKP: grouped kernel pruning guided by kernel smoothness; the paper's method (section 3).

Weights only, no data, nothing random. About 0.3 s for ResNet-20 on one core (the released code: 400-510 s), and the same
selection in 144 of 144 filter groups of the authors' own ResNet-20.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gkp.grouping import grouped_kernels
from gkp.methods._grouped import GroupedMethod
from gkp.methods.registry import register
from gkp.selection import Balance, Beta, greedy, smooth_beam_greedy
from gkp.smoothness import grouped_roughness


@register("sr-gkp", reference="Zhong et al., NeurIPS 2023", family="grouped kernel", needs=("weights",), fidelity="faithful")
@dataclass(frozen=True)
class SRGKP(GroupedMethod):
    """rate, groups: as in `gkp.prune`. alpha: the paper's CSB. beam_width, check_every, beta: see `gkp.selection`."""

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
