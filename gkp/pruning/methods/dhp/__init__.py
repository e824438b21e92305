"""DHP: every weight is computed from latent vectors, which an L1 penalty makes sparse (Li et al., ECCV 2020).

The network is trained from scratch, and is one of its own: a CIFAR ResNet whose shortcuts are 1x1 convolutions where the width
changes, so that the residual streams of stages 1 and 2 can narrow too; that of stage 3, which the classifier reads, stays. In
each step SGD trains latents, hypernetwork, BatchNorm and classifier, and then a proximal step of the L1 norm shrinks the
latents that are pruned. Channels whose latent is below a threshold go. That changes the function, for the hypernetwork has
biases: the small network is trained on, at a high learning rate.

The hypernetwork of ResNet-20 has 3.0 M numbers, eleven times those of the network; a step on 64 images takes 1.2 plain ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gkp.errors import BadInput
from gkp.networks.build import check_as_built, initialised
from gkp.networks.classifier import CifarResNet
from gkp.pruning.budget import TOLERANCE, Counter
from gkp.pruning.callback import PruningCallback
from gkp.pruning.methods.checks import check_number
from gkp.pruning.methods.dhp.hypernetwork import HyperConv, HyperNetwork, shrink, wiring
from gkp.pruning.methods.dhp.widths import Budget, Kept, above, plan_for
from gkp.pruning.plan import Plan
from gkp.pruning.registry import register

__all__ = ["DHP", "Budget", "HyperConv", "HyperNetwork", "Search", "above", "plan_for", "shrink", "wiring"]
STREAMS = ("stage1", "stage2")


@register(
    "dhp",
    reference="Li et al., ECCV 2020",
    family="filter",
    needs=("training", "initialisation"),
    procedure="while training",
    fidelity="adapted: as released it trains from scratch, and a network with 1x1 shortcuts of its own, not the one that other "
    "methods prune; but with basic blocks at every depth (the released ResNet-110 has bottlenecks); the weight of the L1 norm "
    "is scaled to the length of the search, so that latents move as far as in the released one; the threshold is set by the "
    "budget, a channel that would miss it by more than 1 % being passed over; where the search is over before its epochs are, "
    "the hypernetwork goes on to train the small network; then retrained as all methods are fine-tuned",
)
@dataclass(frozen=True)
class DHP:
    """Differentiable pruning by hypernetworks.

    Args:
        path: How far all proximal steps of the search together move a latent: the weight of the L1 norm is path / sum of the
            learning rates. The published 3e-4 moves it by 0.5 in 20 epochs.
        sparsity: The weight of the L1 norm itself, instead of `path`; the published ones are 1e-4 to 3e-4.
        threshold: Magnitude below which a latent counts as gone when it is asked whether the search is over.
        at_least: Channels of every width that stay.
        hidden: Units of the hypernetwork's hidden layer.
        check_every: Steps between two looks whether the budget is met; then the proximal steps end and the channels are chosen.
        streams: Whether the residual streams of stages 1 and 2 narrow too, in a network with projections, instead of only the
            inside of blocks in the given network's own architecture.
        seed: Of all first values.
        budget: paper_macs to be left, or, below 1, a fraction of those of the network that is trained.
        tolerance: Allowed deviation from the budget, as a fraction of it.
        input_shape: As in `gkp.prune`.

    Raises:
        BadInput: A value that makes no sense.
    """

    fitted: ClassVar[tuple[str, ...]] = ("check_every", "sparsity")
    path: float = 0.5
    sparsity: float | None = None
    threshold: float = 5e-3
    at_least: int = 4
    hidden: int = 8
    check_every: int = 100
    streams: bool = True
    seed: int = 0
    budget: float = 0.5
    tolerance: float = TOLERANCE
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("path", "threshold"):
            check_number("dhp", name, getattr(self, name))
        if self.sparsity is not None:
            check_number("dhp", "sparsity", self.sparsity, hint="the published ones are 1e-4 to 3e-4")
        for name in ("at_least", "hidden", "check_every"):
            check_number("dhp", name, getattr(self, name), 1)

    def network(self, net: nn.Module) -> CifarResNet:
        """The network that is trained: of the depth, classes and normalisation of `net`, newly initialised, on its device.

        Raises:
            BadInput: `net` is no CIFAR ResNet, or has other layers than its architecture says.
        """
        if not isinstance(net, CifarResNet):
            raise BadInput(f"dhp computes the weights of a CIFAR ResNet, such as resnet20, and not of a {type(net).__name__}")
        check_as_built(net)
        architecture = replace(net.architecture, shortcut="projection") if self.streams else net.architecture
        made = initialised(architecture, self.seed).to(net.mean.device).train(net.training)
        assert isinstance(made, CifarResNet)
        return made

    def callback(self, convs: Mapping[str, nn.Conv2d]) -> Search:
        """The search that narrows the blocks of which these are the first convolutions, and the streams.

        Raises:
            BadInput: One of them is not the first convolution of a block.
        """
        blocks = {name: name.removesuffix(".conv1") for name in convs}
        if wrong := [name for name, block in blocks.items() if block == name or not block.startswith("layer")]:
            raise BadInput(f"dhp narrows the inside of blocks, layerS.B.conv1, and streams with streams=True, not {wrong[0]}")
        return Search(self, (*(STREAMS if self.streams else ()), *blocks.values()))


@dataclass
class Search(PruningCallback):
    """Trains a hypernetwork in the place of convolutions and shrinks latents until the budget is met.

    Args:
        method: Its hyper-parameters.
        pruned: Names of the latents that are pruned.

    Attributes:
        tau: The threshold on |z| that met the budget; None as long as none was chosen.
    """

    method: DHP
    pruned: tuple[str, ...]
    tau: float | None = field(default=None, init=False, repr=False)
    _steps: int = field(default=0, init=False, repr=False)
    _done: int = field(default=0, init=False, repr=False)
    _lr: Callable[[int], float] = field(default=lambda step: 0.0, init=False, repr=False)
    _sparsity: float = field(default=0.0, init=False, repr=False)
    _kept: Kept | None = field(default=None, init=False, repr=False)
    _hyper: HyperNetwork = field(init=False, repr=False)
    _budget: Budget = field(init=False, repr=False)

    def schedule(self, epochs: int, steps: int) -> None:
        """Learn how many steps the search has."""
        self._steps = epochs * steps

    def learning_rate(self, at: Callable[[int], float]) -> None:
        """Learn the learning rates, and from them the weight of the L1 norm."""
        given = self.method.sparsity
        self._lr = at
        self._sparsity = self.method.path / sum(map(at, range(self._steps))) if given is None else given

    def before_training(self, net: nn.Module) -> None:
        """Make the hypernetwork. Raises BadInput if the budget cannot be met, before an hour is spent on it."""
        assert isinstance(net, CifarResNet)
        self._hyper = HyperNetwork(net, self.method.hidden, self.method.seed).to(net.mean.device)
        counter = Counter(net, self.method.input_shape)
        known: dict[tuple[int, ...], int] = {}

        def macs(kept: Kept) -> int:
            widths = tuple(int(mask.sum()) for mask in kept.values())
            if widths not in known:
                known[widths] = counter(plan_for(kept, self._hyper.wiring, self.method.input_shape)).paper_macs
            return known[widths]

        goal = self.method.budget * (counter(Plan({})).paper_macs if self.method.budget < 1 else 1)
        self._budget = Budget(macs, goal, self.method.tolerance, self.method.at_least)
        self._budget.check(self._latents())
        self._write(net)

    def parameters(self, net: nn.Module) -> Iterable[nn.Parameter]:
        """Latents, hypernetwork, and what of the network is not computed by it."""
        computed = {f"{name}.weight" for name in self._hyper.wiring}
        return [*self._hyper.parameters(), *(p for name, p in net.named_parameters() if name not in computed)]

    def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, None]:
        """Logits of the network with the computed weights."""
        return functional_call(net, self._hyper(self._kept), (x,)), None

    def after_step(self, net: nn.Module) -> None:
        """Shrink the latents that are pruned; now and then see whether the budget is met."""
        if self._kept is None:
            amount = self._sparsity * self._lr(self._done)
            for latent in self._latents().values():
                alive = (latent.detach().abs() >= self.method.threshold).sum()
                shrink(latent, amount * (alive > self.method.at_least))  # a tensor, so that a GPU is not waited for
        self._done += 1
        if self._kept is None and self._done % self.method.check_every == 0:
            kept = above(self._latents(), self.method.threshold, self.method.at_least)
            if self._budget.macs(kept) <= self._budget.goal * (1 + self.method.tolerance):
                self._choose()

    def after_epoch(self, net: nn.Module, epoch: int) -> None:
        """Write the weights into the network, which is evaluated now."""
        self._write(net)

    def state(self) -> dict[str, Tensor]:
        """The hypernetwork, the number of steps done, and the channels that stay once they are chosen."""
        tensors = {f"hyper.{name}": tensor for name, tensor in self._hyper.state_dict().items()}
        tensors |= {f"kept.{name}": kept for name, kept in (self._kept or {}).items()}
        return tensors | {"done": torch.tensor(self._done), "tau": torch.tensor(math.nan if self.tau is None else self.tau)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take all that back."""
        self._hyper.load_state_dict({n.removeprefix("hyper."): t for n, t in state.items() if n.startswith("hyper.")})
        masks = {n.removeprefix("kept."): t for n, t in state.items() if n.startswith("kept.")}
        kept = {name: mask.to(self._hyper.latent(name).device) for name, mask in masks.items()}
        self._kept, self._done, tau = kept or None, int(state["done"]), float(state["tau"])
        self.tau = None if math.isnan(tau) else tau

    def plan(self, net: nn.Module) -> Plan:
        """The channels whose latents are above the threshold that meets the budget. Raises BadInput if none does."""
        if self._kept is None:
            self._choose()
        assert self._kept is not None
        return plan_for(self._kept, self._hyper.wiring, self.method.input_shape)

    def _choose(self) -> None:
        kept, self.tau = self._budget.meet({name: latent.detach().cpu() for name, latent in self._latents().items()})
        self._kept = {name: mask.to(self._hyper.latent(name).device) for name, mask in kept.items()}

    def _latents(self) -> dict[str, Tensor]:
        return {name: self._hyper.latent(name) for name in self.pruned}

    @torch.no_grad()
    def _write(self, net: nn.Module) -> None:
        for name, weight in self._hyper(self._kept).items():
            net.get_parameter(name).copy_(weight)
