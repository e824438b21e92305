"""L2: prune the filters of smallest Euclidean norm in every layer. Uses weights only; milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gkp.pruning.methods.filter_method import FilterMethod
from gkp.pruning.registry import register


@register("l2", reference="control", family="filter", needs=("weights",), fidelity="faithful")
@dataclass(frozen=True)
class L2(FilterMethod):
    """The fields are those of `FilterMethod`."""

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """||W_j||_2."""
        return {name: filter_norm(conv.weight) for name, conv in convs.items()}


def filter_norm(weight: Tensor) -> Tensor:
    """The Euclidean norm of each filter `(C_out,)` of `weight` `(C_out, C_in, k, k)`."""
    return weight.detach().double().flatten(1).norm(dim=1)
