"""SFP, soft filter pruning: zero the filters of smallest L2 norm after each epoch, train on with all (He et al. 2018).

And the paper's transfer of its smoothness to it (Table 6): filters are ranked by norm and by smoothness, and a balance (the
paper's CSB) weighs the two ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.pruning.methods.l2 import L2, filter_norm
from gkp.pruning.methods.training_method import SoftMethod
from gkp.pruning.registry import register
from gkp.pruning.sr_gkp.smoothness import smoothness


@register(
    "sfp",
    reference="He et al., IJCAI 2018",
    family="filter",
    needs=("weights", "training"),
    procedure="soft",
    fidelity="adapted: only filters that leave the residual stream whole, at a higher rate, instead of all to be masked; cut "
    "after the epochs it is given, then fine-tuned as all methods are",
)
@dataclass(frozen=True)
class SFP(SoftMethod, L2):
    """The fields are those of `FilterMethod`."""


@register(
    "sfp-smooth",
    reference="Table 6 of Zhong et al., NeurIPS 2023",
    family="filter",
    needs=("weights", "training"),
    procedure="soft",
    fidelity="adapted: the paper prints no formula; Eq 2 with the norm for its cost and the filter's smoothness, else as sfp",
)
@dataclass(frozen=True)
class SFPSmooth(SFP):
    """SFP with smoothness.

    Args:
        csb: Balance, the weight of the norm's rank against the smoothness rank, in [0, 1]; Table 6 has 0.5, 0.75 and 0.9.

    The other fields are those of `FilterMethod`.
    """

    csb: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.csb <= 1:
            raise BadInput(f"csb must lie in [0, 1], not {self.csb}; Table 6 has 0.5, 0.75 and 0.9")

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """csb * rank(norm) + (1 - csb) * rank(smoothness); rank 0 is the smallest norm and the roughest filter."""
        return {
            name: mix(filter_norm(conv.weight), smoothness(conv.weight).sum(dim=1).double(), self.csb)
            for name, conv in convs.items()
        }


def mix(norm: Tensor, roughness: Tensor, csb: float) -> Tensor:
    """The mixed score of each filter `(C_out,)` from its norm and its roughness (Eq 1 summed over its kernels)."""
    return csb * _rank(norm) + (1 - csb) * _rank(-roughness)


def _rank(values: Tensor) -> Tensor:
    rank = torch.empty(len(values), dtype=torch.float64)
    rank[torch.argsort(values.cpu(), stable=True)] = torch.arange(len(values), dtype=torch.float64)
    return rank
