"""The base of every spec: what a kind of pruning says of one layer, and how JSON finds the kind again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from gkp.errors import BadInput


class Spec(ABC):
    """What stays of one convolution. A kind is a frozen dataclass (eq=False) that overrides what differs from "nothing goes".

    key: the JSON field by which `Plan.from_json` recognises the kind; `@spec_kind` registers it. restructures: whether `twin`
    or `compact` put another kind of module in the layer's place. The rules that make masked and compact equal: `removed` names
    everything that `compact` leaves away; the shapes of `twin` depend on those of the convolution and on this spec's JSON alone
    (its weights may come from the dense ones: a saved model brings its own).
    """

    key: ClassVar[str]
    restructures: ClassVar[bool] = False

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Spec) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def check(self, name: str, conv: nn.Conv2d) -> None:
        """Raises BadInput, naming the layer, unless this spec fits the dense `conv`."""
        if conv.groups != 1:
            raise BadInput(f"{name} is a grouped convolution (groups={conv.groups}); prune the network it was made from")

    def twin(self, conv: nn.Conv2d) -> nn.Module:
        """What is trained in place of the dense `conv`: itself, held by masks, or (CC, LRF) a restructured module."""
        return conv

    def removed(self, layer: nn.Module) -> Mapping[str, Tensor]:
        """Parameter name -> bool, broadcastable to it, True where `layer` (what `twin` returned) is held at exactly zero."""
        return {}

    def removed_filters(self, conv: nn.Conv2d) -> Tensor:
        """The filters that go whole `(R,)` int64, and with them whatever is coupled to them: see `gkp.pruning.coupling`."""
        return torch.empty(0, dtype=torch.int64)

    def compact(self, layer: nn.Module) -> nn.Module:
        """The small module that computes what `layer` (what `twin` returned) does, its removed weights being zero."""
        return layer

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain types, `key` among the fields."""

    @classmethod
    @abstractmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Spec:
        """The spec that `to_json` wrote. Raises BadInput for anything else."""


S = TypeVar("S", bound=type[Spec])
_KINDS: dict[str, type[Spec]] = {}


def spec_kind(key: str) -> Callable[[S], S]:
    """A class decorator: the JSON of a spec with a field `key` is read by this class. Raises BadInput if `key` is taken."""

    def add(cls: S) -> S:
        taken = _KINDS.get(key)
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise BadInput(f"specs with a field {key!r} are read by {taken.__qualname__} already; choose another field")
        cls.key = key
        _KINDS[key] = cls
        return cls

    return add


def spec_from_json(layer: str, fields: Any) -> Spec:
    """The spec of `layer` that `fields` describe. Raises BadInput if no kind of spec has a field of theirs."""
    if isinstance(fields, Mapping):
        for key, kind in _KINDS.items():
            if key in fields:
                return kind.from_json(fields)
    raise BadInput(f"the plan says nothing known of {layer}; a spec has one of the fields {', '.join(_KINDS)}")


def ints(values: Any, what: str, dims: int) -> Tensor:
    """`values` as an int64 tensor of `dims` dimensions. Raises BadInput, saying `what` it is not, for anything else."""
    try:
        tensor = torch.tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"not {what}: {error}") from error
    if tensor.dtype != torch.int64 or tensor.ndim != dims:
        raise BadInput(f"not {what}: wants whole numbers in {dims} dimension{'s' * (dims > 1)}, not {str(values)[:60]}")
    return tensor


def conv_like(conv: nn.Conv2d, in_channels: int, out_channels: int, *, bias: bool, groups: int = 1) -> nn.Conv2d:
    """A convolution of so many channels that slides over images as `conv` does, of its device and type; its weights are new."""
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
