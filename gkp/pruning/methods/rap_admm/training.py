"""The training of RAP-ADMM: adversarial images in every step; first ADMM, then the cut, then training of what is left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gkp.attacks.gradient import pgd
from gkp.networks.classifier import convolutions, eval_mode
from gkp.pruning.callback import PruningCallback
from gkp.pruning.filters import FilterSpec
from gkp.pruning.methods.rap_admm.splitting import Splitting, largest
from gkp.pruning.plan import Plan

if TYPE_CHECKING:
    from gkp.pruning.methods.rap_admm import RAPADMM

FALLS = (1 / 3, 2 / 3)  # parts of a cycle after which the learning rate is a tenth
MILESTONES = (0.4, 0.75)  # the same of the training after the cut: 80 and 150 of the released 200 epochs


@dataclass
class Training(PruningCallback):
    """Trains the convolutions `layers` by `method`; see `gkp.pruning.methods.rap_admm`.

    Each step: an attack on the batch, the cross-entropy of what it finds, ADMM's penalty, SGD; then, where a cycle begins, rho,
    Z and U. After the last step of ADMM the filters are cut, and from then on held at zero after each step.
    """

    method: RAPADMM
    layers: tuple[str, ...]
    splitting: Splitting = field(init=False, repr=False)
    _steps: int = field(default=1, init=False, repr=False)
    _admm: int = field(default=1, init=False, repr=False)
    _starts: list[int] = field(default_factory=list, init=False, repr=False)
    _done: int = field(default=0, init=False, repr=False)
    _plan: Plan | None = field(default=None, init=False, repr=False)
    _masks: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _sgd: torch.optim.SGD | None = field(default=None, init=False, repr=False)

    def schedule(self, epochs: int, steps: int) -> None:
        """Learn how many steps ADMM has, and where its cycles begin."""
        self._steps = epochs * steps
        self._admm = max(1, self._steps - round(self.method.retrain * self._steps))
        self._starts = cycle_starts(self._admm, self.method.updates)

    def before_training(self, net: nn.Module) -> None:
        """Find how many filters the budget leaves, and start Z and U. Raises BadInput if it cannot be met."""
        every = convolutions(net)
        plan = self.method.plan(net, {name: every[name] for name in self.layers})
        kept = {name: len(spec.kept_filters) for name, spec in plan.items() if isinstance(spec, FilterSpec)}
        self.splitting = Splitting(kept, self.method.u_in_graph)
        self.splitting.start(_weights(net, self.layers))
        self._done, self._plan, self._masks = 0, None, {}

    def sgd(self, optimizer: torch.optim.SGD) -> None:
        """Learn the optimiser: as released, the cut begins with a new one."""
        self._sgd = optimizer

    def lr_factor(self, step: int) -> float:
        """1, 0.1 and 0.01 in the thirds of each cycle; after the cut likewise, after 40 and 75 % of what is left."""
        if not self.method.cyclic:
            return 1.0
        if step >= self._admm:
            return falling((step - self._admm) / (self._steps - self._admm), MILESTONES)
        ends = [*self._starts, self._admm]
        cycle = sum(start <= step for start in self._starts)
        begin = self._starts[cycle - 1] if cycle else 0
        return falling((step - begin) / (ends[cycle] - begin), FALLS)

    def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, None]:
        """Logits of the adversarial images; nothing is learnt from the images themselves."""
        return net(self.attacked(net, x, y)), None

    def attacked(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The images of this step, by PGD from a random point, the same ones for the same step and seed.

        In training mode, as released, each of its steps changes the statistics of BatchNorm, and so does a pass over the
        images themselves, of which the released code logs the loss.
        """
        method, released = self.method, self.method.attack_mode == "train"
        with nullcontext() if released else eval_mode(net):
            found = pgd(
                net, x, y, eps=method.radius, step=method.length, steps=method.attack_steps,
                seed=(method.seed << 32) + self._done, drop_fallen=False,
            )  # fmt: skip
            if released:
                with torch.no_grad():
                    net(x)
        return found

    def loss_term(self, net: nn.Module) -> Tensor | None:
        """ADMM's penalty, before the cut."""
        return None if self._plan is not None else self.splitting.penalty(_weights(net, self.layers), self.rho)

    @property
    def rho(self) -> float:
        """The weight of the penalty: it grows by the same factor with every update."""
        first, last = self.method.rho, self.method.strongest
        return first * (last / first) ** (self.splitting.updates / max(1, len(self._starts)))

    def after_step(self, net: nn.Module) -> None:
        """Begin a cycle, or cut, where that is due; hold at zero what was cut."""
        self._done += 1
        if self._done == self._admm:
            weights = _weights(net, self.layers)
            keep = self.splitting.keep
            self._plan = self._plan_of({name: largest(weights[name].detach(), count) for name, count in keep.items()})
            if self._sgd is not None:
                self._sgd.state.clear()
        elif self._done in self._starts:
            self.splitting.update(_weights(net, self.layers))
        if self._plan is not None:
            self._hold(net, self._plan)

    def plan(self, net: nn.Module) -> Plan:
        """What was left by the cut."""
        assert self._plan is not None
        return self._plan

    def state(self) -> dict[str, Tensor]:
        """The number of steps done; before the cut Z and U, after it the filters that stay."""
        kept = {f"kept.{name}": spec.kept_filters for name, spec in (self._plan or {}).items() if isinstance(spec, FilterSpec)}
        return {"done": torch.tensor(self._done), **(kept or self.splitting.state())}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        self._done = int(state["done"])
        kept = {name.removeprefix("kept."): tensor for name, tensor in state.items() if name.startswith("kept.")}
        if kept:
            self._plan = self._plan_of(kept)
        else:
            self.splitting.restore(state)

    def _plan_of(self, kept: dict[str, Tensor]) -> Plan:
        return Plan({name: FilterSpec(filters) for name, filters in kept.items()}, self.method.input_shape)

    @torch.no_grad()
    def _hold(self, net: nn.Module, plan: Plan) -> None:
        """Set all that goes with the cut filters to zero, BatchNorm's shift included: else they would go on as constants."""
        if not self._masks:
            self._masks = plan.removed(net, plan.cuts(net))
        for name, gone in self._masks.items():
            weight = net.get_parameter(name)
            weight.masked_fill_(gone.to(weight.device), 0.0)


def cycle_starts(steps: int, updates: int) -> list[int]:
    """After how many of `steps` steps Z and U are updated: `updates` times evenly spread, or after each where steps are few."""
    return sorted({k * steps // (updates + 1) for k in range(1, updates + 1)} - {0})


def falling(part: float, falls: Sequence[float]) -> float:
    """A tenth for each of `falls` that the part of a stretch of training is beyond."""
    return 0.1 ** sum(part >= fall for fall in falls)


def _weights(net: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    return {name: net.get_parameter(f"{name}.weight") for name in layers}
