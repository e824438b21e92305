"""The hypernetwork of DHP: every weight of a CIFAR ResNet is computed from latent vectors.

Each width of the network has one latent vector, with an entry for each channel: the image, the residual stream of each stage
(shared by all convolutions that write into it) and the inside of each block. A convolution's weight is computed from the
latents of its inputs and outputs, so an entry that shrinks to zero takes a channel of all of them along.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gkp.networks.classifier import BasicBlock, CifarResNet, Projection, convolutions

STAGES = (1, 2, 3)


def wiring(net: CifarResNet) -> dict[str, tuple[str, str]]:
    """The latents of the inputs and outputs of every convolution, by its name.

    They are called "image", "stage1" to "stage3" for the streams, and "layer1.0" and so on inside of the blocks.
    """
    latents = {"conv1": ("image", "stage1")}
    before = "stage1"
    for stage in STAGES:
        for index, block in enumerate(net.get_submodule(f"layer{stage}").children()):
            assert isinstance(block, BasicBlock)
            name, stream = f"layer{stage}.{index}", f"stage{stage}"
            latents[f"{name}.conv1"] = (before, name)
            latents[f"{name}.conv2"] = (name, stream)
            if isinstance(block.shortcut, Projection):
                latents[f"{name}.shortcut.conv"] = (before, stream)
            before = stream
    return latents


class HyperConv(nn.Module):
    """Computes the weight of one convolution, entry by entry from z_in x z_out through a hidden layer of a few units.

    Args:
        in_channels, out_channels: c and n, the widths of the convolution.
        kernel_size: (k, k') of its kernels.
        hidden: Units m of the hidden layer.
        generator: For the first values: Var(weight) = 1 / (c k k') where the latents are N(0, 1).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, ...], hidden: int, generator: torch.Generator
    ):
        super().__init__()
        self.kernel_size, area, pairs = kernel_size, math.prod(kernel_size), (in_channels, out_channels)

        def uniform(variance: float, *shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * math.sqrt(3 * variance))

        self.bias0 = nn.Parameter(torch.zeros(pairs))
        self.weight1 = uniform(1.0, *pairs, hidden)
        self.bias1 = nn.Parameter(torch.zeros(*pairs, hidden))
        self.weight2 = uniform(1 / (hidden * in_channels * area), *pairs, area, hidden)
        self.bias2 = nn.Parameter(torch.zeros(*pairs, area))

    def forward(self, z_in: Tensor, z_out: Tensor) -> Tensor:
        """The weight `(n, c, k, k')` from latents `(c,)` and `(n,)`."""
        product = torch.outer(z_in, z_out) + self.bias0
        embedded = product[..., None] * self.weight1 + self.bias1
        entries = (self.weight2 @ embedded[..., None]).squeeze(-1) + self.bias2
        return entries.transpose(0, 1).reshape(*product.T.shape, *self.kernel_size)


class HyperNetwork(nn.Module):
    """The latents and generators of all convolutions of a network.

    Args:
        net: The network; it is not changed.
        hidden: As in `HyperConv`.
        seed: Of the first values.
    """

    def __init__(self, net: CifarResNet, hidden: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.wiring, convs = wiring(net), convolutions(net)
        widths = {}
        for name, (into, out) in self.wiring.items():
            widths[into], widths[out] = convs[name].in_channels, convs[name].out_channels
        self._latents = nn.ParameterDict({_key(z): torch.randn(width, generator=generator) for z, width in widths.items()})
        self._generators = nn.ModuleDict()
        for name in self.wiring:
            conv = convs[name]
            made = HyperConv(conv.in_channels, conv.out_channels, conv.kernel_size, hidden, generator)
            self._generators[_key(name)] = made

    def latent(self, name: str) -> Tensor:
        """The latent vector of this name, one of `wiring`."""
        return self._latents[_key(name)]

    def forward(self, kept: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """All weights, by the name of the parameter.

        Args:
            kept: Masks by name of latent, False for channels that are gone: whatever reads them gets zero.
        """
        weights = {}
        for name, (into, out) in self.wiring.items():
            weight = self._generators[_key(name)](self.latent(into), self.latent(out))
            if kept is not None and into in kept:
                weight = weight * kept[into].view(1, -1, 1, 1)
            weights[f"{name}.weight"] = weight
        return weights


@torch.no_grad()
def shrink(latent: Tensor, amount: float | Tensor) -> None:
    """The proximal step of `amount` times the L1 norm, in place: every entry moves so far towards zero and stops there."""
    latent.copy_(torch.sign(latent) * (latent.abs() - amount).clamp(min=0))


def _key(name: str) -> str:
    return name.replace(".", "/")  # names of parameters have no dots
