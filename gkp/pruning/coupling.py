"""Couplings of filters: with a filter go the BatchNorm channel behind it and the input slices of the layers that read it.

They are found by following every filter through one forward pass (`gkp.pruning.tracing`), which works for our networks and
other people's alike; what cannot be cut exactly is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.networks.classifier import convolutions
from gkp.pruning.probe import find_input_shape
from gkp.pruning.tracing import BATCH_NORMS, OUTPUT, Trace, trace

Axis = Literal["out", "in"]


@dataclass(frozen=True, eq=False)
class Cut:
    """Channels that are cut from a layer.

    Attributes:
        layer: Its name.
        axis: "out" for its outputs (rows, bias), "in" for its inputs (columns).
        channels: `(R,)` int64, ascending.
    """

    layer: str
    axis: Axis
    channels: Tensor


class Couplings:
    """The layers that read the filters of each convolution of a network.

    Args:
        net: The dense network; it is not changed.
        input_shape: (C, H, W) of its images; None for those our networks take, or else any size that passes through.
    """

    def __init__(self, net: nn.Module, input_shape: Sequence[int] | None = None):
        self._net = net
        self._convs = convolutions(net)
        self._shape = input_shape
        self._known: dict[str, list[tuple[Cut, Tensor]]] = {}
        self._places: list[tuple[str, Axis]] = []

    def reason(self, name: str) -> str:
        """The reason why filters of the convolution `name` cannot go whole by themselves, or an empty string."""
        return self._reason(name) or self._others(name) or self._obstacle(name)

    def cuts(self, removed: Mapping[str, Tensor]) -> list[Cut]:
        """Everything that goes with removed filters.

        The channels of a residual stream can go if every convolution that writes into it loses the same filters.

        Args:
            removed: Filters `(R,)` by name of convolution.

        Returns:
            One cut per layer and axis.

        Raises:
            BadInput: Filters of a convolution cannot go whole; the message says why.
        """
        gone: dict[tuple[str, Axis], list[Tensor]] = {}
        for name, filters in removed.items():
            if not len(filters):
                continue
            if reason := self._reason(name) or self._others(name, removed) or self._obstacle(name):
                raise BadInput(f"whole filters of {name} cannot go: it {reason}; leave it out with layers=")
            for one, of_filter in self.followers(name):
                gone.setdefault((one.layer, one.axis), []).append(one.channels[torch.isin(of_filter, filters)])
        return [Cut(layer, axis, torch.cat(channels).unique()) for (layer, axis), channels in gone.items()]

    def followers(self, name: str) -> list[tuple[Cut, Tensor]]:
        """The channels that go with the filters of `name`: per layer a cut, and for each of its channels the filter."""
        if name not in self._known:
            places, streams, channels = self._channels
            first, width = self._trace.first[name], self._convs[name].out_channels
            own = torch.full((len(self._streams) + 1,), -1)  # the filter of `name` in each stream
            own[self._streams[first : first + width].flip(0)] = torch.arange(width).flip(0)
            chosen = (own[streams] >= 0).nonzero().flatten()
            found = []
            for place in places[chosen].unique().tolist():
                here = chosen[places[chosen] == place]
                layer, axis = self._places[place]
                found.append((Cut(layer, axis, channels[here]), own[streams[here]]))
            self._known[name] = sorted(found, key=lambda entry: (entry[0].layer, entry[0].axis) != (name, "out"))
        return self._known[name]

    def norm_of(self, name: str) -> str | None:
        """The BatchNorm that reads all channels of the convolution `name` and no others, if there is one."""
        width = self._convs[name].out_channels
        for one, of_filter in self.followers(name):
            norm = self._net.get_submodule(one.layer)
            alone = isinstance(norm, BATCH_NORMS) and norm.num_features == width == len(of_filter)
            if alone and torch.equal(one.channels[of_filter.argsort()], torch.arange(width)):
                return one.layer
        return None

    @cached_property
    def _trace(self) -> Trace:
        return trace(self._net, self._shape or find_input_shape(self._net))

    @cached_property
    def _streams(self) -> Tensor:
        return self._trace.streams()

    @cached_property
    def _channels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of every channel that belongs to a stream: where it is in `_places`, its stream, and its number in its layer."""
        rows = []
        for layer in self._trace.called:
            module = self._net.get_submodule(layer)
            passes = isinstance(module, BATCH_NORMS) or (isinstance(module, nn.Conv2d) and module.groups > 1)
            if layer in self._trace.reads:
                rows.append(self._entered(layer, "out" if passes else "in", self._trace.reads[layer]))
            if layer in self._trace.first:
                start = self._trace.first[layer]
                rows.append(self._entered(layer, "out", torch.arange(start, start + _outputs(module))))
        places, streams, channels = (torch.cat(column) for column in zip(*rows, strict=True))
        return places, streams, channels

    def _entered(self, layer: str, axis: Axis, filters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._places.append((layer, axis))
        streams = self._streams[filters].where(filters >= 0, len(self._streams))
        return torch.full_like(filters, len(self._places) - 1), streams, torch.arange(len(filters))

    def _reason(self, name: str) -> str:
        """The reason why the convolution `name` has no filters to prune, or an empty string."""
        if self._convs[name].groups != 1:
            return f"is a grouped convolution (groups={self._convs[name].groups})"
        takes_part = name in self._trace.called and name not in self._trace.training
        return "" if takes_part else "takes no part in the forward pass"

    def _others(self, name: str, removed: Mapping[str, Tensor] | None = None) -> str:
        """The reason why the residual stream that `name` writes into does not narrow, or an empty string.

        removed: The filters that go, by name of convolution; None if those of `name` go alone.
        """
        first, streams = self._trace.first[name], self._streams
        width = self._convs[name].out_channels
        filters = torch.arange(width) if removed is None else removed[name]
        together = torch.isin(streams, streams[first + filters])
        if removed is None:
            together[first : first + width] = False
        members = together.nonzero().flatten().tolist()
        others = [self._trace.owners[i] for i in members if self._trace.owners[i] != name]
        if removed is None:
            own = streams[first : first + width]
            itself = "is added to other channels of its own" if len(own.unique()) < width else ""
            return f"writes into the same residual stream as {others[0]}" if others else itself
        if others and self._trace.padded & set(members):
            return f"writes into the same residual stream as {others[0]}, which is padded with channels of its own"
        goes = torch.zeros(len(streams), dtype=torch.bool)
        for layer, gone in ((layer, gone) for layer, gone in removed.items() if len(gone)):
            goes[self._trace.first[layer] + gone] = True
        for i in members:
            if not goes[i]:
                return f"writes into the same residual stream as {self._trace.owners[i]} and loses other filters"
        return ""

    def _obstacle(self, name: str) -> str:
        """The reason why what reads the filters of `name` cannot be cut exactly, or an empty string."""
        found = self.followers(name)
        reasons = [self._trace.reasons.get(one.layer, "") for one, _ in found if one.axis == "out" and one.layer in self._convs]
        reason = next((reason for reason in reasons if reason), "")
        if reason in ("", OUTPUT) and not any(one.axis == "in" for one, _ in found):
            return "is read by no other layer"
        return reason


def _outputs(module: nn.Module) -> int:
    return int(module.out_channels if isinstance(module, nn.Conv2d) else module.out_features)  # type: ignore[arg-type]


def cut(net: nn.Module, cuts: Sequence[Cut]) -> None:
    """Cut the channels out of the layers of `net`, in place."""
    for one in cuts:
        layer = net.get_submodule(one.layer)
        if isinstance(layer, BATCH_NORMS):
            _cut(layer, one.channels, 0, ["num_features"])
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            _cut(layer, one.channels, 0, ["in_channels", "out_channels", "groups"])
        else:
            widths = ("in_channels", "out_channels") if isinstance(layer, nn.Conv2d) else ("in_features", "out_features")
            _cut(layer, one.channels, int(one.axis == "in"), [widths[one.axis == "out"]])


def _cut(layer: nn.Module, channels: Tensor, dim: int, widths: Sequence[str]) -> None:
    """Cut channels out of the parameters and buffers of a layer that are as wide in this dimension as the layer is."""
    width = int(getattr(layer, widths[0]))
    keep = torch.ones(width, dtype=torch.bool)
    keep[channels] = False
    kept = keep.nonzero().flatten()
    tensors = [*layer._parameters.items(), *layer._buffers.items()]
    made: dict[int, Tensor] = {}  # a tensor of two names stays one
    for name, tensor in tensors:
        if tensor is not None and tensor.ndim > dim and tensor.shape[dim] == width:  # the bias of a reader stays
            small = tensor.detach().index_select(dim, kept.to(tensor.device))
            small = nn.Parameter(small, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small
            setattr(layer, name, made.setdefault(id(tensor), small))
    for attribute in widths:
        setattr(layer, attribute, len(kept))


def zeros(net: nn.Module, cuts: Sequence[Cut]) -> dict[str, Tensor]:
    """Masks by parameter name, broadcastable to it: True where the cuts of the dense `net` hold it at zero."""
    masks: dict[str, Tensor] = {}
    for one in cuts:
        layer = net.get_submodule(one.layer)
        dim = 1 if one.axis == "in" and not isinstance(layer, BATCH_NORMS) else 0
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
        for name, p in layer.named_parameters(recurse=False):
            along = 0 if depthwise else dim
            if along >= p.ndim:
                continue  # the bias of a reader stays
            shape = [1] * p.ndim
            shape[along] = p.shape[along]
            gone = torch.zeros(p.shape[along], dtype=torch.bool)
            gone[one.channels] = True
            full = f"{one.layer}.{name}" if one.layer else name
            masks[full] = masks[full] | gone.view(shape) if full in masks else gone.view(shape)
    return masks
