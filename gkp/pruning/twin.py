"""The masked dense twin of a pruned network, which is trained and attacked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gkp.networks.wrappers import take_off_compiled, unwrapped
from gkp.pruning import masks
from gkp.pruning.grouped import GroupedKernelConv2d, GroupedSpec
from gkp.pruning.plan import Plan, plan_of, replace_layer
from gkp.pruning.probe import copy_of


class PrunedModel(nn.Module):
    """The masked dense twin of a pruned network: a copy of it in which the removed weights count for nothing.

    Its layers compute with weight x mask (`gkp.pruning.masks`): whatever a training loop does, removed weights have no part in
    the function, their gradient is zero, and they stay at exactly zero. Parameters have their ordinary names. Where a filter
    goes whole, its row, its bias, its BatchNorm weight and bias and its readers' columns are masked, so that its channel is
    zero all the way.

    It takes and returns what the dense network does; attributes that it does not have itself are those of the dense network.

    Args:
        net: The dense network.
        plan: What stays.
        left_out: Layers that were not pruned, with the reason.

    Attributes:
        net: The dense network with masked layers.
        off_budget: How far its paper_macs are from the budget, as a fraction of it, where a method's steps were too coarse to
            meet it within the tolerance: then it is not to be compared at equal MACs. None where it is met, or none was set.

    Raises:
        BadInput: Plan and network do not fit.
    """

    @torch.inference_mode(mode=False)
    def __init__(self, net: nn.Module, plan: Plan, left_out: Mapping[str, str] | None = None):
        super().__init__()
        self.plan = plan
        self.left_out = dict(left_out or {})
        self.off_budget: float | None = None
        self.training = net.training
        twin = masks.unmask(take_off_compiled(copy_of(unwrapped(net))))
        self._cuts = plan.cuts(twin)
        plan.make_twin(twin)
        masks.mask(twin, plan.removed(twin, self._cuts))
        self.net = twin

    def apply_masks(self) -> None:
        """Set every removed weight to exactly zero, in place, if something wrote into it; the function stays the same."""
        masks.zero_removed(self.net)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "net" or name.startswith("__"):
                raise
            return getattr(self.net, name)

    def __setattr__(self, name: str, value: Any) -> None:
        net = vars(self).get("_modules", {}).get("net")
        own = net is None or name == "net" or name in vars(self) or hasattr(type(self), name)
        super().__setattr__(name, value) if own or not hasattr(net, name) else setattr(net, name, value)

    __prepare_scriptable__ = masks.MaskedLayer.__prepare_scriptable__

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return masks.computing(self.net, *args, **kwargs)

    @torch.inference_mode(mode=False)
    def compact(self) -> nn.Module:
        """A new, really smaller module that computes the same function (logits within 1e-5), in the same mode."""
        small = masks.unmask(copy_of(self.net))
        self.plan.shrink(small, self._cuts)
        return small


def _forward(self: PrunedModel, x: Tensor) -> Tensor:
    """Logits of images `x`, in the form that the dense network takes; other arguments are handed on to it."""
    return self(x)


# torch.fx and torch.export ask for the names of the arguments, and can do nothing with *args
PrunedModel.forward.__wrapped__ = _forward  # type: ignore[attr-defined]
PrunedModel.forward.__doc__ = _forward.__doc__


def masked_twin(small: nn.Module) -> nn.Module:
    """The masked twin of a compact network from which nothing but grouped kernels went, bit for bit.

    Any other network is returned as it is: only grouped convolutions take longer than the dense ones that they come from.
    """
    plan, inside = plan_of(small), unwrapped(small)
    if isinstance(inside, PrunedModel) or not plan or not all(isinstance(spec, GroupedSpec) for spec in plan.values()):
        return small
    dense = copy_of(inside)
    for name in plan:
        layer = dense.get_submodule(name)
        assert isinstance(layer, GroupedKernelConv2d)
        replace_layer(dense, name, layer.dense())
    del vars(dense)["plan"]  # it is no compact network any more
    return PrunedModel(dense, plan)
