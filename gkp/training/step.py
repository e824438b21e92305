"""The steps of a training: each as Python comes to it, or recorded once as a CUDA graph and replayed.

A step of a small network is several hundred kernels of a few microseconds, for which a GPU waits while Python launches them one
by one. A graph holds the whole step (forward pass, loss, backward pass, SGD, masks, the sums of the log) and is launched at
once; images, labels and learning rate are copied to where it reads them. Nothing in a step waits for the GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.errors import BadInput, ModelWarning
from gkp.files import one_line
from gkp.networks.classifier import kept_modes
from gkp.training.callback import Callback
from gkp.training.recipe import Recipe

CAPTURES = ("eager", "graph", "compile")
_INSIDE = ("objective", "loss_term", "after_backward", "parameters", "sgd")  # hooks that a recorded step would not call again
_WARM_UP = 3  # steps before a graph is recorded, in which libraries choose kernels and take their memory


def is_captured(capture: str | None, device: torch.device, callbacks: Sequence[Callback]) -> tuple[bool, str]:
    """Whether steps are to be captured, and how, or why not.

    Args:
        capture: One of CAPTURES; None for "graph" on a GPU and "eager" elsewhere.
        device: Where the network is.
        callbacks: Those of the training; one that acts inside of a step makes it eager.

    Raises:
        BadInput: `capture` is something else.
    """
    if capture is not None and capture not in CAPTURES:
        raise BadInput(f"capture is {capture!r}; give {', '.join(CAPTURES)}, or None for what suits the device")
    how = capture or ("graph" if device.type == "cuda" else "eager")
    for callback in callbacks:
        if how != "eager" and (hooks := [n for n in _INSIDE if getattr(type(callback), n) is not getattr(Callback, n)]):
            return False, f"eager: {type(callback).__name__}.{hooks[0]} acts inside of a step"
    return how != "eager", how


class Step:
    """Eager steps of SGD, and what they sum up.

    Args:
        net: Takes images, returns logits; in training mode when a step is made.
        optimizer: Its learning rates are set before each step: numbers, or tensors in place.
        recipe: For the loss.
        callbacks: Those of the training.
        device: Where the network is.

    Attributes:
        how: "eager", perhaps with a reason; "graph", "compile"; "buffers" for a step on fixed buffers where there is no GPU.
        loss_sum: float64 sum of the loss over the images since `begin`.
        correct: int64 count of the images whose label was the largest logit.
    """

    def __init__(
        self, net: nn.Module, optimizer: torch.optim.SGD, recipe: Recipe, callbacks: Sequence[Callback], device: torch.device
    ) -> None:
        self.net, self.optimizer, self.recipe, self.callbacks = net, optimizer, recipe, callbacks
        self.how = "eager"
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)  # tensors, so that a GPU is not waited for
        self.correct = torch.zeros((), dtype=torch.int64, device=device)

    def begin(self) -> None:
        """Begin an epoch: both sums are 0."""
        self.loss_sum.zero_()
        self.correct.zero_()

    def __call__(self, x: Tensor, y: Tensor, lr: float) -> None:
        """Make one step on images `x` `(N, C, H, W)` and labels `y` `(N,)` at this learning rate."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self._run(x, y)

    def _run(self, x: Tensor, y: Tensor) -> None:
        self._step(self.net, x, y)

    def _step(self, net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        logits, loss = self._objective(net, x, y)
        objective = loss
        for callback in self.callbacks:
            if (term := callback.loss_term(self.net)) is not None:
                objective = objective + term
        objective.backward()
        for callback in self.callbacks:
            callback.after_backward(self.net)
        self.optimizer.step()
        apply_masks(self.net)
        self.loss_sum += loss.detach() * len(y)
        self.correct += (logits.detach().argmax(1) == y).sum()

    def _objective(self, net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and loss of a batch: a callback's own, or the cross-entropy of the net."""
        own = [found for callback in self.callbacks if (found := callback.objective(self.net, x, y)) is not None]
        if len(own) > 1:
            raise BadInput("two callbacks have an objective of their own; a training takes one such callback")
        logits, loss = own[0] if own else (net(x), None)
        return logits, loss if loss is not None else F.cross_entropy(logits, y, label_smoothing=self.recipe.label_smoothing)


class CapturedStep(Step):
    """Steps on fixed buffers, recorded once where there is a GPU; a batch of another size than the buffers' is stepped eagerly.

    Args:
        like: The eager steps that are captured; its network and momentum are afterwards as they were before.
        x: A batch of images of the size, type and memory format of those to come, on the network's device.
        how: "graph", or "compile" to have torch.compile fuse the forward and the backward pass first.
    """

    def __init__(self, like: Step, x: Tensor, how: str) -> None:
        super().__init__(like.net, like.optimizer, like.recipe, like.callbacks, x.device)
        self.x, self.y = torch.empty_like(x).copy_(x), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._forward = torch.compile(self.net, dynamic=False) if how == "compile" else self.net
        self.how = how if x.device.type == "cuda" or how == "compile" else "buffers"
        with _unchanged(self.net, self.optimizer):
            self._replay = self._record()
        self.begin()

    def _run(self, x: Tensor, y: Tensor) -> None:
        if len(y) != len(self.y):
            return super()._run(x, y)
        self.x.copy_(x, non_blocking=True)
        self.y.copy_(y, non_blocking=True)
        self._replay()

    def _body(self) -> None:
        self._step(self._forward, self.x, self.y)

    def _record(self) -> Callable[[], None]:
        if self.x.device.type != "cuda":
            self._body()  # so that what cannot be compiled is known now
            return self._body
        side = torch.cuda.Stream(self.x.device)
        side.wait_stream(torch.cuda.current_stream(self.x.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._body()
        torch.cuda.current_stream(self.x.device).wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)  # gradients are to lie in the memory of the graph
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._body()
        return graph.replay


def captured(like: Step, x: Tensor, how: str) -> Step:
    """`like` captured, see `CapturedStep`; `like` itself, its `how` saying why, with a ModelWarning, if that fails."""
    with kept_modes(like.net):
        like.net.train()
        try:
            return CapturedStep(like, x, how)
        except Exception as error:  # whatever a network, a compiler or a driver says to being captured
            like.how = f"eager: {type(error).__name__}: {one_line(error)[:200]}"
            warnings.warn(f"the training step was not captured and is slower ({like.how})", ModelWarning, stacklevel=2)
            return like


def apply_masks(net: nn.Module) -> None:
    """Set removed weights to zero, if `net` has a method for that, as a `gkp.PrunedModel` has."""
    if (apply := getattr(net, "apply_masks", None)) is not None:
        apply()


@contextmanager
def _unchanged(net: nn.Module, optimizer: torch.optim.SGD) -> Iterator[None]:
    """Afterwards weights, buffers, momentum and random generators are as before; momentum that there was none of is 0."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for p in trained:
        if optimizer.state[p].get("momentum_buffer") is None:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)
    held = [*trained, *net.parameters(), *net.buffers(), *(optimizer.state[p]["momentum_buffer"] for p in trained)]
    before = [tensor.detach().clone() for tensor in held]
    with torch.random.fork_rng(devices=sorted({t.device.index for t in held if t.device.type == "cuda"})):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(held, before, strict=True):
                    tensor.copy_(value)
            optimizer.zero_grad(set_to_none=True)
