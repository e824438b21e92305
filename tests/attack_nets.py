"""For tests of attacks: networks whose worst case is known, small ones whose is not, images, margins."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.attacks.network import evaluating

W = torch.tensor([[0.5, -2.0, 0.0, 1.5]])  # ||w||_1 = 4, ||w||_2 = sqrt(6.5)


class Linear(nn.Module):
    """Two logits: 0 and w . x + b, so that the margin of label 1 is w . x + b."""

    def __init__(self, w: Tensor = W, b: float = 0.0):
        super().__init__()
        self.w, self.b = nn.Parameter(w.clone()), b

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w[0] + self.b
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Plateau(nn.Module):
    """The margin of label 1 is `height` up to a pixel value of 0.5, then falls by `slope` for each unit."""

    def __init__(self, height: float, slope: float):
        super().__init__()
        self.height, self.slope = height, slope

    def forward(self, x: Tensor) -> Tensor:
        score = self.height - self.slope * F.relu(x.flatten(1).sum(1) - 0.5)
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Counting(nn.Module):
    """A network that remembers how many images it saw in each call."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.net(x)


def conv_net(channels: int = 3, seed: int = 0) -> nn.Module:
    """A small fixed network with BatchNorm and dropout, its statistics away from their defaults, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip
        net[1].running_mean.uniform_(-0.5, 0.5)
        net[1].running_var.uniform_(0.5, 2)
        net[8].weight.data.mul_(8)
    return net


def images(n: int, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 1) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def own_labels(net: nn.Module, x: Tensor) -> Tensor:
    with evaluating(net), torch.no_grad():
        return net(x).argmax(1)


def margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x)
    right = logits.gather(1, y[:, None])[:, 0]
    return right - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def lengths(delta: Tensor, norm: str) -> Tensor:
    return delta.flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)


def right(net: nn.Module, x: Tensor, y: Tensor) -> int:
    """How many images are classified correctly."""
    return int((own_labels(net, x) == y).sum())
