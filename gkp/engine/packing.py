"""The tables of steps of `narrow`: the taps inside the image at each pixel, and weights in blocks of filters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gkp.engine import layout
from gkp.engine.layout import MapShape
from gkp.engine.operations import Floats, Ints

if TYPE_CHECKING:
    from gkp.engine.program import Weights

Pairs = tuple[tuple[int, int], ...]


def narrow_pays(source: MapShape, target: MapShape, weights: Weights, winograd: bool) -> bool:
    """Whether a convolution takes fewer vector products with vectors of filters than with vectors of pixels.

    Args:
        source, target: The maps that it reads and writes.
        weights: Its weights.
        winograd: Whether vectors of pixels would use Winograd's algorithm.
    """
    lanes, kernel = target.lanes, weights.weight.shape[-1]
    if target.height * target.width > 2 * lanes:
        return False
    filters = np.bincount(weights.group_of_filter, minlength=len(weights.kept))
    kept = np.array([len(channels) for channels in weights.kept])
    inside = sum(len(taps) * len(pixels) for taps, pixels in pixel_kinds(source, target, kernel, weights.stride).items())
    vectors = target.across * (6 * kernel * target.groups(4) if winograd else kernel * kernel * target.groups(1))
    return bool(inside * (kept * -(-filters // lanes)).sum() < vectors * (kept * filters).sum())


def pixel_kinds(source: MapShape, target: MapShape, kernel: int, stride: int) -> dict[Pairs, list[tuple[int, int]]]:
    """Group the output pixels of a convolution by their taps inside the image.

    Args:
        source, target: The maps that it reads and writes.
        kernel: Pixels of a side of the kernel.
        stride: 1 or 2.

    Returns:
        (number, offset) of each tap -> for each pixel its offset in a plane of the source and in the sums of a channel.
    """
    edge, pieces = kernel // 2, target.lanes // target.piece
    kinds = defaultdict(list)
    for y, x in np.ndindex(target.height, target.width):
        taps = tuple(
            (ky * kernel + kx, (ky - edge) * source.pitch + kx - edge)
            for ky, kx in np.ndindex(kernel, kernel)
            if 0 <= y * stride + ky - edge < source.height and 0 <= x * stride + kx - edge < source.width
        )
        vector, lane = y // pieces * target.across + x // target.piece, x % target.piece * pieces + y % pieces
        kinds[taps].append(((y * stride + 1) * source.pitch + x * stride, vector * target.lanes + lane))
    return kinds


def filter_blocks(weights: Weights, lanes: int) -> Iterator[tuple[int, Ints, Floats, Ints]]:
    """Split the filters of each group into blocks that fill vectors.

    Args:
        weights: The weights of a convolution.
        lanes: Floats in a vector.

    Yields:
        For each block its number of vectors, the channels that it reads, its weights `[channel][tap][filter]`, and the output
        channel of each filter, -1 for padding.
    """
    for group, kept in enumerate(weights.kept):
        members = np.flatnonzero(weights.group_of_filter == group)
        while len(members):
            vectors = next(v for v in layout.FILTER_VECTORS if v // 2 * lanes < len(members))
            block, members = members[: vectors * lanes], members[vectors * lanes :]
            empty = vectors * lanes - len(block)
            values = weights.weight[block, : len(kept)].reshape(len(block), len(kept), -1).transpose(1, 2, 0)
            yield (
                vectors,
                kept,
                np.pad(values, ((0, 0), (0, 0), (0, empty))),
                np.pad(weights.channels[block], (0, empty), constant_values=-1),
            )
