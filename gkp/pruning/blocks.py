"""Whole residual blocks: of a removed one nothing stays but its shortcut, and the ReLU behind the addition."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.networks.classifier import BasicBlock, FunctionalReLU
from gkp.pruning.spec import Spec, spec_kind

SHORTCUTS = ("shortcut", "downsample")  # the child that is the shortcut, in our blocks and in torchvision's


def residual_blocks(net: nn.Module) -> dict[str, nn.Module]:
    """The residual blocks of `net` by name, in the order of its modules: ours, and torchvision's basic and bottleneck ones."""
    return {name: module for name, module in net.named_modules() if is_block(module)}


def is_block(module: nn.Module) -> bool:
    """Whether a module computes relu(branch(x) + shortcut(x)) as one of the known kinds of block."""
    theirs = sys.modules.get("torchvision.models.resnet")  # where it is not loaded, no network has blocks of it
    kinds = (BasicBlock, *((theirs.BasicBlock, theirs.Bottleneck) if theirs else ()))
    return getattr(type(module), "forward", None) in [kind.forward for kind in kinds]


def branch_layers(block: nn.Module) -> dict[str, nn.Module]:
    """The layers of a block that go with it, all with parameters but those of its shortcut, by name inside the block."""
    return {
        name: module
        for name, module in block.named_modules()
        if name.partition(".")[0] not in SHORTCUTS and any(True for _ in module.parameters(recurse=False))
    }


def blocks_of(net: nn.Module, convs: Iterable[str] | None = None) -> dict[str, list[str]]:
    """The convolutions that go with each residual block of `net`, by name of the block.

    convs: Only blocks all of whose convolutions are among these; None for all blocks.
    """
    known = None if convs is None else set(convs)
    found = {
        name: [f"{name}.{inner}" for inner, layer in branch_layers(block).items() if isinstance(layer, nn.Conv2d)]
        for name, block in residual_blocks(net).items()
    }
    return {name: inside for name, inside in found.items() if known is None or known.issuperset(inside)}


def last_norm(block: nn.Module) -> nn.Module:
    """The norm at the end of the branch, whose scale and shift scale the whole branch.

    Raises:
        BadInput: The branch ends otherwise.
    """
    *_, last = branch_layers(block).values()
    if not isinstance(last, nn.BatchNorm2d | nn.SyncBatchNorm | nn.GroupNorm):
        raise BadInput(f"a gate needs a norm with scale and shift at the end of a block's branch, not a {type(last).__name__}")
    return last


@spec_kind("removed_block")
@dataclass(frozen=True, eq=False)
class BlockSpec(Spec):
    """A residual block that goes whole: relu(branch(x) + shortcut(x)) becomes relu(shortcut(x)).

    Its name in a plan is that of the block. The first block of a stage leaves the change of resolution and width that its
    shortcut makes.
    """

    prunes = nn.Module

    def check(self, name: str, layer: nn.Module) -> None:
        """Raise BadInput, naming the module, unless it is a residual block."""
        if not is_block(layer):
            raise BadInput(f"the plan removes the block {name}, which is a {type(layer).__name__}, not a residual block")

    def removed(self, layer: nn.Module) -> dict[str, Tensor]:
        """All parameters of the branch."""
        return {
            f"{name}.{parameter}": torch.ones((1,) * p.ndim, dtype=torch.bool)
            for name, part in branch_layers(layer).items()
            for parameter, p in part.named_parameters(recurse=False)
        }

    def compact(self, layer: nn.Module) -> ShortcutOnly:
        """The shortcut and the ReLU."""
        return ShortcutOnly(layer)

    def to_json(self) -> dict[str, Any]:
        """{"removed_block": true}."""
        return {"removed_block": True}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> BlockSpec:
        """Read what `to_json` wrote. Raises BadInput for anything else."""
        if (given := fields["removed_block"]) is not True:
            raise BadInput(f"not a plan of blocks: removed_block is {given!r}; it is true, and a block that stays has no spec")
        return cls()


class ShortcutOnly(nn.Module):
    """A residual block without its branch: relu(shortcut(x))."""

    def __init__(self, block: nn.Module):
        super().__init__()
        found = next((child for name in SHORTCUTS if (child := getattr(block, name, None)) is not None), None)
        self.shortcut = nn.Identity() if found is None else found
        relu = getattr(block, "relu", None)  # torchvision's is a module, which the paper's counter counts
        self.relu = relu if isinstance(relu, nn.Module) else FunctionalReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.shortcut(x))
