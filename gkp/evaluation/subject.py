"""What is evaluated: a network and labelled images, made sure to belong together, and to behave as outcomes need it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from gkp.attacks.network import ALIKE, apart_from_others, images_home, logits_of, probe
from gkp.data.dataset import Dataset
from gkp.data.sources import load_dataset
from gkp.errors import BadInput, ModelWarning
from gkp.networks.copies import checked_device, copy_of

_ASKED = 16  # images that a network is asked about before an evaluation


def as_dataset(dataset: str | Dataset) -> Dataset:
    """The test split of that name, or the Dataset itself. Raises BadInput for anything else."""
    if isinstance(dataset, str):
        return load_dataset(dataset, "test")
    if not isinstance(dataset, Dataset):
        raise BadInput(f"dataset is a {type(dataset).__name__}; give a name such as 'cifar10', or a gkp.data.dataset.Dataset")
    return dataset


def chosen_images(data: Dataset, n_examples: int | None, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """(n,) int64 positions, ascending: the first `n_examples` (None: all) as `Dataset.leading` has them, or `indices`.

    Raises BadInput out of range.
    """
    if indices is None:
        n = len(data) if n_examples is None else n_examples
        if not _is_whole(n) or not 1 <= n <= len(data):
            raise BadInput(f"n_examples is {n!r}; give 1 to {len(data)}, the images in the {data.split} part of {data.name}")
        return data.leading(int(n))
    if n_examples is not None:
        raise BadInput("n_examples and indices both say which images; give one of them")
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu" or len(np.unique(chosen)) != len(chosen):
        raise BadInput(f"indices are {chosen.dtype} {chosen.shape}; give at least one whole number, each image once")
    if chosen.min() < 0 or chosen.max() >= len(data):
        raise BadInput(f"indices run from {chosen.min()} to {chosen.max()}; give positions in 0..{len(data) - 1}")
    return np.sort(chosen).astype(np.int64)


def check_sizes(batch_size: int, seed: int) -> None:
    """Raises BadInput unless both are whole numbers in range."""
    if not _is_whole(batch_size) or batch_size < 1:
        raise BadInput(f"batch_size must be a whole number of 1 or more, not {batch_size!r}")
    if not _is_whole(seed) or not 0 <= seed < 2**64:
        raise BadInput(f"seed must be an integer in 0..2**64-1, not {seed!r}")


def check_fit(net: nn.Module, data: Dataset) -> None:
    """Raises BadInput unless `net` takes the images and has the classes of `data`."""
    classes = probe(net, first_images(net, data)[:1])
    if classes != data.num_classes:
        raise BadInput(f"the network has {classes} logits, {data.name} {data.num_classes} classes; give a network made for it")


def check_behaviour(net: nn.Module, data: Dataset, *, allow_nondeterministic: bool = False) -> Tensor:
    """Logits (n, K), on the CPU, of the first images (16 at most), after the network was asked about them twice.

    Raises BadInput for answers that differ by more than rounding, unless that is allowed: then a ModelWarning is given, as it
    is for a network that returns probabilities.
    """
    x = first_images(net, data)
    first, second = logits_of(net, x), logits_of(net, x)
    apart = (first - second).abs().max().item()
    if apart > 1e-4 * first.abs().max().item():
        what = (
            f"the network is not deterministic: logits of the same images differ by {apart:.2g} between two passes in eval mode"
        )
        if not allow_nondeterministic:
            raise BadInput(
                f"{what}; take the randomness out (dropout, noise), or pass allow_nondeterministic=True to keep one draw"
            )
        warnings.warn(f"{what}; the outcomes are one draw and cannot be repeated", ModelWarning, stacklevel=3)
    if apart <= 1e-4 * first.abs().max().item() and (others := apart_from_others(net, x, first)) > ALIKE:
        what = f"logits of an image depend on the images beside it: alone, they differ by {others:.2g} of the largest"
        if not allow_nondeterministic:
            raise BadInput(
                f"{what}; give BatchNorm running statistics, or pass allow_nondeterministic=True for outcomes of these batches"
            )
        warnings.warn(f"{what}; the outcomes are those of these batches", ModelWarning, stacklevel=3)
    if bool((first >= 0).all()) and bool(((first.sum(1) - 1).abs() < 1e-3).all()):
        warnings.warn(
            "the network seems to return probabilities (no row has a negative entry, every row sums to 1): cross-entropy then "
            "takes a second softmax, and gradient attacks look weaker than they are; return the logits",
            ModelWarning,
            stacklevel=3,
        )
    return first.cpu()


@contextmanager
def on_device(model: nn.Module, device: str | torch.device | None) -> Iterator[nn.Module]:
    """`model` itself if it is on `device`, otherwise a copy of it there."""
    here, _ = images_home(model)
    wanted = here if device is None else checked_device(device)
    yield model if wanted == here else copy_of(model).to(wanted)


def indices_sha256(indices: np.ndarray) -> str:
    """The sha256 of positions of images (N,), as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(indices, dtype="<i8").tobytes()).hexdigest()


def first_images(net: nn.Module, data: Dataset) -> Tensor:
    """(n, C, H, W) in [0, 1], 16 at most, as the network takes them: what it is asked about before an evaluation."""
    device, dtype = images_home(net)
    return data.pixels(slice(_ASKED), device).to(dtype)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
