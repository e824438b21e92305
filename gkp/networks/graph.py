"""The graph of a network by torch.fx, where it shows all that the network does.

torch.fx records operations and nothing else. It passes through an own autograd.Function, torch.no_grad, autocast, a hook of the
root and a backward hook as if they were not there, and what is drawn at random while it traces becomes a constant: the graph
would be another function, or have other gradients, of which no logits tell. Attacks would find nothing on such a graph.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from gkp.files import one_line


class Untraceable(Exception):
    """There is no such graph; the message is the reason."""


def graph_of(net: nn.Module) -> fx.Graph:
    """The graph of the operations of `net`, of the same function and the same gradients.

    Raises:
        Untraceable: torch.fx cannot trace it, or the graph would be another one.
    """
    inner = [module for module in net.modules() if any(module.children())]
    if altered(net) or any(module._backward_hooks or module._backward_pre_hooks for module in inner):
        raise Untraceable("it has hooks, or a forward pass of its own instance")
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            _no_own_gradients(),
            drawing_nothing(),
        ):
            return _Tracer().trace(net)
    except Untraceable:
        raise
    except Exception as error:  # code of the network may raise anything for symbolic tensors
        raise Untraceable(f"torch.fx cannot trace it: {one_line(error)[:160]}") from error


def altered(module: nn.Module) -> bool:
    """Whether this module computes, or gives gradients, otherwise than its class does."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks) or "forward" in vars(module)


@contextmanager
def drawing_nothing() -> Iterator[None]:
    """Restores torch's generator of the CPU. Raises Untraceable if something was drawn from it within."""
    state = torch.get_rng_state()
    try:
        yield
        if not torch.equal(state, torch.get_rng_state()):
            raise Untraceable("it draws random numbers, which a graph would do once")
    finally:
        torch.set_rng_state(state)


class _Tracer(fx.Tracer):
    """Refuses parts without gradients, or in another type."""

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            raise Untraceable("it computes a part without gradients, or by autocast in another type")
        return super().create_proxy(*args, **kwargs)


_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def _no_own_gradients() -> Iterator[None]:
    """Refuses any torch.autograd.Function of this thread, of which a trace would keep the forward pass alone."""
    usual, thread = vars(torch.autograd.Function)["apply"], threading.get_ident()

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            raise Untraceable(f"it has gradients of its own: {cls.__name__}")
        return usual.__get__(None, cls)(*args, **kwargs)

    with _ONE_AT_A_TIME:
        torch.autograd.Function.apply = classmethod(apply)
        try:
            yield
        finally:
            torch.autograd.Function.apply = usual
