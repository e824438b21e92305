"""RAP-ADMM: adversarial training and pruning at once, by ADMM on filters (Ye et al., ICCV 2019).

The network is trained on adversarial images alone. ADMM splits the weights: W is trained, its copy Z has no more filters than
the budget leaves, and a quadratic penalty pulls W to Z, ever harder; the dual U sums up how far they were apart. Z and U change
only at the beginning of a cycle of many steps. After the last cycle the filters of smallest norm are cut with their
BatchNorm, shift included, so that they can really go, and what is left is trained on adversarial images, the cut at zero.

It is the one method here that is trained for robustness: with PGD of n steps a step costs n + 1 plain ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gkp.attacks.options import parse_eps
from gkp.errors import BadInput
from gkp.pruning.methods.checks import check_number
from gkp.pruning.methods.l2 import L2
from gkp.pruning.methods.rap_admm.training import Training
from gkp.pruning.registry import register

MODES = ("eval", "train")
STRONGEST = {False: 0.106, True: 0.0106}  # the last rho, by whether U is in the graph; the same pull on W after 9 updates


@register(
    "rap-admm",
    reference="Ye et al., ICCV 2019",
    family="filter",
    needs=("weights", "training"),
    procedure="while training",
    adversarial=True,
    fidelity="adapted: trained for robustness, as no other method here: on PGD's images alone, to its last epoch, without the "
    "fine-tuning of the other methods. Objective, attack, learning rates and the order of ADMM are as released, but it "
    "starts from a network trained without attack instead of an adversarially trained one, as in the paper's tables; 9 "
    "updates of Z and U are spread over the first half of its epochs, and what is left is trained in the second half; U "
    "is detached from the graph (released: it is not, so the pull grows with every update; u_in_graph=True), and rho "
    "grows to 0.106 instead of 0.0106, where both pull alike; the attack sees BatchNorm in evaluation mode (released: in "
    "training mode, so that the attack's steps enter its statistics; attack_mode='train'); only filters that leave the "
    "residual stream whole go, the same share of each layer, as many as the budget says, instead of a share of every "
    "convolution; and they really go, BatchNorm's shift being zeroed with them, where the released network is masked and "
    "a cut filter goes on as a constant",
)
@dataclass(frozen=True)
class RAPADMM(L2):
    """RAP-ADMM.

    Args:
        seed: Of the attack's random starts.
        eps: Radius of the attack in units of pixels in [0, 1], as a number or as in "8/255".
        attack_steps: Steps of PGD; 10 as released, 2 or 3 where there is only a CPU.
        attack_step: Length of one; None for 2.5 * eps / attack_steps, the released 2/255 for 10 of them, but at most eps / 2.
        attack_mode: Mode of the network under attack, "eval" or, as released, "train", which changes BatchNorm's statistics.
        updates: How often Z and U are updated, spread evenly over ADMM's steps; 9 as released.
        rho: Weight of the penalty in the first cycle.
        last_rho: Weight of the penalty in the last cycle, reached by the same factor in every update; None for 0.106, or,
            with U in the graph, the released 0.0106.
        u_in_graph: Whether U stays in the graph, as released.
        retrain: Share of all steps that come after the cut.
        cyclic: Whether the learning rate falls to 0.1 and 0.01 of the recipe's within every cycle and after 40 and 75 % of the
            training after the cut, as released; else it is the recipe's.

    The other fields are those of `FilterMethod`.

    Raises:
        BadInput: A value that makes no sense.
    """

    fitted: ClassVar[tuple[str, ...]] = ("attack_steps",)
    seed: int = 0
    eps: float | str = "8/255"
    attack_steps: int = 10
    attack_step: float | str | None = None
    attack_mode: str = "eval"
    updates: int = 9
    rho: float = 1e-3
    last_rho: float | None = None
    u_in_graph: bool = False
    retrain: float = 0.5
    cyclic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("attack_steps", 1), ("updates", 1), ("seed", 0)):
            check_number("rap-admm", name, getattr(self, name), least, whole=True)
        if not self.radius or not self.length:
            which, value = ("eps", self.eps) if not self.radius else ("attack_step", self.attack_step)
            raise BadInput(
                f"rap-admm trains on adversarial images: {which} must be above 0, not {value}; 8/255 is the authors' eps"
            )
        for name, number in (("rho", self.rho), ("last_rho", self.strongest)):
            check_number("rap-admm", name, number, above=True)
        if self.attack_mode not in MODES:
            raise BadInput(f"attack_mode of rap-admm must be {' or '.join(MODES)}, not {self.attack_mode!r}")
        if not 0 <= self.retrain < 1:
            raise BadInput(f"retrain of rap-admm must be 0 or more and below 1, not {self.retrain}")

    @property
    def radius(self) -> float:
        """`eps` as a number."""
        return parse_eps(self.eps)

    @property
    def length(self) -> float:
        """The length of one step of the attack."""
        if self.attack_step is not None:
            return parse_eps(self.attack_step)
        return min(2.5 / self.attack_steps, 0.5) * self.radius

    @property
    def strongest(self) -> float:
        """The weight of the penalty in the last cycle."""
        return STRONGEST[self.u_in_graph] if self.last_rho is None else self.last_rho

    def callback(self, convs: Mapping[str, nn.Conv2d]) -> Training:
        """The callback that trains and cuts these layers."""
        return Training(self, tuple(convs))
