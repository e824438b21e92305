"""TODO."""

from __future__ import annotations

from torch import Tensor, nn


class Callback:
    """What a training-time method does to a training; override what it needs, the rest does nothing.

    A method that carries something from step to step returns it from `state`, so that a checkpoint holds it. Make it a
    dataclass of its settings: a checkpoint made with other settings is then refused.
    """

    def before_training(self, net: nn.Module) -> None:
        """Called once before the first step, also when a training is resumed (then before `restore`)."""

    def loss_term(self, net: nn.Module) -> Tensor | None:
        """A scalar added to each batch's loss, or None."""
        return None

    def after_step(self, net: nn.Module) -> None:
        """Called after each optimiser step, masked weights being zero."""

    def after_epoch(self, net: nn.Module, epoch: int) -> None:
        """Called after epoch number `epoch` (from 1), before the net is evaluated and the checkpoint written."""

    def finish(self, net: nn.Module) -> None:
        """Called once after the last epoch."""

    def state(self) -> dict[str, Tensor]:
        """The tensors to keep in a checkpoint."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
