"""Translate a network, traced by torch.fx, into operations of the engine, whatever its class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from gkp.engine.operations import Conv, Load, MaxPool, Operation, Shortcut, Stock
from gkp.engine.rules import FUNCTIONS, MODULES, Ref, Unknown
from gkp.networks.graph import Untraceable, altered, drawing_nothing, graph_of


class Whole(Exception):
    """Torch must run the whole network; the message is the reason."""


@dataclass(frozen=True)
class _Place:
    """The position of a tensor among those of a stock call."""

    index: int


class Translation:
    """The operations of a traced network; made by `translate`.

    Attributes:
        operations: The operations, each after those of its inputs.
        result: The value that the network returns.
        fallbacks: Name of each node that torch runs -> reason.
    """

    def __init__(self, module: fx.GraphModule):
        self.module = module
        self.operations: list[Operation] = []
        self.fallbacks: dict[str, str] = {}
        self.result = -1
        self._count = 0
        self._known: dict[fx.Node, Any] = {}
        for node in module.graph.nodes:
            self._known[node] = self._translate(node)
        needed = {self.result}
        for operation in reversed(self.operations):  # stock modules stay, because they may change something in place
            if operation.output in needed or isinstance(operation, Stock):
                needed.update(operation.inputs)
        self.operations = [o for o in self.operations if o.output in needed or isinstance(o, Stock)]

    # What each node becomes

    def _translate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            if self._count:
                raise Whole("it takes more than one argument")
            return self._new(node, "outside")
        if node.op == "get_attr":
            return _attribute(self.module, str(node.target))
        arguments = fx.map_arg(node.args, lambda n: self._known[n])
        options = fx.map_arg(node.kwargs, lambda n: self._known[n])
        if node.op == "output":
            if not isinstance(arguments[0], Ref):
                raise Whole("it does not return one tensor")
            self.result = self._materialised(arguments[0], node).value
            return None
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if _in_place(node, module) and self._read_elsewhere(next(iter(node.all_input_nodes), None)):
            raise Whole(f"{_described(node, module)} changes a tensor in place that is read elsewhere")
        target: Any = node.target
        try:
            rule = FUNCTIONS.get(target) if module is None else MODULES.get(type(module))
            if rule is None:
                raise Unknown(f"the engine does not know {_described(node, module)}")
            if module is not None and altered(module):
                raise Unknown(f"{_described(node, module)} with hooks or a forward pass of its own")
            inputs = [*arguments, *options.values()] if module is None else [module, *arguments]
            return rule(self, node, *inputs)
        except Unknown as error:
            return self._stock(node, module, str(error))
        except TypeError:  # arguments that the rule does not take
            return self._stock(node, module, f"{_described(node, module)} with these arguments")

    def _read_elsewhere(self, node: fx.Node | None) -> bool:
        """Whether other nodes read this value, or the same tensor under the name of another node."""
        return node is not None and (len(node.users) > 1 or not getattr(self._known[node], "sole", True))

    def _stock(self, node: fx.Node, module: nn.Module | None, reason: str) -> Any:
        """Let torch run a node."""
        refs: list[Ref] = []

        def place(n: fx.Node) -> Any:
            if not isinstance(known := self._known[n], Ref):
                return known
            refs.append(self._materialised(known, n))
            return _Place(len(refs) - 1)

        arguments, options = fx.map_arg(node.args, place), fx.map_arg(node.kwargs, place)
        if not refs and module is None and any(isinstance(value, Tensor) for value in arguments):
            return _invoke(node, module, arguments, options, [])  # of constants only: computed once
        name = str(node.target) if node.op == "call_module" else node.name
        self.fallbacks[name] = reason

        def call(*tensors: Tensor) -> Any:
            return _invoke(node, module, arguments, options, list(tensors))

        ref = self._new(node, "outside")
        self.operations.append(Stock([r.value for r in refs], ref.value, call, name))
        return ref

    # Values

    def _new(self, node: fx.Node, kind: str) -> Ref:
        self._count += 1
        return Ref(self._count - 1, kind, len(node.users) == 1)

    def add(self, node: fx.Node, kind: str, make: Callable[[int], Operation]) -> Ref:
        """Append an operation and return its value.

        Args:
            node: The node that it translates.
            kind: The kind of its value, as in `Ref`.
            make: From the number of its output to the operation.
        """
        ref = self._new(node, kind)
        self.operations.append(make(ref.value))
        return ref

    def alias(self, node: fx.Node, ref: Ref) -> Ref:
        """The value of a node that returns its input unchanged."""
        if not isinstance(ref, Ref):
            raise Unknown("its input is not computed from the images")
        return replace(ref, sole=ref.sole and len(node.users) == 1)

    def as_map(self, ref: Any, node: fx.Node) -> Ref:
        """A value as a feature map in the engine's memory, with its selected channels."""
        if not isinstance(ref, Ref) or ref.kind == "vector":
            raise Unknown("its input is not a feature map")
        if ref.kind == "outside":
            loaded = self.add(node, "map", lambda output: Load([ref.value], output))
            return replace(loaded, channels=ref.channels, sole=False)
        return ref

    def _materialised(self, ref: Ref, node: fx.Node) -> Ref:
        if ref.channels is None:
            return ref
        source, channels = self.as_map(ref, node), ref.channels
        if len(np.unique(channels)) < len(channels):
            raise Whole("a selection repeats channels and is not followed by a convolution")
        return self.add(node, "map", lambda output: Shortcut([source.value], output, channels=channels))

    def plain_map(self, ref: Any, node: fx.Node) -> Ref:
        """A value as a feature map in the engine's memory that has its selected channels only."""
        return self._materialised(self.as_map(ref, node), node)

    def producer(self, ref: Ref, kind: type[Operation]) -> Any:
        """The operation of this kind that made `ref`, if it may still be changed because nothing else reads it; or None."""
        if not ref.sole or ref.channels is not None:
            return None
        return next((o for o in self.operations if o.output == ref.value and isinstance(o, kind)), None)

    def open_conv(self, ref: Any) -> Conv | None:
        """The convolution that made `ref`, if the next operation can be folded into it; or None."""
        conv = self.producer(ref, Conv) if isinstance(ref, Ref) else None
        return None if conv is None or conv.relu else conv

    def rectified(self, value: int) -> bool:
        """Whether a value is not negative because it comes from a ReLU."""
        made = next((o for o in self.operations if o.output == value), None)
        if isinstance(made, Shortcut | MaxPool):
            return self.rectified(made.inputs[0])
        return isinstance(made, Conv) and made.relu

    def move_to_end(self, operation: Operation) -> None:
        """Move an operation into which a later one was folded to the place of the later one."""
        self.operations.remove(operation)
        self.operations.append(operation)


def translate(net: nn.Module) -> Translation:
    """Translate a network into operations.

    Args:
        net: A network that nothing else uses, because operations that torch runs use its modules.

    Raises:
        Whole: torch must run the network as a whole, see `gkp.networks.graph` for some of the reasons.
    """
    try:
        with drawing_nothing():
            module = fx.GraphModule(net, graph_of(net))
            with torch.no_grad():
                return Translation(module.eval())
    except Untraceable as error:
        raise Whole(str(error)) from error


def _in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    return (name.endswith("_") and not name.startswith("_")) or node.kwargs.get("inplace") is True or name in _IN_PLACE


_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ipow", "ifloordiv", "setitem")


def _attribute(module: nn.Module, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _invoke(node: fx.Node, module: nn.Module | None, arguments: Any, options: Any, tensors: list[Tensor]) -> Any:
    def fill(value: Any) -> Any:
        if isinstance(value, _Place):
            return tensors[value.index]
        if isinstance(value, tuple | list):
            return type(value)(fill(v) for v in value)
        if isinstance(value, slice):
            return slice(fill(value.start), fill(value.stop), fill(value.step))
        return {k: fill(v) for k, v in value.items()} if isinstance(value, dict) else value

    arguments, options = fill(arguments), fill(options)
    if module is not None:
        return module(*arguments, **options)
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **options)
    return node.target(*arguments, **options)  # type: ignore[operator]


def _described(node: fx.Node, module: nn.Module | None) -> str:
    return type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
