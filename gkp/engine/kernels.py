"""Compiled convolutions. See `layout` for the memory and `vectors` for the inner loops.

All functions take addresses, so that no bounds are checked; a step finds all of its parameters in one row of the program.
Arguments that they share: p, the address of the step's row; tables, constants, the addresses of the int32 tables and of the
constants; arena, the address of the images' memory, and slot, the floats of one image; signs, the address of the bits for the
gradient, and sign_slot, the bytes of one image.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gkp.engine import layout as L
from gkp.engine import vectors
from gkp.engine.emitter import LANES, WIDTHS, at, choice, entry, operation, put
from gkp.engine.vectors import ROWS_OUT

F = 4  # bytes of a float
ACCUMULATORS = 16 if LANES == 16 else 8  # sums that a micro-kernel holds in registers, half of all registers
# Micro-kernels by filters, row groups and vectors across; other functions by pixels of a piece.
_SHAPES = [(f, g, x) for f in (1, 2, 4, 8) for g in (1, 2) for x in (1, 2) if f * g * x <= 16]
# Pieces of a vector -> the largest number of filters for which taps are taken in threes: with more filters, loads do not
# matter. The three taps are as many floats apart as a vector has pieces; a vector of several pieces is a whole row.
IN_THREES = {1: 4, 2: 8, 4: 8} if LANES == 16 else {}
_THREES = [(reach, *s) for reach, most in IN_THREES.items() for s in _SHAPES if s[0] <= most and (reach == 1 or s[2] == 1)]
multiply = choice(
    {100 * f + 10 * g + x: vectors.multiply(f, g, x) for f, g, x in _SHAPES}
    | {1000 * r + 100 * f + 10 * g + x: vectors.multiply(f, g, x, r) for r, f, g, x in _THREES},
    11,
)
MOST_ALONE, MOST_TOGETHER = IN_THREES.get(1, 0), IN_THREES.get(2, 0)
clear = operation(vectors.clear(), 2)
rows_to_frequencies = choice({width: vectors.rows_to_frequencies(width) for width in WIDTHS}, 5)
copy_row = choice({width: vectors.copy_row(width) for width in WIDTHS}, 3)
split_row = choice({width: vectors.split_row(width) for width in WIDTHS}, 4)
_ENDS = [(width, winograd, residual) for width in WIDTHS for winograd in (False, True) for residual in (False, True)]
finish = choice({4 * p + 2 * w + r: vectors.finish(p, w, r) for p, w, r in _ENDS}, 14)


@njit(nogil=True)
def _transform(p, tables, base, group, target):
    """Copy or transform one row group of all channels that the step reads into scratch memory."""
    piece, across, pitch, stride = at(p, L.PIECE), at(p, L.ACROSS), at(p, L.PITCH), at(p, L.STRIDE)
    pieces, scratch_stride = at(p, L.PIECES), at(p, L.SCRATCH_STRIDE)
    scratch_pitch = L.HALO + across * LANES
    for j in range(at(p, L.USED_COUNT)):
        plane = base + F * (at(p, L.SOURCE) + entry(tables, at(p, L.USED) + j) * at(p, L.PLANE))
        for x in range(across):
            if at(p, L.WINOGRAD):
                source = plane + F * (ROWS_OUT * group * pieces * pitch + x * piece)
                to = target + F * (j * L.GROUP * scratch_pitch + L.HALO + x * LANES)
                rows_to_frequencies(piece, source, pitch, ROWS_OUT * pitch, to, scratch_stride)
                continue
            first = group * pieces * stride + 1 - (at(p, L.KERNEL) >> 1)
            for ky in range(at(p, L.KERNEL)):
                source = plane + F * ((first + ky) * pitch + x * piece * stride)
                to = target + F * (ky * scratch_stride + j * L.GROUP * stride * scratch_pitch + L.HALO + x * LANES)
                if stride == 1:
                    copy_row(piece, source, pitch, to)
                else:
                    split_row(piece, source, 2 * pitch, to, to + F * L.GROUP * scratch_pitch)
        if stride == 2 and at(p, L.KERNEL) > 3:
            for ky in range(at(p, L.KERNEL)):
                _trim(p, target + F * (ky * scratch_stride + j * L.GROUP * stride * scratch_pitch + L.HALO), scratch_pitch)


@njit(nogil=True)
def _trim(p, target, scratch_pitch):
    """Set the pixels beyond the image to zero, which only kernels larger than 3x3 read."""
    for parity in range(2):
        for i in range((at(p, L.WIDTH) + 1 - parity) // 2 * at(p, L.PIECES), at(p, L.ACROSS) * LANES):
            put(target + F * (parity * L.GROUP * scratch_pitch + i), np.float32(0.0))


@njit(nogil=True)
def write(p, constants, residual, target, signs, row, nx, x, channel, sums, sum_stride):
    """Finish the sums of `nx` vectors of one channel, from vector `x` of image row `row`, and write the pixels."""
    rows, piece, sign_pitch = at(p, L.TILE), at(p, L.PIECE), at(p, L.ACROSS) * at(p, L.SIGN_BYTES)
    offset = channel * at(p, L.OUT_PLANE) + (1 + row) * at(p, L.OUT_PITCH)
    sign = signs + (channel * at(p, L.OUT_HEIGHT) + row) * sign_pitch
    bias, floor = constants + F * (at(p, L.BIAS) + channel), constants + F * at(p, L.FLOOR)
    for v in range(nx):
        pixel = offset + (x + v) * piece
        sign_at = sign + (x + v) * at(p, L.SIGN_BYTES)
        finish(
            4 * piece + 2 * at(p, L.WINOGRAD) + (1 if at(p, L.OTHER) >= 0 else 0),
            sums + F * LANES * v,
            sum_stride,
            bias,
            floor,
            residual + F * pixel,
            target + F * pixel,
            at(p, L.OUT_PITCH),
            rows * at(p, L.OUT_PITCH),
            at(p, L.OUT_HEIGHT) - row,
            at(p, L.OUT_WIDTH) - (x + v) * piece,
            sign_at + at(p, L.READ) if at(p, L.READ) >= 0 else 0,
            sign_at + at(p, L.WRITTEN) if at(p, L.WRITTEN) >= 0 else 0,
            sign_pitch,
            rows * sign_pitch,
        )


@njit(nogil=True)
def _sum(
    p, filters, ng, nx, weights, tap_table, taps, rows, stride, scratch_pitch, sums, sum_stride, where, adding, frequencies
):
    """Run the micro-kernel for `SUMMED` taps at a time, because sums of sums have smaller rounding errors."""
    most = MOST_ALONE if at(p, L.PIECES) == 1 else MOST_TOGETHER
    threes = 1000 * at(p, L.PIECES) if filters <= most and at(p, L.WINOGRAD) else 0
    for first in range(0, taps, L.SUMMED):
        multiply(
            threes + 100 * filters + 10 * ng + nx,
            weights + F * filters * frequencies * first,
            tap_table + 4 * first,
            min(L.SUMMED, taps - first),
            rows,
            stride,
            scratch_pitch,
            sums,
            sum_stride,
            where,
            adding or first > 0,
            frequencies,
        )


@njit(nogil=True)
def convolve(p, tables, constants, arena, slot, first, last, scratch, sums, signs, sign_slot):
    """Convolve the images first..last-1, in pairs of row groups that may be of two images."""
    across, groups = at(p, L.ACROSS), at(p, L.GROUPS)
    scratch_pitch = L.HALO + across * LANES
    rows = scratch + F * at(p, L.SCRATCH)
    group_rows = at(p, L.PIECES) * at(p, L.TILE)
    image, group = first, np.int64(0)
    while image < last:
        base, row, sign = arena + F * slot * image, group * group_rows, signs + sign_slot * image
        _transform(p, tables, base, group, rows)
        group += 1
        if group == groups:
            image, group = image + 1, np.int64(0)
        base2, row2, sign2, together = base, row, sign, 1
        if image < last:
            base2, row2, sign2, together = arena + F * slot * image, group * group_rows, signs + sign_slot * image, 2
            _transform(p, tables, base2, group, rows + F * scratch_pitch)
            group += 1
            if group == groups:
                image, group = image + 1, np.int64(0)
        if at(p, L.ADDING):
            _add_up(p, tables, constants, rows, sums, base, row, sign, base2, row2, sign2, together)
        else:
            _blocks(p, tables, constants, rows, sums, base, row, sign, base2, row2, sign2, together)


@njit(nogil=True)
def _blocks(p, tables, constants, rows, sums, base, row, sign, base2, row2, sign2, together):
    """Run all blocks of filters for one or two row groups, finishing each block at once."""
    across, stride, sum_stride = at(p, L.ACROSS), at(p, L.SCRATCH_STRIDE), 8 * 4 * LANES
    scratch_pitch = L.HALO + across * LANES
    for block in range(at(p, L.BLOCK_COUNT)):
        head = at(p, L.BLOCKS) + block * L.BLOCK_FIELDS
        filters, taps = entry(tables, head), entry(tables, head + 1)
        tap_table = tables + 4 * entry(tables, head + 2)
        weights, channels = constants + F * entry(tables, head + 3), entry(tables, head + 4)
        nx = 2 if across & 1 == 0 and 2 * filters <= ACCUMULATORS else 1
        ng = 2 if together == 2 and 2 * nx * filters <= ACCUMULATORS else 1
        for t in range(0, together, ng):
            for x in range(0, across, nx):
                here = rows + F * (t * scratch_pitch + x * LANES)
                _sum(p, filters, ng, nx, weights, tap_table, taps, here, stride, scratch_pitch, sums, sum_stride,
                     tables, 0, at(p, L.FREQUENCIES))  # fmt: skip
                for i in range(filters):
                    channel = entry(tables, channels + i)
                    for g in range(t, t + ng):
                        to = base if g == 0 else base2
                        write(
                            p, constants, to + F * at(p, L.OTHER), to + F * at(p, L.TARGET), sign if g == 0 else sign2,
                            row if g == 0 else row2, nx, x, channel, sums + F * LANES * (i * 4 + (g - t) * nx), sum_stride,
                        )  # fmt: skip


@njit(nogil=True)
def _add_up(p, tables, constants, rows, sums, base, row, sign, base2, row2, sign2, together):
    """Run all blocks for one or two row groups where several add to the same channel; channels are finished at the end."""
    across, stride, sum_stride = at(p, L.ACROSS), at(p, L.SCRATCH_STRIDE), at(p, L.OUT_CHANNELS) * 4 * LANES
    scratch_pitch = L.HALO + across * LANES
    nx = 2 if across & 1 == 0 else 1
    ng = 2 if together == 2 and 2 * nx * 4 <= ACCUMULATORS else 1
    for t in range(0, together, ng):
        for x in range(0, across, nx):
            clear(sums, at(p, L.FREQUENCIES) * sum_stride)
            here = rows + F * (t * scratch_pitch + x * LANES)
            for block in range(at(p, L.BLOCK_COUNT)):
                head = at(p, L.BLOCKS) + block * L.BLOCK_FIELDS
                filters, taps = entry(tables, head), entry(tables, head + 1)
                tap_table = tables + 4 * entry(tables, head + 2)
                weights, where = constants + F * entry(tables, head + 3), tables + 4 * entry(tables, head + 4)
                _sum(p, filters, ng, nx, weights, tap_table, taps, here, stride, scratch_pitch, sums, sum_stride,
                     where, 1, at(p, L.FREQUENCIES))  # fmt: skip
            for channel in range(at(p, L.OUT_CHANNELS)):
                for g in range(t, t + ng):
                    to = base if g == 0 else base2
                    write(
                        p, constants, to + F * at(p, L.OTHER), to + F * at(p, L.TARGET), sign if g == 0 else sign2,
                        row if g == 0 else row2, nx, x, channel, sums + F * LANES * (channel * 4 + (g - t) * nx), sum_stride,
                    )  # fmt: skip
