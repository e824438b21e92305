"""Labelled images in memory as uint8."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.files import one_line
from gkp.networks.classifier import eval_mode, is_normalisation


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of labelled images, held in memory as uint8 and checked when it is made.

    Args:
        name: For logs and messages.
        split: "train", "test", ...
        images: uint8 `(N, C, H, W)`.
        labels: int64 `(N,)`, each in [0, num_classes).
        num_classes: Number of classes.
        mean, std: One number per channel, of pixels in [0, 1]; std above 0.
        pad: Augmentation that suits these images in training (see `gkp.data.augmentation`): random crops after zero padding by
            so many pixels. None by default, for nothing is known of your images.
        flip: Likewise, whether to mirror half of them.
        crop: Likewise, the side in pixels of random resized crops, as of ImageNet: training sees a part of each image of 8 to
            100 % of its area, of 3/4 to 4/3 of its shape, resized to a square of this side. Everything else sees the middle
            of this side. 0 for images that are seen whole.

    Raises:
        BadInput: A field does not agree with the others.
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
    crop: int = 0

    def __post_init__(self) -> None:
        where, images, labels = self.where, self.images, self.labels
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
        channels, last = images.shape[1], images.shape[3]
        lists = hasattr(self.mean, "__len__") and hasattr(self.std, "__len__")
        if not lists or not len(self.mean) == len(self.std) == channels or not is_normalisation(self.mean, self.std):
            aside = "; channels come second, so images of (N, H, W, C) need .permute(0, 3, 1, 2)" if last in (1, 3) else ""
            raise BadInput(
                f"{where}: mean {self.mean} and std {self.std} must have {channels} numbers each (one per channel), of pixels "
                f"in [0, 1], std above 0{aside}"
            )
        if self.pad < 0:
            raise BadInput(f"{where}: pad is {self.pad}; give 0 or more pixels")
        if not 0 <= self.crop <= min(images.shape[2:]) or (self.crop and self.pad):
            sides = f"{images.shape[2]}x{images.shape[3]}"
            raise BadInput(f"{where}: crop is {self.crop} and pad {self.pad}; give one of them, crop within images of {sides}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that a network gets, in training and otherwise."""
        channels, height, width = self.images.shape[1:]
        return channels, self.crop or height, self.crop or width

    @property
    def where(self) -> str:
        """Its name and split, for messages."""
        return f"dataset {self.name!r}, split {self.split!r}"

    @cached_property
    def sha256(self) -> str:
        """The sha256 (hex) of the bytes of the images followed by those of the labels."""
        digest = hashlib.sha256(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, indices: Tensor | np.ndarray | Sequence[int]) -> Dataset:
        """The images at these positions, in this order, under the same name and split.

        Args:
            indices: Integers in [0, len), or a boolean mask of length len.

        Raises:
            BadInput: A position is out of range.
        """
        chosen = _positions(indices)
        if chosen.dtype == torch.bool and chosen.shape == self.labels.shape:
            chosen = chosen.nonzero().flatten()
        if chosen.ndim != 1 or not len(chosen) or chosen.is_floating_point() or chosen.dtype == torch.bool:
            raise BadInput(
                f"{self.where}: indices are {_describe(chosen)}; give at least one integer position, or a boolean mask "
                "with one entry per image"
            )
        if int(chosen.min()) < 0 or int(chosen.max()) >= len(self):
            raise BadInput(
                f"{self.where}: indices run from {int(chosen.min())} to {int(chosen.max())}; "
                f"give positions in 0..{len(self) - 1}"
            )
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def leading(self, n: int) -> np.ndarray:
        """Positions (n,), ascending, of the first `n` images; of images that stand class by class, of all classes in turn.

        Raises:
            BadInput: n is not in 1..len.
        """
        if not 1 <= n <= len(self):
            raise BadInput(f"{self.where}: {n} images asked for; give 1 to {len(self)}")
        if n == len(self) or not self._by_class:
            return np.arange(n)
        labels = self.labels.cpu().numpy()
        place = np.arange(len(labels)) - np.searchsorted(labels, labels)  # of each image within its class
        return np.sort(np.argsort(place, kind="stable")[:n])

    def first(self, n: int) -> Dataset:
        """The first `n` images, as `leading` chooses them. Raises BadInput unless n is in 1..len."""
        chosen = self.leading(n)
        if n == len(self) or self._by_class:
            return self if n == len(self) else self.subset(chosen)
        return replace(self, images=self.images[:n], labels=self.labels[:n])

    @cached_property
    def _by_class(self) -> bool:
        """Whether the images stand class by class, as folders of classes are read: the first ones say nothing of the rest."""
        return bool((self.labels[1:] >= self.labels[:-1]).all()) and bool(self.labels[0] < self.labels[-1])

    def pixels(
        self, which: slice | Tensor | np.ndarray | Sequence[int] = slice(None), device: str | torch.device | None = None
    ) -> Tensor:
        """The images of a slice or of these positions as float32 `(n, C, H, W)` in [0, 1], by default where they are."""
        images = _middle(self.images[which if isinstance(which, slice) else _positions(which)], self.crop)
        return to_unit(images if device is None else images.to(device))

    def to(self, device: str | torch.device) -> Dataset:
        """The same data on a device, as uint8; this very object if it is there already."""
        there = torch.empty(0, device=device).device  # "cuda" is a device by number
        if self.images.device == there:
            return self
        moved = copy(self)  # with its hash, if it is known
        vars(moved).update(images=self.images.to(there), labels=self.labels.to(there))
        return moved

    def batches(self, batch_size: int, *, device: str | torch.device = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (x float32 in [0, 1], y int64) in the stored order, the last one possibly smaller."""
        check_batch_size(batch_size)
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield self.pixels(slice(start, stop), device), self.labels[start:stop].to(device)


def _positions(which: Tensor | np.ndarray | Sequence[int]) -> Tensor:
    """int64 positions, or a mask; to torch, a tuple would be a place in several dimensions and uint8 a mask."""
    chosen = torch.as_tensor(which)
    return chosen if chosen.dtype == torch.bool or chosen.is_floating_point() else chosen.long()


def to_unit(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]: k becomes k / 255, as in torchvision's ToTensor, the same bits on every device."""
    pixels = images.to(torch.float32)
    return pixels.div_(pixels.new_full((), 255))  # by a number a GPU would multiply by 1 / 255, which rounds otherwise


def _middle(images: Tensor, side: int) -> Tensor:
    """The middle of this side of images `(N, C, H, W)`, where torchvision's CenterCrop has it; the whole if it is 0."""
    if not side:
        return images
    top, left = (round((length - side) / 2) for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def check_fit(net: nn.Module, data: Dataset, device: str | torch.device | None = None) -> None:
    """Check that a network takes these images and gives a logit per class: one forward pass of one image, in eval mode.

    Args:
        net: The network; it is left in the mode it came in.
        data: The images.
        device: Where the network is; None for that of its first parameter, or of the images if it has none.

    Raises:
        BadInput: They do not fit together.
    """
    if not isinstance(data, Dataset):
        raise BadInput(f"images and labels come in a gkp.Dataset, not a {type(data).__name__}; see gkp.load_dataset")
    who, shape, x = type(net).__name__, data.shape, data.pixels(slice(0, 1))
    x = x.to(device or next(net.parameters(), x).device)
    with eval_mode(net), torch.no_grad():
        try:
            logits = net(x)
        except Exception as error:  # whatever a foreign forward says
            raise BadInput(
                f"{who} does not take images of shape {shape} ({one_line(error)}); give a network made for {data.name!r}"
            ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < data.num_classes:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise BadInput(
            f"{who} returns {found} for one image; dataset {data.name!r} has {data.num_classes} classes: "
            "give a network with as many logits"
        )


def check_batch_size(batch_size: int) -> None:
    """Raises BadInput for a batch size below 1."""
    if batch_size < 1:
        raise BadInput(f"batch size is {batch_size}; give 1 or more")


def _describe(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
