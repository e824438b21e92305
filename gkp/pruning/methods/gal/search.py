"""The search of GAL: a training of the gated network against its teacher and a discriminator, without labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from gkp.networks.classifier import eval_mode
from gkp.pruning.callback import PruningCallback
from gkp.pruning.methods.gal.fista import Fista
from gkp.pruning.methods.gal.gates import Gates
from gkp.pruning.plan import Plan

if TYPE_CHECKING:
    from gkp.pruning.methods.gal import GAL

WIDTHS = (128, 256, 128, 1)  # of the discriminator's layers
DECAYS, GAMMA = (0.3, 0.6, 0.9), 0.1  # after these parts of the training the learning rate is multiplied
SGD: dict[str, Any] = {"momentum": 0.9, "weight_decay": 2e-4}  # of the discriminator


@dataclass
class Search(PruningCallback):
    """Trains the gates of `method` on the convolutions `layers` beside the weights; see `gkp.pruning.methods.gal`.

    Each step: both networks' logits, a step of the discriminator, the student's step against the new one, and where it is due
    an update of the gates with the gradient of this one batch.
    """

    method: GAL
    layers: tuple[str, ...]
    gates: Gates = field(init=False, repr=False)
    fista: Fista = field(init=False, repr=False)
    teacher: nn.Module = field(init=False, repr=False)
    discriminator: nn.Sequential = field(init=False, repr=False)
    _steps: int = field(default=1, init=False, repr=False)
    _done: int = field(default=0, init=False, repr=False)
    _hooks: list[RemovableHandle] = field(default_factory=list, init=False, repr=False)
    _factors: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _leaf: Tensor | None = field(default=None, init=False, repr=False)

    def schedule(self, epochs: int, steps: int) -> None:
        """Learn over how many steps the updates of the gates are spread."""
        self._steps = epochs * steps

    def before_training(self, net: nn.Module) -> None:
        """Copy the teacher, draw gates and discriminator, and gate `net`. Raises BadInput if the budget cannot be met."""
        method = self.method
        self.gates = method.gates(net, self.layers)
        self.teacher = copy.deepcopy(net).train(method.teacher == "train").requires_grad_(False)
        device = next(net.parameters()).device
        with eval_mode(net), torch.no_grad():
            classes = net(torch.zeros(1, *self.gates.counter.input_shape, device=device)).shape[1]
        generator = torch.Generator().manual_seed(method.seed)
        start = torch.randn(sum(self.gates.sizes), generator=generator)
        sparsity = self.gates.sparsity if method.sparsity is None else method.sparsity
        self.fista = Fista((torch.ones_like(start) if method.init == "ones" else start).to(device), sparsity)
        self.discriminator = make_discriminator(classes, generator).to(device)
        self._optimizer = torch.optim.SGD(self.discriminator.parameters(), lr=method.lr, **SGD)
        self._done = 0
        self._multiply(self.fista.value)
        for i, place in enumerate(self.gates.places(net)):
            self._hooks.append(place.register_forward_hook(lambda _, __, output, i=i: output * self._factors[i]))

    def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """mu * mean squared difference of the logits + the discriminator's loss of taking the student for the teacher."""
        if self._due():
            self._leaf = self.fista.value.clone().requires_grad_()
            self._multiply(self._leaf)
        with torch.no_grad():
            wanted = self.teacher(x)
        logits = net(x)
        self._train_discriminator(wanted, logits.detach())
        mu = self.gates.mu if self.method.mu is None else self.method.mu
        return logits, mu * F.mse_loss(logits, wanted) + taken_for(1, self.discriminator(logits))

    def after_step(self, net: nn.Module) -> None:
        """Update the gates where that is due."""
        if self._leaf is not None:
            assert self._leaf.grad is not None
            # as released: the L1 term is in the gradient and in the proximal step
            self.fista.step(self._leaf.grad + self.fista.sparsity * self.fista.value.sign(), self._lr())
            self._leaf = None
            self._multiply(self.fista.value)
        self._done += 1

    def finish(self, net: nn.Module) -> None:
        """Fold the gates into the weights."""
        while self._hooks:
            self._hooks.pop().remove()
        self.gates.fold(net, self._split(self.fista.value))

    def plan(self, net: nn.Module) -> Plan:
        """The blocks, or filters, that go by their gates and the budget."""
        return self.gates.decide(net, self._split(self.fista.value))

    def state(self) -> dict[str, Tensor]:
        """Gates, discriminator with its momentum, and the number of steps done."""
        momentum = {str(i): self._optimizer.state[p]["momentum_buffer"] for i, p in enumerate(self.discriminator.parameters())}
        parts = {"gates": self.fista.state(), "discriminator": self.discriminator.state_dict(), "momentum": momentum}
        tensors = {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
        return {**tensors, "done": torch.tensor(self._done)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        parts: dict[str, dict[str, Tensor]] = {"gates": {}, "discriminator": {}, "momentum": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            parts.get(part, {})[rest] = value
        self.fista.restore(parts["gates"])
        self.discriminator.load_state_dict(parts["discriminator"])
        for i, p in enumerate(self.discriminator.parameters()):
            self._optimizer.state[p]["momentum_buffer"] = parts["momentum"][str(i)].to(p.device)
        self._done = int(state["done"])
        self._multiply(self.fista.value)

    def _train_discriminator(self, teacher: Tensor, student: Tensor) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr()
        self.discriminator.requires_grad_(True)
        self._optimizer.zero_grad()
        discriminator_loss(self.discriminator(teacher), self.discriminator(student)).backward()
        self._optimizer.step()
        self.discriminator.requires_grad_(False)

    def _due(self) -> bool:
        """Whether the gates are updated after this step; no more once those above 0 meet the budget."""
        if not update_due(self._done, self._steps, self.method.updates):
            return False
        return not (self.fista.steps and self.gates.macs(self.gates.open(self._split(self.fista.value))) <= self.gates.goal)

    def _lr(self) -> float:
        return self.method.lr * decay(self._done, self._steps)

    def _split(self, values: Tensor) -> list[Tensor]:
        return list(values.split(self.gates.sizes))

    def _multiply(self, values: Tensor) -> None:
        """Let the gated modules multiply by these gates from now on."""
        self._factors = [part.view(-1, 1, 1) for part in self._split(values)]


def update_due(done: int, steps: int, updates: int) -> bool:
    """Whether one of `updates` evenly spread updates follows the step number `done`, from 0, of a training of `steps`."""
    updates = min(updates, steps)
    return (done + 1) * updates // steps > done * updates // steps


def decay(done: int, steps: int) -> float:
    """The factor on the learning rate of gates and discriminator at the step number `done`, from 0, of `steps`."""
    return GAMMA ** sum(done >= part * steps for part in DECAYS)


def make_discriminator(classes: int, generator: torch.Generator) -> nn.Sequential:
    """The discriminator: linear layers on the logits, nothing between them, and a sigmoid; weights from N(0, 0.01^2)."""
    sizes = (classes, *WIDTHS)
    layers = [nn.utils.skip_init(nn.Linear, a, b) for a, b in pairwise(sizes)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.01, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, nn.Sigmoid())


def taken_for(what: int, scores: Tensor) -> Tensor:
    """Mean binary cross-entropy of scores `(N, 1)` against 1 (the teacher) or 0 (the student).

    As released the scores, which have passed through a sigmoid already, are taken for logits.
    """
    return F.softplus(-scores if what else scores).mean()


def discriminator_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """The loss of the discriminator from its scores `(N, 1)` of both networks; the last term is its regularisation."""
    return taken_for(1, teacher) + taken_for(0, student) + taken_for(1, student)
