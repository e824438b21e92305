"""Test sets changed by noise, shifts and rotations, and CIFAR-10-C: robustness beyond Linf (check 21 of the audit).

Every change is a function from a `Dataset` to a `Dataset` whose name says what was done: "cifar10+gaussian-noise-0.05". The
noise of an image depends on its position and the seed alone, so that it is the same in `data.first(n)` for every n. Shifts
and rotations bring in black, as the crops of the training do.

CIFAR-10-C (Hendrycks & Dietterich 2019; 15 corruptions in 5 severities, 2.9 GB) is used when the user has it and never
downloaded; it is scored as RobustBench does.
Cost: noise 0.1 ms an image of 32x32, shifts and rotations half of that; a ladder is one forward pass an image and rung.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pandas as pd
from torch import nn

from gkp.data.dataset import Dataset
from gkp.data.shifts import gaussian_noise, rotate, shift
from gkp.data.sources import CORRUPTIONS, SEVERITIES, load_cifar10c
from gkp.evaluation.benchmark import predict
from gkp.evaluation.statistics import share


def ladder(
    model: nn.Module,
    data: Dataset,
    *,
    sigmas: Sequence[float] = (0.02, 0.05, 0.1, 0.2),
    shifts: Sequence[tuple[int, int]] = ((1, 0), (2, 0), (4, 0), (0, 1), (0, 2), (0, 4)),
    degrees: Sequence[float] = (-30, -15, -5, 5, 15, 30),
    seed: int = 0,
    batch_size: int = 500,
) -> pd.DataFrame:
    """Accuracy without change, and under noise, shifts and rotations of growing strength.

    Args:
        model: From images (N, C, H, W), floats in [0, 1], to logits; evaluated in eval mode.
        data: Images and labels.
        sigmas: Standard deviations of Gaussian noise, in pixels of [0, 1].
        shifts: Down and right, in pixels.
        degrees: Of rotation.
        seed: Of the noise.
        batch_size: Images in one pass.

    Returns:
        One row for each change, by name ("none", "gaussian-noise-0.05", "shift-2-0", "rotate-15"): accuracy as a fraction, low
        and high of its 95 % Wilson interval, and n.

    Raises:
        BadInput: A strength out of range.
    """
    changed = {"none": data}
    for test in (
        *(gaussian_noise(data, sigma, seed=seed) for sigma in sigmas),
        *(shift(data, dx, dy) for dx, dy in shifts),
        *(rotate(data, angle) for angle in degrees),
    ):
        changed[test.name.removeprefix(f"{data.name}+")] = test
    rows = {name: _scored(model, test, batch_size) for name, test in changed.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("change")


def corruption_accuracy(
    model: nn.Module, *, n_examples: int = 10_000, corruptions: Sequence[str] = CORRUPTIONS, batch_size: int = 500
) -> pd.DataFrame:
    """Accuracy on CIFAR-10-C. RobustBench's figure is the plain mean of all 15 x 5 cells: `.to_numpy().mean()`.

    Args:
        model: From images (N, 3, 32, 32), floats in [0, 1], to logits; evaluated in eval mode.
        n_examples: The first so many images of each corruption and severity.
        corruptions: Names, as in CIFAR-10-C.
        batch_size: Images in one pass.

    Returns:
        Corruptions (rows) by severity (columns), as fractions.

    Raises:
        BadInput: As `gkp.data.sources.load_cifar10c`.
    """
    table = pd.DataFrame(
        index=pd.Index(corruptions, name="corruption"), columns=pd.Index(SEVERITIES, name="severity"), dtype=float
    )
    for corruption, severity in product(corruptions, SEVERITIES):
        data = load_cifar10c(corruption, severity).first(n_examples)
        table.loc[corruption, severity] = _scored(model, data, batch_size)["accuracy"]
    return table


def _scored(model: nn.Module, data: Dataset, batch_size: int) -> dict[str, float]:
    right = int((predict(model, data, batch_size=batch_size).argmax(1) == data.labels.cpu()).sum())
    return share(right, len(data))
