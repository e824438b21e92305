"""Follow every filter through the forward pass of a network, operation by operation.

Beside each tensor that holds feature maps goes a second one of its shape, whose entries say which filter of which layer each
value comes from. What moves values (view, permute, slice, split, concatenate, pad, shuffle) is done to it as well; functions of
single values keep it; pools and means need it constant over what they average. A layer that reads it learns which of its
inputs come from which filter. Everything else may mix channels: the layers whose filters get there are left out, with the
operation as the reason. One forward pass, linear in the number of operations, on the meta device where that works.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gkp.networks.classifier import Classifier
from gkp.pruning.labels import ALONG, NOBODY, constant, is_after, labels_of, moved, put_labels, reduced, spatial, varying
from gkp.pruning.operations import COPIES, MOVES, POINTWISE, REDUCTIONS, SPATIAL
from gkp.pruning.outline import once, stubbed
from gkp.pruning.probe import cheap_copy, image_for, undisturbed
from gkp.pruning.watched import FAILURES, Dispatched, Turn, Watched, in_mode, turns

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
OUTPUT = "is an output of the network"


@dataclass
class Trace:
    """The findings of one forward pass.

    Attributes:
        called: Names of the convolutions, linear layers and BatchNorms that take part, in order of their first call.
        stems: Names of the convolutions that see the image before any other layer has.
        first: The number of each layer's first filter.
        reads: `(C_in,)` by layer that reads filters, in order of the first call: the number of the filter behind each input.
        reasons: The reason why filters of a layer cannot go whole, by name.
        owners: The layer of each filter number.
        ties: `(k, 2)` each, numbers of filters whose maps are added up or multiplied, so that they can only go together.
        padded: Numbers of filters whose maps are padded with channels that come from no filter.
        training: Those of `called` that take part in training mode only, as auxiliary heads do.
    """

    called: list[str] = field(default_factory=list)
    stems: list[str] = field(default_factory=list)
    first: dict[str, int] = field(default_factory=dict)
    reads: dict[str, Tensor] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    owners: list[str] = field(default_factory=list)
    ties: list[Tensor] = field(default_factory=list)
    padded: set[int] = field(default_factory=set)
    training: list[str] = field(default_factory=list)

    def streams(self) -> Tensor:
        """For each filter the number of its stream; filters of one stream can only go together."""
        root = list(range(len(self.owners)))

        def find(i: int) -> int:
            while root[i] != i:
                root[i] = i = root[root[i]]
            return i

        for pairs in self.ties:
            for one, other in pairs.tolist():
                first, second = sorted((find(one), find(other)))
                root[second] = first
        return torch.tensor([find(i) for i in range(len(root))])


def trace(net: nn.Module, shape: Sequence[int], *, filters: bool = True) -> Trace:
    """Follow the filters of `net`, which is not changed, through one image of this shape, in eval mode and then in training.

    Networks of ours that are built alike share what was found: it is not to be changed.

    Args:
        net: Any network.
        shape: (C, H, W) of the image.
        filters: Whether to follow them, or only to look which layers take part and which see the image first.

    Raises:
        BadInput: Such an image does not pass through the network.
    """
    return once(net, ("trace", tuple(shape), filters), lambda: _traced(net, shape, filters))


def _traced(net: nn.Module, shape: Sequence[int], filters: bool) -> Trace:
    twin = stubbed(cheap_copy(net, shape))
    tracer = _Tracer(twin, filters)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with undisturbed(), torch.inference_mode(False), torch.no_grad():
            tracer.follow(twin, image_for(twin, shape))
            if filters and not isinstance(net, Classifier):  # ours are the same network in both modes
                tracer.follow_training(twin, image_for(twin, shape, 2))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        tracer.remove()
    return tracer.found


class _Tracer(Dispatched):
    """Keeps on each tensor: `_gkp_labels`, the filters of its values, and `_gkp_after`, whether a layer comes before it."""

    def __init__(self, net: nn.Module, filters: bool):
        super().__init__()
        self.found = Trace()
        self._filters = filters
        self._inside = 0  # layers whose own operations are not looked at
        self._where: list[str] = []
        self._hooks = []
        for name, module in net.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, *BATCH_NORMS)):
                self._hooks += [
                    module.register_forward_pre_hook(self._enter, with_kwargs=True),
                    module.register_forward_hook(self._leave(name), with_kwargs=True),
                ]
                if not isinstance(module, BATCH_NORMS):
                    self.found.first[name] = len(self.found.owners)
                    self.found.owners += [name] * (
                        module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
                    )
            elif not any(module.children()) and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                what = f"{name}, a {type(module).__name__}, which cannot be cut exactly"
                self._hooks += [
                    module.register_forward_pre_hook(lambda *_, what=what: self._where.append(what)),
                    module.register_forward_hook(lambda *_: self._where.pop() and None),
                ]

    def remove(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()

    def follow(self, net: nn.Module, images: Tensor) -> None:
        """Follow the filters of `net` to its outputs, also by the ways that it may take for other images."""
        for turn in turns(self._follow_once(net, images, None)):
            with contextlib.suppress(*FAILURES):  # it may be a check that fails
                self._follow_once(net, images.clone(), turn)
            self._inside, self._where = 0, []

    def _follow_once(self, net: nn.Module, images: Tensor, turn: Turn | None) -> list[bool | int | float]:
        """One pass; the numbers that it has read."""
        with self, Watched(turn) as watched:
            found = net(images)
        for output in tree_leaves(found):
            if (labels := labels_of(output)) is not None:
                self.stop(labels, OUTPUT)
        return watched.read

    def follow_training(self, net: nn.Module, images: Tensor) -> None:
        """The same in training mode, after eval mode; nothing is found if such images do not pass through it then."""
        before = copy.deepcopy(self.found)
        try:
            self.follow(in_mode(net, training=True), images)
            self.found.training = self.found.called[len(before.called) :]
        except FAILURES:  # whatever a foreign forward says; it may want labels
            self.found, self._inside, self._where = before, 0, []

    def stop(self, labels: Tensor, reason: str) -> None:
        """The filters of these labels cannot go whole."""
        for name in {self.found.owners[i] for i in labels.unique().tolist() if i >= 0}:
            self.found.reasons.setdefault(name, reason)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._inside += 1

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._inside -= 1
            given = next((t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), None)
            if not self._inside and given is not None and isinstance(output, Tensor):
                self._layer(name, module, given, output)

        return hook

    def _layer(self, name: str, module: nn.Module, given: Tensor, output: Tensor) -> None:
        """Note the filters that a layer reads, and label its outputs with its own."""
        norm = isinstance(module, BATCH_NORMS)
        if name not in self.found.called:
            self.found.called.append(name)
            if isinstance(module, nn.Conv2d) and not is_after(given):
                self.found.stems.append(name)
        output._gkp_after = True  # type: ignore[attr-defined]
        if not self._filters:
            return
        labels, axis = labels_of(given), 1 if norm else -3 if isinstance(module, nn.Conv2d) else -1
        grouped = isinstance(module, nn.Conv2d) and module.groups > 1
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels
        if labels is not None and grouped and not depthwise:
            self.stop(labels, f"is read by the grouped convolution {name}")
            labels = None
        if labels is not None and not constant(labels, [d for d in range(labels.ndim) if d != axis % labels.ndim]):
            self.stop(labels, f"is read by {name}, whose inputs are not its channels")
            labels = None
        along = None if labels is None else labels.movedim(axis, 0).reshape(labels.shape[axis], -1)[:, 0]
        read = None if along is None else along.long()
        before = self.found.reads.get(name)
        if read is not None and before is None:
            self.found.reads[name] = read
        elif before is not None and (read is None or not torch.equal(before, read)):
            for some in (before, *([] if read is None else [read])):
                self.stop(some, f"is read by {name}, which reads other channels in another call")
        if norm or (grouped and depthwise and labels is not None):
            put_labels(output, along, axis)
        else:
            width = output.shape[axis]
            put_labels(output, torch.arange(self.found.first[name], self.found.first[name] + width), axis)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self._inside:
            return output
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        pointwise = torch.Tag.pointwise in func.tags
        if torch.Tag.nondeterministic_seeded in func.tags or (given and pointwise and all(map(_is_noise, given))):
            for tensor in made:
                tensor._gkp_noise = True  # type: ignore[attr-defined]
        if any(map(is_after, given)):
            for tensor in made:
                tensor._gkp_after = True  # type: ignore[attr-defined]
        if any(labels_of(t) is not None for t in given):
            self._follow(func, args, kwargs, given, made)
        return output

    def _follow(self, func: Any, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor]) -> None:
        """The labels of what an operation has made."""
        name = func._overloadpacket.__name__
        name = name.rstrip("_") if func._schema.is_mutable else name
        labels: Iterable[Tensor | None] | None = None
        if func._schema.is_mutable and given[0]._is_view() and not all(map(_is_noise, given[1:])):
            labels = None  # it writes into a part of another tensor
            for tensor in (given[0], given[0]._base):
                if (there := labels_of(tensor)) is not None:
                    self.stop(there, "is written over in place, in a part of a tensor")
        elif name in MOVES:
            labels = moved(func, args, kwargs)
            if labels is not None:
                self._check_move(name, args, given, labels)
        elif name.endswith("_like") or name.startswith("new_"):  # of its shape only
            labels = [None] * len(made)
        elif name in COPIES and made[0].shape == given[0].shape:
            labels = [labels_of(given[0])]
        elif (torch.Tag.pointwise in func.tags or name in POINTWISE) and len(made) == 1:
            labels = [self._pointwise(given, made[0].shape)]
        elif name in SPATIAL:
            labels = spatial(given[0], made)
        elif name in REDUCTIONS or name in ALONG:
            labels = reduced(name, args, kwargs, made)
        if labels is None:
            reason = f"is read by {self._what(name)}" + ", which may mix channels" * (not self._where)
            for tensor in given:
                if (there := labels_of(tensor)) is not None:
                    self.stop(there, reason)
            labels = [None] * len(made)
        for tensor, of in zip(made, labels, strict=True):
            somebody = of is not None and of.numel() and int(of.max()) > NOBODY
            tensor._gkp_labels = of if somebody else None  # type: ignore[attr-defined]

    def _check_move(self, name: str, args: Any, given: list[Tensor], made: Iterable[Tensor | None]) -> None:
        """Stop filters whose channels are cut into parts or put in another order: fewer of them would fall into other parts."""
        whole = [there for tensor in given if (there := labels_of(tensor)) is not None]
        parts = list(made)
        if name == "constant_pad_nd" and parts[0] is not None and parts[0].shape[1:2] != whole[0].shape[1:2]:
            self.found.padded |= {i for i in whole[0].unique().tolist() if i != NOBODY}
        for there in whole:
            dims = varying(there)
            filters = there.unique()
            split = any(part is not None and not bool(torch.isin(filters, part).all()) for part in parts)
            if name in ("view", "_unsafe_view", "reshape", "_reshape_alias", "pixel_shuffle"):
                split = split or any(part is not None and len(varying(part)) > len(dims) for part in parts)
            elif name in ("index_select", "roll", "index"):
                at = [args[1]] if name == "index_select" else args[2] if name == "roll" and len(args) > 2 else range(there.ndim)
                if name == "index":
                    at = [d for d, index in enumerate(args[1]) if index is not None]
                split = split or bool({d % there.ndim for d in at} & set(dims))
            if split:
                self.stop(there, f"is cut into parts or reordered by {self._what(name)}")

    def _what(self, name: str) -> str:
        return self._where[-1] if self._where else f"the operation {name}"

    def _pointwise(self, given: list[Tensor], shape: Sequence[int]) -> Tensor | None:
        """The labels of a function of single values of several tensors, which are to come from the same filters."""
        merged: Tensor | None = None
        for tensor in given:
            labels = labels_of(tensor)
            if labels is None or labels.ndim > len(shape):
                continue
            labels = labels.expand(shape)
            if merged is None or torch.equal(merged, labels):
                merged = labels
            elif constant(labels, varying(merged)):  # one map for all channels of the other
                self.stop(labels, "is spread over the channels of other layers")
            elif constant(merged, varying(labels)):
                self.stop(merged, "is spread over the channels of other layers")
                merged = labels
            else:
                self._tie(merged, labels)
        if merged is not None:
            for tensor in given:
                missing = len(shape) - tensor.ndim
                own = [d for d in varying(merged) if d >= missing and tensor.shape[d - missing] > 1]
                if labels_of(tensor) is None and own and not _is_noise(tensor):
                    self.stop(merged, f"meets {self._where[-1] if self._where else 'a tensor with a value for each channel'}")
        return merged

    def _tie(self, one: Tensor, other: Tensor) -> None:
        """Filters that are added up can only go together."""
        dims = {*varying(one), *varying(other)}
        where = tuple(slice(None) if d in dims else 0 for d in range(one.ndim))
        pairs = torch.stack([one[where].flatten(), other[where].flatten()], dim=1).unique(dim=0)
        lonely = (pairs == NOBODY).any(1)
        self.stop(pairs[lonely], "is added to channels that come from no filter")
        self.found.ties.append(pairs[~lonely & (pairs[:, 0] != pairs[:, 1])])


def _is_noise(tensor: Tensor) -> bool:
    """Whether the values of this tensor are drawn at random, for all channels alike."""
    return getattr(tensor, "_gkp_noise", False)
