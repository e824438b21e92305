"""OTOv2: DHSPG, a half-space projected SGD on zero-invariant groups (Chen et al., ICLR 2023).

A zero-invariant group is what makes one channel: its filter, its bias, and its scale and shift in BatchNorm. Where they are
zero the channel is zero, and so removing it changes no logit. After some steps of plain SGD the groups are ranked once, and the
most redundant ones, as many as the budget wants, are set: each of their steps, without momentum, is also drawn to zero, and a
group whose step leaves the half-space in front of it becomes zero and stays so. The other groups are trained by plain SGD all
along. Nothing is fine-tuned: when all redundant groups are zero, the rest of the training is that of the small network.

A step takes 1.05 plain ones. What goes is in the training log: after each epoch `zero_groups` of `redundant_groups`, and
`projected_groups`, those that were not zero by themselves when their time was over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gkp.errors import BadInput
from gkp.pruning.budget import TOLERANCE
from gkp.pruning.methods.checks import check_number
from gkp.pruning.methods.controls import reinitialised
from gkp.pruning.methods.otov2.search import Search
from gkp.pruning.registry import register

_ADAPTED = (
    "adapted: zero-invariant groups, the score, lambda with its clip before its bound, the half-space test and the order of "
    "updates are as released; but groups of a residual stream are held where shortcuts pad it with zeros (option A), as the "
    "released graph holds them; the score is the mean over 20 batches instead of that of one; as many groups are redundant as "
    "the budget wants, by MACs instead of by their number, one that would miss it being passed over; lambda is scaled to the "
    "length of the projection; what is not zero when its time is over is set to zero, and the log says how many; the other "
    "groups are trained by the recipe it is given, instead of by SGD without momentum for 300 epochs, with mixup for VGG-16; "
    "it has no fine-tuning of its own"
)


@register(
    "otov2",
    reference="Chen et al., ICLR 2023",
    family="filter",
    needs=("weights", "training"),
    procedure="while training",
    fidelity=f"{_ADAPTED}; starts from the trained network",
)
@dataclass(frozen=True)
class OTOv2:
    """OTOv2 after training.

    Args:
        path: How far the smallest lambda draws a group in the whole projection: lambda is path / sum of its learning rates.
            Most groups start with norms of 1 to 3.
        sparsity: lambda itself, instead of `path`; the published ones are 1e-3 and 5e-4.
        amplify: Where the gradient draws a group outwards, lambda is so many times what just stops it, ...
        hat: ... but at most `hat` times lambda.
        eps: Of the half-space, in [0, 1]: a group x whose step is x' becomes zero if x'.x < eps * |x|^2.
        score_batches: Number of batches over which the score is averaged, as far as there are so many before the projection.
        warm_up: Part of the training before the projection.
        deadline: Part of the training at which all redundant groups have to be zero.
        streams: Whether channels of residual streams go too, where every shortcut is a layer or nothing, and not only those of
            `layers`.
        seed: Of the weights, where they are new.
        budget: paper_macs to be left, or, below 1, a fraction of the dense network's.
        tolerance: Allowed deviation from the budget, as a fraction of it.
        input_shape: As in `gkp.prune`.

    Raises:
        BadInput: A value that makes no sense.
    """

    fitted: ClassVar[tuple[str, ...]] = ("deadline", "sparsity", "warm_up")
    path: float = 3.0
    sparsity: float | None = None
    amplify: float = 2.0
    hat: float = 10.0
    eps: float = 0.95
    score_batches: int = 20
    warm_up: float = 0.05
    deadline: float = 0.6
    streams: bool = True
    seed: int = 0
    budget: float = 0.5
    tolerance: float = TOLERANCE
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in (("path", 0), ("sparsity", 0), ("amplify", 1), ("hat", 1)):
            if (value := getattr(self, name)) is not None:
                check_number("otov2", name, value, least)
        if not 0 <= self.eps <= 1:
            raise BadInput(f"eps of otov2 must lie in [0, 1], not {self.eps}; the published ones are 0.9 and 0.95")
        check_number("otov2", "score_batches", self.score_batches, 1, hint="the released code has 1")
        if not 0 <= self.warm_up < self.deadline <= 1:
            raise BadInput(
                f"otov2 needs 0 <= warm_up < deadline <= 1, parts of the training, not {self.warm_up} and {self.deadline}"
            )

    def callback(self, convs: Mapping[str, nn.Conv2d]) -> Search:
        """The callback that takes redundant groups of these layers, and of streams, to zero."""
        return Search(self, tuple(convs))


@register(
    "otov2-scratch",
    reference="Chen et al., ICLR 2023",
    family="filter",
    needs=("training", "initialisation"),
    procedure="while training",
    fidelity=f"{_ADAPTED}; starts from new weights",
)
@dataclass(frozen=True)
class OTOv2Scratch(OTOv2):
    """OTOv2 from scratch: the weights of the network that is given are thrown away. The fields are those of `OTOv2`."""

    warm_up: float = 1 / 6  # 50 of 300 epochs

    def network(self, net: nn.Module) -> nn.Module:
        """`net` with new weights, drawn by `seed`, on its device."""
        return reinitialised(net, self.seed)
