"""Zero-invariant groups: all that makes one channel, so that the channel is zero where they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.networks.classifier import convolutions
from gkp.networks.copies import copy_of
from gkp.pruning.coupling import Couplings
from gkp.pruning.filters import FilterSpec
from gkp.pruning.plan import Plan
from gkp.pruning.probe import find_input_shape, undisturbed
from gkp.pruning.twin import PrunedModel
from gkp.pruning.watched import in_mode

Rows = tuple[Tensor, Tensor]  # channels of a layer, and for each the group that it belongs to
Part = tuple[nn.Parameter, Tensor, Tensor]  # a parameter, some of its rows, and for each the number of its group


@dataclass(frozen=True, eq=False)
class GroupSet:
    """The groups of the channels that a convolution writes, or several convolutions into one residual stream.

    Attributes:
        name: Of the first such convolution.
        width: Number of groups.
        writers: The filters of each such convolution.
        parts: The rows of each parameter, by its name.
    """

    name: str
    width: int
    writers: Mapping[str, Rows]
    parts: Mapping[str, Rows]


def group_sets(net: nn.Module, layers: Iterable[str], *, streams: bool, input_shape: Sequence[int] | None) -> list[GroupSet]:
    """The groups of these convolutions and, if wanted, of the residual streams that can narrow, in the order of `net`.

    Raises:
        BadInput: A group is not zero-invariant: something behind it turns zeros into other numbers.
    """
    couplings, chosen = Couplings(net, input_shape), set(layers)
    sets: list[GroupSet] = []
    for name, conv in convolutions(net).items():
        if conv.groups != 1 or any(name in one.writers for one in sets) or not (name in chosen or streams):
            continue
        found = _groups(net, couplings, name)
        if name in chosen or _narrows(couplings, found):
            sets.append(found)
    if faulty := _not_invariant(net, sets, input_shape):
        keep = "give streams=False" if faulty.name not in chosen else "leave it out with layers="
        raise BadInput(f"{faulty.name} has channels that are not zero where their filters, scales and shifts are; {keep}")
    return sets


def kept_plan(
    net: nn.Module, sets: Iterable[GroupSet], kept: Mapping[str, Tensor], input_shape: Sequence[int] | None = None
) -> Plan:
    """The plan that keeps the groups of these masks `(width,)`, by name of set: every convolution loses their filters.

    input_shape: As in `gkp.prune`.
    """
    layers, convs = {}, convolutions(net)
    for one in sets:
        for name, (channels, groups) in one.writers.items():
            gone = channels[~kept[one.name].cpu()[groups]]
            every = torch.arange(convs[name].out_channels)
            layers[name] = FilterSpec(every[~torch.isin(every, gone)])
    return Plan(layers, input_shape)


class Groups:
    """Groups of a network under one number each, set after set: what they hold, and what is summed over them.

    Args:
        parts: Of each parameter its rows and their groups, on its device.
        count: Number of all groups, of which these may be some.
    """

    def __init__(self, parts: Iterable[Part], count: int):
        self.parts = [part for part in parts if len(part[1])]
        self.count = count

    @classmethod
    def of(cls, net: nn.Module, sets: Iterable[GroupSet]) -> Groups:
        """All groups of these sets of `net`."""
        parts: list[Part] = []
        start = 0
        for one in sets:
            for name, (rows, groups) in one.parts.items():
                p = net.get_parameter(name)
                parts.append((p, rows.to(p.device), (groups + start).to(p.device)))
            start += one.width
        return cls(parts, start)

    def only(self, chosen: Tensor) -> Groups:
        """Those of them that are chosen, `(count,)` bool, under the same numbers."""
        return Groups(((p, rows[chosen[groups]], groups[chosen[groups]]) for p, rows, groups in self.parts), self.count)

    @torch.no_grad()
    def read(self, weight_decay: float = 0.0) -> tuple[list[Tensor], list[Tensor]]:
        """The values x of each part, `(rows, values of a row)`, and the gradients g, with that of the weight decay."""
        x = [p[rows].reshape(len(rows), -1) for p, rows, _ in self.parts]
        g = [
            each * weight_decay if p.grad is None else p.grad[rows].reshape(each.shape).add(each, alpha=weight_decay)
            for each, (p, rows, _) in zip(x, self.parts, strict=True)
        ]
        return x, g

    @torch.no_grad()
    def write(self, x: Iterable[Tensor]) -> None:
        """Set the values of each part."""
        for each, (p, rows, _) in zip(x, self.parts, strict=True):
            p.index_copy_(0, rows, each.reshape(len(rows), *p.shape[1:]))

    @torch.no_grad()
    def clear(self) -> None:
        """Set all values to zero."""
        for p, rows, _ in self.parts:
            p.index_fill_(0, rows, 0.0)

    def dots(self, x: Iterable[Tensor], g: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x.x, x.g and g.g of each group, `(count,)`; 0 for those that are not among these."""
        pairs = list(zip(x, g, strict=True))
        xx, xg, gg = (
            [(one * other).sum(1) for one, other in which]
            for which in ([(a, a) for a, _ in pairs], pairs, [(b, b) for _, b in pairs])
        )
        return self.total(xx), self.total(xg), self.total(gg)

    def sizes(self) -> Tensor:
        """Number of values of each group, `(count,)`."""
        return self.total([torch.full((len(rows),), float(p[0].numel()), device=p.device) for p, rows, _ in self.parts])

    def total(self, values: Iterable[Tensor]) -> Tensor:
        """The sum over each group, `(count,)`, of one number for each row of each part."""
        first = self.parts[0][0]
        found = torch.zeros(self.count, dtype=first.dtype, device=first.device)
        for each, (_, _, groups) in zip(values, self.parts, strict=True):
            found.index_add_(0, groups, each.to(found))
        return found


def _groups(net: nn.Module, couplings: Couplings, name: str) -> GroupSet:
    """The groups of the filters of the convolution `name`."""
    writers: dict[str, Rows] = {}
    parts: dict[str, Rows] = {}
    for cut, groups in couplings.followers(name):
        layer = net.get_submodule(cut.layer)
        if cut.axis == "out":
            if isinstance(layer, nn.Conv2d) and layer.groups == 1:
                writers[cut.layer] = cut.channels, groups
            parts |= {f"{cut.layer}.{inner}": (cut.channels, groups) for inner, _ in layer.named_parameters(recurse=False)}
    return GroupSet(name, convolutions(net)[name].out_channels, writers, parts)


def _narrows(couplings: Couplings, found: GroupSet) -> bool:
    """Whether all channels of a residual stream may go."""
    try:
        return bool(couplings.cuts({name: channels for name, (channels, _) in found.writers.items()}))
    except BadInput:
        return False


def _not_invariant(net: nn.Module, sets: Sequence[GroupSet], input_shape: Sequence[int] | None) -> GroupSet | None:
    """The first set whose channels can be told from zero when every second group of it is zero, if there is one."""
    if not sets or _same_without(net, sets, input_shape):
        return None
    return next((one for one in sets if not _same_without(net, [one], input_shape)), None)


def _same_without(net: nn.Module, sets: Sequence[GroupSet], input_shape: Sequence[int] | None) -> bool:
    shape = input_shape or find_input_shape(net)
    with undisturbed(), torch.inference_mode(False), torch.no_grad():
        twin = in_mode(copy_of(net))
        for name, value in twin.state_dict().items():
            if value.is_floating_point():  # a running mean of 0 hides what BatchNorm does to a zero
                noise = torch.randn_like(value) * (0.5 if name.endswith("mean") else 0.01)
                value.add_(noise.abs() if name.endswith("var") else noise)
        kept = {one.name: torch.arange(one.width) % 2 == 0 for one in sets}
        Groups.of(twin, sets).only(~torch.cat([*kept.values()]).to(next(twin.parameters()).device)).clear()
        images = torch.rand(2, *shape).to(next(twin.parameters()))
        expected, found = twin(images), in_mode(PrunedModel(twin, kept_plan(net, sets, kept, shape)))(images)
        return bool((expected - found).abs().max() <= 1e-4 * expected.abs().max())
