"""LRF: linearly replaceable filters (Joo et al., AAAI 2021).

Every k x k convolution is put between two 1x1 convolutions, identities at first, so that its filters and its inputs can go
without touching any other layer. The filter that the others replace best goes, one at a time: the one of smallest
||residual of its least-squares fit by the others|| x ||its column of the 1x1 behind||. Its coefficients are added to the
others' columns (weights compensation), so that only the residual is lost. Then the inputs go in the same way, into the 1x1 in
front. The 1x1 convolutions cost MACs of their own, which are counted.

Uses weights only, nothing random. One core: ResNet-20 0.4 s, ResNet-56 1.7 s, VGG-16 5 s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.pruning.methods.filter_method import Budgeted, kept_width
from gkp.pruning.plan import Plan
from gkp.pruning.registry import register
from gkp.pruning.spec import Spec, check_kept, conv_like, ints, spec_kind

RIDGE = 1e-9  # of the mean squared norm: lets a filter be an exact combination of others


@register(
    "lrf",
    reference="Joo et al., AAAI 2021",
    family="channel",
    needs=("weights",),
    fidelity=(
        "adapted: one shot, without the authors' epochs of fine-tuning after inserting the 1x1 convolutions and after each "
        "layer; fine-tuned as all methods are, without their distillation; widths round up or down so that the budget is met"
    ),
)
@dataclass(frozen=True)
class LRF(Budgeted):
    """LRF in one shot.

    Args:
        ratio: Published share of filters and of inputs that go; it is scaled until the budget is met.

    The other fields are those of `Budgeted`; round_to is for the widths between the 1x1 convolutions.
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise BadInput(f"ratio must lie between 0 and 1, not {self.ratio}; the authors' default is 0.5")

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """The inputs and filters that stay between the two 1x1 convolutions of each k x k convolution; 1x1 layers stay dense.

        Raises:
            BadInput: No layer is larger than 1x1, or the 1x1 convolutions alone exceed the budget.
        """
        weights = {name: conv.weight.detach() for name, conv in convs.items() if conv.weight[0, 0].numel() > 1}
        if not weights:
            raise BadInput(f"lrf prunes convolutions larger than 1x1; {', '.join(convs)} are not; choose others with layers=")
        dense = [(weight.shape[0], weight.shape[1]) for weight in weights.values()]

        def shapes(factor: float) -> Plan:  # MACs depend on how many stay, not on which: choose those once, at the end
            kept = widths(dense, min(1.0, factor * self.ratio), round_to=self.round_to)
            return Plan(
                {name: BetweenSpec(torch.arange(i), torch.arange(f)) for name, (f, i) in zip(weights, kept, strict=True)},
                self.input_shape,
            )

        counts = self.match(net, shapes, convs)
        specs = {}
        for name, weight in weights.items():
            count = counts[name]
            assert isinstance(count, BetweenSpec)
            specs[name] = narrow(weight, len(count.kept_inputs), len(count.kept_filters))
        return Plan(specs, self.input_shape)


@spec_kind("kept_inputs_between")
@dataclass(frozen=True, eq=False)
class BetweenSpec(Spec):
    """What stays of a k x k convolution between two 1x1 convolutions; the layer as a whole keeps its widths.

    Args:
        kept_inputs: `(A,)` int64, inputs of the k x k convolution, ascending.
        kept_filters: `(B,)` int64, its filters, ascending.
    """

    restructures = True

    kept_inputs: Tensor
    kept_filters: Tensor

    def check(self, name: str, conv: nn.Conv2d) -> None:
        """Raise BadInput, naming the layer, unless this spec fits `conv`."""
        super().check(name, conv)
        check_kept(name, self.kept_inputs, conv.in_channels, "input")
        check_kept(name, self.kept_filters, conv.out_channels, "filter")

    def twin(self, conv: nn.Conv2d) -> BetweenPointwise:
        """The three convolutions in place of the dense `conv`; removed filters and inputs are replaced by the others."""
        return BetweenPointwise(conv, self)

    def to_json(self) -> dict[str, Any]:
        """{"kept_inputs_between": [A ints], "kept_filters_between": [B ints]}."""
        return {"kept_inputs_between": self.kept_inputs.tolist(), "kept_filters_between": self.kept_filters.tolist()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> BetweenSpec:
        """Read what `to_json` wrote. Raises BadInput for anything else."""
        if "kept_filters_between" not in fields:
            raise BadInput("not a plan of LRF: kept_filters_between is missing")
        return cls(*(ints(fields[key], "a plan of LRF", 1) for key in ("kept_inputs_between", "kept_filters_between")))


class BetweenPointwise(nn.Module):
    """1x1 convolution to the kept inputs, k x k convolution, 1x1 convolution to all filters (which has the bias)."""

    def __init__(self, conv: nn.Conv2d, spec: BetweenSpec):
        super().__init__()
        inputs, filters = len(spec.kept_inputs), len(spec.kept_filters)
        where: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        self.before = nn.Conv2d(conv.in_channels, inputs, 1, bias=False, **where)
        self.conv = conv_like(conv, inputs, filters, bias=False)
        self.after = nn.Conv2d(filters, conv.out_channels, 1, bias=conv.bias is not None, **where)
        if not conv.weight.is_meta:  # on the meta device only shapes matter
            self._fill(conv, spec)
        self.requires_grad_(conv.weight.requires_grad)

    @torch.no_grad()
    def _fill(self, conv: nn.Conv2d, spec: BetweenSpec) -> None:
        weight = conv.weight.detach().double().cpu()
        after = combination(weight, spec.kept_filters)  # (C_out, B)
        weight = weight[spec.kept_filters]
        before = combination(weight.transpose(0, 1), spec.kept_inputs).T  # (A, C_in)
        self.before.weight.copy_(before[:, :, None, None])
        self.conv.weight.copy_(weight[:, spec.kept_inputs])
        self.after.weight.copy_(after[:, :, None, None])
        if self.after.bias is not None and conv.bias is not None:
            self.after.bias.copy_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.conv(self.before(x)))


def combination(rows: Tensor, kept: Tensor) -> Tensor:
    """Coefficients `(N, K)` float64 that combine the kept of `rows` `(N, ...)` to all of them: units for the kept, else least
    squares.

    Compensating one removal after the other gives the same: a projection on fewer rows absorbs one on more.
    """
    flat = rows.flatten(1)
    together = torch.zeros(len(flat), len(kept), dtype=torch.float64)
    together[kept] = torch.eye(len(kept), dtype=torch.float64)
    gone = torch.ones(len(flat), dtype=torch.bool)
    gone[kept] = False
    if bool(gone.any()):
        together[gone] = torch.linalg.lstsq(flat[kept].T, flat[gone].T).solution.T
    return together


def removal_order(rows: Tensor, count: int) -> list[int]:
    """The first `count` of `rows` `(N, ...)` to go, in order: at each step the one of smallest residual x norm of its 1x1
    column.

    The residual is that of its least-squares fit by the rows still there; the 1x1, an identity at first, is compensated.
    """
    flat = rows.detach().flatten(1).double().cpu().numpy()
    gram = flat @ flat.T
    gram[np.diag_indices_from(gram)] += RIDGE * max(gram.trace() / len(gram), 1e-300)
    inverse: NDArray[np.float64] = np.linalg.inv(gram)  # its diagonal holds 1 / residual^2, its rows the coefficients
    columns = np.eye(len(flat))  # of the 1x1, one for each row
    alive, order = np.arange(len(flat)), []
    for _ in range(count):
        pivots = inverse.diagonal()
        worst = int(np.argmin(np.linalg.norm(columns, axis=0) / np.sqrt(pivots)))
        rest = np.delete(np.arange(len(alive)), worst)
        coefficients = -inverse[worst, rest] / pivots[worst]
        columns = columns[:, rest] + np.outer(columns[:, worst], coefficients)
        inverse = inverse[np.ix_(rest, rest)] - np.outer(inverse[rest, worst], inverse[worst, rest]) / pivots[worst]
        order.append(int(alive[worst]))
        alive = alive[rest]
    return order


def widths(shapes: Sequence[tuple[int, int]], share: float, *, round_to: int = 1) -> list[tuple[int, int]]:
    """The numbers of (filters, inputs) that stay in each layer when `share` of them goes, see `kept_width`."""
    kept = [
        kept_width(width, share * width, place, round_to=round_to)
        for place, width in enumerate(width for shape in shapes for width in shape)
    ]
    return list(zip(kept[::2], kept[1::2], strict=True))


def narrow(weight: Tensor, inputs: int, filters: int) -> BetweenSpec:
    """The spec that keeps so many inputs and filters of a convolution: filters go first, then inputs of the rest."""
    kept_filters = _without(len(weight), removal_order(weight, len(weight) - filters))
    left = weight[kept_filters.to(weight.device)].transpose(0, 1)
    return BetweenSpec(_without(len(left), removal_order(left, len(left) - inputs)), kept_filters)


def _without(width: int, gone: list[int]) -> Tensor:
    return torch.tensor([i for i in range(width) if i not in set(gone)])
