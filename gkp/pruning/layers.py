"""The layers of a network that a method may prune, and the reasons why not the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from gkp.errors import BadInput
from gkp.networks.classifier import Classifier, Vgg16Bn, convolutions
from gkp.pruning.blocks import blocks_of
from gkp.pruning.coupling import Couplings
from gkp.pruning.exact import TIME_LIMIT, difference, sound_layers
from gkp.pruning.filters import FilterSpec
from gkp.pruning.grouped import GroupedSpec, better_rate, is_whole, what_stays
from gkp.pruning.plan import Plan
from gkp.pruning.probe import find_input_shape
from gkp.pruning.spec import not_own, not_plain
from gkp.pruning.tracing import trace
from gkp.pruning.twin import PrunedModel

Layers = Iterable[str] | Callable[[str, nn.Conv2d], bool] | None
Kinds = Literal["exact", "plain", "any"]  # of convolutions: those that masks and groups suit, torch's own, all ungrouped ones
Chosen = tuple[dict[str, nn.Conv2d], dict[str, str]]  # the convolutions to prune; the others with the reason


def choose_layers(
    net: nn.Module, layers: Layers, groups: int, input_shape: Sequence[int] | None = None, *, kinds: Kinds = "exact"
) -> Chosen:
    """The convolutions of `net` to prune kernel by kernel, and the ones left out with the reason.

    Args:
        net: The dense network.
        layers: As in `gkp.prune`. None: the paper's (our networks), or every ungrouped convolution whose filters divide by
            `groups` except image layers, those that no other layer comes before.
        groups: Number of equal filter groups.
        input_shape: (C, H, W) of the images; None for a usual one.
        kinds: "exact": subclasses of `torch.nn.Conv2d` that stay one function, masked and compact, when they keep their type;
            "plain": none of them; "any": all, to count what they cost.

    Raises:
        BadInput: A layer that was asked for does not fit, or nothing is left.
    """
    every = convolutions(net)
    asked = getattr(net, "prunable", None) if layers is None else layers
    inexact: dict[type, str] = {}
    if asked is None:
        left_out = {**_apart(net, every, input_shape)}
        left_out.update({name: reason for name, conv in every.items() if (reason := _unfit(conv, groups, kinds, inexact))})
        chosen = [name for name in every if name not in left_out]
        left_out = {name: left_out[name] for name in every if name in left_out}
    else:
        chosen = _named(every, asked)
        left_out = {name: "not asked for" for name in every if name not in chosen}
        for name in chosen:
            if reason := _unfit(every[name], groups, kinds, inexact):
                other = "use groups that divide its filters, or " if "divide" in reason else ""
                raise BadInput(f"{name} {reason}; {other}leave it out with layers=")
    return _some(net, every, chosen, left_out), left_out


def choose_filter_layers(
    net: nn.Module, layers: Layers, input_shape: Sequence[int] | None = None, *, time_limit: float = TIME_LIMIT
) -> Chosen:
    """The convolutions of `net` to prune filter by filter, and the ones left out with the reason.

    In networks that are not ours they are tried: half of their filters are removed, and the compact network is compared with
    the masked one.

    Args:
        net: The dense network.
        layers: As in `gkp.prune`. None: all whose filters can go whole, that is without touching a residual stream.
        input_shape: (C, H, W) of the images; None for a usual one.
        time_limit: Seconds that trying them may take.

    Raises:
        BadInput: A layer that was asked for does not fit, or nothing is left.
    """
    every, couplings = convolutions(net), Couplings(net, input_shape)
    chosen = list(every) if layers is None else _named(every, layers)
    left_out = {name: "not asked for" for name in every if name not in chosen}
    faulty = {name: reason for name in chosen if (reason := not_own(every[name]) or couplings.reason(name))}
    if not isinstance(net, Classifier) and (layers is None or not faulty):
        faulty |= _tried(net, [name for name in chosen if name not in faulty], input_shape, time_limit)
    if layers is not None and faulty:
        name, reason = next(iter(faulty.items()))
        raise BadInput(f"whole filters of {name} cannot go: it {reason}; leave it out with layers=")
    left_out |= faulty
    return _some(net, every, [name for name in chosen if name not in faulty], left_out), left_out


def choose_block_layers(net: nn.Module, layers: Layers, input_shape: Sequence[int] | None = None) -> Chosen:
    """The convolutions of the residual blocks of `net` that may go whole, and the other convolutions with the reason.

    VGG-16, which has no residual blocks, is pruned filter by filter instead.

    Args:
        net: The dense network.
        layers: As in `gkp.prune`, all convolutions of a block or none. None: those of all blocks.
        input_shape: (C, H, W) of the images; None for a usual one.

    Raises:
        BadInput: There are no residual blocks, or a layer that was asked for does not go with one.
    """
    if isinstance(net, Vgg16Bn):
        return choose_filter_layers(net, layers, input_shape)
    every, blocks = convolutions(net), blocks_of(net)
    if not blocks:
        raise BadInput(f"{type(net).__name__} has no residual blocks to remove; take a method that removes filters, such as l2")
    inside = [name for names in blocks.values() for name in names]
    asked = inside if layers is None else _named(every, layers)
    chosen = [name for names in blocks_of(net, asked).values() for name in names]
    if alone := [name for name in asked if name not in chosen]:
        with_it = next((names for names in blocks.values() if alone[0] in names), None)
        wanted = f"ask for {', '.join(with_it)} together, or leave it out" if with_it else "leave it out"
        raise BadInput(f"{alone[0]} is no residual block of its own, and only whole blocks go; {wanted} with layers=")
    reason = "is in no residual block" if layers is None else "not asked for"
    left_out = {name: reason for name in every if name not in chosen}
    return _some(net, every, chosen, left_out), left_out


def whole_kernels(convs: Mapping[str, nn.Conv2d], left_out: Mapping[str, str], rate: float, layers: Layers) -> Chosen:
    """The layers in which `rate` leaves whole kernels, if no rate does so in all of them and none was asked for.

    Args:
        convs, left_out: What `choose_layers` returned.
        rate: Share of kernels removed.
        layers: As in `gkp.prune`.

    Raises:
        BadInput: The rate does not fit; the message names one that does.
    """
    odd = [name for name, conv in convs.items() if not is_whole(rate * conv.in_channels)]
    if not odd or not 0 < rate < 1:
        return dict(convs), dict(left_out)
    widths = {convs[name].in_channels for name in convs}
    common, name = math.gcd(*widths), next((name for name in odd if convs[name].in_channels > 1), odd[0])
    what = what_stays(convs[name].in_channels, rate, name)
    if common > 1 or widths == {1}:
        raise BadInput(f"{what}; {better_rate(common, rate)}")
    if layers is not None or len(odd) == len(convs):
        inputs = convs[name].in_channels
        some = f"all but those of {inputs}, and {better_rate(inputs, rate)}" if inputs > 1 else "those of one input"
        raise BadInput(
            f"{what}, and no rate fits layers of {', '.join(map(str, sorted(widths)))} inputs at once; leave some out with "
            f"layers=, e.g. {some}"
        )
    reasons = {name: f"has {convs[name].in_channels} inputs, of which rate {rate:g} leaves no whole number" for name in odd}
    return {name: conv for name, conv in convs.items() if name not in reasons}, {**left_out, **reasons}


def _apart(net: nn.Module, every: Mapping[str, nn.Conv2d], input_shape: Sequence[int] | None) -> dict[str, str]:
    """Image layers and layers that take no part, with that as the reason; the first layer if no image size is known."""
    try:
        seen = trace(net, input_shape or find_input_shape(net), filters=False)
    except BadInput:
        if input_shape is not None:
            raise
        return dict.fromkeys(list(every)[:1], "is the image layer")
    idle = {name: "takes no part in the forward pass" for name in every if name not in seen.called}
    return idle | dict.fromkeys(seen.stems, "is the image layer")


def _tried(net: nn.Module, names: Sequence[str], input_shape: Sequence[int] | None, seconds: float) -> dict[str, str]:
    """The layers whose filters cannot go together with the others exactly, with the reason."""
    generator = torch.Generator().manual_seed(0)
    shape = tuple(input_shape or find_input_shape(net)) if names else None
    specs, every = {}, convolutions(net)
    for name in names:
        width = every[name].out_channels
        kept = torch.randperm(width, generator=generator)[: (width + 1) // 2]
        specs[name] = FilterSpec(kept.sort().values)

    def trial(some: Sequence[str]) -> PrunedModel:
        return PrunedModel(net, Plan({name: specs[name] for name in some}, shape))

    return sound_layers(names, trial, shape, seconds=seconds)[1]


def _some(
    net: nn.Module, every: Mapping[str, nn.Conv2d], chosen: Iterable[str], left_out: Mapping[str, str]
) -> dict[str, nn.Conv2d]:
    convs = {name: every[name] for name in chosen}
    if not convs:
        why = ", ".join(f"{name} {left_out[name]}" if name in left_out else name for name in list(every)[:3])
        more = f" and {len(every) - 3} others" if len(every) > 3 else ""
        raise BadInput(f"no layer to prune in {type(net).__name__}; its convolutions: {why or 'none'}{more}")
    return convs


def _named(every: Mapping[str, nn.Conv2d], layers: Iterable[str] | Callable[[str, nn.Conv2d], bool]) -> list[str]:
    """The layer names that a list of names or a predicate chooses. Raises BadInput for a name that is no convolution."""
    if callable(layers):
        return [name for name, conv in every.items() if layers(name, conv)]
    wanted = [layers] if isinstance(layers, str) else list(layers)
    missing = [name for name in wanted if name not in every]
    if missing:
        raise BadInput(f"no convolution called {', '.join(missing)}; there are {', '.join(every) or 'none'}")
    return wanted


def _unfit(conv: nn.Conv2d, groups: int, kinds: Kinds, inexact: dict[type, str]) -> str:
    """The reason why `conv` cannot be pruned kernel by kernel, or an empty string.

    inexact: The reason by subclass of `torch.nn.Conv2d`; a subclass that was not exact once is not tried again.
    """
    if conv.groups != 1:
        return f"is a grouped convolution already (groups={conv.groups})"
    if groups < 1 or conv.out_channels % groups:
        return f"has {conv.out_channels} filters, which do not divide by {groups} groups"
    if kinds == "any" or not (reason := not_plain(conv)):
        return ""
    if kinds == "plain" or not_own(conv):
        return reason
    if (kind := type(conv)) not in inexact and (found := _inexact(conv, groups)):
        inexact[kind] = found
    return inexact.get(kind, "")


def _inexact(conv: nn.Conv2d, groups: int) -> str:
    """The reason why a subclass of `torch.nn.Conv2d` is another function in small, or an empty string."""
    inputs = conv.in_channels
    kept = torch.stack([(torch.arange((inputs + 1) // 2) * 2 + group) % inputs for group in range(groups)]).sort(1).values
    spec = GroupedSpec(torch.arange(conv.out_channels) % groups, kept)
    reason = difference(PrunedModel(nn.Sequential(conv), Plan({"0": spec})), None)
    return f"is a {type(conv).__name__}, which is not exact in small: {reason}" if reason else ""
