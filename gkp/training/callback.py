"""Hooks into a training: how a pruning method that prunes while it trains acts on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Callback:
    """Act on a training; override what is needed, the rest does nothing.

    A callback that carries something from step to step returns it from `state`, so that a checkpoint holds it. Make it a
    dataclass of its settings: a checkpoint made with other settings is then refused.

    The order of one training: `schedule`, `learning_rate`, `before_training`, `parameters`, `sgd`, (`restore`); of
    each step: `objective`, `loss_term`, the backward pass, `after_backward`, the optimiser's step, `after_step`; then
    `after_epoch` and `figures`; at the end `finish`.
    """

    def schedule(self, epochs: int, steps: int) -> None:
        """Learn the length of the training before it begins.

        Args:
            epochs: number of epochs of the whole training, those of a resumed one included.
            steps: number of optimiser steps in each.
        """

    def learning_rate(self, at: Callable[[int], float]) -> None:
        """Learn the learning rates of the training before it begins.

        Args:
            at: from the number of an optimiser step, counted from 0 over the whole training, to its learning rate, the factors
                of all callbacks included.
        """

    def before_training(self, net: nn.Module) -> None:
        """Run once before the first step, also when a training is resumed (then before `restore`)."""

    def parameters(self, net: nn.Module) -> Iterable[nn.Parameter] | None:
        """Parameters that SGD trains instead of those of `net`, in an order that is always the same; None for those of `net`.

        For a method whose weights are computed from others (a hypernetwork). At most one callback may return some.
        """
        return None

    def sgd(self, optimizer: torch.optim.SGD) -> None:
        """Learn the optimiser before the first step: its groups hold the weight decay and the learning rate of each step."""

    def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Logits and loss of a batch, instead of the cross-entropy of `net(x)`; None to leave that as it is.

        For a method with inputs, labels or weights of its own: adversarial images, a teacher, generated weights. At most one
        callback may return something.

        Args:
            net: the network in training mode.
            x: (N, C, H, W) float images in [0, 1], augmented.
            y: (N,) int64 labels.

        Returns:
            Logits (N, classes), from which the training accuracy is counted, and the scalar loss to be minimised, or None for
            their cross-entropy as the recipe has it.
        """
        return None

    def loss_term(self, net: nn.Module) -> Tensor | None:
        """A scalar added to the loss of each batch, or None."""
        return None

    def lr_factor(self, step: int) -> float:
        """A factor on the recipe's learning rate at optimiser step `step`, counted from 0 over the whole training."""
        return 1.0

    def after_backward(self, net: nn.Module) -> None:
        """Run in each step when the gradients are known and the optimiser has not used them yet."""

    def after_step(self, net: nn.Module) -> None:
        """Run after each optimiser step, masked weights being zero."""

    def after_epoch(self, net: nn.Module, epoch: int) -> None:
        """Run after epoch number `epoch` (from 1), before the net is evaluated and the checkpoint written."""

    def figures(self) -> dict[str, float]:
        """Numbers for the row of this epoch in the training log."""
        return {}

    def finish(self, net: nn.Module) -> None:
        """Run once after the last epoch."""

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep in a checkpoint."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
