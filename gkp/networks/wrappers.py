"""Wrappers that hand everything on to one network: parallel, averaged and compiled ones."""

from __future__ import annotations

import torch
from torch import nn

# By name, so that none of their libraries is loaded for the question; `module` is what they wrap.
_HOLD_A_MODULE = frozenset(
    "DataParallel DistributedDataParallel FullyShardedDataParallel AveragedModel ModelEma ModelEmaV2 ModelEmaV3".split()  # noqa: SIM905
)


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside wrappers that compute the same: of torch.compile, `gkp.compile`, nn.DataParallel,
    DistributedDataParallel, FSDP, and the averages of torch.optim.swa_utils and timm; any other network as it is."""
    while (inner := _inside(net)) is not None:
        net = inner
    return net


def has_compiled(net: nn.Module) -> bool:
    """Whether torch.compile wraps a part of the network."""
    return any("_orig_mod" in name.split(".") for name, _ in net.named_modules())


def take_off_compiled(net: nn.Module) -> nn.Module:
    """`net` itself, the parts that torch.compile wraps put in the place of their wrappers, in place."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if any(inner == "_orig_mod" for inner, _ in child.named_children()):
                setattr(module, name, unwrapped(child))
    return net


def _inside(net: nn.Module) -> nn.Module | None:
    if not isinstance(net, nn.Module) or isinstance(net, torch.jit.ScriptModule):  # whose children are no dictionary
        return None
    children = vars(net)["_modules"]
    found = children.get("_orig_mod", vars(net).get("compiled_from"))  # torch.compile's, ours
    if found is None and any(cls.__name__ in _HOLD_A_MODULE for cls in type(net).__mro__):
        found = children.get("module")
    return found if isinstance(found, nn.Module) else None
