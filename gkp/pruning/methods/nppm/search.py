"""The search of NPPM: gates on a frozen network, and a predictor of accuracy that is trained from what they meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.data.augmentation import augmented_batches
from gkp.data.dataset import Dataset
from gkp.networks.classifier import convolutions
from gkp.networks.copies import copy_of
from gkp.networks.fingerprint import state_sha256
from gkp.pruning.coupling import Couplings
from gkp.pruning.methods.nppm.gates import Work, combined, draw, excess, gumbel, hard
from gkp.pruning.methods.nppm.predictor import Memory, Predictor
from gkp.pruning.tracing import BATCH_NORMS
from gkp.pruning.watched import in_mode
from gkp.training.callback import Callback
from gkp.training.checkpoint import Keeper

if TYPE_CHECKING:
    from gkp.pruning.methods.nppm import NPPM

ENOUGH, PREDICTOR_BATCH = 64, 64  # entries that the memory has more of before the predictor acts; entries a step of it takes
LATE, DROP = 0.8, 0.1  # after this part of the steps the learning rate of the gates is multiplied by that


class Search(Callback):
    """Trains the gates of `method` on the filters of a frozen copy of `net`; see `gkp.pruning.methods.nppm`.

    Each step: soft gates are drawn and multiply feature maps; the gates take a step on the gradients of the cross-entropy, of
    the operations that the hard gates leave, and of the predicted accuracy; the predictor takes one on the memory; the hard
    gates and the accuracy of this batch go into the memory.

    Args:
        method: Its hyper-parameters.
        net: The network; it is not changed.
        layers: Names of the convolutions.
        data: The images and labels that the gates are trained on.
        goal: The share of the operations that is to be left.
        input_shape: (C, H, W) of the images.

    Attributes:
        net: The frozen copy.
        weights: Logits of the gates `(G,)` before `method.base` is added, all layers in a row.
        done: Number of steps done.
    """

    def __init__(
        self, method: NPPM, net: nn.Module, layers: Sequence[str], data: Dataset, goal: float, input_shape: tuple[int, ...]
    ):
        self.method, self.data, self.goal = method, data, goal
        self.net = in_mode(copy_of(net)).to(memory_format=torch.channels_last).requires_grad_(False)
        convs = {name: convolutions(net)[name] for name in layers}
        self.sizes = [conv.out_channels for conv in convs.values()]
        self.work = Work(net, layers, input_shape)
        self.generator = torch.Generator().manual_seed(method.seed)
        self.device = next(net.parameters()).device
        start = torch.randn(sum(self.sizes), generator=self.generator)
        self.weights = start.to(self.device).requires_grad_()
        self.gate_optimizer = torch.optim.AdamW([self.weights], lr=method.lr, weight_decay=1e-2)
        self.predictor = Predictor(self.sizes, method.seed).to(self.device)
        self.predictor_optimizer = torch.optim.AdamW(self.predictor.parameters(), lr=1e-3, weight_decay=1e-3)
        self.memory = Memory(sum(self.sizes))
        self.done = 0
        self._factors: list[Tensor] = []
        couplings = Couplings(self.net, input_shape)
        for i, name in enumerate(convs):
            self._gate(i, name, couplings)
        # what a checkpoint has to agree with
        settings = repr(replace(method, data=None, checkpoint=None))
        images = {name: getattr(data, name) for name in ("name", "split", "sha256", "pad", "flip")}
        self._identity = {"method": settings, "dataset": images, "layers": list(layers), "network": state_sha256(net)}

    def _gate(self, i: int, name: str, couplings: Couplings) -> None:
        """Multiply the filters of a layer by their gates: behind the BatchNorm that is theirs alone, or where they are read.

        A BatchNorm behind a gate would make a constant of its zero, which the compact network does not have.
        """
        followers = couplings.followers(name)
        norms = [cut.layer for cut, _ in followers if isinstance(self.net.get_submodule(cut.layer), BATCH_NORMS)]
        own = couplings.norm_of(name)
        if not norms or norms == [own]:
            module = self.net.get_submodule(own or name)
            module.register_forward_hook(lambda _, __, output: output * self._factors[i])
            return
        for cut, of_filter in followers:
            if cut.axis == "in":
                reader = self.net.get_submodule(cut.layer)
                reader.register_forward_pre_hook(partial(self._gate_inputs, i, cut.channels, of_filter))

    def _gate_inputs(self, i: int, channels: Tensor, of_filter: Tensor, module: nn.Module, args: Any) -> Any:
        x, axis = args[0], 1 if isinstance(module, nn.Conv2d) else -1
        gates = self._factors[i].flatten()[of_filter.to(x.device)]
        factor = x.new_ones(x.shape[axis]).index_put((channels.to(x.device),), gates)
        return (x * (factor.view(-1, 1, 1) if axis == 1 else factor), *args[1:])

    @property
    def logits(self) -> Tensor:
        """Logits of the gates `(G,)`."""
        return self.weights.detach() + self.method.base

    def run(self, checkpoint: str | Path | None = None) -> None:
        """Make the steps that are left.

        Args:
            checkpoint: A file that is rewritten after each pass over the images; if it exists, the search goes on from it.

        Raises:
            BadInput: It cannot be read or written, or belongs to another search.
        """
        from tqdm import tqdm

        keeper = None if checkpoint is None else Keeper(Path(checkpoint), self._identity)
        if keeper is not None:
            keeper.resume(self.predictor, self.predictor_optimizer, [self])
        total = self.method.steps
        with torch.enable_grad(), tqdm(total=total, initial=self.done, unit="step", disable=None) as bar:
            while self.done < total:
                acts = self.method.predictor and len(self.memory) > ENOUGH
                for x, y in self._pass():
                    self.step(x, y, acts=acts)
                    self.done += 1
                    bar.update()
                    if self.done == total:
                        break
                if keeper is not None:
                    keeper.save(self.predictor, self.predictor_optimizer, [self], [{"steps": float(self.done)}])

    def step(self, x: Tensor, y: Tensor, *, acts: bool) -> None:
        """One step.

        Args:
            x: Images (N, C, H, W) in [0, 1].
            y: Labels (N,).
            acts: Whether the predictor takes part in it.
        """
        method = self.method
        noise = gumbel(len(self.weights), self.generator).to(self.device)
        soft = draw(self.logits, noise, method.temperature).requires_grad_()
        logits = self.gated(x, soft)
        (of_loss,) = torch.autograd.grad(F.cross_entropy(logits, y), soft)
        architecture = hard(soft)
        left = self.work(architecture) / self.work.dense
        (of_cost,) = torch.autograd.grad(2 * method.penalty * excess(left, self.goal), soft)
        of_predictor = self._towards_accuracy(soft) if acts else None
        self._step_gates(soft.detach(), of_loss, of_cost, of_predictor)
        if acts:
            self._train_predictor()
        accuracy = (logits.detach().argmax(1) == y).float().mean().item()
        self.memory.insert(architecture, accuracy)

    def gated(self, x: Tensor, gates: Tensor) -> Tensor:
        """Logits `(N, classes)` of the network whose filters are multiplied by `gates` `(G,)`."""
        self._factors = [part.view(-1, 1, 1) for part in gates.split(self.sizes)]
        return self.net(x.contiguous(memory_format=torch.channels_last))

    def state(self) -> dict[str, Tensor]:
        """Gates, memory, both optimisers' moments, the state of the random numbers and the number of steps done."""
        tensors = {f"memory.{name}": tensor for name, tensor in self.memory.state().items()}
        for place, optimizer in self._optimizers():
            for i, p in enumerate(optimizer.param_groups[0]["params"]):
                tensors |= {f"{place}.{i}.{name}": tensor for name, tensor in optimizer.state[p].items()}
        own = {"weights": self.weights, "generator": self.generator.get_state(), "done": torch.tensor(self.done)}
        return tensors | own

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take all that back."""
        self.memory.restore({name[7:]: tensor for name, tensor in state.items() if name.startswith("memory.")})
        for place, optimizer in self._optimizers():
            for i, p in enumerate(optimizer.param_groups[0]["params"]):
                prefix = f"{place}.{i}."
                moments = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
                optimizer.state[p] = {name: t if name == "step" else t.to(p.device) for name, t in moments.items()}
        self.weights.data.copy_(state["weights"])
        self.generator.set_state(state["generator"])
        self.done = int(state["done"])

    def _optimizers(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        yield from (("gates", self.gate_optimizer), ("predictor", self.predictor_optimizer))

    def _pass(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.method.batch_size
        return augmented_batches(self.data, size, generator=self.generator, device=self.device)

    def _towards_accuracy(self, soft: Tensor) -> Tensor:
        """The gradient of -log of the predicted accuracy near these gates."""
        noise = self.method.noise * torch.randn(len(soft), generator=self.generator).to(self.device)
        predicted = self.predictor((soft + noise).clamp(0, 1))
        return torch.autograd.grad(-predicted.log().sum(), soft)[0]

    def _step_gates(self, soft: Tensor, of_loss: Tensor, of_cost: Tensor, of_predictor: Tensor | None) -> None:
        """A step on the gradients by the soft gates."""
        slope = soft * (1 - soft) / self.method.temperature
        of_layers = [(slope * gradient).split(self.sizes) for gradient in (of_loss, of_cost)]
        predicted = [None] * len(self.sizes) if of_predictor is None else (slope * of_predictor).split(self.sizes)
        self.weights.grad = torch.cat([combined(*parts) for parts in zip(*of_layers, predicted, strict=True)])
        late = self.done >= math.ceil(LATE * self.method.steps)
        self.gate_optimizer.param_groups[0]["lr"] = self.method.lr * (DROP if late else 1)
        self.gate_optimizer.step()

    def _train_predictor(self) -> None:
        architectures, accuracies = self.memory.sample(PREDICTOR_BATCH, self.generator)
        self.predictor_optimizer.zero_grad()
        predicted = self.predictor(architectures.to(self.device)).flatten()
        F.l1_loss(predicted, accuracies.to(self.device)).backward()
        self.predictor_optimizer.step()
