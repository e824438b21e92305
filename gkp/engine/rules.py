"""The translation of nodes into operations of the engine: one rule for each layer and function that it knows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gkp.engine.operations import Conv, Flatten, Floats, Ints, Linear, Load, MaxPool, Mean, Shortcut

if TYPE_CHECKING:
    from gkp.engine.graph import Translation


IMAGES = 0  # the number of the value that the network is given
MOST_POOLED = 16  # pixels of a side of a pool, because the position of a maximum is kept in a byte


class Unknown(Exception):
    """The engine cannot run this node; the message is the reason."""


@dataclass(frozen=True)
class Ref:
    """A value, as the output of a node of the graph.

    Attributes:
        value: The number of the value.
        kind: "outside" (a tensor outside the engine's memory), "map" or "vector".
        sole: Whether only one node reads it.
        channels: The selected channels, in order; None for all.
    """

    value: int
    kind: str
    sole: bool
    channels: Ints | None = None


def _double(tensor: Tensor | None, length: int, otherwise: float) -> Floats:
    return np.full(length, otherwise) if tensor is None else tensor.detach().double().numpy().copy()


_KERNELS = [(side, side) for side in (1, 3, 5, 7)]


def _conv(t: Translation, node: fx.Node, module: nn.Conv2d, x: Any) -> Ref:
    k, stride = module.kernel_size, module.stride
    padding = module.padding if isinstance(module.padding, tuple) else None
    if module.dilation != (1, 1) or module.padding_mode != "zeros":
        raise Unknown(f"dilation {module.dilation}, padding mode {module.padding_mode!r}")
    if k not in _KERNELS or stride not in ((1, 1), (2, 2)) or padding != (k[0] // 2,) * 2:
        known = "1x1 to 7x7 of odd sides, stride 1 or 2, padding k // 2"
        raise Unknown(f"kernel {k}, stride {stride}, padding {module.padding}: the engine has {known}")
    if module.weight.dtype != torch.float32:
        raise Unknown(f"weights of type {module.weight.dtype}")
    source = t.as_map(x, node)
    channels = np.arange(module.in_channels) if source.channels is None else source.channels
    each = module.out_channels // module.groups
    return t.add(
        node,
        "map",
        lambda output: Conv(
            [source.value],
            output,
            weight=module.weight.detach().double().numpy().copy(),
            bias=_double(module.bias, module.out_channels, 0.0),
            group_of_filter=np.arange(module.out_channels) // each,
            kept=channels.reshape(module.groups, -1),
            stride=stride[0],
            takes=module.in_channels if source.channels is None else None,
        ),
    )


def _batch_norm(t: Translation, node: fx.Node, module: nn.BatchNorm2d, x: Any) -> Ref:
    conv = t.open_conv(x)
    if conv is None or len(conv.inputs) > 1:
        raise Unknown("BatchNorm that does not directly follow a convolution")
    if module.running_mean is None or module.running_var is None:
        raise Unknown("BatchNorm without running statistics")
    width = module.num_features
    factor = _double(module.weight, width, 1.0) / np.sqrt(_double(module.running_var, width, 1.0) + module.eps)
    conv.scale(factor, _double(module.bias, width, 0.0) - factor * _double(module.running_mean, width, 0.0))
    return t.alias(node, x)


def _relu(t: Translation, node: fx.Node, *inputs: Any) -> Ref:
    x = next((i for i in inputs if isinstance(i, Ref)), None)
    if x is not None and t.rectified(x.value):
        return t.alias(node, x)
    conv = t.open_conv(x)
    if conv is None or x is None:
        raise Unknown("ReLU that does not directly follow a convolution")
    conv.relu = True
    return t.alias(node, x)


def _add(t: Translation, node: fx.Node, a: Any, b: Any, *more: Any) -> Ref:
    if more or not isinstance(a, Ref) or not isinstance(b, Ref):
        raise Unknown("a sum of inputs other than two feature maps")
    for one, other in ((a, b), (b, a)):
        conv = t.open_conv(one)
        if conv is not None and len(conv.inputs) == 1 and other.value != one.value and other.kind != "vector":
            conv.inputs.append(t.plain_map(other, node).value)
            t.move_to_end(conv)
            return t.alias(node, one)
    raise Unknown("a sum that does not directly follow a convolution")


def _normalise(divide: bool) -> Callable[..., Ref]:
    def rule(t: Translation, node: fx.Node, x: Any, by: Any) -> Ref:
        if not isinstance(x, Ref):
            raise Unknown("arithmetic on another input than the images")
        values = by.detach().double().numpy() if isinstance(by, Tensor) else np.array(by, dtype=np.float64)
        if values.ndim not in (0, 4) or (values.ndim == 4 and values.size != values.shape[1]):
            raise Unknown("arithmetic that is not per channel")
        load = t.producer(x, Load)
        if divide and load is not None and load.mean is not None and load.std is None:
            load.std = values.reshape(-1)
            return t.alias(node, x)
        if x.kind != "outside" or x.value != IMAGES or x.channels is not None:
            raise Unknown("arithmetic on a feature map")
        mean, std = (np.zeros(1), values.reshape(-1)) if divide else (values.reshape(-1), None)
        return t.add(node, "map", lambda output: Load([x.value], output, mean, std))

    return rule


def _select(t: Translation, node: fx.Node, x: Any, dim: Any, index: Any) -> Ref:
    if not isinstance(x, Ref) or dim not in (1, -3) or not isinstance(index, Tensor) or x.kind == "vector":
        raise Unknown("a selection along another dimension than channels")
    channels = index.detach().cpu().numpy().astype(np.int64)
    conv = t.open_conv(x)
    if conv is not None and len(conv.inputs) == 1:
        conv.select(channels)
        return t.alias(node, x)
    return replace(t.alias(node, x), channels=channels if x.channels is None else x.channels[channels])


def _slice(t: Translation, node: fx.Node, x: Any, where: Any) -> Ref:
    step = where[-1].step if isinstance(where, tuple) and len(where) == 4 and isinstance(where[-1], slice) else None
    pixels = slice(None, None, step)
    if not isinstance(step, int) or step < 1 or where != (slice(None), slice(None), pixels, pixels):
        raise Unknown("a part of a tensor other than every n-th pixel")
    source = t.plain_map(x, node)
    return t.add(node, "map", lambda output: Shortcut([source.value], output, stride=step))


def _identity(t: Translation, node: fx.Node, module: Any, x: Any) -> Ref:
    return t.alias(node, x)


def _average_pool(t: Translation, node: fx.Node, module: nn.AvgPool2d, x: Any) -> Ref:
    stride = module.stride if isinstance(module.stride, int) else module.stride[0]
    if (
        module.kernel_size not in (1, (1, 1))
        or module.stride not in (stride, (stride, stride))
        or module.padding not in (0, (0, 0))
    ):
        raise Unknown("an average pool of more than one pixel")
    if stride == 1:
        return t.alias(node, x)
    source = t.plain_map(x, node)
    return t.add(node, "map", lambda output: Shortcut([source.value], output, stride=stride))


def _pad(t: Translation, node: fx.Node, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Ref:
    if not isinstance(x, Ref) or len(pad) != 6 or any(pad[:4]) or min(pad) < 0 or mode != "constant" or value:
        raise Unknown("padding other than of channels by zeros")
    shortcut = t.producer(x, Shortcut)
    if shortcut is not None and not (shortcut.before or shortcut.after or shortcut.channels is not None):
        shortcut.before, shortcut.after = pad[4], pad[5]
        return t.alias(node, x)
    source = t.plain_map(x, node)
    return t.add(node, "map", lambda output: Shortcut([source.value], output, before=pad[4], after=pad[5]))


def _max_pool(t: Translation, node: fx.Node, module: nn.MaxPool2d, x: Any) -> Ref:
    pairs = (_pair(value) for value in (module.kernel_size, module.stride, module.padding, module.dilation))
    window, stride, padding, dilation = pairs
    square = all(len(set(pair)) == 1 for pair in (window, stride, padding))
    if not square or dilation != (1, 1) or module.ceil_mode or module.return_indices or window[0] > MOST_POOLED:
        raise Unknown(
            f"a maximum pool other than of squares of at most {MOST_POOLED} pixels a side, or with ceil_mode or indices"
        )
    source = t.plain_map(x, node)
    return t.add(node, "map", lambda output: MaxPool([source.value], output, window[0], stride[0], padding[0]))


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _adaptive(t: Translation, node: fx.Node, x: Any, size: Any) -> Ref:
    if size not in (1, (1, 1)) or not isinstance(x, Ref) or x.kind != "map":
        raise Unknown("an adaptive pool to more than one pixel, or of an input that is not a feature map")
    if any(not _flattens(user, t.module) for user in node.users):
        raise Unknown("a mean over positions that is not flattened next")
    source = t.plain_map(x, node)
    return t.add(node, "vector", lambda output: Mean([source.value], output))


def _flattens(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)
    return node.target in ("flatten", torch.flatten) and (tuple(node.args[1:]), dict(node.kwargs)) in (
        ((1,), {}),
        ((1, -1), {}),
    )


def _flatten(t: Translation, node: fx.Node, x: Any, *rest: Any) -> Ref:
    if not isinstance(x, Ref) or not _flattens(node, t.module) or x.kind == "outside":
        raise Unknown("flattening of an input that is not a feature map")
    if x.kind == "vector":
        return t.alias(node, x)
    source = t.plain_map(x, node)
    return t.add(node, "vector", lambda output: Flatten([source.value], output))


def _linear(t: Translation, node: fx.Node, module: nn.Linear, x: Any) -> Ref:
    if not isinstance(x, Ref) or x.kind != "vector" or module.weight.dtype != torch.float32:
        raise Unknown("a linear layer on an input that is not a vector")
    weight = module.weight.detach().double().numpy().copy()
    bias = _double(module.bias, module.out_features, 0.0)
    return t.add(node, "vector", lambda output: Linear([x.value], output, weight, bias))


MODULES: dict[type, Callable[..., Ref]] = {
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: lambda t, node, module, x: _relu(t, node, x),
    nn.Identity: _identity,
    nn.Dropout: _identity,
    nn.Dropout2d: _identity,
    nn.AvgPool2d: _average_pool,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: lambda t, node, module, x: _adaptive(t, node, x, module.output_size),
    nn.Flatten: lambda t, node, module, x: _flatten(t, node, x),
    nn.Linear: _linear,
}
FUNCTIONS: dict[Any, Callable[..., Ref]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), _relu),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _add),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), _normalise(divide=False)),
    **dict.fromkeys((operator.truediv, torch.div, "div"), _normalise(divide=True)),
    **dict.fromkeys((torch.index_select, "index_select"), _select),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    operator.getitem: _slice,
    F.pad: _pad,
    F.adaptive_avg_pool2d: _adaptive,
}
