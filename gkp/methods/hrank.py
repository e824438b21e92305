"""HRank: filters whose feature maps have the lowest matrix rank, on average over images, go (Lin et al. 2020).

Images without labels; 2 s for ResNet-20 on one core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.methods._images import ImageMethod, feature_maps
from gkp.methods.registry import register


@register(
    "hrank",
    reference="Lin et al., CVPR 2020",
    family="filter",
    needs=("weights", "data"),
    fidelity="adapted: one rate for all layers and one fine-tuning instead of hand-set rates and a fine-tuning after each "
    "layer; only filters that leave the residual stream whole",
)
@dataclass(frozen=True)
class HRank(ImageMethod):
    """The fields are those of `ImageMethod`; 5 batches of 128 images, as published."""

    n_batches: int = 5
    batch_size: int = 128

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """The mean rank of each filter's feature map (H x W) after the ReLU."""
        total: dict[str, Tensor] = {}
        for x, _ in self.batches(net):
            for name, maps in feature_maps(net, convs, x, self.input_shape).items():
                ranks = torch.linalg.matrix_rank(maps.cpu()).double().sum(dim=0)
                total[name] = total.get(name, torch.zeros_like(ranks)) + ranks
        return {name: ranks / self.n_images for name, ranks in total.items()}
