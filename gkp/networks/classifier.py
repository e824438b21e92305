"""Classifiers that take float [0, 1] images `(N, C, H, W)`, normalise inside, and return logits.

CIFAR ResNet-20/32/44/56/110 (He et al. 2016, section 4.2) with the parameter-free option-A shortcut, or with projections where
the width changes (option B), and VGG-16-BN for 32x32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.errors import BadInput

PAPER_MEAN, PAPER_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHORTCUTS = ("append", "centre", "projection")


@dataclass(frozen=True)
class Architecture:
    """All it takes to build a network again, as `model.json` of a saved model records it.

    Args:
        name: One of `gkp.networks.build.BUILDERS`, which checks it.
        num_classes: Number of logits, 2 or more.
        shortcut: Where the zero channels of an option-A shortcut go: "append" (all after, as in the paper) or "centre" (half
            before, half after, as in akamaster's networks); or "projection", a 1x1 convolution with BatchNorm where the width
            changes (option B). Networks other than the CIFAR ResNets ignore it.
        mean, std: Per channel, subtracted and divided by inside, in units of pixels in [0, 1].

    Raises:
        BadInput: A value that makes no sense.
    """

    name: str
    num_classes: int = 10
    shortcut: str = "append"
    mean: tuple[float, ...] = PAPER_MEAN
    std: tuple[float, ...] = PAPER_STD

    def __post_init__(self) -> None:
        if self.shortcut not in SHORTCUTS:
            raise BadInput(f"shortcut of {self.name} must be one of {', '.join(SHORTCUTS)}, not {self.shortcut!r}")
        if not isinstance(self.num_classes, int) or self.num_classes < 2:
            raise BadInput(f"num_classes of {self.name} must be a whole number of 2 or more, not {self.num_classes!r}")
        if not len(self.mean) == len(self.std) == 3 or not is_normalisation(self.mean, self.std):
            raise BadInput(f"{self.name} wants 3 means and 3 positive stds of pixels in [0, 1], not {self.mean} and {self.std}")

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Architecture:
        """Read what `to_json` wrote. Raises BadInput for unknown fields or wrong types."""
        try:
            return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        except (TypeError, KeyError) as error:
            raise BadInput(f"not the description of an architecture: {error}") from error


def is_normalisation(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether these can be the means and the standard deviations, above 0, of pixels in [0, 1]."""
    return all(0 <= value <= 1 for value in (*mean, *std)) and min(std) > 0


class Classifier(nn.Module):
    """Base of the networks that take [0, 1] images and normalise inside.

    Attributes:
        architecture: The description it was built from.
        mean, std: Buffers `(1, 3, 1, 1)`.
        relus_uncounted_when_pruned: A quirk of the paper's MAC counter, see `gkp.pruning.cost`.
    """

    relus_uncounted_when_pruned = False
    __jit_unused_properties__: ClassVar = ["num_classes"]
    if TYPE_CHECKING:  # torch.jit.script cannot read annotations that are strings
        architecture: Architecture
        mean: Tensor
        std: Tensor

    def describe(self, architecture: Architecture) -> None:
        """Keep `architecture` and register its normalisation as buffers."""
        self.architecture = architecture
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(architecture.std).view(1, -1, 1, 1))

    @property
    def num_classes(self) -> int:
        """Number of logits per image."""
        return self.architecture.num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, num_classes)` of images `x` `(N, 3, H, W)` in [0, 1]."""
        return self.from_normalised((x - self.mean) / self.std)

    def prunable(self, name: str, conv: nn.Conv2d) -> bool:
        """Whether the paper prunes this convolution."""
        raise NotImplementedError

    def from_normalised(self, z: Tensor) -> Tensor:
        """Logits of images that are normalised already, the space in which the paper's code attacks."""
        raise NotImplementedError


class ShortcutA(nn.Module):
    """Option-A shortcut: every second pixel, `padding` zero channels before and after, no parameters.

    The paper's code samples by an average pool of kernel 1; `sampled` makes that pool visible to its MAC counter.
    """

    def __init__(self, stride: int, padding: tuple[int, int]):
        super().__init__()
        self.padding = padding
        self.sampled = nn.AvgPool2d(kernel_size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.sampled(x), (0, 0, 0, 0, self.padding[0], self.padding[1]))


class Projection(nn.Module):
    """Option-B shortcut: a 1x1 convolution of every `stride`-th pixel and a BatchNorm.

    The pixels are taken before the convolution, since the backward pass of a 1x1 convolution of stride 2 in channels_last
    corrupts memory on two CPU threads (torch 2.14.1).
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x[:, :, :: self.stride, :: self.stride]))


class GlobalAvgPool(nn.AdaptiveAvgPool2d):
    """The mean over all positions, like `AvgPool2d(8)` for 32x32 images; a class of its own for the paper's MAC counter."""

    def __init__(self) -> None:
        super().__init__(1)


class FunctionalReLU(nn.Module):
    """A ReLU that the paper's MAC counter does not see: its Tiny-ImageNet networks call the function, not the module."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), as in He et al. 2016."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            extra = channels - in_channels
            before = extra // 2 if shortcut == "centre" else 0
            padded = ShortcutA(stride, (before, extra - before))
            self.shortcut = Projection(in_channels, channels, stride) if shortcut == "projection" else padded

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(Classifier):
    """ResNet-(6n+2) for 32x32 or any size divisible by 4: 16, 32 and 64 channels in three stages of n = `blocks` blocks."""

    def __init__(self, architecture: Architecture, blocks: int):
        super().__init__()
        self.describe(architecture)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.pool = GlobalAvgPool()
        self.fc = nn.Linear(64, architecture.num_classes)

    def _stage(self, in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        shortcut = self.architecture.shortcut
        first = BasicBlock(in_channels, channels, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1, shortcut) for _ in range(blocks - 1)))

    def from_normalised(self, z: Tensor) -> Tensor:
        z = F.relu(self.bn1(self.conv1(z)))
        z = self.layer3(self.layer2(self.layer1(z)))
        return self.fc(self.pool(z).flatten(1))

    def prunable(self, name: str, conv: nn.Conv2d) -> bool:
        return name.startswith("layer") and ".shortcut." not in name


class Vgg16Bn(Classifier):
    """VGG-16 with BatchNorm for 32x32 (Simonyan & Zisserman 2015, configuration D) and a single linear classifier."""

    widths = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.describe(architecture)
        layers: list[nn.Module] = []
        in_channels = 3
        for width in self.widths:
            if isinstance(width, int):
                layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                in_channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        layers.append(nn.AvgPool2d(1))  # for 32x32 it does nothing; the paper's MAC counter counts it
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, architecture.num_classes)

    def from_normalised(self, z: Tensor) -> Tensor:
        return self.classifier(self.features(z).flatten(1))

    def prunable(self, name: str, conv: nn.Conv2d) -> bool:
        return name.startswith("features") and conv.in_channels > 3


def convolutions(net: nn.Module) -> dict[str, nn.Conv2d]:
    """Every convolution of `net` by name, in the order of its modules."""
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}


@contextmanager
def kept_modes(net: nn.Module) -> Iterator[None]:
    """Afterwards every module of `net` is in the mode it was in, and one that is new in that of `net`."""
    modes = {module: module.training for module in net.modules()}
    try:
        yield
    finally:
        net.train(modes[net])
        for module, training in modes.items():
            module.training = training


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put `net` into evaluation mode for a while; afterwards every module is in the mode it was in."""
    with kept_modes(net):
        net.eval()
        yield
