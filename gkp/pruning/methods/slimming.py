"""Network slimming: an L1 penalty on the scales of BatchNorm while training, then one threshold for all (Liu et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.pruning.coupling import Couplings
from gkp.pruning.methods.training_method import Penalty, SparseMethod
from gkp.pruning.registry import register


@register(
    "slimming",
    reference="Liu et al., ICCV 2017",
    family="filter",
    needs=("weights", "training"),
    procedure="sparse training",
    fidelity="adapted: only filters that leave the residual stream whole are penalised and go; a layer keeps at least one; "
    "cut after the epochs it is given, then fine-tuned as all methods are",
)
@dataclass(frozen=True)
class Slimming(SparseMethod):
    """sparsity: weight of the penalty; the other fields are those of `FilterMethod`."""

    sparsity: float = 1e-4

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """|gamma| of each filter's BatchNorm."""
        return {name: gamma.detach().abs() for name, gamma in self._gammas(net, convs).items()}

    def penalty(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Penalty:
        """sparsity * sum |gamma|."""
        gammas = list(self._gammas(net, convs).values())
        return lambda: self.sparsity * torch.cat(gammas).abs().sum()

    def _gammas(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        couplings = Couplings(net, self.input_shape)
        norms = {name: net.get_submodule(couplings.norm_of(name) or name) for name in convs}
        for name, norm in norms.items():
            if not isinstance(norm, nn.BatchNorm2d) or norm.weight is None:
                raise BadInput(f"{name} has no BatchNorm with a scale behind it; slimming needs one, leave it out with layers=")
        return {name: norm.weight for name, norm in norms.items() if isinstance(norm, nn.BatchNorm2d)}
