"""Grouped kernels: every filter group keeps its own input channels (paper section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.networks.copies import copy_of
from gkp.pruning.arguments import check_rate
from gkp.pruning.masks import layer_type, unmask
from gkp.pruning.spec import Spec, check_kept, conv_like, ints, spec_kind

DENSE = ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")  # the same in the small convolution


@spec_kind("group_of_filter")
@dataclass(frozen=True, eq=False)
class GroupedSpec(Spec):
    """What stays of one convolution under grouped kernel pruning.

    Args:
        group_of_filter: `(C_out,)` int64, the filter group of each filter, 0..groups-1, groups of equal size.
        kept: `(groups, K)` int64, per group, ascending, the input channels whose grouped kernel stays.

    Both may be other whole numbers, which are turned into int64 on the CPU.

    Raises:
        BadInput: They are no whole numbers.
    """

    restructures = True

    group_of_filter: Tensor
    kept: Tensor

    def __post_init__(self) -> None:
        for name, dims in (("group_of_filter", 1), ("kept", 2)):
            object.__setattr__(self, name, ints(getattr(self, name), "a grouped kernel plan", dims))

    @property
    def groups(self) -> int:
        """Number of filter groups, n in the paper."""
        return len(self.kept)

    @property
    def permutation(self) -> Tensor:
        """The filters `(C_out,)` in the order of a grouped convolution: group by group, original order inside a group."""
        return torch.argsort(self.group_of_filter, stable=True)

    def mask(self, in_channels: int) -> Tensor:
        """The mask `(C_out, C_in, 1, 1)`: True where a kernel stays."""
        keep = torch.zeros(self.groups, in_channels, dtype=torch.bool, device="cpu")
        keep.scatter_(1, self.kept, True)
        return keep[self.group_of_filter][:, :, None, None]

    def check(self, name: str, conv: nn.Conv2d) -> None:
        """Raise BadInput, naming the layer, unless this spec fits `conv`."""
        super().check(name, conv)
        check_kept(name, self.kept, conv.in_channels, "input channel")
        size, rest = divmod(conv.out_channels, self.groups)
        problem = None
        if len(self.group_of_filter) != conv.out_channels:
            problem = f"has {conv.out_channels} filters, the plan {len(self.group_of_filter)}"
        elif self.group_of_filter.min() < 0 or self.group_of_filter.max() >= self.groups:
            problem = f"has {self.groups} filter groups by this plan, and filters of others"
        elif rest or not torch.equal(self.group_of_filter.bincount(minlength=self.groups), torch.full((self.groups,), size)):
            problem = "does not fall into equal filter groups by this plan"
        if problem:
            raise BadInput(f"{name} {problem}; use the plan with the network it was made for")

    def removed(self, layer: nn.Module) -> dict[str, Tensor]:
        """The mask of the kernels that go."""
        assert isinstance(layer, nn.Conv2d)
        return {"weight": ~self.mask(layer.in_channels)}

    def compact(self, layer: nn.Module) -> GroupedKernelConv2d:
        """The small module that computes the same as the masked convolution `layer`."""
        assert isinstance(layer, nn.Conv2d)
        return GroupedKernelConv2d(layer, self)

    def current(self, layer: nn.Module | None) -> Spec:
        """What the indices of the compact `layer` say."""
        if not isinstance(layer, GroupedKernelConv2d) or layer.gather.is_meta:
            return self
        found = layer.spec
        same = torch.equal(found.kept, self.kept) and torch.equal(found.group_of_filter, self.group_of_filter)
        return self if same else found

    def to_json(self) -> dict[str, Any]:
        """{"group_of_filter": [C_out ints], "kept": [[K ints] * groups]}."""
        return {"group_of_filter": self.group_of_filter.tolist(), "kept": self.kept.tolist()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> GroupedSpec:
        """Read what `to_json` wrote. Raises BadInput for anything else."""
        if missing := {"group_of_filter", "kept"} - set(fields):
            raise BadInput(f"not a grouped kernel plan: {', '.join(missing)} is missing")
        return cls(fields["group_of_filter"], fields["kept"])


class GroupedKernelConv2d(nn.Module):
    """A convolution after grouped kernel pruning, really small: gather inputs, grouped convolution, original filter order.

    To code that reads it, it is the dense convolution: of its widths, its geometry, one group, and a `weight` with zeros.

    Attributes:
        gather: Buffer `(groups * K,)`, the input channels group by group; one that several groups keep is gathered for each.
        conv: The grouped convolution, weight `(C_out, K, k_h, k_w)`, of the type that the dense one was of.
        restore: Buffer `(C_out,)`, where each filter's output is.
    """

    if TYPE_CHECKING:  # torch.jit.script cannot read annotations that are strings
        gather: Tensor
        restore: Tensor

    __jit_unused_properties__: ClassVar = ["spec", "weight", "bias", *DENSE]

    def __init__(self, conv: nn.Conv2d, spec: GroupedSpec):
        super().__init__()
        order, weight = spec.permutation, conv.weight.detach()
        self.in_channels = conv.in_channels  # of the dense one: channels that no group keeps are not gathered
        self.groups = 1
        self.register_buffer("gather", spec.kept.flatten().to(weight.device, copy=True))
        self.register_buffer("restore", torch.argsort(order).to(weight.device))
        kept_of_filter = spec.kept[spec.group_of_filter]  # (C_out, K)
        small = weight[torch.arange(conv.out_channels)[:, None], kept_of_filter]
        bias = None if conv.bias is None else conv.bias.detach()[order]
        self.conv = _of_type(conv, small[order], bias, spec.kept.numel(), spec.groups, order)
        vars(self).update(_hooks(conv))

    @property
    def spec(self) -> GroupedSpec:
        """The spec of this layer, read off the index buffers."""
        groups = self.conv.groups
        group_size = len(self.restore) // groups
        return GroupedSpec((self.restore // group_size).cpu(), self.gather.view(groups, -1).cpu())

    @property
    def weight(self) -> Tensor:
        """The weight `(C_out, C_in, k_h, k_w)` of the dense convolution of the same function; removed kernels are zero."""
        spec, small = self.spec, self.conv.weight
        kept_of_filter = spec.kept[spec.group_of_filter].to(small.device)  # (C_out, K)
        filters = torch.arange(len(small), device=small.device)[:, None]
        dense = small.new_zeros(len(small), self.in_channels, *small.shape[2:])
        return dense.index_put((filters, kept_of_filter), small[self.restore])

    @property
    def bias(self) -> Tensor | None:
        """The bias `(C_out,)` of the dense convolution."""
        return None if self.conv.bias is None else self.conv.bias[self.restore]

    def dense(self) -> nn.Conv2d:
        """The dense convolution of the same function; removed kernels are zero."""
        bias = None if self.bias is None else self.bias.detach()
        conv = _of_type(self.conv, self.weight.detach(), bias, self.in_channels, 1, self.restore)
        vars(conv).update(_hooks(self))
        return conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.index_select(-3, self.gather)).index_select(-3, self.restore)  # of one image too, without a batch


def _of_dense(name: str) -> property:
    return property(lambda self: getattr(self.conv, name))


for _name in DENSE:
    setattr(GroupedKernelConv2d, _name, _of_dense(_name))


@torch.no_grad()
def _of_type(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, in_channels: int, groups: int, order: Tensor) -> nn.Conv2d:
    """A convolution of the type of `conv` with other inputs; its other tensors of one entry a filter come in `order`."""
    if layer_type(conv) is nn.Conv2d:
        made = conv_like(conv, in_channels, conv.out_channels, bias=bias is not None, groups=groups)
        for name, values in (("weight", weight), ("bias", bias)):
            if values is not None:
                getattr(made, name).copy_(values).requires_grad_(getattr(conv, name).requires_grad)
        return made
    made = unmask(copy_of(conv))  # type: ignore[assignment]
    vars(made).update(_hooks(nn.Module()))
    made.in_channels, made.groups = in_channels, groups
    tensors = {"weight": weight, "bias": bias}
    for name, parameter in made._parameters.items():
        if parameter is not None:
            given = tensors[name] if name in tensors else _in_order(parameter, order)
            made._parameters[name] = None if given is None else nn.Parameter(given.detach().clone(), parameter.requires_grad)
    for name, buffer in made._buffers.items():
        made._buffers[name] = None if buffer is None else _in_order(buffer, order)
    return made


def _hooks(module: nn.Module) -> dict[str, Any]:
    """The hooks of a module's forward and backward pass, as its attributes, for another module."""
    found = {name: value for name, value in vars(module).items() if "hook" in name and "state_dict" not in name}
    return {name: value.copy() if isinstance(value, dict) else value for name, value in found.items()}


def _in_order(tensor: Tensor, order: Tensor) -> Tensor:
    return tensor[order.to(tensor.device)] if tensor.ndim and len(tensor) == len(order) else tensor


def kept_count(in_channels: int, rate: float, layer: str = "the layer") -> int:
    """Number of grouped kernels that stay in each group.

    Args:
        in_channels: Input channels of the layer.
        rate: Share of kernels removed.
        layer: Name for the message.

    Raises:
        BadInput: A rate outside (0, 1) or one that leaves a fraction of a kernel.
    """
    check_rate(rate)
    kept = (1 - rate) * in_channels
    if not is_whole(kept) or not 0 < round(kept) < in_channels:
        raise BadInput(f"{what_stays(in_channels, rate, layer)}; {better_rate(in_channels, rate)}")
    return round(kept)


def is_whole(kernels: float) -> bool:
    """Whether a number of kernels is a whole one but for rounding."""
    return abs(kernels - round(kernels)) <= 1e-6


def what_stays(in_channels: int, rate: float, layer: str) -> str:
    """The number of grouped kernels that a rate leaves in each group of a layer, for messages."""
    return f"rate {rate:g} leaves {(1 - rate) * in_channels:g} of {in_channels} grouped kernels in {layer}"


def better_rate(in_channels: int, rate: float) -> str:
    """Advice to take a rate that leaves whole kernels of so many input channels, or of a multiple, with one near to `rate`."""
    if in_channels == 1:
        return "nothing can go from a layer of one input; leave it out with layers="
    unit = Fraction(1, 16 if in_channels % 16 == 0 else in_channels)
    nearest = float(max(unit, min(1 - unit, round(rate / unit) * unit)))
    return f"use a multiple of {unit}, e.g. {nearest:.12g}"
