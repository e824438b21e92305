"""Convolutions of maps with few pixels, such as VGG's last ones, whose vectors hold filters instead of pixels.

Taps outside of the image are left out; for 2x2 pixels these are more than half. Weights are `[channel][tap][filter]`. A block
of filters is applied to all images of a run of steps, so that its weights are read once. Arguments are as in `kernels`.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.core import cgutils

from gkp.engine import layout as L
from gkp.engine.emitter import I32, LANES, Emit, Emitter, Value, at, choice, entry, get, put, whole
from gkp.engine.kernels import F, clear, write

AT_ONCE = 4 if LANES == 16 else 2  # pixels in a micro-kernel; with 4 vectors of filters their sums fill half of the registers


def _sum_taps(vectors: int, places: int) -> Emit:
    """The micro-kernel: sums over channels and taps for `vectors` vectors of filters at `places` places.

    Arguments: weights (address), the floats of one channel's, channels (address; int32, offsets of their planes), number of
    channels, taps (address; int32, pairs: number and offset from a place), number of taps, sums (address), whether to add to
    the sums, the places (addresses; those beyond `places` are ignored).
    """

    def sum_taps_(e: Emitter, weights: Value, floats: Value, channels: Value, count: Value, *more: Value) -> None:
        b, (taps, tap_count, target, adding, *addresses) = e.b, more
        weight, planes, tap, sums = e.pointer(weights), e.pointer(channels, I32), e.pointer(taps, I32), e.pointer(target)
        bases = [e.pointer(address) for address in addresses[:places]]
        running = [[cgutils.alloca_once_value(b, e.constant(0.0)) for _ in range(vectors)] for _ in bases]

        def number(table: Value, place: Value) -> Value:
            return b.sext(b.load(b.gep(table, [place])), whole(0).type)

        with cgutils.for_range(b, count) as channel:
            plane, block = number(planes, channel.index), b.gep(weight, [b.mul(channel.index, floats)])
            rows = [b.gep(base, [plane]) for base in bases]
            with cgutils.for_range(b, tap_count) as loop:
                pair = b.shl(loop.index, whole(1))
                first, offset = b.mul(number(tap, pair), whole(vectors * LANES)), number(tap, b.add(pair, whole(1)))
                filters = [e.load(block, b.add(first, whole(v * LANES))) for v in range(vectors)]
                for row, line in zip(rows, running, strict=True):
                    pixel = e.splat(b.load(b.gep(row, [offset])))
                    for value, total in zip(filters, line, strict=True):
                        b.store(e.fma(value, pixel, b.load(total)), total)
        spots = [whole(i * LANES) for i in range(places * vectors)]
        totals = [total for line in running for total in line]
        with b.if_then(b.icmp_signed("!=", adding, whole(0))):
            for spot, total in zip(spots, totals, strict=True):
                b.store(b.fadd(b.load(total), e.load(sums, spot)), total)
        for spot, total in zip(spots, totals, strict=True):
            e.store(b.load(total), sums, spot)

    return sum_taps_


_KINDS = [(v, places) for v in L.FILTER_VECTORS for places in (1, 2, 4) if places <= AT_ONCE]
sum_taps = choice({10 * v + places: _sum_taps(v, places) for v, places in _KINDS}, 12)


@njit(nogil=True)
def convolve_narrow(p, tables, constants, arena, slot, first, last, sums, signs, sign_slot):
    """Convolve the images first..last-1, block by block of filters; blocks of the same channel are added."""
    images, each = last - first, at(p, L.GROUPS) * at(p, L.ACROSS) * LANES  # floats of one channel of an image
    running = sums + F * at(p, L.OUT_CHANNELS) * images * each
    clear(sums, at(p, L.OUT_CHANNELS) * images * each)
    for block in range(at(p, L.BLOCK_COUNT)):
        head = at(p, L.BLOCKS) + block * L.BLOCK_FIELDS
        vectors, channels, planes = entry(tables, head), entry(tables, head + 1), tables + 4 * entry(tables, head + 2)
        weights, filters = constants + F * entry(tables, head + 3), entry(tables, head + 4)
        taps = at(p, L.KERNEL) * at(p, L.KERNEL)
        some = max(1, L.SUMMED // 2 // taps)  # channels whose weights for four vectors stay in the first-level cache
        for low in range(0, channels, some):
            here, count = weights + F * low * taps * vectors * LANES, min(some, channels - low)
            _sum_places(p, tables, arena, slot, first, images, vectors, here, planes + 4 * low, count, running, low > 0)
        _scatter(p, tables, vectors, filters, images, each, running, sums)
    for image in range(first, last):
        base = arena + F * slot * image
        for channel in range(at(p, L.OUT_CHANNELS)):
            for group in range(at(p, L.GROUPS)):
                for x in range(at(p, L.ACROSS)):
                    vector = ((channel * images + image - first) * at(p, L.GROUPS) + group) * at(p, L.ACROSS) + x
                    write(
                        p, constants, base + F * at(p, L.OTHER), base + F * at(p, L.TARGET), signs + sign_slot * image,
                        group * at(p, L.PIECES), 1, x, channel, sums + F * LANES * vector, 0,
                    )  # fmt: skip


@njit(nogil=True)
def _sum_places(p, tables, arena, slot, first, images, vectors, weights, planes, channels, sums, adding):
    """The sums of one block of filters over some channels, for all pixels of all images, grouped by their taps."""
    floats = at(p, L.KERNEL) * at(p, L.KERNEL) * vectors * LANES
    for kind in range(at(p, L.USED_COUNT)):
        head = at(p, L.USED) + kind * L.PIXEL_FIELDS
        taps, tap_table = entry(tables, head), tables + 4 * entry(tables, head + 1)
        pixels, done, places = entry(tables, head + 3), np.int64(0), entry(tables, head + 2) * images
        while done < places:
            left = places - done
            now = AT_ONCE if left >= AT_ONCE else 2 if left >= 2 else 1
            a = _place(p, tables, arena, slot, first, images, pixels, done)
            b = _place(p, tables, arena, slot, first, images, pixels, min(done + 1, places - 1))
            c = _place(p, tables, arena, slot, first, images, pixels, min(done + 2, places - 1))
            d = _place(p, tables, arena, slot, first, images, pixels, min(done + 3, places - 1))
            sum_taps(
                10 * vectors + now, weights, floats, planes, channels, tap_table, taps, sums, np.int64(adding), a, b, c, d
            )  # fmt: skip
            sums += F * now * vectors * LANES
            done += now


@njit(nogil=True)
def _place(p, tables, arena, slot, first, images, pixels, place):
    """The address of a pixel of an image; places are numbered by image first, then by pixel."""
    image, pixel = first + place % images, place // images
    return arena + F * (slot * image + at(p, L.SOURCE) + entry(tables, pixels + 2 * pixel))


@njit(nogil=True)
def _scatter(p, tables, vectors, filters, images, each, running, sums):
    """Add the sums of one block `[place][filter]` to those of its channels, `[channel][image][pixel]`."""
    for kind in range(at(p, L.USED_COUNT)):
        head = at(p, L.USED) + kind * L.PIXEL_FIELDS
        for pixel in range(entry(tables, head + 2)):
            lane = entry(tables, entry(tables, head + 3) + 2 * pixel + 1)
            for image in range(images):
                for f in range(vectors * LANES):
                    channel = entry(tables, filters + f)
                    if channel >= 0:
                        spot = sums + F * ((channel * images + image) * each + lane)
                        put(spot, get(spot) + get(running + F * f))
                running += F * vectors * LANES
