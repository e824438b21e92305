"""How to train: schedule, optimiser and length, checked when they are set."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gkp.errors import BadInput

SCHEDULES = ("step", "one-cycle")


@dataclass(frozen=True)
class Hyperparameters:
    """The fields of a `Recipe` and their defaults, unchecked: experiments have the same ones."""

    epochs: int = 300
    lr: float = 0.01
    schedule: str = "step"
    step_epochs: int = 100
    gamma: float = 0.1
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Recipe(Hyperparameters):
    """How to train; the defaults are the paper's fine-tuning (its released settings for ResNet-20).

    Args:
        epochs: Whole passes over the training set.
        lr: The first learning rate ("step") or the highest ("one-cycle").
        schedule: "step" multiplies the learning rate by `gamma` after every `step_epochs` epochs; "one-cycle" rises along a
            cosine from lr / 25 to lr over the first 30 % of all steps and falls along another to lr / 250,000.
        step_epochs: Epochs between two steps of the schedule "step".
        gamma: Factor of each such step.
        batch_size: Images per optimiser step.
        momentum: Of SGD, in [0, 1).
        weight_decay: On every parameter, including those of BatchNorm, as in the paper's code.
        nesterov: Whether the momentum is Nesterov's.
        label_smoothing: Of the cross-entropy, in [0, 1).

    Raises:
        BadInput: A value that makes no sense.
    """

    def __post_init__(self) -> None:
        _require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        for name in ("epochs", "step_epochs", "batch_size"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, name, value, "a whole number of 1 or more")
        for name in ("lr", "gamma", "momentum", "weight_decay", "label_smoothing"):
            value = getattr(self, name)
            _require(isinstance(value, int | float), name, value, "a number")
        for name in ("lr", "gamma"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, value, "a number above 0")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a number in [0, 1)")
        _require(not self.nesterov or self.momentum > 0, "momentum", self.momentum, "above 0 when nesterov is on")

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of optimiser step number `step`, counted from 0 over the whole training.

        It depends on the step alone, so that a resumed training has no scheduler to restore. The values are those of torch's
        StepLR and OneCycleLR (cosine, two phases).
        """
        if self.schedule == "step":
            return self.lr * self.gamma ** (step // steps_per_epoch // self.step_epochs)
        low, bottom, last = self.lr / 25, self.lr / 25 / 1e4, self.epochs * steps_per_epoch - 1
        peak = 0.3 * (last + 1) - 1
        if step <= peak:
            return _cosine(low, self.lr, step / peak)
        return _cosine(self.lr, bottom, (step - peak) / (last - peak))


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise BadInput(f"recipe: {name} is {value!r}; give {wanted}")


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


PAPER_FINETUNE = Recipe()
PAPER_BASELINE = Recipe(lr=0.1)  # of the unpruned networks (paper section 4)
