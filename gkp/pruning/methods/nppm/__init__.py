"""NPPM: network pruning via performance maximisation (Gao et al., CVPR 2021).

The network is frozen: no weight and no statistic of BatchNorm changes. Each inner filter has a gate that is open at random, by
a logit; logits are trained, on a tenth of the training images with their labels, to keep the loss low and the operations
within the budget. What each draw of gates and the accuracy of its batch were goes into a memory, from which a recurrent
network over layers learns to predict the accuracy; the gates climb the prediction too, in directions that the loss leaves
free. In the end the filters of the lowest logits go.

A step is a forward pass and the half of a backward one, for no weight has a gradient: 0.7 of a plain step.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from gkp.data.dataset import Dataset
from gkp.errors import BadInput, ModelWarning
from gkp.pruning.filters import FilterSpec
from gkp.pruning.layers import choose_layers
from gkp.pruning.methods.checks import check_number
from gkp.pruning.methods.filter_method import FilterMethod, filter_plan
from gkp.pruning.methods.nppm.gates import EVEN, gumbel
from gkp.pruning.methods.nppm.search import Search
from gkp.pruning.plan import Plan
from gkp.pruning.probe import find_input_shape
from gkp.pruning.registry import register

FINAL = ("mean", "sampled")
FAR = 0.1  # of the operations: so much more than the goal, and the search has not reached it


@register(
    "nppm",
    reference="Gao et al., CVPR 2021",
    family="filter",
    needs=("weights", "data", "gradients"),
    fidelity="adapted: gates, losses, predictor, memory, noise and learning rates are as released, but for one Gumbel draw a "
    "step, so that the accuracy that is remembered is that of the gates beside it (released: of another draw); 1,000 steps of "
    "256 images instead of 4,000; the last step's logits are taken, those below one threshold that meets the budget going, "
    "every layer keeping one filter, instead of a random draw chosen by its accuracy on test images; the share of operations "
    "that is searched for is what a uniform cut to the budget leaves; VGG-16, which was not released, has gates on the filters "
    "of every layer; then fine-tuned as all methods are",
)
@dataclass(frozen=True)
class NPPM(FilterMethod):
    """NPPM.

    Args:
        data: A training split.
        seed: Of everything random.
        steps: How often the gates are updated; the authors' run has 4,000.
        batch_size: Images of each step.
        share: Of the training images that the search sees.
        lr: Learning rate of the gates, a tenth of it after 80 % of the steps.
        penalty: Weight of the operations, doubled as released.
        base: What every logit starts at, beside a normal number.
        temperature: Of the gates; the lower, the nearer to 0 and 1.
        noise: Standard deviation of what is added to the gates before their accuracy is predicted.
        predictor: Whether the predictor takes part; without, gates are trained on the loss and the operations alone.
        final: What ranks the filters in the end: the logits ("mean"), or logits with noise of a last draw ("sampled"), which
            is as random as the released choice.
        checkpoint: A file that is rewritten after each pass over the images and from which a killed search goes on.

    The other fields are those of `FilterMethod`.
    """

    one_ranking = True

    fitted: ClassVar[tuple[str, ...]] = ("steps",)
    data: Dataset | None = None
    seed: int = 0
    steps: int = 1000
    batch_size: int = 256
    share: float = 0.1
    lr: float = 0.05
    penalty: float = 2.0
    base: float = 3.0
    temperature: float = 0.4
    noise: float = 15.0
    predictor: bool = True
    final: str = "mean"
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch_size"):
            check_number("nppm", name, getattr(self, name), 1, whole=True)
        if not 0 < self.share <= 1:
            raise BadInput(f"share of nppm must be above 0 and at most 1, not {self.share}; the authors' is 0.1")
        for name in ("lr", "temperature"):
            check_number("nppm", name, getattr(self, name), above=True)
        for name in ("penalty", "noise"):
            check_number("nppm", name, getattr(self, name))
        if self.final not in FINAL:
            raise BadInput(f"final of nppm must be {' or '.join(FINAL)}, not {self.final!r}")

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """Logits of the gates, or what a last draw makes of them.

        Raises:
            BadInput: No labelled images, a budget that cannot be met, or a checkpoint of another search.
        """
        search = self.search(net, convs)
        search.run(self.checkpoint)
        reached = float(search.work(search.logits > EVEN)) / search.work.dense
        if reached > search.goal + FAR:
            warnings.warn(
                f"nppm: after {self.steps} steps the gates keep {reached:.0%} of the operations, {search.goal:.0%} are asked "
                "for; the filters that go are those of a search cut short: give it more steps",
                ModelWarning,
                stacklevel=2,
            )
        found = search.logits.cpu()
        if self.final == "sampled":
            found = found + gumbel(len(found), search.generator)
        return dict(zip(convs, found.split(search.sizes), strict=True))

    def search(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Search:
        """The search on these layers, before its first step. Raises BadInput as `scores`."""
        shape = tuple(self.input_shape or find_input_shape(net))
        search = Search(self, net, list(convs), self._images(), 1.0, shape)
        search.goal = float(search.work(self._uniform(net, convs))) / search.work.dense
        return search

    def _uniform(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Tensor:
        """Gates `(G,)` of the cut to the budget that takes the same share of every layer."""
        blank = {name: torch.zeros(conv.out_channels) for name, conv in convs.items()}

        def make(factor: float) -> Plan:
            removed = {name: factor * len(score) for name, score in blank.items()}
            return filter_plan(blank, removed, round_to=self.round_to, input_shape=self.input_shape)

        plan = self.match(net, make, choose_layers(net, None, 1)[0] if self.budget is None else {})
        gates = []
        for name, score in blank.items():
            spec = plan[name]
            assert isinstance(spec, FilterSpec)
            gates.append(score.index_fill(0, spec.kept_filters, 1.0))
        return torch.cat(gates)

    def _images(self) -> Dataset:
        """The images of the search."""
        if self.data is None:
            raise BadInput("nppm trains gates on labelled images; give data=, a training split")
        if self.data.labels.min() == self.data.labels.max():
            raise BadInput(
                f"nppm trains gates on labels, and all {len(self.data)} images of {self.data.name!r} have the label "
                f"{int(self.data.labels[0])}; give a labelled training split"
            )
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.seed))
        return self.data.subset(order[: max(1, round(self.share * len(self.data)))])
