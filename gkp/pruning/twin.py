"""The masked dense twin of a pruned network, which is trained and attacked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gkp.errors import BadInput, ModelWarning
from gkp.networks.copies import copy_of
from gkp.networks.wrappers import take_off_compiled, unwrapped
from gkp.pruning import masks
from gkp.pruning.grouped import GroupedKernelConv2d, GroupedSpec
from gkp.pruning.plan import Plan, plan_of, replace_layers
from gkp.pruning.probe import settled
from gkp.pruning.spec import Spec


class PrunedModel(nn.Module):
    """The masked dense twin of a pruned network: a copy of it in which the removed weights count for nothing.

    Its layers compute with weight x mask (`gkp.pruning.masks`): whatever a training loop does, removed weights have no part in
    the function, their gradient is zero, and they stay at exactly zero. Parameters have their ordinary names. Where a filter
    goes whole, its row, its bias, its BatchNorm weight and bias and its readers' columns are masked, so that its channel is
    zero all the way.

    It takes and returns what the dense network does; attributes that it does not have itself are those of the dense network,
    and a state dict of the dense network is loaded as one of its own. A layer that is put in the place of a masked one, such as
    a new classifier or SyncBatchNorm, is masked by the same plan before the next forward pass.

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

    _masked: frozenset[str] = frozenset()  # names of the masked layers
    _misfit = ""  # why the plan does not fit the network as it is now

    @settled()
    def __init__(self, net: nn.Module, plan: Plan, left_out: Mapping[str, str] | None = None):
        super().__init__()
        self.plan = plan
        self.left_out = dict(left_out or {})
        self.off_budget: float | None = None
        twin = masks.unmask(take_off_compiled(copy_of(unwrapped(net))))
        self._cuts = plan.cuts(twin)
        plan.make_twin(twin)
        self._mask(twin, plan.removed(twin, self._cuts))
        self.net = twin
        self.training = twin.training

    def _mask(self, twin: nn.Module, removed: Mapping[str, Tensor]) -> None:
        masks.mask(twin, removed)
        self._masked = frozenset(name.rpartition(".")[0] for name, gone in removed.items() if bool(gone.any()))

    def apply_masks(self) -> None:
        """Set every removed weight to exactly zero, in place, if something wrote into it; the function stays the same.

        Raises:
            BadInput: The plan does not fit layers that were exchanged since.
        """
        if not self._holds():
            self._mask_again()
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
        if not torch.compiler.is_compiling() and not self._holds() and not self._misfit:
            try:
                self._mask_again()
            except BadInput as misfit:
                self._misfit = str(misfit)
                warnings.warn(f"{misfit}; until then, it has no compact form", ModelWarning, stacklevel=2)
        return masks.computing(self.net, *args, **kwargs)

    def _holds(self) -> bool:
        """Whether every layer that is to be masked is."""
        net = unwrapped(self.net)
        return all(isinstance(_at(net, name), masks.MaskedLayer) for name in self._masked)

    @settled()
    def _mask_again(self) -> None:
        """Mask the layers that were put in the place of masked ones. Raises BadInput where the plan does not fit them."""
        lost = sorted(name for name in self._masked if not isinstance(_at(self.net, name), masks.MaskedLayer))
        try:
            if any(type(self.plan[name]).twin is not Spec.twin for name in self.plan):
                raise BadInput("the plan puts other layers in place, which it cannot do twice")
            ordinary = self._ordinary()
            self._cuts = self.plan.cuts(ordinary)
            self._mask(self.net, self.plan.removed(ordinary, self._cuts))
        except BadInput as error:
            found = _at(self.net, lost[0])
            what = "taken out" if found is None else "replaced"
            now = "" if found is None else f" (now {type(found).__name__})"
            mend = "change the network before pruning, or its compact form"
            raise BadInput(f"{lost[0]} was {what} after pruning{now}, and the plan no longer fits: {error}; {mend}") from error
        self._misfit = ""

    def _ordinary(self) -> nn.Module:
        """A copy of the network without masks and wrappers; removed weights are zero."""
        return masks.unmask(take_off_compiled(copy_of(unwrapped(self.net))))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        names = {prefix + name: f"{prefix}net.{name}" for name in self.net.state_dict()}
        if not any(own in state_dict for own in names.values()):  # a dense network's, or a part of that
            state_dict.update({own: state_dict.pop(name) for name, own in names.items() if name in state_dict})
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @settled()
    def compact(self) -> nn.Module:
        """A new, really smaller module that computes the same function (logits within 1e-5), in the same mode.

        Raises:
            BadInput: The plan does not fit layers that were exchanged or reparametrised since.
        """
        if not self._holds():
            self._mask_again()
        small = self._ordinary()
        self.plan.shrink(small, self._cuts)
        return small


def _at(net: nn.Module, name: str) -> nn.Module | None:
    """The module of this name, that inside wherever torch.compile wraps one; None if there is none."""
    found: nn.Module | None = net
    for part in name.split(".") if name else ():
        while found is not None and part not in found._modules and "_orig_mod" in found._modules:
            found = found._modules["_orig_mod"]
        found = found and found._modules.get(part)
    while found is not None and "_orig_mod" in found._modules:
        found = found._modules["_orig_mod"]
    return found


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
    grouped = {name: layer for name in plan if isinstance(layer := dense.get_submodule(name), GroupedKernelConv2d)}
    replace_layers(dense, {name: layer.dense() for name, layer in grouped.items()})
    del vars(dense)["plan"]  # it is no compact network any more
    return PrunedModel(dense, plan)
