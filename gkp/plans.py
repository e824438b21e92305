"""What stays of a pruned network, and the one mechanism that makes it so: mask, compact, count, JSON.

A pruning method decides and returns a `Plan`; nothing here knows of methods. The masked dense twin and the compact network are
the same function. Train and attack the twin: on CPU a grouped convolution of CIFAR width is 2-7 times slower than a dense one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from gkp.errors import BadInput

CLASSIFIER_NAMES = ("architecture", "mean", "std", "num_classes", "from_normalised")  # of gkp.models.Classifier


@dataclass(frozen=True, eq=False)
class GroupedSpec:
    """What stays of one convolution under grouped kernel pruning.

    group_of_filter `(C_out,)`: the filter group of each filter, 0..groups-1, groups of equal size.
    kept `(groups, K)`: per group, ascending, the input channels whose grouped kernel stays.
    """

    group_of_filter: Tensor
    kept: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupedSpec) and self.to_json() == other.to_json()

    @property
    def groups(self) -> int:
        """n in the paper."""
        return len(self.kept)

    @property
    def permutation(self) -> Tensor:
        """`(C_out,)`: the filters in the order of a grouped convolution, group by group, original order inside a group."""
        return torch.argsort(self.group_of_filter, stable=True)

    def mask(self, in_channels: int) -> Tensor:
        """`(C_out, C_in, 1, 1)` bool: True where a kernel stays."""
        keep = torch.zeros(self.groups, in_channels, dtype=torch.bool)
        keep.scatter_(1, self.kept, True)
        return keep[self.group_of_filter][:, :, None, None]

    def check(self, name: str, conv: nn.Conv2d) -> None:
        """Raises BadInput, naming the layer, unless this spec fits `conv`."""
        size, rest = divmod(conv.out_channels, self.groups)
        problem = None
        if conv.groups != 1:
            problem = f"is a grouped convolution already (groups={conv.groups})"
        elif len(self.group_of_filter) != conv.out_channels:
            problem = f"has {conv.out_channels} filters, the plan {len(self.group_of_filter)}"
        elif rest or not torch.equal(self.group_of_filter.bincount(minlength=self.groups), torch.full((self.groups,), size)):
            problem = "does not fall into equal filter groups by this plan"
        elif self.kept.min() < 0 or self.kept.max() >= conv.in_channels:
            problem = f"has {conv.in_channels} input channels, the plan keeps number {int(self.kept.max())}"
        elif not bool((self.kept.diff(dim=1) > 0).all()):
            problem = "has kept channels that do not ascend in this plan"
        if problem:
            raise BadInput(f"{name} {problem}; use the plan with the network it was made for")

    def compact(self, conv: nn.Conv2d) -> GroupedKernelConv2d:
        """The small module that computes what `conv` does once masked."""
        return GroupedKernelConv2d(conv, self)

    def to_json(self) -> dict[str, Any]:
        """{"group_of_filter": [C_out ints], "kept": [[K ints] * groups]}."""
        return {"group_of_filter": self.group_of_filter.tolist(), "kept": self.kept.tolist()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> GroupedSpec:
        """The spec that `to_json` wrote. Raises BadInput for anything else."""
        try:
            spec = cls(torch.tensor(fields["group_of_filter"]), torch.tensor(fields["kept"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"not a grouped kernel plan: {error}") from error
        if spec.group_of_filter.dtype != torch.int64 or spec.kept.dtype != torch.int64 or spec.kept.ndim != 2:
            raise BadInput("not a grouped kernel plan: group_of_filter and kept must be lists of whole numbers")
        return spec


class GroupedKernelConv2d(nn.Module):
    """A convolution after grouped kernel pruning, really small: gather inputs, grouped convolution, original filter order.

    conv.weight is `(C_out, K, k_h, k_w)`; `gather` `(groups * K,)` and `restore` `(C_out,)` are index buffers. An input channel
    that several groups keep is gathered once for each.
    """

    gather: Tensor
    restore: Tensor

    def __init__(self, conv: nn.Conv2d, spec: GroupedSpec):
        super().__init__()
        order, weight = spec.permutation, conv.weight.detach()
        self.register_buffer("gather", spec.kept.flatten().to(weight.device))
        self.register_buffer("restore", torch.argsort(order).to(weight.device))
        self.conv = nn.Conv2d(
            spec.kept.numel(),
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            groups=spec.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device=weight.device,
            dtype=weight.dtype,
        )
        kept_of_filter = spec.kept[spec.group_of_filter]  # (C_out, K)
        with torch.no_grad():
            small = weight[torch.arange(conv.out_channels)[:, None], kept_of_filter]
            self.conv.weight.copy_(small[order])
            if conv.bias is not None and self.conv.bias is not None:
                self.conv.bias.copy_(conv.bias[order])
        self.conv.requires_grad_(conv.weight.requires_grad)

    @property
    def spec(self) -> GroupedSpec:
        """What stayed of the convolution this was, read off the index buffers."""
        groups = self.conv.groups
        group_size = len(self.restore) // groups
        return GroupedSpec((self.restore // group_size).cpu(), self.gather.view(groups, -1).cpu())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.index_select(1, self.gather)).index_select(1, self.restore)


class Plan(Mapping[str, GroupedSpec]):
    """What stays, layer by layer: an immutable mapping from layer name to spec."""

    def __init__(self, layers: Mapping[str, GroupedSpec]):
        self._layers = dict(layers)

    def __getitem__(self, name: str) -> GroupedSpec:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def to_json(self) -> dict[str, Any]:
        """{layer name: {"group_of_filter": [...], "kept": [[...], ...]}}: plain types, ready for `json.dump`."""
        return {name: spec.to_json() for name, spec in self.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote. Raises BadInput for anything else."""
        return cls({name: GroupedSpec.from_json(spec) for name, spec in fields.items()})

    def convs(self, net: nn.Module) -> dict[str, nn.Conv2d]:
        """The convolutions of `net` that this plan prunes. Raises BadInput where plan and network do not fit."""
        found = {}
        for name, spec in self.items():
            try:
                conv = net.get_submodule(name)
            except AttributeError as error:
                raise BadInput(f"the plan prunes {name}, which {type(net).__name__} does not have") from error
            if not isinstance(conv, nn.Conv2d):
                raise BadInput(f"the plan prunes {name}, which is a {type(conv).__name__}, not a Conv2d")
            spec.check(name, conv)
            found[name] = conv
        return found

    def compact(self, net: nn.Module) -> nn.Module:
        """A copy of the dense `net` whose pruned convolutions are really small. `net` is left as it was."""
        small = copy.deepcopy(net)
        for name, conv in self.convs(small).items():
            parent, _, child = name.rpartition(".")
            setattr(small.get_submodule(parent), child, self[name].compact(conv))
        return small


class PrunedModel(nn.Module):
    """The masked dense twin of a pruned network: `net` with the weights that `plan` removes held at exactly zero.

    plan: what stays. left_out: layers that were not pruned, with the reason. Momentum revives masked weights: they are zeroed
    again before every forward pass in training mode and whenever the mode changes, so any training loop keeps the plan; a loop
    that looks at weights between steps calls `apply_masks` itself.
    """

    def __init__(self, net: nn.Module, plan: Plan, left_out: Mapping[str, str] | None = None):
        super().__init__()
        self.net = copy.deepcopy(net)
        self.plan = plan
        self.left_out = dict(left_out or {})
        for name, conv in plan.convs(self.net).items():
            pruned = ~plan[name].mask(conv.in_channels).to(conv.weight.device)
            self.register_buffer(_mask_name(name), pruned, persistent=False)
        self.train(net.training)

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set every pruned weight to exactly zero, in place."""
        for name in self.plan:
            weight = self.net.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            weight.masked_fill_(self.get_buffer(_mask_name(name)), 0.0)

    def train(self, mode: bool = True) -> PrunedModel:
        """Switch the mode, masks applied."""
        super().train(mode)
        self.apply_masks()
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name) if name in CLASSIFIER_NAMES else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images `x`, as the network that was pruned takes them."""
        if self.training:
            self.apply_masks()
        return self.net(x)

    def compact(self) -> nn.Module:
        """A new module, really smaller, that computes the same function (logits within 1e-5)."""
        self.apply_masks()
        return self.plan.compact(self.net)


def plan_of(net: nn.Module) -> Plan:
    """The plan by which `net` was pruned: a masked twin's, a compact network's read off its index buffers, empty if dense."""
    if isinstance(net, PrunedModel):
        return net.plan
    return Plan({name: layer.spec for name, layer in net.named_modules() if isinstance(layer, GroupedKernelConv2d)})


def _mask_name(layer: str) -> str:
    return "pruned_of_" + layer.replace(".", "_")


def kept_count(in_channels: int, rate: float, layer: str = "the layer") -> int:
    """How many of `in_channels` grouped kernels stay in each group at `rate`, the share removed (PAPER B4).

    Raises BadInput for a rate outside (0, 1) or one that leaves a fraction of a kernel.
    """
    if not 0 < rate < 1:
        raise BadInput(f"rate must lie between 0 and 1, not {rate}; the paper uses 7/16 = 0.4375 and 10/16 = 0.625")
    kept = (1 - rate) * in_channels
    if abs(kept - round(kept)) > 1e-6 or not 0 < round(kept) < in_channels:
        unit = Fraction(1, min(in_channels, 16))
        nearest = float(max(unit, min(1 - unit, round(rate / unit) * unit)))
        raise BadInput(
            f"rate {rate:g} leaves {kept:g} of {in_channels} grouped kernels in {layer}; "
            f"use a multiple of {unit}, e.g. {nearest:g}"
        )
    return round(kept)
