"""Copies of a network that is not ours: of one that keeps activations too, or of its shapes alone.

Neither the network nor its stored activations change.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from gkp.errors import BadInput, reason_of
from gkp.files import one_line


def copy_of(net: nn.Module) -> nn.Module:
    """A deep copy of `net`, also of one that keeps activations, with ordinary tensors also under `torch.inference_mode`.

    Raises:
        BadInput: Something in the network cannot be copied.
    """
    return _copied(net, {}, None)


def shape_copy(net: nn.Module) -> nn.Module:
    """A copy of `net` on the meta device: shapes without numbers, so that tracing and counting take milliseconds."""
    check_lazy(net)
    with torch.inference_mode(False):
        memo: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in net.parameters()
        }
    return _copied(net, memo, "meta")


def skeleton_of(net: nn.Module) -> nn.Module:
    """A copy of the modules of `net` alone, which hold the same tensors: a fraction of the time of `copy_of`.

    What is put in the place of a layer or a tensor of the copy leaves `net` as it is; what is written into a tensor does not.
    For networks of ours: attributes that hold modules in other ways than as their own are not followed.
    """
    made: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            made[id(module)] = new = object.__new__(type(module))
            vars(new).update({name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()})
            children = {name: None if child is None else copied(child) for name, child in module._modules.items()}
            new._modules.update(children)
        return made[id(module)]

    return copied(net)


def check_lazy(net: nn.Module) -> None:
    """Raise BadInput for what is no network, and for one with lazy layers, which have no weights yet."""
    if not isinstance(net, nn.Module):
        raise BadInput(f"a network is a torch.nn.Module, not a {type(net).__name__}; give the module itself")
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if is_lazy(tensor):
            raise BadInput(f"{name} has no shape before a first batch has passed through {type(net).__name__}; send it one")


def _copied(net: nn.Module, memo: dict[int, Any], device: str | None) -> nn.Module:
    check_lazy(net)
    try:
        with torch.inference_mode(False), _Copying(device):
            copied = copy.deepcopy(net, memo)
    except Exception as error:  # whatever a foreign attribute says to being copied
        raise BadInput(
            f"cannot copy this {type(net).__name__}: {reason_of(error)}; take out of it what copy.deepcopy refuses"
        ) from error
    for parameter in copied.parameters():
        if not parameter.is_leaf:  # those of scripted parts come as results of a clone
            parameter.detach_().requires_grad_()
    return copied


class _Copying(TorchFunctionMode):
    """Within, copy.deepcopy takes tensors that hang on a graph too, detached; with a device, every tensor goes there."""

    def __init__(self, device: str | None = None):
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) in memo:
            return memo[id(tensor)]
        if self._device is not None:
            copied = torch.empty_like(tensor, device=self._device, requires_grad=False)
        elif tensor.requires_grad and not tensor.is_leaf:
            copied = tensor.detach().clone()
        else:
            return func(*args, **(kwargs or {}))
        memo[id(tensor)] = copied
        return copied


def checked_device(device: str | torch.device) -> torch.device:
    """The device of this name. Raises BadInput where numbers cannot be held on it."""
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error)[:120]
        raise BadInput(f"device {str(device)!r} cannot be used ({reason}); leave it out for the network's own") from error
    if found.type == "meta":
        raise BadInput("device 'meta' holds no numbers; leave it out for the network's own")
    return found
