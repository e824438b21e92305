"""The masked dense twin of a pruned network, which is trained and attacked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gkp.pruning.grouped import GroupedKernelConv2d, GroupedSpec
from gkp.pruning.plan import Plan, plan_of, replace_layer
from gkp.pruning.probe import copy_of

CLASSIFIER_NAMES = ("architecture", "mean", "std", "num_classes", "from_normalised")  # of gkp.networks.classifier.Classifier


class PrunedModel(nn.Module):
    """The masked dense twin of a pruned network: a copy of it in which the removed weights are held at exactly zero.

    Momentum revives masked weights: they are zeroed again before every forward pass in training mode and whenever the mode
    changes, so any training loop keeps the plan; a loop that looks at weights between steps calls `apply_masks` itself. Where a
    filter goes whole, its row, its bias, its BatchNorm weight and bias and its readers' columns are zero, so that its channel
    is zero all the way.

    Args:
        net: The dense network.
        plan: What stays.
        left_out: Layers that were not pruned, with the reason.

    Attributes:
        off_budget: How far its paper_macs are from the budget, as a fraction of it, where a method's steps were too coarse to
            meet it within the tolerance: then it is not to be compared at equal MACs. None where it is met, or none was set.

    Raises:
        BadInput: Plan and network do not fit.
    """

    @torch.inference_mode(mode=False)
    def __init__(self, net: nn.Module, plan: Plan, left_out: Mapping[str, str] | None = None):
        super().__init__()
        self.net = copy_of(net)
        self.plan = plan
        self.left_out = dict(left_out or {})
        self.off_budget: float | None = None
        self._cuts = plan.cuts(self.net)
        plan.make_twin(self.net)
        self._masked = list(masks := plan.removed(self.net, self._cuts))
        for parameter, gone in masks.items():
            weight = self.net.get_parameter(parameter)
            self.register_buffer(_mask_name(parameter), gone.to(weight.device), persistent=False)
        self.train(net.training)

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set every pruned weight to exactly zero, in place."""
        for parameter in self._masked:
            self.net.get_parameter(parameter).masked_fill_(self.get_buffer(_mask_name(parameter)), 0.0)

    def train(self, mode: bool = True) -> PrunedModel:
        """Switch the mode and apply the masks."""
        super().train(mode)
        self.apply_masks()
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name) if name in CLASSIFIER_NAMES else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images `x`, in the form that the dense network takes."""
        if self.training:
            self.apply_masks()
        return self.net(x)

    @torch.inference_mode(mode=False)
    def compact(self) -> nn.Module:
        """A new, really smaller module that computes the same function (logits within 1e-5), in the same mode."""
        self.apply_masks()
        small = copy_of(self.net)
        self.plan.shrink(small, self._cuts)
        return small.train(self.training)


def masked_twin(small: nn.Module) -> nn.Module:
    """The masked twin of a compact network from which nothing but grouped kernels went, bit for bit.

    Any other network is returned as it is: only grouped convolutions take longer than the dense ones that they come from.
    """
    plan = plan_of(small)
    if isinstance(small, PrunedModel) or not plan or not all(isinstance(spec, GroupedSpec) for spec in plan.values()):
        return small
    dense = copy_of(small)
    for name in plan:
        layer = dense.get_submodule(name)
        assert isinstance(layer, GroupedKernelConv2d)
        replace_layer(dense, name, layer.dense())
    del dense.plan  # it is no compact network any more
    return PrunedModel(dense, plan)


def _mask_name(parameter: str) -> str:
    return "removed:" + parameter.replace(".", "/")
