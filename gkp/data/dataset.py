"""Labelled images in memory as uint8, in batches, plain or augmented."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.errors import BadInput
from gkp.files import one_line
from gkp.networks.classifier import eval_mode


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
        pad: Augmentation that suits these images in training (see `augmented_batches`): random crops after zero padding by
            so many pixels. None by default, for nothing is known of your images.
        flip: Likewise, whether to mirror half of them.

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

    def __post_init__(self) -> None:
        where, images, labels = self._where, self.images, self.labels
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

    @property
    def _where(self) -> str:
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
        chosen = torch.as_tensor(indices)
        if chosen.dtype == torch.bool and chosen.shape == self.labels.shape:
            chosen = chosen.nonzero().flatten()
        if chosen.ndim != 1 or not len(chosen) or chosen.is_floating_point() or chosen.dtype == torch.bool:
            raise BadInput(
                f"{self._where}: indices are {_describe(chosen)}; give at least one integer position, or a boolean mask "
                "with one entry per image"
            )
        chosen = chosen.long()
        if int(chosen.min()) < 0 or int(chosen.max()) >= len(self):
            raise BadInput(
                f"{self._where}: indices run from {int(chosen.min())} to {int(chosen.max())}; "
                f"give positions in 0..{len(self) - 1}"
            )
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def leading(self, n: int) -> np.ndarray:
        """Positions (n,), ascending, of the first `n` images; of images that stand class by class, of all classes in turn.

        Raises:
            BadInput: n is not in 1..len.
        """
        if not 1 <= n <= len(self):
            raise BadInput(f"{self._where}: {n} images asked for; give 1 to {len(self)}")
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

    def pixels(self, which: slice | Tensor | np.ndarray | Sequence[int] = slice(None)) -> Tensor:
        """The images of a slice or of these positions as float32 `(n, C, H, W)` in [0, 1]."""
        return to_unit(self.images[which])

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
        _check_batch_size(batch_size)
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield to_unit(self.images[start:stop].to(device)), self.labels[start:stop].to(device)


def to_unit(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]: k becomes k / 255, as in torchvision's ToTensor, the same bits on every device."""
    pixels = images.to(torch.float32)
    return pixels.div_(pixels.new_full((), 255))  # by a number a GPU would multiply by 1 / 255, which rounds otherwise


def augmented_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    generator: torch.Generator,
    pad: int | None = None,
    flip: bool | None = None,
    device: str | torch.device = "cpu",
    drop_last: bool = False,
    ahead: bool | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled epoch of pairs (x float32 in [0, 1], y int64), cropped at random after zero padding, and mirrored.

    Images on a GPU (`Dataset.to`) are augmented there and never leave it: the epoch has the same bits as on a CPU.

    Args:
        dataset: The images and labels.
        batch_size: Images per batch.
        generator: Source of all randomness, the order included; on the CPU, so that one state gives one epoch on any device.
        pad: Pixels of padding on each side; None for the data set's own (cifar10: 4, as in the paper's code; digits: 1).
        flip: Whether half of the images are mirrored; None for the data set's own (cifar10: yes; digits: no).
        device: Where the batches go.
        drop_last: Whether to leave out a last batch that is not full.
        ahead: Whether to draw the numbers of the whole epoch before its first batch and send them to the images at once,
            instead of those of each batch when it is due. It is the same epoch; but the generator is used up at once. None: for
            images on a GPU, so that nothing is sent there from step to step.

    Raises:
        BadInput: A batch size below 1, or one that leaves nothing.
    """
    _check_batch_size(batch_size)
    pad = dataset.pad if pad is None else pad
    flip = dataset.flip if flip is None else flip
    order = torch.randperm(len(dataset), generator=generator)
    stop = len(dataset) - len(dataset) % batch_size if drop_last else len(dataset)
    if stop == 0:
        raise BadInput(
            f"{dataset._where}: batches of {batch_size} with drop_last leave nothing of its {len(dataset)} images; "
            "give a smaller batch size"
        )
    home = dataset.images.device
    sizes = [min(batch_size, stop - start) for start in range(0, stop, batch_size)]
    drawn = (_draw(n, pad=pad, flip=flip, generator=generator) for n in sizes)
    if home.type != "cpu" if ahead is None else ahead:
        moves = torch.cat(list(drawn), dim=1).to(home)
        order, drawn = order.to(home), iter(moves.split(sizes, dim=1))
    for start, n, moved in zip(range(0, stop, batch_size), sizes, drawn, strict=True):
        chosen = order[start : start + n].to(home)
        x = _moved(dataset.images[chosen], moved.to(home), pad=pad, flip=flip)
        yield to_unit(x.to(device)), dataset.labels[chosen].to(device)


def crop_and_flip(images: Tensor, *, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image `(N, C, H, W)` by up to `pad` pixels either way and mirror it with probability 1/2.

    Draws, in this order: if pad, N row and N column offsets in 0..2*pad; if flip, N mirrors.
    """
    moves = _draw(len(images), pad=pad, flip=flip, generator=generator)
    return _moved(images, moves.to(images.device), pad=pad, flip=flip)


def _draw(n: int, *, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Rows of numbers `(3, n)`: row offset, column offset, mirror; zeros for what is not drawn."""
    none = torch.zeros(1, n, dtype=torch.int64)
    offsets = torch.randint(2 * pad + 1, (2, n), generator=generator) if pad else none.expand(2, n)
    return torch.cat([offsets, torch.randint(2, (1, n), generator=generator) if flip else none])


def _moved(images: Tensor, moves: Tensor, *, pad: int, flip: bool) -> Tensor:
    """The images `(n, C, H, W)` cropped and mirrored by the rows of `_draw`, on their device."""
    n, _, height, width = images.shape
    top, left, mirrored = moves
    if pad:
        windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view: (N, C, 2p+1, 2p+1, H, W)
        images = windows[torch.arange(n, device=images.device), :, top, left]
    if flip:
        images = torch.where(mirrored.bool()[:, None, None, None], images.flip(3), images)
    return images


def check_fit(net: nn.Module, data: Dataset, device: str | torch.device | None = None) -> None:
    """Check that a network takes these images and gives a logit per class: one forward pass of one image, in eval mode.

    Args:
        net: The network; it is left in the mode it came in.
        data: The images.
        device: Where the network is; None for that of its first parameter.

    Raises:
        BadInput: They do not fit together.
    """
    who, shape = type(net).__name__, tuple(data.images.shape[1:])
    x = data.pixels(slice(0, 1)).to(device or next(net.parameters()).device)
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


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise BadInput(f"batch size is {batch_size}; give 1 or more")


def _describe(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
