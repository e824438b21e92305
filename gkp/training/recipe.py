"""The recipe of a training: epochs, learning rate and its schedule, batch size, momentum, weight decay, smoothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gkp.errors import BadInput

SCHEDULES = ("step", "one-cycle")


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise BadInput(f"recipe: {name} is {value!r}; give {wanted}")


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's fine-tuning (p. 7, 8 and 17; the settings that were released).

    Raises BadInput for a value that makes no sense.

    epochs: whole passes. lr: the first learning rate ("step") or the highest ("one-cycle"). schedule: "step" multiplies
    it by gamma after every step_epochs epochs; "one-cycle" rises along a cosine from lr / 25 to lr over the first 30 %
    of all steps and falls along another to lr / 250,000. weight_decay: on every parameter, BatchNorm's included, as in
    the paper's code. label_smoothing: in [0, 1).
    """

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

    def __post_init__(self) -> None:
        _require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        for name in ("epochs", "step_epochs", "batch_size"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, name, value, "a whole number of 1 or more")
        for name in ("lr", "gamma"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, value, "a number above 0")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a number in [0, 1)")
        _require(not self.nesterov or self.momentum > 0, "momentum", self.momentum, "above 0 when nesterov is on")

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of optimiser step number `step`, counted from 0 over the whole training.

        A function of the step alone, so that a resumed training has no scheduler to restore. Same values as torch's
        StepLR and OneCycleLR (cosine, two phases).
        """
        if self.schedule == "step":
            return self.lr * self.gamma ** (step // steps_per_epoch // self.step_epochs)
        low, bottom, last = self.lr / 25, self.lr / 25 / 1e4, self.epochs * steps_per_epoch - 1
        peak = 0.3 * (last + 1) - 1
        if step <= peak:
            return _cosine(low, self.lr, step / peak)
        return _cosine(self.lr, bottom, (step - peak) / (last - peak))


PAPER_FINETUNE = Recipe()  # the settings that were released
PAPER_BASELINE = Recipe(lr=0.1)  # p. 7, 8 and 17 of the paper: how the unpruned networks were trained
