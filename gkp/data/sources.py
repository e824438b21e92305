"""Data sets by name: digits, CIFAR-10, the corrupted images of CIFAR-10-C; folders of images are in `gkp.data.folders`.

| name | images | train | val | train+val | test | where from |
|---|---|---|---|---|---|---|
| `digits` | 16x16 RGB | 1,100 | 197 | 1,297 | 500 | shipped with scikit-learn, no file needed |
| `cifar10` | 32x32 RGB | 45,000 | 5,000 | 50,000 | 10,000 | npz pair, torchvision's folder, or a download |

`val` is a fixed, class-stratified cut of the published training part: `train` never contains it, `train+val` is the
whole training part. Cost: cifar10 takes about 1 s and 150 MB for the training part, once per process and split.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch.nn import functional as F

from gkp import files
from gkp.data.dataset import Dataset
from gkp.data.folders import KNOWN, folder_is_here, is_folder, load_folder
from gkp.errors import BadInput
from gkp.files import cache_folder, searched_folders
from gkp.networks.classifier import PAPER_MEAN, PAPER_STD

SPLITS = ("train", "val", "train+val", "test")
CIFAR10_MEAN, CIFAR10_STD = PAPER_MEAN, PAPER_STD
DIGITS_MEAN, DIGITS_STD = (0.3052,) * 3, (0.3185,) * 3  # of the pixels of train+val; a test measures them
_CIFAR_FOLDER = "cifar-10-batches-py"  # as torchvision (and the upstream archive) calls it
_SPLIT_SEED = 0
CORRUPTIONS = (  # RobustBench's, in its order; CIFAR-10-C has four more, which are not scored
    "shot_noise", "motion_blur", "snow", "pixelate", "gaussian_noise", "defocus_blur", "brightness", "fog", "zoom_blur",
    "frost", "glass_blur", "impulse_noise", "contrast", "jpeg_compression", "elastic_transform",
)  # fmt: skip
EXTRA_CORRUPTIONS = ("gaussian_blur", "saturate", "spatter", "speckle_noise")
SEVERITIES = (1, 2, 3, 4, 5)
CIFAR10C_URL = "https://zenodo.org/records/2535967"
_CIFAR10C, _PER_SEVERITY = "CIFAR-10-C", 10_000


def dataset_names() -> list[str]:
    """The names that `load_dataset` knows, beside folder:PATH."""
    return sorted((*_LOADERS, *KNOWN))


def load_dataset(name: str, split: str = "test") -> Dataset:
    """Load a split of a data set, once per process: treat its tensors as read-only.

    Args:
        name: "digits", "cifar10", "tiny-imagenet", "imagenet", or "folder:PATH" for images of your own, see
            `gkp.data.folders`.
        split: "train", "val", "train+val" or "test".

    Returns:
        The images and labels, in memory, those of folders mapped into it.

    Raises:
        BadInput: Unknown name or split, a file that is not what its name says, or the data set is in none of the folders
            searched (see `gkp.files`) and cannot be downloaded.
    """
    if name not in _LOADERS and not is_folder(name):
        raise BadInput(f"unknown dataset {name!r}; known: {', '.join(dataset_names())}, folder:PATH")
    if split not in SPLITS:
        raise BadInput(f"unknown split {split!r} of dataset {name!r}; known: {', '.join(SPLITS)}")
    return load_folder(name, split) if is_folder(name) else _LOADERS[name](split)


@cache
def _digits(split: str) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    training, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=_SPLIT_SEED)
    chosen = np.sort(test) if split == "test" else _cut(np.sort(training), labels, split, n_val=197)
    small = torch.from_numpy(images[chosen]).float().reshape(-1, 1, 8, 8)  # grey, 0..16
    # weights of 1/4 and 3/4 on whole numbers: exact, so the bytes are the same on every machine
    large = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    pixels = (large * 255 / 16).round().to(torch.uint8).repeat(1, 3, 1, 1)
    return Dataset("digits", split, pixels, torch.from_numpy(labels[chosen]).long(), 10, DIGITS_MEAN, DIGITS_STD, pad=1)


def _cut(training: np.ndarray, labels: np.ndarray, split: str, *, n_val: int) -> np.ndarray:
    """Sorted positions of train, val or train+val; `n_val` of the training positions go to val, stratified by label."""
    from sklearn.model_selection import train_test_split

    if split == "train+val":
        return training
    train, val = train_test_split(training, test_size=n_val, stratify=labels[training], random_state=_SPLIT_SEED)
    return np.sort(train if split == "train" else val)


def is_here(name: str) -> bool:
    """Whether the images of a data set can be loaded without a download."""
    if name != "cifar10":
        return folder_is_here(name) if is_folder(name) else name in _LOADERS
    return any(files.locate(file) for file in ("cifar10_test.npz", _CIFAR_FOLDER))


def _cifar10(split: str) -> Dataset:
    part = "test" if split == "test" else "train"
    source = _cifar_source(part)
    if source.name != _CIFAR_FOLDER and (problem := files.problem_with(source)):
        raise BadInput(f"{source}: cannot be read as an npz archive: it {problem}")
    try:
        stamp = source.stat()
    except OSError as error:
        raise BadInput(f"{source}: cannot be read ({error.strerror}); make it readable") from error
    return _cifar10_from(source, (stamp.st_mtime_ns, stamp.st_size), split)


@cache
def _cifar10_from(source: Path, stamp: tuple[int, int], split: str) -> Dataset:
    """The split from this file or folder; the stamp (time, size) makes a changed file a new one for the cache."""
    part = "test" if split == "test" else "train"
    images, labels = _read_torchvision(source, part) if source.is_dir() else _read_npz(source)
    _check_cifar(images, labels, part, source)
    if split in ("train", "val"):
        chosen = _cut(np.arange(len(labels)), labels, split, n_val=5000)
        images, labels = images[chosen], labels[chosen]
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Dataset(
        "cifar10", split, planes, torch.from_numpy(labels.astype(np.int64)), 10, CIFAR10_MEAN, CIFAR10_STD, pad=4, flip=True
    )


def _cifar_source(part: str) -> Path:
    """The first npz file of this part or torchvision folder in the folders searched; else a download."""
    for folder in searched_folders():
        for path in (folder / f"cifar10_{part}.npz", folder / _CIFAR_FOLDER):
            if os.path.lexists(path):  # a link to nowhere too: it is an error, not a reason to download
                return path
    from torchvision.datasets import CIFAR10

    url, home = CIFAR10.url, cache_folder()
    if not files.reachable(url):
        code = f"from torchvision.datasets import CIFAR10; CIFAR10({str(home)!r}, download=True)"
        raise BadInput(
            files.not_found("cifar10", f"cifar10_{part}.npz or {_CIFAR_FOLDER}/", url, command=f"python -c {shlex.quote(code)}")
        )
    target = home / _CIFAR_FOLDER
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix="cifar10.partial-") as partial:
            CIFAR10(partial, download=True)  # torchvision checks the md5 of the archive
            try:
                os.replace(Path(partial) / _CIFAR_FOLDER, target)
            except OSError:
                if not target.is_dir():  # another process may have been faster
                    raise
    except (OSError, RuntimeError) as error:
        raise BadInput(
            f"cifar10: download from {url} to {home} failed ({files.one_line(error)}); check the network "
            "and the folder, or name a folder that holds cifar10 in GKP_DATA"
        ) from error
    return target


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:  # np.load would leave a broken file open
            if not zipfile.is_zipfile(file):
                raise ValueError("no archive")
            file.seek(0)
            arrays = dict(np.load(file, allow_pickle=False))
    except Exception as error:  # a damaged archive can raise anything
        raise BadInput(
            f"{path}: cannot be read as an npz archive ({files.one_line(error)}); it is truncated or not an "
            "npz: copy or download it again"
        ) from error
    if "images" not in arrays or "labels" not in arrays:
        raise BadInput(f"{path}: has the arrays {list(arrays)}; a CIFAR-10 file has images and labels")
    return arrays["images"], arrays["labels"]


def _read_torchvision(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images NHWC and labels from torchvision's folder: pickles, which it opens only if their md5 is the published one."""
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(str(folder.parent), train=part == "train", download=False)
    except Exception as error:  # pickles of another kind can raise anything
        raise BadInput(
            f"{folder}: is not the CIFAR-10 that torchvision knows ({files.one_line(error)}); remove it and download it again"
        ) from error
    return data.data, np.asarray(data.targets)


def _check_cifar(images: np.ndarray, labels: np.ndarray, part: str, source: Path) -> None:
    n = 10_000 if part == "test" else 50_000
    if images.shape != (n, 32, 32, 3) or images.dtype != np.uint8:
        raise BadInput(
            f"{source}: images are {images.dtype} {images.shape}; the {part} part of CIFAR-10 is uint8 ({n}, 32, 32, 3)"
        )
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise BadInput(f"{source}: labels are {labels.dtype} {labels.shape}; the {part} part of CIFAR-10 has {n} integers")
    if labels.min() < 0 or labels.max() > 9 or (np.bincount(labels) != n // 10).any():
        raise BadInput(
            f"{source}: labels run from {labels.min()} to {labels.max()}; the {part} part of CIFAR-10 has "
            f"{n // 10} of each label 0..9"
        )


_LOADERS: dict[str, Callable[[str], Dataset]] = {"digits": _digits, "cifar10": _cifar10}


def load_cifar10c(corruption: str, severity: int) -> Dataset:
    """Load the 10,000 test images of CIFAR-10-C under one corruption, named e.g. "cifar10-c+fog-3".

    The files are looked for as `CIFAR-10-C/fog.npy` and `CIFAR-10-C/labels.npy`, see `gkp.files`.

    Args:
        corruption: One of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        severity: 1 to 5.

    Raises:
        BadInput: Unknown corruption or severity; a file that is absent (the message says where to get it) or is not what its
            name says.
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


def _npy(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """The array of this file of CIFAR-10-C, mapped into memory."""
    path = _found(name)
    if problem := files.problem_with(path):
        raise BadInput(f"{path}: cannot be read as an array: it {problem}")
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
