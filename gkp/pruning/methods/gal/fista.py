"""FISTA: proximal gradient steps with momentum (Beck & Teboulle 2009), for an L1 penalty on numbers of 0 or more."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Fista:
    """The numbers and the momentum of FISTA.

    Args:
        value: `(G,)`, where it starts; after the first step all are 0 or more.
        sparsity: Weight of the L1 penalty in the proximal step.
    """

    value: Tensor
    sparsity: float
    t: float = field(default=1.0, init=False)
    steps: int = field(default=0, init=False)
    previous: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.previous = self.value.clone()

    @torch.no_grad()
    def step(self, gradient: Tensor, lr: float) -> None:
        """One step with the gradient at `value` (not at the point that the momentum leads to, as GAL's code does)."""
        factor = 0.0
        if self.steps:
            t = (1 + math.sqrt(1 + 4 * self.t**2)) / 2
            factor, self.t = (self.t - 1) / t, t
        ahead = self.value + factor * (self.value - self.previous)
        stepped = ahead - lr * gradient
        self.previous = self.value
        self.value = (stepped.sign() * (stepped.abs() - lr * self.sparsity).clamp(min=0)).clamp(min=0)
        self.steps += 1

    def state(self) -> dict[str, Tensor]:
        """All that changes, as tensors."""
        momentum = {"t": torch.tensor(self.t, dtype=torch.float64), "steps": torch.tensor(self.steps)}
        return {"value": self.value, "previous": self.previous, **momentum}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        self.value, self.previous = (state[name].to(self.value.device) for name in ("value", "previous"))
        self.t, self.steps = state["t"].item(), int(state["steps"])
