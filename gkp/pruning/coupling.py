"""Couplings of filters: with a filter go the BatchNorm channel behind it and the input slices of the layers that read it.

They are found by tracing the network with torch-pruning's DependencyGraph on the meta device (shapes only: 0.1 s for
ResNet-110), which works for our networks and other people's alike. It does not follow channels through padding or grouped
convolutions; what cannot be cut exactly is refused with the reason.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.networks.build import INPUT_SIDE
from gkp.networks.classifier import Classifier, convolutions, eval_mode

SIDES = (32, 64, 224, 28, 96, 128, 299)  # pixels a side to try on a network of unknown input; any that passes shows the same
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
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
        self._net = shape_copy(net).eval().requires_grad_(True)
        self._names = {module: name for name, module in self._net.named_modules()}
        self._shape = input_shape
        self._reasons: dict[str, str] = {}
        self._known: dict[str, list[tuple[Cut, Tensor]]] = {}
        self._padded: set[str] = set()  # convolutions whose channels are padded with others on their way

    def reason(self, name: str) -> str:
        """The reason why filters of the convolution `name` cannot go whole by themselves, or an empty string."""
        if name not in self._reasons:
            self._reasons[name] = self._reason(name)
        return self._reasons[name]

    def cuts(self, removed: Mapping[str, Tensor]) -> list[Cut]:
        """Everything that goes with removed filters.

        The channels of a residual stream can go if every convolution that writes into it loses the same filters.

        Args:
            removed: Filters `(R,)` by name of convolution, ascending.

        Returns:
            One cut per layer and axis.

        Raises:
            BadInput: Filters of a convolution cannot go whole; the message says why.
        """
        gone: dict[tuple[str, Axis], list[Tensor]] = {}
        for name, filters in removed.items():
            if not len(filters) or (name, "out") in gone:  # the latter goes with another one of its stream
                continue
            reason, coupled = self._unfit(name), []
            if not reason:
                for one, of_filter in self.followers(name):
                    channels = one.channels[torch.isin(of_filter, filters)].unique()
                    coupled.append((Cut(one.layer, one.axis, channels), of_filter))
                reason = self._obstacle(name, coupled, removed)
            if reason:
                raise BadInput(f"whole filters of {name} cannot go: it {reason}; leave it out with layers=")
            for one, _ in coupled:
                gone.setdefault((one.layer, one.axis), []).append(one.channels)
        return [Cut(layer, axis, torch.cat(channels).unique()) for (layer, axis), channels in gone.items()]

    def followers(self, name: str) -> list[tuple[Cut, Tensor]]:
        """The channels that go with the filters of `name`: per layer a cut, and for each of its channels the filter."""
        if name not in self._known:
            conv = self._net.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            self._known[name] = self._coupled(name, list(range(conv.out_channels)))
        return self._known[name]

    def norm_of(self, name: str) -> str | None:
        """The BatchNorm that reads all channels of the convolution `name` and no others, if there is one."""
        channels = len(self.followers(name)[0][1])
        for one, of_filter in self.followers(name):
            norm = self._net.get_submodule(one.layer)
            alone = isinstance(norm, BATCH_NORMS) and norm.num_features == channels
            if alone and torch.equal(one.channels[of_filter.argsort()], torch.arange(channels)):
                return one.layer
        return None

    @cached_property
    def _graph(self) -> Any:
        tp = _torch_pruning()
        shape = tuple(self._shape or find_input_shape(self._net))
        image = torch.empty(1, *shape, device="meta")
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return tp.DependencyGraph().build_dependency(self._net, example_inputs=image, verbose=False)
        except Exception as error:  # whatever tracing meets in a foreign forward
            kind, problem = type(self._net).__name__, (str(error) or type(error).__name__).splitlines()[0]
            raise BadInput(f"cannot trace {kind} on images of shape {shape}: {problem}; give input_shape=(C, H, W)") from error

    def _coupled(self, name: str, filters: list[int]) -> list[tuple[Cut, Tensor]]:
        """The channels that go with these filters, see `followers`; targets without a name are operations, which have none."""
        graph, conv = self._graph, self._net.get_submodule(name)
        group = graph.get_pruning_group(conv, _torch_pruning().prune_conv_out_channels, idxs=filters)
        found = []
        for item in group:
            if "Pad" in item.dep.target.name:
                self._padded.add(name)
            if item.dep.target.module in self._names:
                axis: Axis = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
                cut = Cut(self._names[item.dep.target.module], axis, torch.tensor(item.idxs))
                found.append((cut, torch.tensor(item.root_idxs)))
        return found

    def _unfit(self, name: str) -> str:
        """The reason why the convolution `name` has no filters to prune, or an empty string."""
        conv = self._net.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        if conv.groups != 1:
            return f"is a grouped convolution (groups={conv.groups})"
        return "" if conv in self._graph.module2node else "takes no part in the forward pass"

    def _reason(self, name: str) -> str:
        if reason := self._unfit(name):
            return reason
        conv = self._net.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        coupled = self._coupled(name, sorted({0, conv.out_channels - 1}))  # two will do, and large groups are slow
        for one, _ in coupled:
            if one.axis == "out" and one.layer != name and _has_filters(self._net.get_submodule(one.layer)):
                self._reasons.setdefault(one.layer, f"writes into the same residual stream as {name}")
        return self._obstacle(name, coupled)

    def _obstacle(self, name: str, coupled: list[tuple[Cut, Tensor]], removed: Mapping[str, Tensor] | None = None) -> str:
        """The reason why the layers coupled to filters of `name` cannot be cut exactly, or an empty string.

        removed: The filters that go, by name of convolution; None if those of `name` go alone.
        """
        read = False
        for one, _ in coupled:
            layer, axis, module = one.layer, one.axis, self._net.get_submodule(one.layer)
            if (layer == name and axis == "out") or isinstance(module, BATCH_NORMS):
                continue
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                if module.groups != module.in_channels or module.groups != module.out_channels:
                    return f"is read by the grouped convolution {layer}"
            elif not isinstance(module, nn.Conv2d | nn.Linear):
                return f"is read by {layer}, a {type(module).__name__}, which cannot be cut exactly"
            elif axis == "out":
                if removed is None or layer not in removed or not torch.equal(removed[layer], one.channels):
                    return f"writes into the same residual stream as {layer}" + " and loses other filters" * (
                        removed is not None
                    )
                if name in self._padded:
                    return f"writes into the same residual stream as {layer}, which is padded with channels of its own"
            else:
                read = True
        return "" if read else "is read by no other layer"


def _has_filters(module: nn.Module) -> bool:
    """Whether a layer makes channels of its own: a convolution that is not depthwise, or a linear layer."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def cut(net: nn.Module, cuts: Sequence[Cut]) -> None:
    """Cut the channels out of the layers of `net`, in place."""
    tp = _torch_pruning()
    for one in cuts:
        layer = net.get_submodule(one.layer)
        trainable = {name: p.requires_grad for name, p in layer.named_parameters(recurse=False)}
        if isinstance(layer, BATCH_NORMS):
            tp.prune_batchnorm_out_channels(layer, one.channels.tolist())
        elif isinstance(layer, nn.Linear):
            (tp.prune_linear_in_channels if one.axis == "in" else tp.prune_linear_out_channels)(layer, one.channels.tolist())
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            tp.prune_depthwise_conv_out_channels(layer, one.channels.tolist())
        else:
            (tp.prune_conv_in_channels if one.axis == "in" else tp.prune_conv_out_channels)(layer, one.channels.tolist())
        for name, p in layer.named_parameters(recurse=False):
            p.requires_grad_(trainable[name])


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


def shape_copy(net: nn.Module) -> nn.Module:
    """A copy of `net` on the meta device: shapes without numbers, so that tracing and counting take milliseconds."""
    memo: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in net.parameters()}
    memo.update((id(b), torch.empty_like(b, device="meta")) for b in net.buffers())
    return copy.deepcopy(net, memo)


def find_input_shape(net: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of images that pass through `net`: those it was made for (our networks), or else the first of `SIDES`.

    Raises:
        BadInput: None does.
    """
    if isinstance(net, Classifier):
        side = INPUT_SIDE.get(net.architecture.name, 32)
        return 3, side, side
    channels = next((conv.in_channels for conv in convolutions(net).values()), 3)
    device = next((p.device for p in net.parameters()), None)
    with eval_mode(net), torch.no_grad():
        for side in SIDES:
            try:
                net(torch.zeros(1, channels, side, side, device=device))
            except (RuntimeError, ValueError):
                continue
            return channels, side, side
    raise BadInput(f"no usual image size passes through {type(net).__name__}; give input_shape=(C, H, W)")


def _torch_pruning() -> Any:
    with warnings.catch_warnings():  # late: it takes 1.6 s to import, and torch.jit complains of it
        warnings.simplefilter("ignore")
        import torch_pruning
    return torch_pruning
