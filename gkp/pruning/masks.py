"""Masked layers, which compute with weight x mask whatever is done to the weight.

In a forward pass a masked layer reads each masked parameter times its mask: removed weights count for nothing, whatever their
values, and their gradient is zero. Everywhere else the attribute is the parameter itself, so that optimisers, initialisers and
state dicts meet an ordinary layer. A hook on it masks gradients that reach it by another way, as of a penalty on weights, and
what an optimiser adds of its own (momentum of the dense network, noise) is set to zero after its step. A masked layer has a
class of its own, derived from the layer's and of the same name; its masks are no buffers, so that averages of buffers and
broadcasts of them leave the masks alone.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from gkp.errors import BadInput
from gkp.networks.copies import copy_of
from gkp.networks.wrappers import unwrapped


class _State(threading.local):
    depth = 0  # forward passes of masked layers and networks that this thread is in


_STATE = _State()


def computing(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `forward` returns for these arguments, every masked parameter read in it times its mask."""
    _STATE.depth += 1
    try:
        return forward(*args, **kwargs)
    finally:
        _STATE.depth -= 1


class MaskedLayer:
    """What a masked layer has besides what its own class has.

    Attributes:
        unmasked: The layer's own class.
        gone: Mask of each masked parameter by name, broadcastable to it: True where a weight goes.
        keep: The opposite, in the shape, type and memory format of the parameter, 1 or 0: to multiply by it is the fastest.
        tied: Names of those parameters that another layer has too, whose removed weights are not set to zero.
    """

    unmasked: type[nn.Module]
    gone: dict[str, Tensor]
    keep: dict[str, Tensor]
    tied: frozenset[str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer's own class computes, with weight x mask."""
        if "parametrizations" in self._modules:  # type: ignore[attr-defined]  # its property hides the one that masks
            raise BadInput(f"a masked {self.unmasked.__name__} takes no parametrisation; give it to the network before pruning")
        return computing(super().forward, *args, **kwargs)  # type: ignore[misc]

    def __prepare_scriptable__(self) -> Any:
        raise BadInput("torch.jit.script reads no masked layers; script the compact network, or trace the masked one")

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        _guard(self)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)  # type: ignore[misc]
        for _, parameter in _masked_parameters(self):
            parameter._backward_hooks = parameter._backward_hooks  # put again where torch has swapped the tensor
        _fit(self)
        return moved

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, as torch does; one under a masked name is masked as the one before it was."""
        super().register_parameter(name, param)  # type: ignore[misc]
        if param is not None and name in self.keep:
            _fit(self)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)  # type: ignore[misc]
        if not metadata.get("assign_to_params_buffers"):  # then they are the caller's own tensors
            _zero(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        found: Any = super().__reduce_ex__(max(2, protocol))
        return _new, (self.unmasked, tuple(self.keep)), *found[2:]


def mask(net: nn.Module, removed: Mapping[str, Tensor]) -> None:
    """Mask parameters of `net`, in place, and set the removed weights to zero.

    Args:
        net: A network; layers that are masked already stay as they are.
        removed: By name of parameter, broadcastable to it: True where a weight goes.
    """
    owners = Counter(id(p) for module in net.modules() for p in module._parameters.values() if p is not None)
    of_layer: dict[nn.Module, dict[str, Tensor]] = {}
    for full, gone in removed.items():
        layer, _, name = full.rpartition(".")
        module = unwrapped(net.get_submodule(layer))
        if not isinstance(module, MaskedLayer):
            of_layer.setdefault(module, {})[name] = gone
    for module, found in of_layer.items():
        masks = {name: gone for name, gone in found.items() if bool(gone.any())}
        if not masks:
            continue
        own = module._parameters
        vars(module)["tied"] = frozenset(name for name in masks if owners[id(own[name])] > 1)
        vars(module)["gone"] = masks
        vars(module)["keep"] = {name: ~gone for name, gone in masks.items()}
        module.__class__ = _masked_class(type(module), tuple(masks))  # type: ignore[arg-type]
        _fit(module)
        _zero(module)


def zero_removed(net: nn.Module) -> None:
    """Set the removed weights of the masked layers of `net` to exactly zero, in place, but for those of tied parameters."""
    for module in net.modules():
        if isinstance(module, MaskedLayer):
            _zero(module)


@torch.no_grad()
def unmask(net: nn.Module) -> nn.Module:
    """`net` itself, its masked layers made ordinary ones that compute the same, in place; tied ones come apart.

    Raises:
        BadInput: The weight of one is computed from other tensors since it was masked.
    """
    for name, module in list(net.named_modules()):
        if isinstance(module, MaskedLayer):
            _unmask(name, module)
        vars(module).pop("_masked", None)  # a twin masks its layers no more
    return net


def _unmask(full: str, layer: Any) -> None:
    if any(name not in layer._parameters for name in layer.keep):
        raise BadInput(
            f"{full} was reparametrised after pruning; undo that (remove_weight_norm, torch.nn.utils.prune.remove ...) "
            "before the masks are taken off"
        )
    _zero(layer)
    for name, parameter in _masked_parameters(layer):
        hooks = parameter._backward_hooks or {}
        for key in [key for key, hook in hooks.items() if isinstance(hook, _Guard)]:
            del hooks[key]
        if name in layer.tied:
            alone = parameter.masked_fill(layer.gone[name], 0.0)
            layer._parameters[name] = nn.Parameter(alone, parameter.requires_grad)
    own = layer.unmasked
    del layer.gone, layer.keep, layer.tied
    layer.__class__ = own


def unmasked(net: nn.Module) -> nn.Module:
    """`net` itself if it has no masked layers, or else an unmasked copy."""
    masked = any(isinstance(module, MaskedLayer) for module in net.modules())
    return unmask(copy_of(net)) if masked else net


def layer_type(layer: nn.Module) -> type[nn.Module]:
    """The layer's own class, masked or not."""
    return layer.unmasked if isinstance(layer, MaskedLayer) else type(layer)


def _masked_parameters(layer: Any) -> Iterator[tuple[str, Tensor]]:
    for name in layer.keep:
        if (parameter := layer._parameters.get(name)) is not None:
            yield name, parameter


@torch.no_grad()
def _zero(layer: Any) -> None:
    for name, parameter in _masked_parameters(layer):
        if name not in layer.tied and not parameter.is_meta:
            parameter.masked_fill_(layer.gone[name].to(parameter.device), 0.0)


@torch.inference_mode(mode=False)
def _fit(layer: Any) -> None:
    """Put the masks where the parameters are, and `keep` into their shape, type and memory format."""
    for name, parameter in _masked_parameters(layer):
        if not parameter.is_meta:
            layer.gone[name] = layer.gone[name].to(parameter.device)
            layer.keep[name] = _spread(layer, name, parameter)
    _guard(layer)


def _spread(layer: Any, name: str, parameter: Tensor) -> Tensor:
    try:
        return torch.empty_like(parameter, requires_grad=False).copy_(~layer.gone[name])
    except RuntimeError as error:
        raise BadInput(
            f"the {name} of a masked {layer.unmasked.__name__} cannot have the shape {tuple(parameter.shape)}, which its mask "
            "does not fit; put the new layer into the network before pruning"
        ) from error


class _Guard:
    """Hook on a masked parameter: the gradient of removed weights is zero, by whatever way it comes."""

    __torch_unserializable__ = True  # copies and pickles of the layer have hooks of their own

    def __init__(self, layer: Any, name: str):
        self._layer, self._name = weakref.ref(layer), name

    def __call__(self, grad: Tensor) -> Tensor:
        layer = self._layer()
        return grad if layer is None else grad * _fitting(layer.keep[self._name], grad)

    def zero(self, parameter: Tensor) -> None:
        """Set the removed weights of this parameter to zero, in place, if it is still the layer's."""
        layer = self._layer()
        if layer is not None and layer._parameters.get(self._name) is parameter:
            parameter.masked_fill_(layer.gone[self._name], 0.0)


@torch.no_grad()
def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for hook in (getattr(parameter, "_backward_hooks", None) or {}).values():
                if isinstance(hook, _Guard):
                    hook.zero(parameter)


@cache
def _watch_optimisers() -> None:
    register_optimizer_step_post_hook(_after_step)


def _guard(layer: Any) -> None:
    _watch_optimisers()
    for name, parameter in _masked_parameters(layer):
        guarded = any(isinstance(hook, _Guard) for hook in (parameter._backward_hooks or {}).values())
        if not (guarded or name in layer.tied or parameter.is_inference()):
            trained = parameter.requires_grad
            parameter.requires_grad_(True).register_hook(_Guard(layer, name))  # which stays when it is frozen
            parameter.requires_grad_(trained)


def _fitting(keep: Tensor, value: Tensor) -> Tensor:
    """`keep` where `value` is and of its type: parameters may come from outside, or be replicas on another device."""
    return keep if keep.device == value.device and keep.dtype == value.dtype else keep.to(value.device, value.dtype)


@cache
def _masked_class(own: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    unscripted = [*getattr(own, "__jit_unused_properties__", []), *names]
    fields = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__, "unmasked": own}
    readers = {name: _reader(name) for name in names}
    kind: Any = type(own)
    return kind(own.__name__, (MaskedLayer, own), {**fields, "__jit_unused_properties__": unscripted, **readers})


def _reader(name: str) -> property:
    def read(self: Any) -> Any:
        value = self._parameters.get(name)
        if value is None:  # replicas of DataParallel have plain tensors instead
            value = self.__dict__.get(name)
            if value is None and name not in self._parameters:
                raise AttributeError(f"{type(self).__name__} has no parameter {name}")
        return value * _fitting(self.keep[name], value) if value is not None and _STATE.depth else value

    def write(self: Any, value: Any) -> None:
        self.__dict__[name] = value

    def delete(self: Any) -> None:
        del self.__dict__[name]

    return property(read, write, delete)


def _new(own: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """A masked layer whose state is filled in by copy or pickle."""
    made = _masked_class(own, names)  # type: ignore[arg-type]
    return made.__new__(made)
