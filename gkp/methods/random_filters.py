"""Random filters: the control that every criterion has to beat (Liu et al. 2019 ask for it). No data; milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.methods._filters import FilterMethod
from gkp.methods.registry import register


@register("random", reference="control", family="filter", needs=(), fidelity="faithful")
@dataclass(frozen=True)
class RandomFilters(FilterMethod):
    """seed: of the draw; the other fields as in `FilterMethod`."""

    seed: int = 0

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """Uniform numbers, layer after layer from one generator."""
        generator = torch.Generator().manual_seed(self.seed)
        return {name: torch.rand(conv.out_channels, generator=generator) for name, conv in convs.items()}
