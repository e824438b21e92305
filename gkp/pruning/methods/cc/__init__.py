"""CC: collaborative compression, channel pruning and low rank at once (Li et al., CVPR 2021).

From one mean gradient over the training images, each layer's compression units (input channels and ranks of the weight) get a
first-order sensitivity sum (G dW)^2. From each layer's curve of cost over saving follows how much it saves, so that the last
MAC saved costs all layers the same. Then each layer loses its units one by one: the one whose loss costs least now and, in
expectation, at the next step. At run time a layer reads its kept inputs and computes one or two convolutions.

One core: ResNet-20 9 s, half of it the gradient; ResNet-56 16 s and the gradient; VGG-16 130 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.data.dataset import Dataset
from gkp.errors import BadInput
from gkp.networks.copies import copy_of
from gkp.pruning.cost import macs_of_layers
from gkp.pruning.methods.cc.rates import exponential, savings
from gkp.pruning.methods.cc.sensitivity import STEP, Removal, channel_sensitivity, rank_sensitivity, redundancy_curve
from gkp.pruning.methods.cc.spec import LowRankConv2d, LowRankSpec
from gkp.pruning.methods.filter_method import Budgeted
from gkp.pruning.plan import Plan
from gkp.pruning.probe import find_input_shape
from gkp.pruning.registry import register
from gkp.pruning.watched import in_mode

__all__ = [
    "CC",
    "LowRankConv2d",
    "LowRankSpec",
    "channel_sensitivity",
    "mean_gradients",
    "rank_sensitivity",
]


@register(
    "cc",
    reference="Li et al., CVPR 2021",
    family="channel",
    needs=("weights", "data", "gradients"),
    fidelity=(
        "adapted: gradient over 2,048 training images (all of them, as published, with n_batches=391); the budget is met by "
        "bisection of what layers save together; above 64 filters a channel's later cost by ranks is taken as that by channels"
    ),
)
@dataclass(frozen=True)
class CC(Budgeted):
    """Collaborative compression.

    Args:
        data: A training split, for the gradient.
        seed: Of the draw of images.
        gamma: Weight of the expected cost of the next loss against the cost now.
        step: Share of a layer's units that go before costs are computed again, 1 % as released.
        n_batches: The gradient is taken over so many batches, drawn without repetition, or all there are.
        batch_size: Images per batch.

    The other fields are those of `Budgeted`; round_to is for the inputs that a layer reads and for its rank.
    """

    data: Dataset | None = None
    seed: int = 0
    gamma: float = 0.9
    step: float = STEP
    n_batches: int = 16
    batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_batches < 1 or self.batch_size < 1:
            raise BadInput(f"cc needs n_batches and batch_size of 1 or more, not {self.n_batches} and {self.batch_size}")
        if not 0 < self.step <= 1:
            raise BadInput(f"step must lie in (0, 1], not {self.step}; the released code uses {STEP}")

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """The inputs that each layer keeps and the rank of its weight. Layers that are to save nothing are left alone.

        Raises:
            BadInput: No data, or the budget cannot be met.
        """
        if self.data is None:
            raise BadInput('cc takes a gradient; give data=, a training split such as load_dataset("digits", "train")')
        gradients = mean_gradients(net, convs, self._images(self.data), batch_size=self.batch_size)
        every = macs_of_layers(net, input_shape=self.input_shape or find_input_shape(net))
        macs = [every[name] for name in convs]
        fits = [exponential(*redundancy_curve(conv.weight, gradients[name], step=self.step)) for name, conv in convs.items()]
        removals = {
            name: Removal(conv.weight, gradients[name], gamma=self.gamma, step=self.step) for name, conv in convs.items()
        }

        def at(factor: float) -> Plan:
            saved = savings(fits, macs, factor * self.rate * sum(macs))
            specs = {
                name: removal.spec_saving(share, round_to=self.round_to)
                for (name, removal), share in zip(removals.items(), saved / macs, strict=True)
                if share > 0
            }
            return Plan(specs, self.input_shape)

        return self.match(net, at, convs)

    def _images(self, data: Dataset) -> Dataset:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(self.seed))
        return data.subset(order[: self.n_batches * self.batch_size])


def mean_gradients(
    net: nn.Module, convs: Mapping[str, nn.Conv2d], data: Dataset, *, batch_size: int = 128
) -> dict[str, Tensor]:
    """The gradient of the mean cross-entropy by each convolution's weight, averaged over batches, by layer name.

    Taken in evaluation mode on a copy of `net`.
    """
    twin = in_mode(copy_of(net))
    weights = [twin.get_submodule(name).get_parameter("weight").requires_grad_(True) for name in convs]
    total = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    batches = 0
    for x, y in data.batches(batch_size, device=weights[0].device):
        with torch.enable_grad():
            loss = F.cross_entropy(twin(x), y)
        for sum_, gradient in zip(total, torch.autograd.grad(loss, weights, materialize_grads=True), strict=True):
            sum_ += gradient
        batches += 1
    return {name: sum_ / batches for name, sum_ in zip(convs, total, strict=True)}
