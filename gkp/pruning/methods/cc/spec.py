"""The spec of CC: a convolution that reads some of its inputs, with a weight of low or full rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.pruning.spec import Spec, check_kept, conv_like, ints, spec_kind


@spec_kind("kept_inputs")
@dataclass(frozen=True, eq=False)
class LowRankSpec(Spec):
    """What stays of a convolution under CC. Inputs are left out where they are read: the layer that makes them is not touched.

    Args:
        kept_inputs: `(K,)` int64, ascending.
        rank: Of the weight that reads them; None for the full weight.
    """

    restructures = True

    kept_inputs: Tensor
    rank: int | None = None

    def check(self, name: str, conv: nn.Conv2d) -> None:
        """Raise BadInput, naming the layer, unless this spec fits `conv`."""
        super().check(name, conv)
        check_kept(name, self.kept_inputs, conv.in_channels, "input")
        most = min(conv.out_channels, len(self.kept_inputs) * conv.weight[0, 0].numel())
        if self.rank is not None and not 0 < self.rank <= most:
            raise BadInput(f"the plan gives {name} rank {self.rank}, which must lie between 1 and {most}; use another plan")

    def twin(self, conv: nn.Conv2d) -> LowRankConv2d:
        """One or two convolutions in place of the dense `conv`, by the best approximation of its weight of this rank."""
        return LowRankConv2d(conv, self)

    def to_json(self) -> dict[str, Any]:
        """{"kept_inputs": [K ints], "rank": int or null}."""
        return {"kept_inputs": self.kept_inputs.tolist(), "rank": self.rank}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> LowRankSpec:
        """Read what `to_json` wrote. Raises BadInput for anything else."""
        rank = fields.get("rank")
        if "rank" not in fields or not isinstance(rank, int | None) or isinstance(rank, bool):
            raise BadInput(f"not a plan of CC: rank is {rank!r}, not a whole number or null")
        return cls(ints(fields["kept_inputs"], "a plan of CC", 1), rank)


class LowRankConv2d(nn.Module):
    """A convolution that reads some of its inputs: `gather` `(K,)`, then `conv`, then, of a lower rank, the 1x1 `expand`."""

    gather: Tensor

    def __init__(self, conv: nn.Conv2d, spec: LowRankSpec):
        super().__init__()
        rank, has_bias = spec.rank, conv.bias is not None
        where: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        self.register_buffer("gather", spec.kept_inputs.to(conv.weight.device))
        self.conv = conv_like(conv, len(spec.kept_inputs), rank or conv.out_channels, bias=has_bias and rank is None)
        self.expand = nn.Identity() if rank is None else nn.Conv2d(rank, conv.out_channels, 1, bias=has_bias, **where)
        if not conv.weight.is_meta:  # on the meta device only shapes matter
            self._fill(conv, spec)
        self.requires_grad_(conv.weight.requires_grad)

    @torch.no_grad()
    def _fill(self, conv: nn.Conv2d, spec: LowRankSpec) -> None:
        weight, last = conv.weight[:, self.gather], self.conv
        if spec.rank is None:
            self.conv.weight.copy_(weight)
        else:
            assert isinstance(self.expand, nn.Conv2d)
            last = self.expand
            u, s, vt = torch.linalg.svd(weight.double().cpu().flatten(1), full_matrices=False)
            root = s[: spec.rank].sqrt()
            self.conv.weight.copy_((root[:, None] * vt[: spec.rank]).view_as(self.conv.weight))
            self.expand.weight.copy_((u[:, : spec.rank] * root)[:, :, None, None])
        if last.bias is not None and conv.bias is not None:
            last.bias.copy_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.conv(x.index_select(-3, self.gather)))
