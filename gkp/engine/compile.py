"""`gkp.compile`: a network that runs in the engine.

It is designed for the widths of CIFAR ResNets. On one thread of an AMD EPYC with AVX-512, ResNet-56 without 7/16 of its grouped
kernels takes 0.4 to 0.5 of the time of the dense network in the faster of ONNX Runtime and OpenVINO; the dense one 0.6 to 0.7.
VGG-16, whose weights are read from memory, takes 0.56 from batch 32 on and 0.72 at batch 1 for 7/16; dense 0.92 and 1.2.
`python tests/bench_engine.py` measures this again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gkp.engine.graph import Translation, Whole, translate
from gkp.engine.operations import Stock
from gkp.engine.rules import IMAGES
from gkp.errors import BadInput, ModelWarning, need_extra
from gkp.networks.classifier import Classifier
from gkp.networks.copies import copy_of
from gkp.networks.wrappers import unwrapped
from gkp.pruning.masks import unmasked

INSTALL = 'pip install "gkp[fast]"'
CLASSIFIER_NAMES = ("architecture", "mean", "std", "num_classes", "from_normalised")  # of gkp.networks.classifier.Classifier
SIZES = 8  # image sizes for which plans are kept
_warned: set[str] = set()


def compile(net: nn.Module, *, threads: int | None = None) -> nn.Module:
    """Compile a network for fast inference and input gradients on the CPU, with logits within 1e-4.

    The network may be dense, masked or compact. Layers that the engine does not know stay modules of torch. Weights are copied,
    so `net` may be trained further. Gradients flow to the images, not to the weights. The result for an image depends neither
    on the other images of its batch nor on the number of threads. Without numba the network itself is used, with a
    ModelWarning.

    Args:
        net: A network in eval mode, float32, on the CPU, that takes images (N, C, H, W).
        threads: Threads that share a batch of 16 images or more; None for the number that torch uses at the call.

    Returns:
        A module that takes float32 images (N, C, H, W) and returns logits (N, classes). Its attribute `fallbacks` maps the name
        of each layer that torch runs, or "network" for all, to the reason.

    Raises:
        BadInput: The network is in training mode, of another precision or on another device.
    """
    net = unwrapped(net)
    _check(net)
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise BadInput(f"threads must be 1 or more, not {threads!r}; leave it out for as many as torch uses")
    return Compiled(copy_of(net).requires_grad_(False), threads)


def compile_all(net: nn.Module) -> Compiled:
    """Compile a network as `compile` does, and refuse one that the engine cannot run.

    Raises:
        BadInput: numba is not installed, or torch would have to run the whole network.
    """
    need_extra("fast", "numba")
    net = unwrapped(net)
    _check(net)
    fast = Compiled(copy_of(net).requires_grad_(False))
    if reason := fast.fallbacks.get("network"):
        raise BadInput(f'the engine cannot run this network ({reason}); leave out engine="fast"')
    return fast


def _check(net: nn.Module) -> None:
    if not isinstance(net, nn.Module):
        raise BadInput(f"compile takes a torch.nn.Module, not a {type(net).__name__}")
    if any(module.training for module in net.modules()):
        raise BadInput("compile takes a network in eval mode, and this one is in training mode; call net.eval() first")
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.device.type != "cpu":
            raise BadInput(f"compile takes a network on the CPU, and {name} is on {tensor.device}; call net.cpu() first")
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
            raise BadInput(f"compile takes a float32 network, and {name} is {tensor.dtype}; call net.float() first")


def _missing() -> str | None:
    """Why the engine is not available, or None where it is; warns once."""
    if find_spec("numba") is not None:
        return None
    if "numba" not in _warned:
        warnings.warn(f"no engine without numba, the stock network is used; get it with: {INSTALL}", ModelWarning, stacklevel=4)
        _warned.add("numba")
    return f"numba is not installed; get it with: {INSTALL}"


class Compiled(nn.Module):
    """The network that `compile` returns, with the weights as buffers and `CLASSIFIER_NAMES` as attributes.

    Args:
        source: The network, which must not be changed afterwards.
        threads: As in `compile`.

    Attributes:
        fallbacks: Name of each node that torch runs -> reason.
        compiled_from: The network that it was compiled from, a copy.
    """

    compiled_from: nn.Module

    def __init__(self, source: nn.Module, threads: int | None = None):
        super().__init__()
        self.training = False
        self.threads = threads
        self.weights = nn.Module()
        for name, tensor in source.state_dict().items():
            if isinstance(tensor, Tensor):
                self.weights.register_buffer(name.replace(".", "/"), tensor)
        self.weights.training = False
        # Not submodules, because training or pruning them would not change what the engine computes.
        object.__setattr__(self, "compiled_from", source)
        object.__setattr__(self, "_inside", None)
        self._translation: Translation | None = None
        self._plans: dict[tuple[int, ...], list[Any]] = {}
        reasons: Mapping[str, str] = {}
        if (missing := _missing()) is not None:
            reasons = {"network": missing}
        else:
            try:
                self._translation = translate(unmasked(source))
                reasons = self._translation.fallbacks
            except Whole as error:
                reasons = {"network": str(error)}
        self.fallbacks: Mapping[str, str] = MappingProxyType(dict(reasons))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of float32 images (N, C, H, W) in any memory layout."""
        if not isinstance(x, Tensor) or x.ndim != 4 or x.dtype != torch.float32 or x.device.type != "cpu":
            what = f"{x.dtype} {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
            raise BadInput(f"a compiled network takes float32 images (N, C, H, W) on the CPU, not {what}")
        if self._translation is None:
            return self.compiled_from(x)
        values: dict[int, Any] = {0: x}
        threads = self.threads or torch.get_num_threads()
        for part in self._plan(tuple(x.shape[1:])):
            if isinstance(part, Stock):
                values[part.output] = part.call(*(values[v] for v in part.inputs))
            else:
                outputs = part(tuple(values[v].contiguous() for v in part.segment.inputs), threads)
                values.update(zip(part.segment.outputs, outputs, strict=True))
        return values[self._translation.result]

    def _plan(self, size: tuple[int, ...]) -> list[Any]:
        """The segments and stock operations, in order, for images of this size (C, H, W)."""
        if (parts := self._plans.get(size)) is None:
            from gkp.engine.plan import plan  # here: it needs numba

            assert self._translation is not None
            while len(self._plans) >= SIZES:
                self._plans.pop(next(iter(self._plans)))
            try:
                parts = plan(self._translation, size)
            except BadInput as error:
                parts = self._whole(size, error)
            self._plans[size] = parts
        return parts

    def _whole(self, size: tuple[int, ...], refusal: BadInput) -> list[Any]:
        """The whole network as one stock operation, if torch takes images that the engine does not."""
        assert self._translation is not None
        if isinstance(self.compiled_from, Classifier):  # ours would spread one channel over its mean of three
            raise refusal
        try:
            with torch.no_grad():
                self.compiled_from(torch.zeros(2, *size))
        except Exception:  # whatever a foreign forward pass says
            raise refusal from None
        self.fallbacks = MappingProxyType({**self.fallbacks, "network": str(refusal)})
        return [Stock([IMAGES], self._translation.result, self.compiled_from, "network")]

    def _from_normalised(self, z: Tensor) -> Tensor:
        if self._inside is None:
            inside = Compiled(_FromNormalised(self.compiled_from).eval(), self.threads)
            object.__setattr__(self, "_inside", inside)
        return self._inside(z)

    def __getattr__(self, name: str) -> Any:
        if name not in CLASSIFIER_NAMES:
            return super().__getattr__(name)
        found = getattr(self.compiled_from, name)
        return self._from_normalised if name == "from_normalised" else found

    # Methods that would change the weights without changing what the engine computes

    def train(self, mode: bool = True) -> Compiled:
        """Keep eval mode. Raises BadInput for training mode."""
        if mode:
            raise BadInput("a compiled network cannot be trained; train the network it was made from, then compile it again")
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Raise BadInput: the weights are compiled in."""
        raise BadInput("a compiled network has its weights compiled in; load them into the network, then compile it again")

    def _apply(self, fn: Any, recurse: bool = True) -> Compiled:
        moved = fn(torch.zeros(1))
        if moved.dtype != torch.float32 or moved.device.type != "cpu":
            raise BadInput(f"a compiled network computes in float32 on the CPU, not in {moved.dtype} on {moved.device}")
        return self

    def __reduce__(self) -> Any:
        return Compiled, (self.compiled_from, self.threads)  # a copy is compiled again


class _FromNormalised(nn.Module):
    """A classifier without its normalisation."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        from_normalised: Any = self.net.from_normalised
        return from_normalised(z)
