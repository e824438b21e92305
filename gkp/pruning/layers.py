"""The layers of a network that a method may prune, and the reasons why not the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from gkp.errors import BadInput
from gkp.networks.classifier import Vgg16Bn, convolutions
from gkp.pruning.blocks import blocks_of
from gkp.pruning.coupling import Couplings

Layers = Iterable[str] | Callable[[str, nn.Conv2d], bool] | None
Chosen = tuple[dict[str, nn.Conv2d], dict[str, str]]  # the convolutions to prune; the others with the reason


def choose_layers(net: nn.Module, layers: Layers, groups: int) -> Chosen:
    """The convolutions of `net` to prune kernel by kernel, and the ones left out with the reason.

    Args:
        net: The dense network.
        layers: As in `gkp.prune`. None: the paper's (our networks), or every ungrouped convolution whose filters divide by
            `groups` except the image layer.
        groups: Number of equal filter groups.

    Raises:
        BadInput: A layer that was asked for does not fit, or nothing is left.
    """
    every = convolutions(net)
    asked = getattr(net, "prunable", None) if layers is None else layers
    if asked is None:
        left_out = {name: reason for name, conv in every.items() if (reason := _unfit(name, conv, every, groups))}
        chosen = [name for name in every if name not in left_out]
    else:
        chosen = _named(every, asked)
        left_out = {name: "not asked for" for name in every if name not in chosen}
        for name in chosen:
            if reason := _unfit(name, every[name], {}, groups):
                raise BadInput(f"{name} {reason}; use groups that divide its filters, or leave it out with layers=")
    return _some(net, every, chosen), left_out


def choose_filter_layers(net: nn.Module, layers: Layers, input_shape: Sequence[int] | None = None) -> Chosen:
    """The convolutions of `net` to prune filter by filter, and the ones left out with the reason.

    Args:
        net: The dense network.
        layers: As in `gkp.prune`. None: all whose filters can go whole, that is without touching a residual stream.
        input_shape: (C, H, W) of the images; None for a usual one.

    Raises:
        BadInput: A layer that was asked for does not fit, or nothing is left.
    """
    every = convolutions(net)
    couplings = Couplings(net, input_shape)
    if layers is None:
        left_out = {name: reason for name in every if (reason := couplings.reason(name))}
        chosen = [name for name in every if name not in left_out]
    else:
        chosen = _named(every, layers)
        left_out = {name: "not asked for" for name in every if name not in chosen}
        for name in chosen:
            if reason := couplings.reason(name):
                raise BadInput(f"whole filters of {name} cannot go: it {reason}; leave it out with layers=")
    return _some(net, every, chosen), left_out


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
    return _some(net, every, chosen), {name: reason for name in every if name not in chosen}


def _some(net: nn.Module, every: Mapping[str, nn.Conv2d], chosen: Iterable[str]) -> dict[str, nn.Conv2d]:
    convs = {name: every[name] for name in chosen}
    if not convs:
        raise BadInput(f"no layer to prune in {type(net).__name__}; its convolutions: {', '.join(every) or 'none'}")
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


def _unfit(name: str, conv: nn.Conv2d, every: Mapping[str, nn.Conv2d], groups: int) -> str:
    """The reason why `conv` cannot be pruned, or an empty string. The first convolution of `every` is the image layer."""
    if conv.groups != 1:
        return f"is a grouped convolution already (groups={conv.groups})"
    if every and name == next(iter(every)):
        return "is the image layer"
    if groups < 1 or conv.out_channels % groups:
        return f"has {conv.out_channels} filters, which do not divide by {groups} groups"
    return ""
