"""Programs of the compiled loop: rows of numbers, with the memory, tables and constants that they refer to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkp.engine import layout
from gkp.engine.layout import MapShape, round_up
from gkp.engine.operations import Floats, Ints
from gkp.engine.packing import filter_blocks, narrow_pays, pixel_kinds

_POINTS = (0.0, layout.NEAR, -layout.NEAR, layout.FAR, -layout.FAR)
# The matrix from weights to frequencies of Winograd's F(4, 3): (1, p, p^2) / product of the distances of p from other points.
G = np.array([np.array([1, p, p * p]) / np.prod([p - q for q in _POINTS if q != p]) for p in _POINTS] + [[0, 0, 1]])
BLOCK_IMAGES = 8  # images that a thread takes at once
CACHE_FLOATS = 512 * 1024 // 4  # floats of the second-level cache for the maps of one run of steps
SUM_VECTORS = 4  # the largest number of vectors that a micro-kernel has for one filter
NO_FLOOR = 1  # the place of -inf in the constants; 0, for ReLU, is at place 0


@dataclass(eq=False)
class Buffer:
    """A place in the memory of an image.

    Attributes:
        place: The place, in floats.
        shape: The shape of the map, or the number of features of a vector.
        capacity: The number of channels or features that fit.
        readers: The number of steps that still read it.
    """

    place: int
    shape: MapShape | int
    capacity: int
    readers: int = 1


@dataclass(eq=False)
class Weights:
    """The weights of a convolution step.

    Attributes:
        weight: Weights (filters, K, k, k) of all groups.
        bias: The bias of each output channel.
        channels: The output channel of each filter, (filters,).
        group_of_filter: The group of each filter, (filters,).
        kept: For each group the input channels that it reads.
        stride: 1 or 2.
        adding: Whether several groups add to the same output channel.
    """

    weight: Floats
    bias: Floats
    channels: Ints
    group_of_filter: Ints
    kept: list[Ints]
    stride: int
    adding: bool = False


@dataclass(eq=False)
class Program:
    """The arguments of `steps.run`, apart from addresses.

    Attributes:
        steps: The steps (steps, fields), see `layout`.
        tables: Whole numbers that steps refer to.
        constants: Floats that steps refer to.
        slot: Floats of memory for each image.
        scratch, sums: Floats of memory for each thread.
    """

    steps: NDArray[np.int64]
    tables: NDArray[np.int32]
    constants: NDArray[np.float32]
    slot: int
    scratch: int
    sums: int

    def without_signs(self) -> Program:
        """The same program, keeping no bits for the gradient."""
        steps = self.steps.copy()
        steps[:, layout.WRITTEN] = -1
        return Program(steps, self.tables, self.constants, self.slot, self.scratch, self.sums)


@dataclass
class _Region:
    """The scratch memory of all convolutions of one geometry."""

    rows: int
    pitch: int
    used: int = 0
    place: int = 0


@dataclass(eq=False)
class Builder:
    """Builds a program step by step.

    Attributes:
        lanes: Floats in a vector.
    """

    lanes: int
    _rows: list[dict[int, int]] = field(default_factory=list)
    _convs: list[tuple[dict[int, int], Weights, MapShape]] = field(default_factory=list)
    _tables: list[int] = field(default_factory=list)
    _constants: list[NDArray[np.float32]] = field(default_factory=list)
    _length: int = 0
    _slot: int = 0
    _free: list[Buffer] = field(default_factory=list)
    _regions: dict[tuple[int, ...], _Region] = field(default_factory=dict)
    _sums: int = 0
    _span: int = BLOCK_IMAGES

    def __post_init__(self) -> None:
        self.table([i * SUM_VECTORS * self.lanes for i in range(8)])  # places of a block's sums, if it does not add
        self.constant([0.0, -np.inf])

    # Memory

    def table(self, numbers: Any) -> int:
        """Append whole numbers to the tables, and return their place."""
        place = len(self._tables)
        self._tables.extend(int(n) for n in numbers)
        return place

    def constant(self, numbers: Any) -> int:
        """Append numbers to the constants at the start of a cache line, and return their place."""
        values = np.asarray(numbers, dtype=np.float64).astype(np.float32).ravel()
        place = self._length
        self._constants.append(np.pad(values, (0, -len(values) % layout.LINE)))
        self._length += len(self._constants[-1])
        return place

    def buffer(self, shape: MapShape | int, readers: int) -> Buffer:
        """Memory for a map or vector. It is reused for maps of the same size only, because halos must stay zero."""
        channels = shape.channels if isinstance(shape, MapShape) else shape
        free = [b for b in self._free if _size(b.shape) == _size(shape) and b.capacity >= channels]
        if free:
            found = min(free, key=lambda b: b.capacity)
            self._free.remove(found)
            return Buffer(found.place, shape, found.capacity, readers)
        above = (shape.halo - 1) * shape.pitch if isinstance(shape, MapShape) else 0
        made = Buffer(self._slot + above, shape, channels, readers)
        self._slot += shape.floats if isinstance(shape, MapShape) else round_up(shape, layout.LINE)
        return made

    def release(self, buffer: Buffer) -> None:
        """Count one reader less; after the last one the memory is free."""
        buffer.readers -= 1
        if buffer.readers <= 0:
            self._free.append(buffer)

    # Steps

    def step(self, op: int, source: Buffer | None, target: Buffer | None, **fields: int) -> dict[int, int]:
        """Append a step.

        Args:
            op: An operation code of `layout`.
            source, target: The buffers that it reads and writes; None for none.
            fields: Further columns of `layout`, by their names in lower case.

        Returns:
            The row of the step, column -> number, which may be changed.
        """
        row = {
            layout.OP: op,
            layout.OTHER: -1,
            layout.BIAS: -1,
            layout.READ: -1,
            layout.WRITTEN: -1,
            layout.FLOOR: NO_FLOOR,
            layout.SPAN: self._span,
        }
        names = ("SOURCE", "CHANNELS", "HEIGHT", "WIDTH", "PITCH", "PLANE")
        out_names = ("TARGET", "OUT_CHANNELS", "OUT_HEIGHT", "OUT_WIDTH", "OUT_PITCH", "OUT_PLANE")
        for buffer, keys in ((source, names), (target, out_names)):
            if buffer is not None:
                row.update(zip((getattr(layout, key) for key in keys), (buffer.place, *_dimensions(buffer.shape)), strict=True))
        if target is not None and isinstance(target.shape, MapShape):
            row[layout.PIECE], row[layout.ACROSS] = target.shape.piece, target.shape.across
            row[layout.PIECES], row[layout.SIGN_BYTES] = self.lanes // target.shape.piece, max(target.shape.piece // 8, 1)
        row.update({getattr(layout, name.upper()): value for name, value in fields.items()})
        self._rows.append(row)
        return row

    def convolution(self, source: Buffer, target: Buffer, weights: Weights, **fields: int) -> None:
        """Append a convolution. Its tables are made at the end, when the sizes of the scratch regions are known.

        Args:
            source, target: The maps that it reads and writes.
            weights: Its weights.
            fields: As in `step`.
        """
        shape = target.shape
        assert isinstance(shape, MapShape) and isinstance(source.shape, MapShape)
        kernel = weights.weight.shape[-1]
        fewer = 6 * shape.groups(4) < kernel * shape.groups(1)  # products a weight; tiles may exceed the image
        winograd = kernel == 3 and weights.stride == 1 and fewer
        if narrow_pays(source.shape, shape, weights, winograd):
            self._narrow(source, target, weights, fields)
            return
        self._span = _span(max(shape.floats, source.shape.floats))
        row = self.step(layout.CONV, source, target, **fields)
        row.update({layout.KERNEL: kernel, layout.STRIDE: weights.stride, layout.WINOGRAD: int(winograd)})
        row[layout.GROUPS] = shape.groups(4 if winograd else 1)
        row[layout.TILE], row[layout.FREQUENCIES] = (4, 6) if winograd else (1, 1)
        row[layout.ADDING] = int(weights.adding)
        row[layout.BIAS] = self.constant(weights.bias)
        used = np.unique(np.concatenate(weights.kept))
        row[layout.USED], row[layout.USED_COUNT] = self.table(used), len(used)
        rows = 6 if winograd else kernel
        pitch = (layout.HALO + shape.across * self.lanes) * layout.GROUP * weights.stride
        region = self._regions.setdefault((rows, pitch, weights.stride), _Region(rows, pitch))
        region.used = max(region.used, len(used))
        sums = shape.channels if weights.adding else 8
        self._sums = max(self._sums, (6 if winograd else 1) * sums * SUM_VECTORS * self.lanes)
        self._convs.append((row, weights, shape))

    def _narrow(self, source: Buffer, target: Buffer, weights: Weights, fields: dict[str, int]) -> None:
        """Append a convolution with vectors of filters."""
        shape, old, kernel = target.shape, source.shape, weights.weight.shape[-1]
        assert isinstance(shape, MapShape) and isinstance(old, MapShape)
        self._span = BLOCK_IMAGES  # together they read the weights once
        row = self.step(layout.NARROW, source, target, **fields)
        row.update({layout.KERNEL: kernel, layout.TILE: 1, layout.GROUPS: shape.groups(1)})
        kinds: list[int] = []
        for taps, pixels in pixel_kinds(old, shape, kernel, weights.stride).items():
            kinds += [len(taps), self.table(np.ravel(taps)), len(pixels), self.table(np.ravel(pixels))]
        row[layout.USED], row[layout.USED_COUNT] = self.table(kinds), len(kinds) // layout.PIXEL_FIELDS
        row[layout.BIAS] = self.constant(weights.bias)
        blocks: list[int] = []
        for vectors, kept, values, channels in filter_blocks(weights, self.lanes):
            planes = self.table(kept * old.plane)
            blocks += [vectors, len(kept), planes, self.constant(values), self.table(channels)]
        row[layout.BLOCKS], row[layout.BLOCK_COUNT] = self.table(blocks), len(blocks) // layout.BLOCK_FIELDS
        places = BLOCK_IMAGES * shape.groups(1) * shape.across * self.lanes
        self._sums = max(self._sums, places * (shape.channels + layout.FILTER_VECTORS[0] * self.lanes))

    # The end

    def program(self) -> Program:
        """The program of all steps so far."""
        scratch = 0
        for region in self._regions.values():
            region.place = scratch
            scratch += region.rows * self._stride(region)
        for row, weights, shape in self._convs:
            self._pack(row, weights, shape)
        steps = np.zeros((len(self._rows), layout.FIELDS), np.int64)
        for step, row in zip(steps, self._rows, strict=True):
            step[list(row)] = list(row.values())
        slack = 4096  # floats that vectors at the end of a map may read beyond it
        constants = np.concatenate(self._constants)
        return Program(
            steps, np.array(self._tables, np.int32), constants, round_up(self._slot + slack, 16), scratch + slack, self._sums
        )

    def _stride(self, region: _Region) -> int:
        return region.used * region.pitch + layout.HALO  # the last row's right halo

    def _pack(self, row: dict[int, int], weights: Weights, shape: MapShape) -> None:
        """Add the tables and weights of a convolution: blocks of filters of one group, `[frequency][tap][filter]`."""
        kernel, stride, winograd = weights.weight.shape[-1], weights.stride, bool(row[layout.WINOGRAD])
        pitch = (layout.HALO + shape.across * self.lanes) * layout.GROUP
        region = self._regions[(6 if winograd else kernel, pitch * stride, stride)]
        row[layout.SCRATCH], row[layout.SCRATCH_STRIDE] = region.place, self._stride(region)
        used = self._tables[row[layout.USED] : row[layout.USED] + row[layout.USED_COUNT]]
        slot_of = {channel: slot for slot, channel in enumerate(used)}
        columns = _columns(kernel, stride, self.lanes // shape.piece, pitch)
        most = 8 if self.lanes == 16 and shape.across % 2 and not weights.adding else 4
        packed = np.einsum("fy,okyx->fokx", G, weights.weight) if winograd else weights.weight[None]
        blocks: list[int] = []
        for group, kept in enumerate(weights.kept):
            starts = [slot_of[int(c)] * region.pitch + layout.HALO for c in kept]
            if winograd or kernel == 1:
                taps = self.table(start + column for start in starts for column in columns)
            else:
                lines = [ky * row[layout.SCRATCH_STRIDE] for ky in range(kernel)]
                taps = self.table(start + line + column for start in starts for line in lines for column in columns)
            members = np.flatnonzero(weights.group_of_filter == group)
            while len(members):
                size = next(f for f in (8, 4, 2, 1) if f <= min(most, len(members)))
                block, members = members[:size], members[size:]
                values = packed[:, block, : len(kept)].reshape(len(packed), size, -1).transpose(0, 2, 1)
                parts = [values[:, i : i + layout.SUMMED].ravel() for i in range(0, values.shape[1], layout.SUMMED)]
                channels = weights.channels[block] * (SUM_VECTORS * self.lanes if weights.adding else 1)
                blocks += [size, values.shape[1], taps, self.constant(np.concatenate(parts)), self.table(channels)]
        row[layout.BLOCKS], row[layout.BLOCK_COUNT] = self.table(blocks), len(blocks) // layout.BLOCK_FIELDS


def _columns(kernel: int, stride: int, pieces: int, pitch: int) -> list[int]:
    """The offsets of a kernel's columns in scratch memory; for stride 2, even and odd pixels are in two planes."""
    columns = range(-(kernel // 2), kernel // 2 + 1)
    return [pieces * x for x in columns] if stride == 1 else [pitch * (x & 1) + pieces * (x >> 1) for x in columns]


def _size(shape: MapShape | int) -> tuple[int, ...]:
    return (shape.height, shape.width, shape.halo) if isinstance(shape, MapShape) else ()


def _dimensions(shape: MapShape | int) -> tuple[int, int, int, int, int]:
    if isinstance(shape, MapShape):
        return shape.channels, shape.height, shape.width, shape.pitch, shape.plane
    return shape, 1, 1, 0, 0


def _span(floats: int) -> int:
    """The number of images that, with three maps of `floats` floats each, fit the cache: a power of two, at most a block."""
    fitting = max(1, CACHE_FLOATS // (3 * floats))
    return min(BLOCK_IMAGES, 1 << (fitting.bit_length() - 1))
