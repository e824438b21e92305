"""Whole filters, which most structured pruning removes (filter or channel pruning)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gkp.pruning.spec import Spec, check_kept, ints, spec_kind


@spec_kind("kept_filters")
@dataclass(frozen=True, eq=False)
class FilterSpec(Spec):
    """The filters of a convolution that stay; with the others go their BatchNorm channels and the inputs of their readers.

    Args:
        kept_filters: `(K,)` int64, ascending; other whole numbers are turned into that.

    Raises:
        BadInput: They are no whole numbers.
    """

    kept_filters: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept_filters", ints(self.kept_filters, "a filter plan", 1))

    def check(self, name: str, conv: nn.Conv2d) -> None:
        """Raise BadInput, naming the layer, unless this spec fits `conv`."""
        super().check(name, conv)
        check_kept(name, self.kept_filters, conv.out_channels, "filter")

    def removed_filters(self, conv: nn.Conv2d) -> Tensor:
        """The filters that go, ascending."""
        gone = torch.ones(conv.out_channels, dtype=torch.bool)
        gone[self.kept_filters] = False
        return gone.nonzero().flatten()

    def to_json(self) -> dict[str, Any]:
        """{"kept_filters": [K ints]}."""
        return {"kept_filters": self.kept_filters.tolist()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> FilterSpec:
        """Read what `to_json` wrote. Raises BadInput for anything else."""
        return cls(fields["kept_filters"])
