"""Controls: random filters, and training from scratch, which shows whether a method's weights matter or only its shape.

As a method, "scratch" (Liu et al. 2019) is the shape that a grouped kernel method leaves, newly initialised; the function
`scratch` does that to any twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.networks.build import check_as_built, initialised
from gkp.networks.classifier import Classifier
from gkp.networks.copies import copy_of
from gkp.networks.draws import drawn_from
from gkp.pruning.methods.filter_method import FilterMethod
from gkp.pruning.plan import Plan
from gkp.pruning.registry import make_method, method_info, register
from gkp.pruning.twin import PrunedModel


@register("scratch", reference="control", family="grouped kernel", needs=("weights", "initialisation"), fidelity="faithful")
@dataclass(frozen=True)
class Scratch:
    """The shape of a grouped kernel method with new weights.

    Args:
        rate, groups: As in `gkp.prune`.
        seed: Of the new weights.
        of: The grouped kernel method whose shape it has.

    Raises:
        BadInput: `of` is another kind of method: prune by it and call `gkp.pruning.scratch`.
    """

    rate: float = 7 / 16
    groups: int = 8
    seed: int = 0
    of: str = "sr-gkp"

    def __post_init__(self) -> None:
        info = method_info(self.of)
        if info.family != "grouped kernel" or set(info.needs) - {"weights"}:
            raise BadInput(
                f"scratch takes the shape of a grouped kernel method that needs weights only, not of {self.of}; "
                f"for that call gkp.pruning.scratch on the network pruned by {self.of}"
            )

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """The plan of the method `of`."""
        return make_method(self.of, rate=self.rate, groups=self.groups).plan(net, convs)

    def initialise(self, pruned: PrunedModel) -> PrunedModel:
        """The twin with weights drawn by `seed`."""
        return scratch(pruned, seed=self.seed)


def scratch(pruned: PrunedModel, *, seed: int = 0) -> PrunedModel:
    """A twin of the same plan with newly initialised weights; `pruned` is left as it was.

    Args:
        pruned: The masked twin.
        seed: Of the new weights.

    Raises:
        BadInput: The network is not one of ours and the plan restructures layers: its dense shape is then not known.
    """
    foreign = not isinstance(pruned.net, Classifier)
    if foreign and any(spec.restructures for spec in pruned.plan.values()) and not _dense(pruned):
        raise BadInput(f"the dense shape of this {type(pruned.net).__name__} is not known; initialise and prune it again")
    twin = PrunedModel(reinitialised(pruned.net, seed).train(pruned.training), pruned.plan, pruned.left_out)
    twin.off_budget = pruned.off_budget
    return twin


def reinitialised(net: nn.Module, seed: int) -> nn.Module:
    """A copy of `net` with weights drawn from `seed`, ours as `gkp.networks.build` draws them, on its device.

    Raises:
        BadInput: Some weights would stay as they are: a module has no `reset_parameters`, or one of our networks has other
            layers than its architecture says.
    """
    device = next(net.parameters()).device
    if isinstance(net, Classifier):
        check_as_built(net)
        return initialised(net.architecture, seed).to(device).train(net.training)
    fresh = copy_of(net).cpu()
    with drawn_from(seed):
        for name, module in fresh.named_modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            elif (kept := next(iter(module._parameters), None)) is not None:
                full = f"{name}.{kept}" if name else kept
                raise BadInput(f"{full} cannot be drawn anew: give its {type(module).__name__} a method reset_parameters")
    return fresh.to(device)


def _dense(pruned: PrunedModel) -> bool:
    """Whether every pruned layer of the twin is still the convolution it was."""
    return all(isinstance(pruned.net.get_submodule(name), nn.Conv2d) for name in pruned.plan)


@register("random", reference="control", family="filter", needs=(), fidelity="faithful")
@dataclass(frozen=True)
class RandomFilters(FilterMethod):
    """Random filters go. seed: of the draw; the other fields are those of `FilterMethod`."""

    seed: int = 0

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """Uniform numbers, layer after layer from one generator."""
        generator = torch.Generator().manual_seed(self.seed)
        return {name: torch.rand(conv.out_channels, generator=generator) for name, conv in convs.items()}
