"""DepGraph: score a filter, and penalise it while training, together with all that is coupled to it (Fang et al. 2023).

Couplings are those of torch-pruning's DependencyGraph (`gkp.pruning.coupling`). Importance and penalty are those of its
GroupMagnitudeImportance and GroupNormPruner, written out because they act on gradients between two steps of a training loop
where ours adds a term to the loss; a test compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.pruning.coupling import Couplings
from gkp.pruning.methods.filter_method import FilterMethod
from gkp.pruning.methods.training_method import Penalty, SparseMethod
from gkp.pruning.registry import register
from gkp.pruning.tracing import BATCH_NORMS


@register(
    "depgraph-one-shot",
    reference="the group norm of Fang et al., CVPR 2023",
    family="filter",
    needs=("weights",),
    fidelity="adapted: without the sparse training, see depgraph; only filters that leave the residual stream whole",
)
@dataclass(frozen=True)
class DepGraphOneShot(FilterMethod):
    """The fields are those of `FilterMethod`."""

    one_ranking = True

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """The mean over coupled layers of the squared norm of a filter's group, divided by the layer's largest."""
        couplings = Couplings(net, self.input_shape)
        means = {name: torch.stack(group_squares(net, couplings, name)).mean(dim=0).detach() for name in convs}
        return {name: mean / mean.max().clamp_min(torch.finfo(mean.dtype).tiny) for name, mean in means.items()}


@register(
    "depgraph",
    reference="Fang et al., CVPR 2023",
    family="filter",
    needs=("weights", "training"),
    procedure="sparse training",
    fidelity="adapted: only filters that leave the residual stream whole, for the graph cannot follow channels through the "
    "padding of an option-A shortcut; cut after the epochs it is given, then fine-tuned as all methods are",
)
@dataclass(frozen=True)
class DepGraph(SparseMethod, DepGraphOneShot):
    """DepGraph with its sparse training.

    Args:
        reg: Weight of the penalty.
        alpha: The least important filter gets 2**alpha times the penalty of the most important one.

    The other fields are those of `FilterMethod`.
    """

    reg: float = 1e-4
    alpha: float = 4.0

    def penalty(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Penalty:
        """reg / 2 * sum over filters of gamma * squared group norm; gamma, a constant, from 1 (most important) to 2**alpha."""
        couplings = Couplings(net, self.input_shape)

        def term() -> Tensor:
            total = torch.zeros((), device=next(net.parameters()).device)
            for name in convs:
                squares = group_squares(net, couplings, name)
                norm = torch.stack(squares).mean(dim=0).detach().sqrt()
                spread = norm.max() - norm.min()
                if spread > 0:
                    gamma = 2 ** (self.alpha * (norm.max() - norm) / spread)
                    total = total + (gamma * torch.stack(squares).sum(dim=0)).sum()
            return self.reg / 2 * total

        return term


def group_squares(net: nn.Module, couplings: Couplings, name: str) -> list[Tensor]:
    """For each layer coupled to the filters of `name`: the squared norm of the weights that go with each filter, `(C_out,)`."""
    squares = []
    for cut, of_filter in couplings.followers(name):
        layer = net.get_submodule(cut.layer)
        weight = layer.weight
        if not isinstance(weight, Tensor):
            continue  # a BatchNorm without a scale
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
        by_channel = weight if cut.axis == "out" or depthwise or isinstance(layer, BATCH_NORMS) else weight.transpose(0, 1)
        channels, filters = cut.channels.to(weight.device), of_filter.to(weight.device)
        each = by_channel[channels].flatten(start_dim=1).square().sum(dim=1) if weight.ndim > 1 else weight[channels].square()
        squares.append(torch.zeros(int(of_filter.max()) + 1, device=weight.device).index_add(0, filters, each))
    return squares
