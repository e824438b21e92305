"""Gates on filters: how they are drawn, what they cost, and how the gradients of three losses are put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from gkp.networks.classifier import convolutions
from gkp.pruning.cost import macs_of_layers
from gkp.pruning.coupling import Couplings

EVEN = math.log(math.log(2))  # the logit of a gate that is open half of the time


def opening(logits: Tensor) -> Tensor:
    """The probability that gates of these logits are open under the noise of `gumbel`: 1 - exp(-exp(u))."""
    return -torch.expm1(-logits.exp())


def gumbel(count: int, generator: torch.Generator) -> Tensor:
    """Numbers `(count,)` of the standard Gumbel distribution."""
    return -torch.empty(count).exponential_(generator=generator).log()


def draw(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Soft gates in (0, 1)."""
    return ((logits + noise) / temperature).sigmoid()


def hard(soft: Tensor) -> Tensor:
    """Gates of 0 and 1 from soft ones, with the gradient of the soft ones."""
    return (soft >= 0.5).to(soft.dtype) + (soft - soft.detach())


class Work:
    """Operations of the gated convolutions and of those that read them, as the authors count: k^2 c_in + 3 an output.

    Args:
        net: The network.
        layers: Names of the gated convolutions.
        input_shape: (C, H, W) of the images.
    """

    def __init__(self, net: nn.Module, layers: Sequence[str], input_shape: Sequence[int]):
        convs, couplings = convolutions(net), Couplings(net, input_shape)
        sizes = [convs[name].out_channels for name in layers]
        reads: dict[tuple[str, str], Tensor] = {}
        for name, start in zip(layers, accumulate(sizes, initial=0), strict=False):
            for cut, of_filter in couplings.followers(name):
                if cut.layer in convs:
                    row = reads.setdefault((cut.layer, cut.axis), torch.zeros(sum(sizes), dtype=torch.float64))
                    row += torch.bincount(start + of_filter, minlength=len(row))
        names = list(dict.fromkeys(name for name, _ in reads))
        none, macs = torch.zeros(sum(sizes), dtype=torch.float64), macs_of_layers(net, input_shape=input_shape)
        self._ins = torch.stack([reads.get((name, "in"), none) for name in names])
        self._outs = torch.stack([reads.get((name, "out"), none) for name in names])
        whole = [(c.in_channels / c.groups, c.out_channels, math.prod(c.kernel_size)) for c in map(convs.get, names) if c]
        ins, outs, self._kernel = torch.tensor(whole, dtype=torch.float64).unbind(1)
        self._positions = torch.tensor([macs[name] for name in names]) / (ins * outs * self._kernel)
        self._fixed_ins, self._fixed_outs = ins - self._ins.sum(1), outs - self._outs.sum(1)
        self.dense = float(self(torch.ones(sum(sizes))))

    def __call__(self, gates: Tensor) -> Tensor:
        """The operations, a double, with these gates `(G,)` in [0, 1]; differentiable."""
        gates = gates.to("cpu", torch.float64)
        ins, outs = self._fixed_ins + self._ins @ gates, self._fixed_outs + self._outs @ gates
        return (self._positions * outs * (self._kernel * ins + 3)).sum()


def excess(share: Tensor, goal: float) -> Tensor:
    """log(max(share, goal) / goal): 0, and flat, once the share of the operations that is left is no more than the goal."""
    return torch.where(share > goal, share / goal, torch.ones_like(share)).log()


def combined(loss: Tensor, cost: Tensor, predicted: Tensor | None) -> Tensor:
    """The gradient of one layer's gates from those of three losses: of the predictor's only what is orthogonal to `loss`."""
    if predicted is None:
        return loss + cost
    square = loss.square().sum()
    along = torch.where(square > 0, (loss * predicted).sum() / square, torch.zeros_like(square))
    return loss + cost + predicted - along * loss
