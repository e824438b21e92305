"""Test sets changed by noise, shifts and rotations, and CIFAR-10-C: robustness beyond Linf (EVALUATION 6, check 21).

Every change is a function from a `Dataset` to a `Dataset` whose name says what was done: "cifar10+gaussian-noise-0.05". The
noise of an image depends on its position and the seed alone, so that it is the same in `data.first(n)` for every n. Shifts
and rotations bring in black, as the crops of the training do.

CIFAR-10-C (Hendrycks & Dietterich 2019; 15 corruptions in 5 severities, 2.9 GB) is used when the user has it and never
downloaded; it is scored as RobustBench does.
Cost: noise 0.1 ms an image of 32x32, shifts and rotations half of that; a ladder is one forward pass an image and rung.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.lib.format import open_memmap
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor, nn

from gkp import files
from gkp.datasets import CIFAR10_MEAN, CIFAR10_STD, Dataset
from gkp.errors import BadInput
from gkp.evaluation import predict

CORRUPTIONS = (  # RobustBench's, in its order; CIFAR-10-C has four more, which are not scored
    "shot_noise", "motion_blur", "snow", "pixelate", "gaussian_noise", "defocus_blur", "brightness", "fog", "zoom_blur",
    "frost", "glass_blur", "impulse_noise", "contrast", "jpeg_compression", "elastic_transform",
)  # fmt: skip
EXTRA_CORRUPTIONS = ("gaussian_blur", "saturate", "spatter", "speckle_noise")
SEVERITIES = (1, 2, 3, 4, 5)
CIFAR10C_URL = "https://zenodo.org/records/2535967"
_CIFAR10C, _PER_SEVERITY = "CIFAR-10-C", 10_000
_NOISE = 3  # a word of the generator's counter that no attack uses, so that noise and random starts have nothing in common


def gaussian_noise(data: Dataset, sigma: float, *, seed: int = 0) -> Dataset:
    """The images plus independent normal noise of standard deviation sigma (pixels in [0, 1]), clipped and rounded to uint8.

    seed: 0 to 2**64 - 1. Raises BadInput for a sigma that is negative or not finite.
    """
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 <= sigma < float("inf"):
        raise BadInput(f"sigma is {sigma!r}; give the standard deviation of the noise, 0 or more, for pixels in [0, 1]")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise BadInput(f"seed must be an integer in 0..2**64-1, not {seed!r}")
    noisy = np.empty(tuple(data.images.shape), dtype=np.uint8)
    for position, image in enumerate(data.images.cpu().numpy()):
        generator = np.random.Generator(np.random.Philox(key=int(seed), counter=(0, _NOISE, 0, position)))
        noisy[position] = (image + 255 * sigma * generator.standard_normal(image.shape)).round().clip(0, 255)
    name = f"gaussian-noise-{sigma:g}" + (f"-seed-{seed}" if seed else "")
    return _changed(data, name, torch.from_numpy(noisy))


def shift(data: Dataset, dx: int, dy: int) -> Dataset:
    """The images moved dx pixels to the right and dy down (negative: left, up); black comes in.

    Raises BadInput for a part of a pixel, or for a shift that leaves nothing of the image.
    """
    height, width = data.images.shape[-2:]
    for name, value, side in (("dx", dx, width), ("dy", dy, height)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or abs(value) >= side:
            raise BadInput(f"{name} is {value!r}; give a whole number of pixels from {1 - side} to {side - 1}")
    return _changed(data, f"shift-{dx}-{dy}", _moved(data.images, translate=[int(dx), int(dy)]))


def rotate(data: Dataset, degrees: float) -> Dataset:
    """The images turned counter-clockwise about their centre, interpolated bilinearly; black comes in at the corners.

    degrees: -180 to 180. Raises BadInput otherwise.
    """
    if isinstance(degrees, bool) or not isinstance(degrees, int | float) or not -180 <= degrees <= 180:
        raise BadInput(f"degrees is {degrees!r}; give an angle from -180 to 180")
    return _changed(data, f"rotate-{degrees:g}", _moved(data.images, angle=-float(degrees)))


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
    """Accuracy (a fraction) without and under each change, with its 95 % Wilson interval: columns accuracy, low, high, n.

    The index is the name of the change: "none", "gaussian-noise-0.05", "shift-2-0", "rotate-15". seed: of the noise.
    Raises BadInput as the changes do.
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


def load_cifar10c(corruption: str, severity: int) -> Dataset:
    """The 10,000 test images of CIFAR-10-C under one corruption at one severity (1 to 5), as "cifar10-c+fog-3".

    Looked for as `CIFAR-10-C/fog.npy` and `CIFAR-10-C/labels.npy`, see `gkp.files`. Raises BadInput for an unknown corruption
    or severity, for a file that is absent (it says where from to get it) or not what its name says.
    """
    known = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
    if corruption not in known:
        raise BadInput(f"unknown corruption {corruption!r} of CIFAR-10-C; known: {', '.join(known)}")
    if not isinstance(severity, int) or severity not in SEVERITIES:
        raise BadInput(f"severity is {severity!r}; CIFAR-10-C has the severities 1 to 5")
    part = slice((severity - 1) * _PER_SEVERITY, severity * _PER_SEVERITY)
    images = _npy(f"{corruption}.npy", (5 * _PER_SEVERITY, 32, 32, 3), np.uint8)[part]
    labels = _npy("labels.npy", (5 * _PER_SEVERITY,), np.integer)[part]
    planes = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    classes = torch.from_numpy(labels.astype(np.int64))
    return Dataset(f"cifar10-c+{corruption}-{severity}", "test", planes, classes, 10, CIFAR10_MEAN, CIFAR10_STD)


def corruption_accuracy(
    model: nn.Module, *, n_examples: int = 10_000, corruptions: Sequence[str] = CORRUPTIONS, batch_size: int = 500
) -> pd.DataFrame:
    """Accuracy on the first `n_examples` images of each corruption (rows) at each severity (columns), as fractions.

    RobustBench's figure for corruptions is the plain mean of all 15 x 5 cells: `.to_numpy().mean()`.
    Raises BadInput as `load_cifar10c` does.
    """
    table = pd.DataFrame(
        index=pd.Index(corruptions, name="corruption"), columns=pd.Index(SEVERITIES, name="severity"), dtype=float
    )
    for corruption, severity in product(corruptions, SEVERITIES):
        data = load_cifar10c(corruption, severity).first(n_examples)
        table.loc[corruption, severity] = _scored(model, data, batch_size)["accuracy"]
    return table


def _changed(data: Dataset, name: str, images: Tensor) -> Dataset:
    return replace(data, name=f"{data.name}+{name}", images=images)


def _moved(images: Tensor, *, translate: Sequence[int] = (0, 0), angle: float = 0.0) -> Tensor:
    from torchvision.transforms import InterpolationMode  # here: torchvision takes a second to import
    from torchvision.transforms.functional import affine

    how = InterpolationMode.NEAREST if angle == 0 else InterpolationMode.BILINEAR
    return affine(images, angle, list(translate), scale=1.0, shear=[0.0, 0.0], interpolation=how, fill=[0.0])


def _scored(model: nn.Module, data: Dataset, batch_size: int) -> dict[str, float]:
    right = int((predict(model, data, batch_size=batch_size).argmax(1) == data.labels.cpu()).sum())
    low, high = proportion_confint(right, len(data), method="wilson")
    return {"accuracy": right / len(data), "low": float(low), "high": float(high), "n": len(data)}


def _npy(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """The array of this file of CIFAR-10-C, mapped and not read."""
    path = _found(name)
    try:
        array = open_memmap(path, mode="r")  # refuses pickles; np.load would leave a broken archive open
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(
            f"{path}: cannot be read as an array ({files.one_line(error)}); it is truncated or not an npy: "
            f"get CIFAR-10-C.tar from {CIFAR10C_URL} again"
        ) from error
    if array.shape != shape or not np.issubdtype(array.dtype, dtype):
        raise BadInput(f"{path}: is {array.dtype} {array.shape}; this file of CIFAR-10-C is {dtype.__name__} {shape}")
    return array


def _found(name: str) -> Path:
    relative = f"{_CIFAR10C}/{name}"
    if found := files.locate(relative):
        return found
    searched = ", ".join(str(folder) for folder in files.searched_folders())
    raise BadInput(
        f"{relative} is in none of the folders searched ({searched}); get CIFAR-10-C.tar (2.9 GB) from {CIFAR10C_URL}, "
        "unpack it, and name the folder that holds CIFAR-10-C in GKP_DATA"
    )
