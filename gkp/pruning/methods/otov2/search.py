"""The callback of OTOv2: it ranks groups once and takes the redundant ones to zero, beside SGD on the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gkp.pruning.budget import Counter
from gkp.pruning.callback import PruningCallback
from gkp.pruning.methods.dhp.widths import Budget, Kept
from gkp.pruning.methods.otov2.groups import Groups, GroupSet, group_sets, kept_plan
from gkp.pruning.methods.otov2.halfspace import cosine, leaves, pull, redundancy
from gkp.pruning.plan import Plan

if TYPE_CHECKING:
    from gkp.pruning.methods.otov2 import OTOv2


@dataclass
class Search(PruningCallback):
    """Half-space projected SGD of `method` on the groups of the convolutions `layers`; see `gkp.pruning.methods.otov2`.

    Attributes:
        sets: The groups.
        redundant: `(groups,)` bool, those that go; None as long as they are not chosen.
        alive: `(groups,)` bool, those that are not zero yet.
        projected: How many redundant groups were not zero by themselves at the deadline.
        sparsity: lambda.
    """

    method: OTOv2
    layers: tuple[str, ...]
    sets: list[GroupSet] = field(default_factory=list, init=False, repr=False)
    redundant: Tensor | None = field(default=None, init=False, repr=False)
    alive: Tensor = field(init=False, repr=False)
    projected: int = field(default=0, init=False, repr=False)
    sparsity: float = field(default=0.0, init=False, repr=False)
    _begin: int = field(default=0, init=False, repr=False)  # the step of the first projection
    _end: int = field(default=1, init=False, repr=False)  # the step before which all redundant groups are zero
    _done: int = field(default=0, init=False, repr=False)
    _scores: Tensor = field(init=False, repr=False)  # sum over batches
    _groups: Groups = field(init=False, repr=False)
    _moving: Groups = field(init=False, repr=False)  # the redundant ones
    _trial: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _sgd: torch.optim.SGD = field(init=False, repr=False)
    _budget: Budget = field(init=False, repr=False)

    def schedule(self, epochs: int, steps: int) -> None:
        """Learn when the projection begins and ends."""
        total = epochs * steps
        self._begin = min(int(self.method.warm_up * total), total - 1)
        self._end = max(self._begin + 1, int(self.method.deadline * total))

    def learning_rate(self, at: Callable[[int], float]) -> None:
        """Learn the learning rates, and from them lambda."""
        given = self.method.sparsity
        self.sparsity = self.method.path / sum(map(at, range(self._begin, self._end))) if given is None else given

    def before_training(self, net: nn.Module) -> None:
        """Find the groups. Raises BadInput if the budget cannot be met, or a group is not zero-invariant."""
        method = self.method
        counter = Counter(net, method.input_shape)
        self.sets = group_sets(net, self.layers, streams=method.streams, input_shape=counter.input_shape)
        self._groups = Groups.of(net, self.sets)
        known: dict[tuple[int, ...], int] = {}

        def macs(kept: Kept) -> int:
            widths = tuple(int(mask.sum()) for mask in kept.values())
            if widths not in known:
                known[widths] = counter(kept_plan(net, self.sets, kept, method.input_shape)).paper_macs
            return known[widths]

        goal = method.budget * (counter(Plan({})).paper_macs if method.budget < 1 else 1)
        self._budget = Budget(macs, goal, method.tolerance, at_least=1, who="otov2")
        self._budget.check({one.name: torch.ones(one.width) for one in self.sets})
        device = self._groups.parts[0][0].device
        self._scores = torch.zeros(self._groups.count, dtype=torch.float64, device=device)
        self.alive = torch.ones(self._groups.count, dtype=torch.bool, device=device)
        self._choose(None)
        self._done = 0

    def sgd(self, optimizer: torch.optim.SGD) -> None:
        """Keep the optimiser, which knows learning rate and weight decay."""
        self._sgd = optimizer

    @torch.no_grad()
    def after_backward(self, net: nn.Module) -> None:
        """Before the projection the score of a batch; in it the steps of the redundant groups, of which SGD knows nothing."""
        settings = self._sgd.param_groups[0]
        if self.redundant is None and self._done > self._begin - self.method.score_batches:
            xx, xg, gg = (values.double() for values in self._groups.dots(*self._groups.read(settings["weight_decay"])))
            self._scores += redundancy(cosine(xx, xg, gg), xx.sqrt(), self._groups.sizes().double())
        if self._done == self._begin:
            self._choose(self._most_redundant())
        if self._begin <= self._done < self._end and self._moving.parts:
            self._step(settings["lr"], settings["weight_decay"])

    def after_step(self, net: nn.Module) -> None:
        """The redundant groups take their own steps instead of SGD's; those that are zero stay so."""
        if self._trial:
            self._moving.write(self._trial)
            self._trial = []
        self._done += 1
        if self._done == self._end:
            self.projected = int(self.alive[self.redundant].sum())
            self.alive[self.redundant] = False
        if self._done >= self._end:
            self._moving.clear()

    def figures(self) -> dict[str, float]:
        """The numbers of groups that are redundant, zero, and that were not zero by themselves."""
        chosen = 0 if self.redundant is None else int(self.redundant.sum())
        return {"redundant_groups": chosen, "zero_groups": int((~self.alive).sum()), "projected_groups": self.projected}

    def plan(self, net: nn.Module) -> Plan:
        """The plan without the redundant groups."""
        assert self.redundant is not None
        return kept_plan(net, self.sets, self._split(~self.redundant), self.method.input_shape)

    def state(self) -> dict[str, Tensor]:
        """The scores, the redundant groups, those that are not zero, and the number of steps done."""
        tensors = {"scores": self._scores, "alive": self.alive, "counts": torch.tensor([self._done, self.projected])}
        return tensors if self.redundant is None else {**tensors, "redundant": self.redundant}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take all that back."""
        device = self.alive.device
        self._scores, self.alive = state["scores"].to(device), state["alive"].to(device)
        self._done, self.projected = state["counts"].tolist()
        self._choose(state["redundant"].to(device) if "redundant" in state else None)

    def _choose(self, redundant: Tensor | None) -> None:
        self.redundant = redundant
        self._moving = self._groups if redundant is None else self._groups.only(redundant)

    def _most_redundant(self) -> Tensor:
        """As many of the groups of highest score as the budget wants, but one of each layer or stream."""
        batches = min(self._begin + 1, self.method.score_batches)
        worth = self._split(1 - self._scores.cpu() / batches)  # no score is above 1
        kept, _ = self._budget.meet(worth)
        return ~torch.cat([kept[name] for name in worth]).to(self.alive.device)

    def _step(self, lr: float, weight_decay: float) -> None:
        """Half-space projected steps of the redundant groups, from the values and gradients before SGD's step."""
        assert self.redundant is not None
        x, g = self._moving.read(weight_decay)
        xx, xg, gg = self._moving.dots(x, g)
        method, norm = self.method, xx.sqrt()
        drawn = pull(xx, xg, gg, sparsity=self.sparsity, amplify=method.amplify, hat=method.hat)
        gone = leaves(xx - lr * (xg + drawn * norm), xx, method.eps) | (norm == 0)
        self.alive &= ~gone | ~self.redundant
        to_zero = torch.where(norm > 0, drawn / norm, 0.0)
        self._trial = [
            torch.where(self.alive[groups, None], each - lr * (gradient + to_zero[groups, None] * each), 0.0)
            for each, gradient, (_, _, groups) in zip(x, g, self._moving.parts, strict=True)
        ]

    def _split(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip([one.name for one in self.sets], values.split([one.width for one in self.sets]), strict=True))
