"""Bottleneck networks on torchvision's ResNet: ResNet-50 for ImageNet, ResNet-101 for 64x64 images (Tiny-ImageNet)."""

from __future__ import annotations

from collections.abc import Sequence

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from gkp.networks.classifier import Architecture, Classifier, FunctionalReLU


class BottleneckResNet(Classifier, torchvision.models.ResNet):
    """torchvision's bottleneck ResNet, of which the paper prunes the 3x3 convolution of each block.

    Args:
        architecture: Its description.
        blocks: Number of blocks in each of the four stages.
        small_images: Whether the stem is one 3x3 convolution without pooling, for 64x64 images.
    """

    relus_uncounted_when_pruned = True

    def __init__(self, architecture: Architecture, blocks: Sequence[int], small_images: bool):
        torchvision.models.ResNet.__init__(self, Bottleneck, list(blocks), num_classes=architecture.num_classes)
        self.describe(architecture)
        if small_images:
            self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
            for module in list(self.modules()):
                if isinstance(module, torchvision.models.ResNet | Bottleneck):
                    module.relu = FunctionalReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.from_normalised((x - self.mean) / self.std)

    def from_normalised(self, z: Tensor) -> Tensor:
        return self._forward_impl(z)  # type: ignore[operator]

    def prunable(self, name: str, conv: nn.Conv2d) -> bool:
        return name.startswith("layer") and conv.kernel_size == (3, 3)
