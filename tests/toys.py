"""For tests of evaluations: networks and images of a few pixels, outcome matrices made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from gkp.data.dataset import Dataset
from gkp.evaluation.outcomes import AttackSpec, Outcomes

GREY, SPREAD = 0.5, 0.2  # mean and std of the grey data sets below


class Threshold(nn.Module):
    """Two logits whose difference is `slope` times (first pixel - `at`): label 1 above, label 0 below."""

    def __init__(self, at: float = 0.5, slope: float = 10.0):
        super().__init__()
        self.slope, self.at = nn.Parameter(torch.tensor(slope)), at

    def forward(self, x: Tensor) -> Tensor:
        score = self.slope * (x[:, 0, 0, 0] - self.at)
        return torch.stack([-score / 2, score / 2], dim=1)


def pixels_apart(distances: list[float], labels: list[int] | None = None, name: str = "grey") -> tuple[Dataset, Threshold]:
    """One-pixel images, all of value 128, and a network whose threshold lies `distances[0]` normalised units below it.

    Further distances make further images, in steps of whole grey levels.
    """
    values = torch.tensor([128 + round((d - distances[0]) * SPREAD * 255) for d in distances], dtype=torch.uint8)
    data = Dataset(name, "test", values.view(-1, 1, 1, 1), torch.tensor(labels or [1] * len(distances)), 2, (GREY,), (SPREAD,))
    return data, Threshold(128 / 255 - distances[0] * SPREAD)


class Net(nn.Module):
    """A small fixed network with BatchNorm and dropout that normalises inside, like ours, and records what it sees."""

    def __init__(self, mean: float = GREY, std: float = SPREAD, classes: int = 4):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), mean))
        self.register_buffer("std", torch.full((1, 3, 1, 1), std))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3, stride=2),
                nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes),
            )  # fmt: skip
            self.body[1].running_mean.uniform_(-0.5, 0.5)
            self.body[8].weight.data.mul_(8)
        self.normalised: list[Tensor] = []
        self.in_pixels: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.in_pixels.append(x.detach())
        return self.body((x - self.mean) / self.std)

    def from_normalised(self, z: Tensor) -> Tensor:
        self.normalised.append(z.detach())
        return self.body(z)


def noise(n: int, *, name: str = "noise", wrong: int = 5, side: int = 8) -> Dataset:
    """n random images labelled as `Net` sees them, every `wrong`-th of them falsely."""
    images = torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = Net().eval()(images.float() / 255).argmax(1)
    labels[::wrong] = (labels[::wrong] + 1) % 4
    return Dataset(name, "test", images, labels, 4, (GREY,) * 3, (SPREAD,) * 3)


def made(*rows: list[int] | np.ndarray, **fields) -> Outcomes:
    """Outcomes made by hand, in 0 and 1: the clean row, then FGSM at 1/255, 2/255, ...; `fields` replace others."""
    matrix = np.array(rows, dtype=bool)
    n = matrix.shape[1]
    out = Outcomes(
        right=matrix, indices=np.arange(n), labels=np.ones(n, dtype=np.int64), predictions=matrix[0].astype(np.int64),
        attacks=tuple(AttackSpec("fgsm", k / 255) for k in range(1, len(matrix))), protocol="pixel", bounds=(0.0, 1.0),
        dataset="made", split="test", data_sha256="d", model_sha256="m", seed=0, versions={"torch": "2"}, seconds=1.5,
    )  # fmt: skip
    return replace(out, **fields)
