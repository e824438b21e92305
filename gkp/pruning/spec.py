"""Specs: what stays of one layer, mostly a convolution. The base of all kinds, and how JSON finds the kind again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gkp.errors import BadInput
from gkp.files import one_line
from gkp.pruning.masks import layer_type


class Spec(ABC):
    """What stays of one convolution. A kind is a frozen dataclass (eq=False) that overrides what differs from "nothing goes".

    Two rules make masked and compact equal. `removed` names everything that `compact` leaves out. And the shapes of `twin`
    depend on those of the convolution and on this spec's JSON alone (its weights may come from the dense ones: a saved network
    brings its own).

    Attributes:
        key: The JSON field by which `Plan.from_json` recognises the kind; `@spec_kind` registers it.
        restructures: Whether `twin` or `compact` put other convolutions in the layer's place.
        prunes: The kind of module that it prunes, which a method over it takes in place of a convolution.
    """

    key: ClassVar[str]
    restructures: ClassVar[bool] = False
    prunes: ClassVar[type[nn.Module]] = nn.Conv2d

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Spec) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def check(self, name: str, conv: nn.Conv2d) -> None:
        """Raise BadInput, naming the layer, unless this spec fits the dense `conv`."""
        if conv.groups != 1:
            raise BadInput(f"{name} is a grouped convolution (groups={conv.groups}); prune the network it was made from")
        others = type(self).twin is not Spec.twin  # plain convolutions take its place
        if reason := not_plain(conv) if others else not_own(conv):
            raise BadInput(f"{name} {reason}; leave it out with layers=")

    def twin(self, conv: nn.Conv2d) -> nn.Module:
        """The module to train in place of the dense `conv`: itself, held by masks, or (CC, LRF) a restructured one."""
        return conv

    def removed(self, layer: nn.Module) -> Mapping[str, Tensor]:
        """Masks by parameter name, broadcastable to it: True where `layer`, which `twin` made, is held at exactly zero."""
        return {}

    def removed_filters(self, conv: nn.Conv2d) -> Tensor:
        """The filters `(R,)` int64 that go whole, and with them what is coupled to them, see `gkp.pruning.coupling`."""
        return torch.empty(0, dtype=torch.int64)

    def compact(self, layer: nn.Module) -> nn.Module:
        """The small module that computes the same as `layer`, which `twin` made and whose removed weights are zero."""
        return layer

    def current(self, layer: nn.Module | None) -> Spec:
        """What stays of the compact `layer` now: a state dict that was loaded into it may have been another plan's."""
        return self

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain types, `key` among the fields."""

    @classmethod
    @abstractmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Spec:
        """Read what `to_json` wrote. Raises BadInput for anything else."""


S = TypeVar("S", bound=type[Spec])
_KINDS: dict[str, type[Spec]] = {}


def spec_kind(key: str) -> Callable[[S], S]:
    """Class decorator: the JSON of a spec with a field `key` is read by this class. Raises BadInput if `key` is taken."""

    def add(cls: S) -> S:
        taken = _KINDS.get(key)
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise BadInput(f"specs with a field {key!r} are read by {taken.__qualname__} already; choose another field")
        cls.key = key
        _KINDS[key] = cls
        return cls

    return add


def spec_from_json(layer: str, fields: Any) -> Spec:
    """The spec of `layer` that `fields` describe. Raises BadInput if no kind of spec has one of these fields."""
    if isinstance(fields, Mapping):
        for key, kind in _KINDS.items():
            if key in fields:
                return kind.from_json(fields)
    raise BadInput(f"the plan has no known kind of spec for {layer}; a spec has one of the fields {', '.join(_KINDS)}")


def check_kept(name: str, kept: Tensor, width: int, what: str) -> None:
    """Raise BadInput, naming the layer, unless `kept` `(..., K)` ascends within 0..width-1; what: e.g. "filter"."""
    problem = None
    if not kept.numel():
        problem = f"keeps no {what} by this plan"
    elif kept.min() < 0 or kept.max() >= width:
        problem = f"has {width} {what}s, the plan keeps number {int(kept.min() if kept.min() < 0 else kept.max())}"
    elif not bool((kept.diff(dim=-1) > 0).all()):
        problem = f"has kept {what}s that do not ascend in this plan"
    if problem:
        raise BadInput(f"{name} {problem}; use the plan with the network it was made for")


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def ints(values: Any, what: str, dims: int) -> Tensor:
    """A new int64 tensor of `values`, on the CPU, of `dims` dimensions. Raises BadInput ("not {what}: ...") for others."""
    try:
        tensor = torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"not {what}: {error}") from error
    if tensor.dtype not in _WHOLE or tensor.ndim != dims:
        given = one_line(values)[:60]
        raise BadInput(f"not {what}: needs whole numbers in {dims} dimension{'s' * (dims > 1)}, not {given}")
    return tensor.to(torch.int64, copy=True)


def not_own(conv: nn.Module) -> str:
    """The reason why a convolution does not compute with a weight of its own by its class's forward pass, or ""."""
    if lost := next((name for name in ("weight", "bias") if name not in conv._parameters), ""):
        return f"computes its {lost} from other tensors (weight_norm, a parametrisation or the like)"
    if is_lazy(conv._parameters["weight"]):  # type: ignore[arg-type]
        return "has no weights before a first batch has passed through the network"
    return "has a forward pass put in place of its class's" if "forward" in vars(conv) else ""


def not_plain(conv: nn.Module) -> str:
    """The reason why a convolution computes something else than a `torch.nn.Conv2d`, or ""."""
    own = layer_type(conv)
    return not_own(conv) or ("" if own is nn.Conv2d else f"is a {own.__name__}, for which no plain convolution can stand")


def conv_like(conv: nn.Conv2d, in_channels: int, out_channels: int, *, bias: bool, groups: int = 1) -> nn.Conv2d:
    """A convolution of other widths with the geometry, device and type of `conv`, and new weights."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        groups=groups,
        bias=bias,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
