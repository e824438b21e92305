"""The compiled steps other than convolutions, and the loop that runs a program. Arguments are as in `kernels`."""

from __future__ import annotations

import numpy as np
from numba import njit

from gkp.engine import layout as L
from gkp.engine import vectors
from gkp.engine.emitter import WIDTHS, at, choice, entry, get, get_byte, put, put_byte
from gkp.engine.kernels import F, convolve
from gkp.engine.narrow import convolve_narrow

ZERO = np.float32(0.0)
pool_row = choice({width: vectors.pool_row(width) for width in WIDTHS}, 4)


@njit(nogil=True)
def _source(p, base, channel, row):
    """The address of a row of the map that a step reads, without the halo."""
    return base + F * (at(p, L.SOURCE) + channel * at(p, L.PLANE) + (row + 1) * at(p, L.PITCH))


@njit(nogil=True)
def _target(p, base, channel, row):
    """The address of a row of the map that a step writes, without the halo."""
    return base + F * (at(p, L.TARGET) + channel * at(p, L.OUT_PLANE) + (row + 1) * at(p, L.OUT_PITCH))


@njit(nogil=True)
def _masked(signs, bits, row, across, piece, x, value):
    """`value`, or 0 where the sign of pixel `x` of this row (counted over all channels) is not set."""
    if bits < 0:
        return value
    size = max(piece // 8, 1)
    place = signs + bits + (row * across + x // piece) * size + (x % piece) // 8
    return value if (get_byte(place) >> (x % piece % 8)) & 1 else ZERO


@njit(nogil=True)
def _load(p, constants, base, outside):
    """Copy an image `[channel][row][column]` into a map, normalised if there are means; or a vector as it is."""
    for c in range(at(p, L.CHANNELS)):
        mean, std = ZERO, np.float32(1.0)
        if at(p, L.BIAS) >= 0:
            mean, std = get(constants + F * (at(p, L.BIAS) + c)), get(constants + F * (at(p, L.BIAS) + at(p, L.CHANNELS) + c))
        for y in range(at(p, L.HEIGHT)):
            source = outside + F * (c * at(p, L.HEIGHT) + y) * at(p, L.WIDTH)
            target = _target(p, base, c, y)
            if at(p, L.OUT_PITCH) == 0:  # a vector
                target = base + F * (at(p, L.TARGET) + c)
            for x in range(at(p, L.WIDTH)):
                put(target + F * x, (get(source + F * x) - mean) / std)


@njit(nogil=True)
def _store(p, constants, base, outside):
    """Copy a map or vector into a tensor; a gradient of normalised pixels is turned into one of pixels."""
    for c in range(at(p, L.CHANNELS)):
        std = get(constants + F * (at(p, L.BIAS) + at(p, L.CHANNELS) + c)) if at(p, L.BIAS) >= 0 else np.float32(1.0)
        for y in range(at(p, L.HEIGHT)):
            source = _source(p, base, c, y)
            if at(p, L.PITCH) == 0:
                source = base + F * (at(p, L.SOURCE) + c)
            target = outside + F * (c * at(p, L.HEIGHT) + y) * at(p, L.WIDTH)
            for x in range(at(p, L.WIDTH)):
                put(target + F * x, get(source + F * x) / std)


@njit(nogil=True)
def _shortcut(p, tables, base):
    """Copy every `stride`-th pixel of some channels; `tables` has the source of each output channel, -1 for zeros."""
    for c in range(at(p, L.OUT_CHANNELS)):
        channel = entry(tables, at(p, L.USED) + c)
        for y in range(at(p, L.OUT_HEIGHT)):
            target = _target(p, base, c, y)
            if channel < 0:
                for x in range(at(p, L.OUT_PITCH)):
                    put(target + F * x, ZERO)
                continue
            source = _source(p, base, channel, y * at(p, L.STRIDE))
            for x in range(at(p, L.OUT_WIDTH)):
                put(target + F * x, get(source + F * x * at(p, L.STRIDE)))
            for x in range(at(p, L.OUT_WIDTH), at(p, L.OUT_PITCH)):
                put(target + F * x, ZERO)


@njit(nogil=True)
def _spread(p, tables, base):
    """The gradient of `_shortcut`: pixels go to every `stride`-th pixel, others are zero; `tables` has the source channels."""
    for c in range(at(p, L.OUT_CHANNELS)):
        channel = entry(tables, at(p, L.USED) + c)
        for y in range(at(p, L.OUT_HEIGHT)):
            target = _target(p, base, c, y)
            for x in range(at(p, L.OUT_PITCH)):
                put(target + F * x, ZERO)
            if channel < 0 or y % at(p, L.STRIDE):
                continue
            source = _source(p, base, channel, y // at(p, L.STRIDE))
            for x in range(at(p, L.WIDTH)):
                put(target + F * x * at(p, L.STRIDE), get(source + F * x))


@njit(nogil=True)
def _max_pool(p, base, signs):
    """Maxima of squares, and a byte with the position of each if the gradient needs it. NaN counts as the largest."""
    window, stride, padding = at(p, L.KERNEL), at(p, L.STRIDE), at(p, L.TILE)
    quick = window == 2 and stride == 2 and padding == 0 and at(p, L.WRITTEN) < 0
    for c in range(at(p, L.CHANNELS)):
        for y in range(at(p, L.OUT_HEIGHT)):
            top, target = y * stride - padding, _target(p, base, c, y)
            if quick:
                for x in range(0, at(p, L.OUT_PITCH), at(p, L.PIECE)):
                    source = _source(p, base, c, top) + F * 2 * x
                    pool_row(at(p, L.PIECE), source, at(p, L.PITCH), target + F * x, at(p, L.OUT_WIDTH) - x)
                continue
            for x in range(at(p, L.OUT_WIDTH)):
                left, best, which = x * stride - padding, -np.float32(np.inf), np.int64(-1)
                for row in range(max(top, 0), min(top + window, at(p, L.HEIGHT))):
                    source = _source(p, base, c, row)
                    for column in range(max(left, 0), min(left + window, at(p, L.WIDTH))):
                        value = get(source + F * column)
                        if value > best or value != value or which < 0:
                            best, which = value, (row - top) * window + column - left
                put(target + F * x, best)
                if at(p, L.WRITTEN) >= 0:
                    put_byte(signs + at(p, L.WRITTEN) + (c * at(p, L.OUT_HEIGHT) + y) * at(p, L.OUT_WIDTH) + x, np.uint8(which))
            for x in range(at(p, L.OUT_WIDTH), at(p, L.OUT_PITCH)):
                put(target + F * x, ZERO)


@njit(nogil=True)
def _unpool(p, base, signs, across, piece):
    """The gradient of `_max_pool`: from each maximum to its pixel, times the derivative of the ReLU."""
    window, stride, padding = at(p, L.KERNEL), at(p, L.STRIDE), at(p, L.TILE)
    for c in range(at(p, L.OUT_CHANNELS)):
        for y in range(at(p, L.OUT_HEIGHT)):
            target = _target(p, base, c, y)
            for x in range(at(p, L.OUT_PITCH)):
                put(target + F * x, ZERO)
        for y in range(at(p, L.HEIGHT)):
            source = _source(p, base, c, y)
            for x in range(at(p, L.WIDTH)):
                which = np.int64(get_byte(signs + at(p, L.WRITTEN) + (c * at(p, L.HEIGHT) + y) * at(p, L.WIDTH) + x))
                row, column = y * stride - padding + which // window, x * stride - padding + which % window
                value = _masked(signs, at(p, L.READ), c * at(p, L.OUT_HEIGHT) + row, across, piece, column, get(source + F * x))
                target = _target(p, base, c, row) + F * column
                put(target, get(target) + value)


@njit(nogil=True)
def _mean(p, base):
    """The mean of each channel of a map, as a vector."""
    for c in range(at(p, L.CHANNELS)):
        total = ZERO
        for y in range(at(p, L.HEIGHT)):
            source = _source(p, base, c, y)
            for x in range(at(p, L.WIDTH)):
                total += get(source + F * x)
        put(base + F * (at(p, L.TARGET) + c), total / np.float32(at(p, L.HEIGHT) * at(p, L.WIDTH)))


@njit(nogil=True)
def _unmean(p, base, signs, across, piece):
    """The gradient of `_mean`, times the derivative of the ReLU."""
    for c in range(at(p, L.OUT_CHANNELS)):
        value = get(base + F * (at(p, L.SOURCE) + c)) / np.float32(at(p, L.OUT_HEIGHT) * at(p, L.OUT_WIDTH))
        for y in range(at(p, L.OUT_HEIGHT)):
            target = _target(p, base, c, y)
            for x in range(at(p, L.OUT_WIDTH)):
                put(target + F * x, _masked(signs, at(p, L.READ), c * at(p, L.OUT_HEIGHT) + y, across, piece, x, value))
            for x in range(at(p, L.OUT_WIDTH), at(p, L.OUT_PITCH)):
                put(target + F * x, ZERO)


@njit(nogil=True)
def _combine(p, base, signs, across, piece):
    """The sum of one or two gradients; for maps times the derivative of the ReLU."""
    if at(p, L.OUT_PITCH) == 0:  # vectors
        for c in range(at(p, L.OUT_CHANNELS)):
            other = get(base + F * (at(p, L.OTHER) + c)) if at(p, L.OTHER) >= 0 else ZERO
            put(base + F * (at(p, L.TARGET) + c), get(base + F * (at(p, L.SOURCE) + c)) + other)
        return
    for c in range(at(p, L.OUT_CHANNELS)):
        for y in range(at(p, L.OUT_HEIGHT)):
            place = c * at(p, L.OUT_PLANE) + (y + 1) * at(p, L.OUT_PITCH)
            for x in range(at(p, L.OUT_PITCH)):
                value = get(base + F * (at(p, L.SOURCE) + place + x))
                if at(p, L.OTHER) >= 0:
                    value += get(base + F * (at(p, L.OTHER) + place + x))
                value = _masked(signs, at(p, L.READ), c * at(p, L.OUT_HEIGHT) + y, across, piece, x, value)
                put(base + F * (at(p, L.TARGET) + place + x), value)


@njit(nogil=True)
def _flatten(p, base, back):
    """Copy a map into a vector `[channel][row][column]`, or back."""
    for c in range(at(p, L.CHANNELS)):
        for y in range(at(p, L.HEIGHT)):
            in_map = at(p, L.SOURCE) + c * at(p, L.PLANE) + (y + 1) * at(p, L.PITCH)
            in_vector = at(p, L.TARGET) + (c * at(p, L.HEIGHT) + y) * at(p, L.WIDTH)
            if back:
                in_map, in_vector = (
                    at(p, L.TARGET) + c * at(p, L.PLANE) + (y + 1) * at(p, L.PITCH),
                    at(p, L.SOURCE) + (c * at(p, L.HEIGHT) + y) * at(p, L.WIDTH),
                )
                for x in range(at(p, L.PITCH)):
                    put(base + F * (in_map + x), get(base + F * (in_vector + x)) if x < at(p, L.WIDTH) else ZERO)
            else:
                for x in range(at(p, L.WIDTH)):
                    put(base + F * (in_vector + x), get(base + F * (in_map + x)))


@njit(nogil=True)
def _linear(p, constants, base):
    """A fully connected layer: `[output][input]` weights, then the biases."""
    weights, inputs = constants + F * at(p, L.BIAS), at(p, L.CHANNELS)
    for o in range(at(p, L.OUT_CHANNELS)):
        total = ZERO
        for i in range(inputs):
            total += get(weights + F * (o * inputs + i)) * get(base + F * (at(p, L.SOURCE) + i))
        put(base + F * (at(p, L.TARGET) + o), total + get(weights + F * (at(p, L.OUT_CHANNELS) * inputs + o)))


def run(program, steps, tables, constants, arena, slot, images, scratch, sums, signs, sign_slot, outside, first):
    """Run a program on some images of a batch. All arguments are int64; addresses are in bytes.

    Args:
        program: Address of the steps, int64 (steps, fields).
        steps: The number of steps.
        tables: Address of the int32 tables.
        constants: Address of the float32 constants.
        arena: Address of the memory of the first of these images.
        slot: Floats of memory for each image.
        images: The number of images.
        scratch, sums: Addresses of the memory of this thread.
        signs: Address of the bits for the gradient of the first image of the batch.
        sign_slot: Bytes of these bits for each image.
        outside: Address of the addresses of the batch's inputs and outputs.
        first: The position in the batch of the first of these images.
    """
    step, signs = 0, signs + sign_slot * first
    while step < steps:
        end, span = step, at(program + 8 * L.FIELDS * step, L.SPAN)
        while end < steps and at(program + 8 * L.FIELDS * end, L.SPAN) == span:
            end += 1
        for low in range(0, images, span):
            high = min(images, low + span)
            for i in range(step, end):
                p = program + 8 * L.FIELDS * i
                if at(p, L.OP) == L.CONV:
                    convolve(
                        p, tables, constants, arena, slot, low, high, scratch, sums, signs, sign_slot
                    )  # fmt: skip
                    continue
                if at(p, L.OP) == L.NARROW:
                    convolve_narrow(p, tables, constants, arena, slot, low, high, sums, signs, sign_slot)
                    continue
                for image in range(low, high):
                    base, bits = arena + F * slot * image, signs + sign_slot * image
                    io = at(outside, at(p, L.IO)) + F * at(p, L.IO_STRIDE) * (first + image)
                    _step(p, tables, constants, base, bits, io)
        step = end


@njit(nogil=True)
def _step(p, tables, constants, base, bits, io):
    """Run one step on one image."""
    op = at(p, L.OP)
    if op == L.LOAD:
        _load(p, constants, base, io)
    elif op == L.STORE:
        _store(p, constants, base, io)
    elif op == L.SHORTCUT:
        _shortcut(p, tables, base)
    elif op == L.SPREAD:
        _spread(p, tables, base)
    elif op == L.MAX_POOL:
        _max_pool(p, base, bits)
    elif op == L.UNPOOL:
        _unpool(p, base, bits, at(p, L.ACROSS), at(p, L.PIECE))
    elif op == L.MEAN:
        _mean(p, base)
    elif op == L.UNMEAN:
        _unmean(p, base, bits, at(p, L.ACROSS), at(p, L.PIECE))
    elif op == L.COMBINE:
        _combine(p, base, bits, at(p, L.ACROSS), at(p, L.PIECE))
    elif op == L.FLATTEN:
        _flatten(p, base, False)
    elif op == L.UNFLATTEN:
        _flatten(p, base, True)
    elif op == L.LINEAR:
        _linear(p, constants, base)
