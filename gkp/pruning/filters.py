"""Whole filters: what most structured pruning removes (filter or channel pruning)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.pruning.spec import Spec, ints, spec_kind


@spec_kind("kept_filters")
@dataclass(frozen=True, eq=False)
class FilterSpec(Spec):
    """Which filters of a convolution stay; the others go, and with them their BatchNorm channels and the consumers' inputs.

    kept_filters `(K,)`: ascending.
    """

    kept_filters: Tensor

    def check(self, name: str, conv: nn.Conv2d) -> None:
        """Raises BadInput, naming the layer, unless this spec fits `conv`."""
        kept, problem = self.kept_filters, None
        if conv.groups != 1:
            problem = f"is a grouped convolution (groups={conv.groups})"
        elif not len(kept):
            problem = "keeps no filter by this plan"
        elif kept.min() < 0 or kept.max() >= conv.out_channels:
            problem = f"has {conv.out_channels} filters, the plan keeps number {int(kept.max())}"
        elif not bool((kept.diff() > 0).all()):
            problem = "has kept filters that do not ascend in this plan"
        if problem:
            raise BadInput(f"{name} {problem}; use the plan with the network it was made for")

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
        """The spec that `to_json` wrote. Raises BadInput for anything else."""
        return cls(ints(fields["kept_filters"], "a filter plan", 1))
