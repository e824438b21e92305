"""Images in memory as uint8, and where every file of this project is looked for.

| name | images | train | val | train+val | test | where from |
|---|---|---|---|---|---|---|
| `digits` | 16x16 RGB | 1,100 | 197 | 1,297 | 500 | shipped with scikit-learn, no file needed |
| `cifar10` | 32x32 RGB | 45,000 | 5,000 | 50,000 | 10,000 | npz pair, torchvision's folder, or a download |

`val` is a fixed, class-stratified cut of the published training part: `train` never contains it, `train+val` is the
whole training part. `gkp.files` says where files are looked for.

Cost: cifar10 takes about 1 s and 150 MB for the training part, once per process and split.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gkp import files
from gkp.errors import BadInput
from gkp.files import cache_folder, fetch, locate, searched_folders

__all__ = [
    "SPLITS",
    "Dataset",
    "augmented_batches",
    "cache_folder",
    "crop_and_flip",
    "dataset_names",
    "fetch",
    "load_dataset",
    "locate",
    "searched_folders",
    "to_unit",
]

SPLITS = ("train", "val", "train+val", "test")
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # the paper's own figures
DIGITS_MEAN, DIGITS_STD = (0.3052,) * 3, (0.3185,) * 3  # of the pixels of train+val; a test measures them
_CIFAR_FOLDER = "cifar-10-batches-py"  # as torchvision (and the upstream archive) calls it
_SPLIT_SEED = 0


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of labelled images, held in memory as uint8, and checked when it is made.

    images: uint8 (N, C, H, W); labels: int64 (N,), each in [0, num_classes); mean, std: one number per channel, of
    pixels in [0, 1]. `pad` and `flip` say which augmentation suits these images in training (see `augmented_batches`):
    random crops after zero padding by `pad` pixels, and mirroring. The defaults are none, for nothing is known of your
    images. Raises BadInput when a field does not agree with the others.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        where = f"dataset {self.name!r}, split {self.split!r}"
        images, labels = self.images, self.labels
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
            raise BadInput(f"{where}: images are {_describe(images)}; give a uint8 tensor of shape (N, C, H, W), N > 0")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
            raise BadInput(f"{where}: labels are {_describe(labels)}; give an int64 tensor of shape (N,)")
        if len(labels) != len(images):
            raise BadInput(f"{where}: {len(images)} images but {len(labels)} labels; give one label per image")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise BadInput(
                f"{where}: labels run from {low} to {high}; with num_classes={self.num_classes} "
                f"they must lie in 0..{self.num_classes - 1}"
            )
        channels = images.shape[1]
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise BadInput(
                f"{where}: mean {self.mean} and std {self.std} must have {channels} numbers each (one per channel), std above 0"
            )
        if self.pad < 0:
            raise BadInput(f"{where}: pad is {self.pad}; give 0 or more pixels")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the bytes of the images followed by those of the labels."""
        digest = hashlib.sha256(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, indices: Tensor | np.ndarray | Sequence[int]) -> Dataset:
        """The images at these positions, in this order, as a Dataset of the same name and split.

        indices: integers in [0, len), or a boolean mask of length len. Raises BadInput when one is out of range.
        """
        chosen = torch.as_tensor(indices)
        if chosen.dtype == torch.bool and chosen.shape == self.labels.shape:
            chosen = chosen.nonzero().flatten()
        if chosen.ndim != 1 or not len(chosen) or chosen.is_floating_point() or chosen.dtype == torch.bool:
            raise BadInput(
                f"dataset {self.name!r}, split {self.split!r}: indices are {_describe(chosen)}; give at "
                "least one integer position, or a boolean mask with one entry per image"
            )
        chosen = chosen.long()
        if int(chosen.min()) < 0 or int(chosen.max()) >= len(self):
            raise BadInput(
                f"dataset {self.name!r}, split {self.split!r}: indices run from {int(chosen.min())} to "
                f"{int(chosen.max())}; give positions in 0..{len(self) - 1}"
            )
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def first(self, n: int) -> Dataset:
        """The first n images, n in 1..len; BadInput otherwise."""
        if not 1 <= n <= len(self):
            raise BadInput(f"dataset {self.name!r}, split {self.split!r}: {n} images asked for; give 1 to {len(self)}")
        return self if n == len(self) else replace(self, images=self.images[:n], labels=self.labels[:n])

    def pixels(self, which: slice | Tensor | np.ndarray | Sequence[int] = slice(None)) -> Tensor:
        """float32 (n, C, H, W) in [0, 1]: the images of a slice or of these positions."""
        return to_unit(self.images[which])

    def batches(self, batch_size: int, *, device: str | torch.device = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (x float32 in [0, 1], y int64) in the stored order, the last one possibly smaller."""
        _check_batch_size(batch_size)
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield to_unit(self.images[start:stop].to(device)), self.labels[start:stop].to(device)


def to_unit(images: Tensor) -> Tensor:
    """float32 in [0, 1] of uint8 pixels, each k becoming k / 255 (as torchvision's ToTensor does)."""
    return images.to(torch.float32).div_(255)


def augmented_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    generator: torch.Generator,
    pad: int | None = None,
    flip: bool | None = None,
    device: str | torch.device = "cpu",
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled epoch of pairs (x float32 in [0, 1], y int64), cropped at random after zero padding, and mirrored.

    pad, flip: pixels of padding on each side, and whether half of the images are mirrored; the dataset's own by
    default (cifar10: 4 and yes, as in the paper's code, PAPER B10; digits: 1 and no). All randomness, the order of the
    images included, comes from `generator`, which must live on the CPU: the same state gives the same epoch on every
    device. drop_last: leave out a last batch that is not full. Work is done on whole batches of uint8.
    """
    _check_batch_size(batch_size)
    pad = dataset.pad if pad is None else pad
    flip = dataset.flip if flip is None else flip
    order = torch.randperm(len(dataset), generator=generator)
    stop = len(dataset) - len(dataset) % batch_size if drop_last else len(dataset)
    if stop == 0:
        raise BadInput(
            f"dataset {dataset.name!r}, split {dataset.split!r}: batches of {batch_size} with drop_last "
            f"leave nothing of its {len(dataset)} images; give a smaller batch size"
        )
    for start in range(0, stop, batch_size):
        chosen = order[start : start + batch_size].to(dataset.images.device)
        x = crop_and_flip(dataset.images[chosen], pad=pad, flip=flip, generator=generator)
        yield to_unit(x.to(device)), dataset.labels[chosen].to(device)


def crop_and_flip(images: Tensor, *, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Images of the same shape and type, each shifted by up to `pad` pixels either way and mirrored with chance 1/2.

    images: (N, C, H, W). Draws, in this order: if pad, N row and N column offsets in 0..2*pad; if flip, N mirrors.
    """
    n, _, height, width = images.shape
    if pad:
        top, left = torch.randint(2 * pad + 1, (2, n), generator=generator).to(images.device)
        windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view: (N, C, 2p+1, 2p+1, H, W)
        images = windows[torch.arange(n, device=images.device), :, top, left]
    if flip:
        mirrored = torch.randint(2, (n,), generator=generator).to(images.device, torch.bool)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def dataset_names() -> list[str]:
    """The names `load_dataset` knows."""
    return sorted(_LOADERS)


def load_dataset(name: str, split: str = "test") -> Dataset:
    """The named dataset's split, loaded once per process (treat its tensors as read-only).

    Raises BadInput for an unknown name or split, for a file that is not what its name says, and, for cifar10, when it
    is in none of the folders searched and cannot be downloaded.
    """
    if name not in _LOADERS:
        raise BadInput(f"unknown dataset {name!r}; known: {', '.join(dataset_names())}")
    if split not in SPLITS:
        raise BadInput(f"unknown split {split!r} of dataset {name!r}; known: {', '.join(SPLITS)}")
    return _LOADERS[name](split)


# --- digits ---------------------------------------------------------------------------------------------------------


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
    """Sorted positions of train, val or train+val: n_val of the training positions go to val, stratified by label."""
    from sklearn.model_selection import train_test_split

    if split == "train+val":
        return training
    train, val = train_test_split(training, test_size=n_val, stratify=labels[training], random_state=_SPLIT_SEED)
    return np.sort(train if split == "train" else val)


# --- cifar10 --------------------------------------------------------------------------------------------------------


def _cifar10(split: str) -> Dataset:
    part = "test" if split == "test" else "train"
    source = _cifar_source(part)
    stamp = source.stat()
    return _cifar10_from(source, (stamp.st_mtime_ns, stamp.st_size), split)


@cache
def _cifar10_from(source: Path, stamp: tuple[int, int], split: str) -> Dataset:
    """The split out of this file or folder; stamp (time, size) makes a changed file a new one for the cache."""
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
    """The npz file of this part, or torchvision's folder, whichever folder searched has one first; else a download."""
    for folder in searched_folders():
        for path in (folder / f"cifar10_{part}.npz", folder / _CIFAR_FOLDER):
            if path.exists():
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
            if not target.exists():  # another process may have been faster
                os.replace(Path(partial) / _CIFAR_FOLDER, target)
    except (OSError, RuntimeError) as error:
        raise BadInput(
            f"cifar10: download from {url} to {home} failed ({files.one_line(error)}); check the network "
            "and the folder, or name a folder that holds cifar10 in GKP_DATA"
        ) from error
    return target


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:  # np.load would leave a broken file open
            archive = np.load(file, allow_pickle=False)
            arrays = dict(archive) if isinstance(archive, np.lib.npyio.NpzFile) else {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(
            f"{path}: cannot be read as an npz archive ({files.one_line(error)}); it is truncated or not an "
            "npz: copy or download it again"
        ) from error
    if "images" not in arrays or "labels" not in arrays:
        raise BadInput(f"{path}: has the arrays {list(arrays)}; a CIFAR-10 file has images and labels")
    return arrays["images"], arrays["labels"]


def _read_torchvision(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images NHWC and labels from torchvision's folder.

    It holds pickles, the form upstream gives them; torchvision opens them only when their md5 is the published one.
    """
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(str(folder.parent), train=part == "train", download=False)
    except (OSError, RuntimeError) as error:
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


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise BadInput(f"batch size is {batch_size}; give 1 or more")


def _describe(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


_LOADERS: dict[str, Callable[[str], Dataset]] = {"digits": _digits, "cifar10": _cifar10}
