"""L1Norm-A and -B: prune filters of smallest L1 norm (Li et al. 2017), in two schemes of rates per stage and skipped layers.

The paper took the schemes of the "rethinking" code (Liu et al. 2019) for ResNet-56 and raised the rates to its budget without
printing them. They follow from its MACs and parameters: with the skipped layers *of ResNet-56, by number*, at every depth, the
widths below are the only ones that reproduce all twelve rows of Tables 9-11 and 17-19 (a test does). Two oddities follow: in
ResNet-32 and 110 other layers are skipped than the sensitive ones of ResNet-56; and B, whose published rates fall from stage to
stage (0.6, 0.3, 0.1), cuts all stages alike in ResNet-32/56 at the high rate. Weights only; milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.networks.classifier import CifarResNet, convolutions
from gkp.pruning.methods.filter_method import FilterMethod
from gkp.pruning.registry import register

WIDTHS = (16, 32, 64)
SKIPPED = {"a": (16, 20, 38, 54), "b": (16, 18, 20, 34, 38, 54)}  # convolutions, the image layer being number 1
Kept = tuple[int, int, int]
# (scheme, whether the rate is the high one) -> the inner widths of the paper's rows, stage by stage
KEPT: dict[tuple[str, bool], dict[str, Kept]] = {
    ("a", False): {"resnet32": (8, 16, 32), "resnet56": (7, 15, 31), "resnet110": (8, 17, 35)},
    ("b", False): {"resnet32": (4, 14, 43), "resnet56": (4, 14, 43), "resnet110": (5, 17, 42)},
    ("a", True): {"resnet32": (4, 9, 19), "resnet56": (4, 9, 19), "resnet110": (5, 11, 22)},
    ("b", True): {"resnet32": (3, 7, 14), "resnet56": (3, 7, 14), "resnet110": (7, 10, 15)},
}
NEAREST = {"resnet20": "resnet32", "resnet44": "resnet56"}  # depths that the paper does not have
HIGH_RATE = 17 / 32  # half way between the paper's 7/16 and 10/16
FIDELITY = (
    "adapted: the paper's unpublished widths, derived from its MACs and parameters, as they are where they meet the common "
    "budget within 1 %, scaled by one factor where not and for depths that the paper has not"
)


class L1Norm(FilterMethod):
    """The base of the two schemes."""

    scheme: Literal["a", "b"]

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """sum |W_j|."""
        return {name: conv.weight.detach().double().abs().sum(dim=(1, 2, 3)) for name, conv in convs.items()}

    def shares(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, float]:
        """The paper's rates on CIFAR ResNets; elsewhere A takes one share for all layers and B raises BadInput."""
        if not isinstance(net, CifarResNet):
            if self.scheme == "b":
                raise BadInput(f"l1norm-b has rates for the stages of CIFAR ResNets, not {type(net).__name__}; use l1norm-a")
            return dict.fromkeys(convs, 1.0)
        depth = NEAREST.get(net.architecture.name, net.architecture.name)
        kept = KEPT[self.scheme, self.rate > HIGH_RATE][depth]
        numbers = {name: number for number, name in enumerate(convolutions(net), start=1)}
        return {
            name: 0.0 if numbers[name] in SKIPPED[self.scheme] else 1 - kept[stage_of(name) - 1] / WIDTHS[stage_of(name) - 1]
            for name in convs
        }

    def published(self, net: nn.Module) -> bool:
        """Whether the paper has a row of this depth."""
        return isinstance(net, CifarResNet) and net.architecture.name not in NEAREST


@register(
    "l1norm-a",
    reference="Li et al., ICLR 2017",
    family="filter",
    needs=("weights",),
    fidelity=f"{FIDELITY}; other networks: one rate for all layers",
)
@dataclass(frozen=True)
class L1NormA(L1Norm):
    """Scheme A: one rate for all stages. The fields are those of `FilterMethod`."""

    scheme = "a"


@register("l1norm-b", reference="Li et al., ICLR 2017", family="filter", needs=("weights",), fidelity=FIDELITY)
@dataclass(frozen=True)
class L1NormB(L1Norm):
    """Scheme B: its own rate for each stage, CIFAR ResNets only. The fields are those of `FilterMethod`."""

    scheme = "b"


def stage_of(name: str) -> int:
    """The stage of a layer of a CIFAR ResNet, by its name: 1, 2 or 3."""
    return int(name.removeprefix("layer").partition(".")[0])
