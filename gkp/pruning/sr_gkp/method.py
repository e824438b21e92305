"""SR-GKP: grouped kernel pruning guided by kernel smoothness; the paper's method (section 3).

Uses weights only, no data, nothing random. About 0.3 s for ResNet-20 on one core (the released code: 400-510 s), and the same
selection in 144 of 144 filter groups of the authors' own ResNet-20.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gkp.pruning.grouped import GroupedSpec, kept_count
from gkp.pruning.plan import Plan
from gkp.pruning.registry import register
from gkp.pruning.sr_gkp.grouping import default_grouping, grouped_kernels
from gkp.pruning.sr_gkp.selection import Balance, Beta, greedy, smooth_beam_greedy
from gkp.pruning.sr_gkp.selection_compiled import expected_seconds, prepare
from gkp.pruning.sr_gkp.smoothness import grouped_roughness

SHOW_PROGRESS = 2.0  # seconds of selection from which on a terminal shows a bar


@dataclass(frozen=True)
class GroupedMethod(ABC):
    """A method that groups as SR-GKP does and selects in its own way. rate, groups: as in `gkp.prune`."""

    rate: float = 7 / 16
    groups: int = 8

    @abstractmethod
    def select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        """The inputs that each group keeps, ascending, `(groups, keep)`, from `weight` `(C_out, C_in, k, k)`."""

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """The filter groups of each layer and the inputs that each keeps.

        On a terminal a progress bar shows if that takes more than a few seconds. Raises BadInput if rate or groups do not fit.
        """
        seconds = sum(self.search_seconds(conv, kept_count(conv.in_channels, self.rate, name)) for name, conv in convs.items())
        prepare(seconds)
        return Plan({name: self._layer(name, conv) for name, conv in _shown(convs, seconds)})

    def search_seconds(self, conv: nn.Conv2d, keep: int) -> float:
        """Estimate how long numpy searches this layer; 0 for a method without a search."""
        return 0.0

    def _layer(self, name: str, conv: nn.Conv2d) -> GroupedSpec:
        keep = kept_count(conv.in_channels, self.rate, name)
        weight = conv.weight.detach().cpu().contiguous()  # sums are the same wherever and however the network lies in memory
        group_of_filter = default_grouping(weight, self.groups)
        return GroupedSpec(group_of_filter, self.select(weight, group_of_filter, keep))


def _shown(convs: Mapping[str, nn.Conv2d], seconds: float) -> Iterable[tuple[str, nn.Conv2d]]:
    """The layers, with a progress bar on a terminal if their selection takes long."""
    if seconds <= SHOW_PROGRESS:
        return convs.items()
    from tqdm import tqdm

    return tqdm(convs.items(), desc="selecting", unit="layer", leave=False, disable=None)  # None: only on a terminal


@register("sr-gkp", reference="Zhong et al., NeurIPS 2023", family="grouped kernel", needs=("weights",), fidelity="faithful")
@dataclass(frozen=True)
class SRGKP(GroupedMethod):
    """The paper's method.

    Args:
        rate, groups: As in `gkp.prune`.
        alpha: The balance (CSB in the paper): weight of the cost rank against the smoothness rank, in [0, 1] (Eq 2).
        beam_width: Branches that stay at each check.
        check_every: Extensions between two checks.
        beta: Weight of the distance between pruned and kept kernels (Eq 3): "released" as in the released code, "paper" as
            printed, or a number; see `gkp.pruning.sr_gkp.selection.Balance`.
    """

    alpha: float = 0.9
    beam_width: int = 2
    check_every: int = 3
    beta: Beta = "released"

    def select(self, weight: Tensor, group_of_filter: Tensor, keep: int) -> Tensor:
        """Smooth Beam Greedy in each group; a 1x1 convolution, which has no smoothness, is selected greedily as released."""
        kernels = grouped_kernels(weight, group_of_filter)
        if weight.shape[-2] * weight.shape[-1] == 1:
            return greedy(kernels, keep)
        roughness = grouped_roughness(weight, group_of_filter)
        balance = Balance(self.alpha, self.check_every, self.beta)
        return smooth_beam_greedy(kernels, roughness, keep, beam_width=self.beam_width, balance=balance)

    def search_seconds(self, conv: nn.Conv2d, keep: int) -> float:
        """Estimate how long numpy searches this layer."""
        width = 1 if conv.kernel_size == (1, 1) else self.beam_width
        return expected_seconds(self.groups, conv.in_channels, keep, width, Balance(self.alpha, self.check_every, self.beta))
