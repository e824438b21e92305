"""Passes through a network of ours that compute nothing: to count and to trace one, its shapes are enough.

Any other network may look at numbers; it is sent real images, or images on the meta device, see `gkp.pruning.probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gkp.networks.classifier import Classifier
from gkp.networks.copies import skeleton_of
from gkp.pruning.watched import in_mode

T = TypeVar("T")
_FOUND: dict[Hashable, Any] = {}
_MOST = 64
_PLAIN = (bool, int, float, str, tuple)  # types of the settings of a layer


def is_as_built(net: nn.Module) -> bool:
    """Whether `net` is a dense network of ours in which nothing was exchanged for other kinds, hooked or reparametrised."""

    def is_plain(module: nn.Module) -> bool:
        if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
            return False
        bare = module is net or not any(True for _ in module.buffers(recurse=False))
        return type(module) in _STUBS or (_is_known(module) and bare)

    return isinstance(net, Classifier) and all(map(is_plain, net.modules()))


def is_ours(net: nn.Module) -> bool:
    """Whether `net` is a network of ours, dense or compact, all of whose parts are of the kinds that those are made of."""
    return isinstance(net, Classifier) and all(
        isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) or _is_known(module) for module in net.modules()
    )


def _is_known(module: nn.Module) -> bool:
    known = type(module).__module__.startswith(("torch.nn.modules.", "torchvision.models.resnet", "gkp."))
    return known and not any(True for _ in module.parameters(recurse=False))


def once(net: nn.Module, question: Hashable, find: Callable[[], T]) -> T:
    """What `find()` gives for `net`; for networks that are as built, and built alike, it is called once in a process.

    Args:
        net: The network.
        question: What is asked, and all that the answer depends on beside types, settings and shapes of the layers.
        find: Gives the answer, which nobody may change.
    """
    if not is_as_built(net):
        return find()
    known = question, _structure(net)
    if known not in _FOUND:
        found = find()
        if len(_FOUND) >= _MOST:
            _FOUND.clear()
        _FOUND[known] = found
    return _FOUND[known]


def _structure(net: nn.Module) -> Hashable:
    """All that the forward pass of a network as built depends on beside numbers: types, settings and shapes of its modules."""
    places: dict[int, int] = {}  # of modules, of which one may stand in two places
    found = []
    for name, module in net.named_modules(remove_duplicate=False):
        settings = [f"{key}={value}" for key, value in vars(module).items() if key != "training" and isinstance(value, _PLAIN)]
        shapes = tuple((key, p if p is None else tuple(p.shape)) for key, p in module._parameters.items())
        found.append((name, places.setdefault(id(module), len(places)), type(module), tuple(settings), shapes))
    return tuple(found)


def outline(net: nn.Module) -> nn.Module:
    """A copy of a network of ours whose parameters are on the meta device, in eval mode."""
    found, made = skeleton_of(net), {}
    with torch.inference_mode(False):
        for module in found.modules():
            for name, p in module._parameters.items():
                if p is not None and id(p) not in made:  # by the shape: torch.empty_like would import the compiler
                    made[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), p.requires_grad)
                module._parameters[name] = p if p is None else made[id(p)]
    return in_mode(found)


def stubbed(net: nn.Module) -> nn.Module:
    """`net` itself, with layers that return tensors of the right shape and compute nothing.

    Of a network of ours these are convolutions, linear layers and BatchNorms; of any other, BatchNorms on the meta device.
    """
    ours, left = is_ours(net), []
    for module in net.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        empty = any(tensor.is_meta for tensor in own)
        stub = _STUBS.get(type(module)) if ours or (empty and type(module) is nn.BatchNorm2d) else None
        if stub is None:
            left += [module] if empty else []
        elif "forward" not in vars(module):
            module.forward = partial(stub, module)
    if ours and left:
        net.to("meta")  # these layers would not take ordinary images
    return net


def _same(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return x


def _through_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    _check_width(linear, x.shape[-1], linear.in_features)
    return x.new_empty(*x.shape[:-1], linear.out_features)


def _through_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    _check_width(conv, x.shape[-3], conv.in_channels)
    sides = list(x.shape[-2:])
    if conv.padding != "same":
        padding = conv.padding if isinstance(conv.padding, tuple) else (0, 0)
        settings = zip(sides, conv.kernel_size, conv.stride, padding, conv.dilation, strict=True)
        sides = [(side + 2 * around - apart * (kernel - 1) - 1) // step + 1 for side, kernel, step, around, apart in settings]
    if min(sides) < 1:
        raise RuntimeError(f"an image of {tuple(x.shape[-2:])} is smaller than a kernel of {conv.kernel_size}")
    return x.new_empty(*x.shape[:-3], conv.out_channels, *sides)


def _check_width(layer: nn.Module, found: int, wanted: int) -> None:
    if found != wanted:
        raise RuntimeError(f"a {type(layer).__name__} of {wanted} inputs was given {found}")


_STUBS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv2d: _through_conv,
    nn.Linear: _through_linear,
    nn.BatchNorm2d: _same,
}
