"""FPGM: prune the filters nearest to the geometric median of their layer, which others can replace (He et al. 2019).

The score of a filter is the sum of its Euclidean distances to all filters of the layer, between the filters themselves. Weights
only; milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.pruning.methods.filter_method import FilterMethod
from gkp.pruning.methods.training_method import SoftMethod
from gkp.pruning.registry import register


@register(
    "fpgm-one-shot",
    reference="the score of He et al., CVPR 2019",
    family="filter",
    needs=("weights",),
    fidelity="adapted: one cut before fine-tuning; the published procedure is soft, see fpgm",
)
@dataclass(frozen=True)
class FPGMOneShot(FilterMethod):
    """The fields are those of `FilterMethod`."""

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """sum_l ||W_j - W_l||_2."""
        return {name: distance_to_others(conv.weight) for name, conv in convs.items()}


@register(
    "fpgm",
    reference="He et al., CVPR 2019",
    family="filter",
    needs=("weights", "training"),
    procedure="soft",
    fidelity="adapted: only filters that leave the residual stream whole, at a higher rate; zeroed filters stay at "
    "zero within an epoch, where the published code lets momentum revive them; cut after the epochs it is given, then "
    "fine-tuned as all methods are",
)
@dataclass(frozen=True)
class FPGM(SoftMethod, FPGMOneShot):
    """The fields are those of `FilterMethod`. Filters are held at zero until the next choice."""

    hold = True


def distance_to_others(weight: Tensor) -> Tensor:
    """The summed Euclidean distance of each filter of `weight` `(C_out, C_in, k, k)` to all of its filters, `(C_out,)`."""
    filters = weight.detach().double().flatten(1)
    return torch.cdist(filters, filters, compute_mode="use_mm_for_euclid_dist").sum(dim=1)
