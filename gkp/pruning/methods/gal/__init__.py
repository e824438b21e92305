"""GAL: generative adversarial learning of which residual blocks go (Lin et al., CVPR 2019).

Each residual block gets one gate, a factor on its branch. The gated network, the student, learns to give the logits of the
network it started from, its teacher, and a discriminator learns to tell the two apart; no label is looked at. An L1 penalty,
taken by FISTA, brings gates to zero, about 100 times in the whole training. A block without its branch is its shortcut, so
that removing it changes no logit. VGG-16 has a gate on each filter instead.

A step takes as long as a plain one and a forward pass of the teacher: 1.3 of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from gkp.errors import BadInput
from gkp.pruning.budget import Counter, dense_and_goal, grouped_kernel_macs
from gkp.pruning.layers import choose_layers
from gkp.pruning.methods.checks import check_number
from gkp.pruning.methods.filter_method import Budgeted
from gkp.pruning.methods.gal.gates import BlockGates, FilterGates, Gates
from gkp.pruning.methods.gal.search import Search
from gkp.pruning.registry import register

INITIAL, TEACHERS = ("normal", "ones"), ("train", "eval")


@register(
    "gal",
    reference="Lin et al., CVPR 2019",
    family="residual block",
    needs=("weights", "unlabelled images", "training"),
    procedure="while training",
    fidelity="adapted: gates, losses, order of the updates, the teacher in training mode and the L1 term that counts twice are "
    "as released; but 100 updates of the gates are spread over the epochs it is given, at a tenth of the learning rate after "
    "30, 60 and 90 % of them, instead of one in each of 100 epochs, and the student is trained by the recipe it is given; "
    "gates rest once those above 0 meet the budget; in the end the blocks of lowest gate go until it is met, and a block of "
    "gate 0 for which there is room stays, its branch starting at 0; blocks are coarse: where the last one does not meet the "
    "budget within 1 % the network is smaller and not at equal MACs; gates are folded into BatchNorm (VGG-16: into the next "
    "layer; it has no hidden linear units here); then fine-tuned as all methods are",
)
@dataclass(frozen=True)
class GAL(Budgeted):
    """GAL.

    Args:
        seed: Of the gates and of the discriminator.
        sparsity: Weight lambda of the L1 penalty; None for the authors', 0.6 on blocks and 0.001 on filters.
        mu: Weight of the mean squared difference of the logits; None for the authors', 1 on blocks and 0.1 on filters.
        updates: How many times the gates are updated in the whole training, spread evenly, or after every step if there are
            fewer steps; what counts is the path lr * lambda of all updates together.
        lr: Learning rate of the gates and of the discriminator, a tenth of it after 30, 60 and 90 % of the training.
        init: Gates start as "normal" numbers, as released, of which the first update ends the half that is negative; or as
            "ones".
        teacher: Its mode: "train", as released, normalises by the batch as the student does, "eval" as it was trained.

    The other fields are those of `Budgeted`; round_to is for filters.
    """

    seed: int = 0
    sparsity: float | None = None
    mu: float | None = None
    updates: int = 100
    lr: float = 0.01
    init: str = "normal"
    teacher: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates < 1:
            raise BadInput(f"gal needs updates of 1 or more, not {self.updates}; the authors' runs have 100")
        if self.init not in INITIAL or self.teacher not in TEACHERS:
            known = f"init {' or '.join(INITIAL)} and teacher {' or '.join(TEACHERS)}"
            raise BadInput(f"gal takes {known}, not {self.init!r} and {self.teacher!r}")
        for name, value in (("sparsity", self.sparsity), ("mu", self.mu), ("lr", self.lr)):
            if value is not None:
                check_number("gal", name, value)

    def callback(self, convs: Mapping[str, nn.Conv2d]) -> Search:
        """The callback that searches for the blocks, or filters, of these layers."""
        return Search(self, tuple(convs))

    def gates(self, net: nn.Module, layers: tuple[str, ...]) -> Gates:
        """The gates of the dense `net`: on the residual blocks that these layers make up, or on the filters of VGG-16.

        Raises:
            BadInput: The budget cannot be met, with the nearest that can.
        """
        counter = Counter(net, self.input_shape)
        target = self.budget
        if target is None:
            target = grouped_kernel_macs(net, choose_layers(net, None, 1)[0], self.rate, input_shape=counter.input_shape)
        goal = dense_and_goal(net, target, counter)[1]
        kind = BlockGates if BlockGates.fit(net, layers) else FilterGates
        return kind(net, layers, counter, goal, self)
