"""A second device made of the CPU's memory, to find on a machine without one what would fail on a GPU.

Its tensors say that they are elsewhere, hold their values on the CPU, and compute what the CPU computes, bit by bit. What CUDA
refuses fails here too: operations on tensors of both devices, a generator of the CPU for numbers of the device, conversion to
numpy. It shows neither kernels nor asynchronous execution.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy", 0)  # a kind that no build has kernels of; autograd runs its nodes in the calling thread
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
MAKERS = (torch.tensor, torch.as_tensor, torch.asarray)


class Elsewhere(Tensor):
    """A tensor on the other device; `here` holds its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        strides = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, here.shape, dtype=here.dtype, device=DEVICE, **strides)
        made.here = here
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.here!r})"

    def __format__(self, spec: str) -> str:
        return format(self.here, spec)

    def tolist(self) -> Any:
        return self.here.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def is_there(value: Any) -> bool:
    """Whether a value is a tensor on the other device."""
    return isinstance(value, Elsewhere)


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device of its tensors or the one asked for."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away, asked = any(map(is_there, tensors)), kwargs.get("device")
    goes_there = away if asked is None else torch.device(asked).type == DEVICE.type
    if asked is None and func in COPIES:
        goes_there = is_there(args[0])
    others = [tensor for tensor in tensors if not is_there(tensor) and tensor.dim() and tensor.device.type == "cpu"]
    if away and others and not (func in COPIES or (func in INDEXING and is_there(args[0]))):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu: {func}")
    generator = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Generator)), None)
    if goes_there and generator is not None:
        raise RuntimeError(f"Expected a {DEVICE.type!r} device type for generator but found {generator.device.type!r}: {func}")
    if not away and not goes_there:
        return func(*args, **kwargs)
    plain = tree_map(lambda value: value.here if is_there(value) else value, (args, kwargs))
    if asked is not None and goes_there:
        plain[1]["device"] = torch.device("cpu")
    found = func(*plain[0], **plain[1])
    if func is aten.copy_.default:
        return args[0]
    if not goes_there:
        return found
    found = tree_map(lambda value: Elsewhere(value) if isinstance(value, Tensor) else value, found)
    return return_and_correct_aliasing(func, args, kwargs, found) if away else found


class _Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """torch.tensor and its like copy numbers of Python to a device past the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device") if func in MAKERS and not is_there(args[0]) else None
        if asked is None or torch.device(asked).type != DEVICE.type:
            return func(*args, **kwargs)
        return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Within, the other device takes tensors: `.to(device)`, `device=device`."""
    with _Made(), _Dispatched():
        yield DEVICE
