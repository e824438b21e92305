"""HRank: prune the filters whose feature maps have the lowest matrix rank on average over images (Lin et al. 2020).

Uses images without labels; 2 s for ResNet-20 on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkp.pruning.methods.image_method import MapMethod
from gkp.pruning.registry import register


@register(
    "hrank",
    reference="Lin et al., CVPR 2020",
    family="filter",
    needs=("weights", "data"),
    fidelity="adapted: one rate for all layers and one fine-tuning instead of hand-set rates and a fine-tuning after each "
    "layer; images without crops and mirrors; only filters that leave the residual stream whole",
)
@dataclass(frozen=True)
class HRank(MapMethod):
    """The fields are those of `ImageMethod`; 5 batches of 128 images, as published."""

    def of_maps(self, maps: Tensor) -> Tensor:
        """The rank of each map (H x W)."""
        return torch.linalg.matrix_rank(maps)
