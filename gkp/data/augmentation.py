"""Batches of a shuffled epoch, augmented as suits a data set: shifted and mirrored, or random parts resized."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from gkp.data.dataset import Dataset, check_batch_size, to_unit
from gkp.errors import BadInput
from gkp.networks.draws import drawn_from


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

    Images with a `crop` are cropped and resized at random instead, by torchvision and with its defaults (RandomResizedCrop,
    bilinear, antialiased); padding does not apply to them. Images on a GPU (`Dataset.to`) are augmented there, and never leave
    it: shifted and mirrored, the epoch has the same bits as on a CPU.

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
        BadInput: A batch size below 1, or one that leaves nothing; padding below 0.
    """
    check_batch_size(batch_size)
    pad = dataset.pad if pad is None else pad
    flip = dataset.flip if flip is None else flip
    order = torch.randperm(len(dataset), generator=generator)
    stop = len(dataset) - len(dataset) % batch_size if drop_last else len(dataset)
    if stop == 0:
        raise BadInput(
            f"{dataset.where}: batches of {batch_size} with drop_last leave nothing of its {len(dataset)} images; "
            "give a smaller batch size"
        )
    home = dataset.images.device
    sizes = [min(batch_size, stop - start) for start in range(0, stop, batch_size)]
    height, width = dataset.images.shape[2:]
    if crop := dataset.crop:
        drawn = (_draw_parts(n, height, width, flip=flip, generator=generator) for n in sizes)
    else:
        drawn = (_draw(n, pad=pad, flip=flip, generator=generator) for n in sizes)
    if home.type != "cpu" if ahead is None else ahead:
        moves = torch.cat(list(drawn), dim=1).to(home)
        order, drawn = order.to(home), iter(moves.split(sizes, dim=1))
    for start, n, moved in zip(range(0, stop, batch_size), sizes, drawn, strict=True):
        chosen = order[start : start + n].to(home)
        if crop:
            x = _resized(dataset.images[chosen], moved, crop, flip=flip)
        else:
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
    if pad < 0:
        raise BadInput(f"pad is {pad}; give 0 or more pixels")
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
    return _mirrored(images, mirrored) if flip else images


def _mirrored(images: Tensor, which: Tensor) -> Tensor:
    return torch.where(which.bool()[:, None, None, None], images.flip(3), images)


def _draw_parts(n: int, height: int, width: int, *, flip: bool, generator: torch.Generator) -> Tensor:
    """Rows of numbers `(5, n)`: top, left, height and width of a part of each image, and whether it is mirrored."""
    from torchvision.transforms import RandomResizedCrop  # late: torchvision takes a second to import, and few sets need it

    seed = int(torch.randint(2**62, (), generator=generator))
    like = torch.empty(0, height, width)
    with drawn_from(seed):  # torchvision draws from the global generator
        parts = [RandomResizedCrop.get_params(like, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    mirrors = torch.randint(2, (1, n), generator=generator) if flip else torch.zeros(1, n, dtype=torch.int64)
    return torch.cat([torch.tensor(parts, dtype=torch.int64).T, mirrors])


def _resized(images: Tensor, moves: Tensor, side: int, *, flip: bool) -> Tensor:
    """The parts of images `(n, C, H, W)` by the rows of `_draw_parts`, resized to squares, on their device."""
    from torchvision.transforms.v2.functional import resized_crop

    *boxes, mirrored = moves.tolist()
    parts = [resized_crop(image, *box, [side, side]) for image, box in zip(images, zip(*boxes, strict=True), strict=True)]
    found = torch.stack(parts)
    return _mirrored(found, torch.tensor(mirrored, device=found.device)) if flip else found
