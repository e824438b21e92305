"""Taylor-FO: prune the filters whose removal changes the loss least, to first order (Molchanov et al. 2019).

With a gate of 1 after each BatchNorm channel, the score is the squared derivative of the loss by the gate, averaged over
batches. Uses labelled images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.pruning.methods.image_method import ImageMethod, norm_or_conv
from gkp.pruning.registry import register


@register(
    "taylor-fo",
    reference="Molchanov et al., CVPR 2019",
    family="filter",
    needs=("weights", "data", "gradients"),
    fidelity="adapted: one cut before fine-tuning, the network in evaluation mode, instead of a hundred filters every 30 steps "
    "of training; only filters that leave the residual stream whole",
)
@dataclass(frozen=True)
class TaylorFO(ImageMethod):
    """The fields are those of `ImageMethod`; 30 batches of 32, since its authors score over 30 steps."""

    one_ranking = True

    n_batches: int = 30
    batch_size: int = 32

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """Mean over batches of (dL/dg)^2, g the filter's gate."""
        gated = norm_or_conv(net, convs, self.input_shape)
        total = {name: torch.zeros(conv.out_channels, dtype=torch.float64) for name, conv in convs.items()}
        for x, y in self.batches(net):
            for name, slope in gate_gradients(net, gated, x, y).items():
                total[name] += slope.double().cpu() ** 2
        return {name: squares / self.n_batches for name, squares in total.items()}


def gate_gradients(net: nn.Module, gated: Mapping[str, nn.Module], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Derivatives of the mean cross-entropy of a batch by gates of 1 on the output channels of each module, by name."""
    gates: dict[str, Tensor] = {}
    hooks = []

    def listen(name: str, module: nn.Module) -> None:
        def gate(_: nn.Module, __: object, output: Tensor) -> Tensor:
            gates[name] = torch.ones(1, output.shape[1], 1, 1, device=output.device, dtype=output.dtype, requires_grad=True)
            return output * gates[name]

        hooks.append(module.register_forward_hook(gate))

    for name, module in gated.items():
        listen(name, module)
    try:
        with torch.enable_grad():
            loss = F.cross_entropy(net(x), y)
            slopes = torch.autograd.grad(loss, list(gates.values()), materialize_grads=True)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: slope.flatten() for name, slope in zip(gates, slopes, strict=True)}
