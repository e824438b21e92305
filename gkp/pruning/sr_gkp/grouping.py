"""Stage 1: the filter group of each filter (paper section 3.2, Figure 3).

Every grouping takes a weight `(C_out, C_in, k_h, k_w)` and returns `group_of_filter` `(C_out,)`: equal groups, labels from 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gkp.errors import BadInput
from gkp.pruning.sr_gkp.smoothness import smoothness


def smoothness_snaking(weight: Tensor, groups: int) -> Tensor:
    """Deal filters, sorted from smooth to rough, into groups in an S (Figure 3).

    Costs one sort, where TMI-GKP clusters for seconds a layer.

    Args:
        weight: `(C_out, C_in, k_h, k_w)`.
        groups: Number of equal groups.

    Returns:
        The group of each filter, `(C_out,)` int64.

    Raises:
        BadInput: The filters do not divide by `groups`.
    """
    return deal_snakewise(smoothness(weight).sum(dim=1), groups)


def magnitude_snaking(weight: Tensor, groups: int) -> Tensor:
    """Deal filters, sorted by descending *signed* weight sum, into groups in an S; else as `smoothness_snaking`.

    The released code groups 1x1 convolutions so: a 1x1 kernel has no neighbours, hence no smoothness.
    """
    return deal_snakewise(-weight.detach().double().sum(dim=(1, 2, 3)), groups)


def default_grouping(weight: Tensor, groups: int) -> Tensor:
    """The groups of SR-GKP: smoothness snaking, or magnitude snaking for a 1x1 convolution."""
    has_neighbours = weight.shape[-2] * weight.shape[-1] > 1
    return (smoothness_snaking if has_neighbours else magnitude_snaking)(weight, groups)


def deal_snakewise(score: Tensor, groups: int) -> Tensor:
    """Deal filters, ascending by `score` `(C_out,)`, into groups: left to right, then right to left, and so on.

    The sort is stable, so equal scores keep their order.

    Raises:
        BadInput: `len(score)` is not a multiple of `groups`.
    """
    if groups < 1 or len(score) % groups:
        raise BadInput(f"{len(score)} filters do not divide into {groups} equal groups; use groups that divide {len(score)}")
    position = torch.arange(len(score))
    row, column = position // groups, position % groups
    labels = torch.empty(len(score), dtype=torch.int64)
    labels[torch.argsort(score.cpu(), stable=True)] = torch.where(row % 2 == 0, column, groups - 1 - column)
    return labels


def grouped_kernels(weight: Tensor, group_of_filter: Tensor) -> Tensor:
    """The grouped kernels, `(groups, C_in, C_out / groups * k_h * k_w)`: per group and input channel, its filters' kernels.

    Filters keep their original order inside a group.
    """
    groups = int(group_of_filter.max()) + 1
    by_group = weight.detach()[torch.argsort(group_of_filter, stable=True).to(weight.device)]
    out_channels, in_channels = weight.shape[:2]
    return by_group.view(groups, out_channels // groups, in_channels, -1).transpose(1, 2).flatten(start_dim=2)
