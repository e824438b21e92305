"""Vector operations in LLVM IR for the parts of a convolution where plain compiled loops are 1.4 to 2.5 times slower.

Addresses are int64 (bytes); strides and offsets are counted in float32 numbers. A vector holds LANES floats: 16 with AVX-512,
else 8. Where an image row is narrower than a vector, a vector consists of `LANES // width` pieces, each of one tile row. In
scratch memory the pieces are interleaved pixel by pixel, so that the neighbouring pixel is `pieces` floats away in all pieces
and one load is enough.

Winograd's F(4, 3) is applied along the rows: 6 input rows become 6 frequencies, each with a 1x3 convolution, and 6 sums become
4 output rows. That halves the products of a direct 3x3 convolution, and the transforms need no shuffles.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from gkp.engine.emitter import F32, I1, I32, I64, LANES, VECTOR, Emit, Emitter, Value, whole
from gkp.engine.layout import FAR, NEAR

ROWS_IN, ROWS_OUT = 6, 4  # of a Winograd tile


def multiply(filters: int, groups: int, across: int, reach: int = 0) -> Emit:
    """The micro-kernel: sums over taps in registers.

    Vectors of neighbouring taps cross cache lines. If taps come in threes (left, middle and right), the outer vectors are put
    together from the aligned vectors of the middle one.

    Arguments of the function: weights (address; `[frequency][tap][filter]`), taps (address; int32, the offset of each tap's
    row), number of taps, rows (address of the first vector), their frequency stride, their group stride, sums (address), their
    frequency stride, rows of sums (address; int32, the offset of each filter), whether to add to the sums, number of
    frequencies.

    Args:
        filters: The number of filters.
        groups, across: The numbers of row groups and of vectors in a row.
        reach: The distance of taps that come in threes, in floats; 0 for single taps.
    """
    positions = [(group, x) for group in range(groups) for x in range(across)]
    columns = 3 if reach else 1

    def multiply_(e: Emitter, weights: Value, taps: Value, count: Value, rows: Value, row_stride: Value, *more: Value) -> None:
        b, (stride, sums, sum_stride, where, adding, frequencies) = e.b, more
        tap = e.pointer(taps, I32)
        table = e.pointer(where, I32)
        places = [b.sext(b.load(b.gep(table, [whole(f)])), I64) for f in range(filters)]
        spots = [[b.add(place, whole(p * LANES)) for p in range(len(positions))] for place in places]

        start = b.block
        head, loop, end, store, done = (b.append_basic_block(name) for name in ("head", "loop", "end", "store", "done"))
        prepare = b.append_basic_block("prepare")
        b.branch(head)
        b.position_at_end(head)
        frequency, weight, row, sum_ = b.phi(I64), b.phi(F32.as_pointer()), b.phi(F32.as_pointer()), b.phi(F32.as_pointer())
        frequency.add_incoming(whole(0), start)
        for phi, address in ((weight, weights), (row, rows), (sum_, sums)):
            with b.goto_block(start):
                first = e.pointer(address)
            phi.add_incoming(first, start)
        b.branch(loop)
        b.position_at_end(loop)
        index, at = b.phi(I64), b.phi(weight.type)
        for phi, first in ((index, whole(0)), (at, weight)):
            phi.add_incoming(first, head)
        running = [[b.phi(VECTOR) for _ in positions] for _ in range(filters)]
        for line in running:
            for phi in line:
                phi.add_incoming(e.constant(0.0), head)
        here = b.gep(row, [b.sext(b.load(b.gep(tap, [b.add(index, whole(columns // 2))])), I64)])
        after: list[list[Value]] = [list(line) for line in running]
        for column, vectors in enumerate(_columns(e, here, stride, groups, across, reach)):
            for f, line in enumerate(after):
                scalar = e.splat(b.load(b.gep(at, [whole(column * filters + f)])))
                after[f] = [e.fma(scalar, vector, value) for vector, value in zip(vectors, line, strict=True)]
        following, beyond = b.add(index, whole(columns)), b.gep(at, [whole(columns * filters)])
        index.add_incoming(following, loop)
        at.add_incoming(beyond, loop)
        for line, there in zip(running, after, strict=True):
            for phi, value in zip(line, there, strict=True):
                phi.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", following, count), loop, end)
        b.position_at_end(end)
        b.cbranch(b.icmp_signed("!=", adding, whole(0)), prepare, store)
        b.position_at_end(prepare)
        added = [
            [b.fadd(value, e.load(sum_, spot)) for spot, value in zip(line, there, strict=True)]
            for line, there in zip(spots, after, strict=True)
        ]
        b.branch(store)
        b.position_at_end(store)
        totals = [[b.phi(VECTOR) for _ in line] for line in spots]
        for line, there, others, at_spots in zip(totals, after, added, spots, strict=True):
            for total, value, other, spot in zip(line, there, others, at_spots, strict=True):
                total.add_incoming(value, end)
                total.add_incoming(other, prepare)
                e.store(total, sum_, spot)
        next_frequency = b.add(frequency, whole(1))
        frequency.add_incoming(next_frequency, store)
        weight.add_incoming(beyond, store)
        row.add_incoming(b.gep(row, [row_stride]), store)
        sum_.add_incoming(b.gep(sum_, [sum_stride]), store)
        b.cbranch(b.icmp_signed("<", next_frequency, frequencies), head, done)
        b.position_at_end(done)

    return multiply_


def _columns(e: Emitter, here: Value, stride: Value, groups: int, across: int, reach: int) -> list[list[Value]]:
    """The vectors of each tap of a row, group by group, around the one at `here`."""
    starts = [e.b.mul(stride, whole(group)) for group in range(groups)]
    edge = 1 if reach else 0
    rows = [[e.load(here, e.b.add(start, whole(x * LANES))) for x in range(-edge, across + edge)] for start in starts]
    if not reach:
        return [[vector for row in rows for vector in row]]
    found = []
    for left, start in ((0, LANES - reach), (1, 0), (1, reach)):  # from which vector on, and from which of its lanes
        pairs = [(row[x + left], row[x + 1 + left]) for row in rows for x in range(across)]
        found.append([e.shuffle(a, b, range(start, start + LANES)) if start else a for a, b in pairs])
    return found


def clear() -> Emit:
    """Set memory to zero. Arguments of the function: target, number of floats (a multiple of LANES)."""

    def clear_(e: Emitter, target: Value, floats: Value) -> None:
        pointer = e.pointer(target)
        with cgutils.for_range_slice(e.b, whole(0), floats, whole(LANES), inc=True) as (place, _):
            e.store(e.constant(0.0), pointer, place)

    return clear_


def _load_pieces(e: Emitter, source: Value, offset: Value, gap: Value, width: int) -> Value:
    pieces = [e.load(source, e.b.add(offset, e.b.mul(gap, whole(p))), width) for p in range(LANES // width)]
    return e.join(pieces)


def rows_to_frequencies(width: int) -> Emit:
    """B^T of Winograd's F(4, 3). Arguments of the function: source, row pitch, gap of pieces, target, frequency stride."""

    def rows_to_frequencies_(e: Emitter, source: Value, pitch: Value, gap: Value, target: Value, stride: Value) -> None:
        b, pointer, to = e.b, e.pointer(source), e.pointer(target)
        d = [_load_pieces(e, pointer, b.mul(pitch, whole(row)), gap, width) for row in range(ROWS_IN)]
        near, far = NEAR**2, FAR**2
        even, odd = e.scaled(-far, d[2], d[4]), e.scaled(-far, d[1], d[3])
        second, first = e.scaled(-near, d[2], d[4]), e.scaled(-near, d[1], d[3])
        frequencies = [
            e.scaled(near * far, d[0], e.scaled(-near - far, d[2], d[4])),
            e.scaled(NEAR, odd, even),
            e.scaled(-NEAR, odd, even),
            e.scaled(FAR, first, second),
            e.scaled(-FAR, first, second),
            e.scaled(near * far, d[1], e.scaled(-near - far, d[3], d[5])),
        ]
        for f, value in enumerate(frequencies):
            e.store(e.interleave(value, width), to, b.mul(stride, whole(f)))

    return rows_to_frequencies_


def copy_row(width: int) -> Emit:
    """Copy one vector of pixels to scratch memory. Arguments of the function: source, gap of pieces, target."""

    def copy_row_(e: Emitter, source: Value, gap: Value, target: Value) -> None:
        value = _load_pieces(e, e.pointer(source), whole(0), gap, width)
        e.store(e.interleave(value, width), e.pointer(target), whole(0))

    return copy_row_


def split_row(width: int) -> Emit:
    """Copy even and odd pixels. Arguments of the function: source, gap of pieces, target of even pixels, target of odd ones."""

    def split_row_(e: Emitter, source: Value, gap: Value, even: Value, odd: Value) -> None:
        pointer, both = e.pointer(source), []
        for piece in range(LANES // width):
            start = e.b.mul(gap, whole(piece))
            both.append((e.load(pointer, start, width), e.load(pointer, e.b.add(start, whole(width)), width)))
        for parity, target in ((0, even), (1, odd)):
            value = e.join([e.shuffle(low, high, range(parity, 2 * width, 2)) for low, high in both])
            e.store(e.interleave(value, width), e.pointer(target), whole(0))

    return split_row_


def pool_row(width: int) -> Emit:
    """Maxima of 2x2 pixels. Arguments of the function: source, row pitch, target, maxima left in the row (then zeros)."""
    halves = [range(parity, 2 * width, 2) for parity in (0, 1)]

    def pool_row_(e: Emitter, source: Value, pitch: Value, target: Value, columns_left: Value) -> None:
        b, pointer = e.b, e.pointer(source)
        pairs = [[e.load(pointer, b.add(row, whole(at)), width) for at in (0, width)] for row in (whole(0), pitch)]
        best, *others = (e.shuffle(low, high, lanes) for low, high in pairs for lanes in halves)
        for value in others:
            larger = b.or_(b.fcmp_ordered(">", value, best), b.fcmp_unordered("uno", value, value))
            best = b.select(larger, value, best)
        lane = ir.Constant(ir.VectorType(I64, width), list(range(width)))
        inside = b.icmp_signed("<", lane, e.splat(columns_left, width))
        e.store(b.select(inside, best, ir.Constant(best.type, [0.0] * width)), e.pointer(target), whole(0))

    return pool_row_


def finish(width: int, winograd: bool, residual: bool) -> Emit:
    """From sums to pixels in memory: A^T of F(4, 3), bias, residual, and ReLU or its derivative.

    Arguments of the function: sums, frequency stride, bias (address of one float), floor (address of one float: 0 for ReLU,
    else -inf), residual, target, row pitch, gap of pieces, rows left (from the first row of the first piece), columns left
    (from the first lane), signs read and signs written (addresses of one bit for each pixel, 0 for none), row pitch and gap of
    signs (bytes).

    Args:
        width: Pixels in a piece.
        winograd: Whether the sums are of Winograd's algorithm.
        residual: Whether a residual is added.
    """
    rows, pieces = (ROWS_OUT if winograd else 1), LANES // width
    bits = ir.IntType(max(width, 8))

    def finish_(e: Emitter, sums: Value, stride: Value, bias: Value, floor: Value, *others: Value) -> None:
        b = e.b
        other, target, pitch, gap, rows_left, columns_left, read, written, sign_pitch, sign_gap = others
        add = e.splat(b.load(e.pointer(bias)))
        lowest = e.splat(b.load(e.pointer(floor)))
        outputs = [e.planar(b.fadd(value, add), width) for value in _output_rows(e, e.pointer(sums), stride, winograd)]
        lane = ir.Constant(ir.VectorType(I64, LANES), [i % width for i in range(LANES)])
        inside = b.icmp_signed("<", lane, e.splat(columns_left))
        to = e.pointer(target)

        def row_of(row: int, piece: int) -> Value:
            return b.add(b.mul(pitch, whole(row)), b.mul(gap, whole(piece)))

        def sign_place(base: Value, row: int, piece: int) -> Value:
            place = b.add(b.mul(sign_pitch, whole(row)), b.mul(sign_gap, whole(piece)))
            return e.pointer(b.add(base, place), bits)

        def part(value: Value, piece: int) -> Value:
            return e.shuffle(value, value, range(piece * width, piece * width + width))

        def pixels(row: int) -> Value:
            value = outputs[row]
            if residual:
                value = b.fadd(value, _load_pieces(e, e.pointer(other), b.mul(pitch, whole(row)), gap, width))
            return b.select(b.fcmp_ordered(">", lowest, value), lowest, value)

        def read_signs(row: int) -> Value:
            parts = []
            for piece in range(pieces):
                loaded = b.load(sign_place(read, row, piece))
                loaded.align = 1
                whole = loaded if width >= 8 else b.trunc(loaded, ir.IntType(width))
                parts.append(b.bitcast(whole, ir.VectorType(I1, width)))
            return b.and_(inside, e.join(parts))

        def write_signs(value: Value, row: int, piece: int) -> None:
            positive = b.fcmp_unordered(">", part(value, piece), ir.Constant(ir.VectorType(F32, width), [0.0] * width))
            mask = b.bitcast(positive, ir.IntType(width))  # a NaN counts as positive, as in torch
            b.store(mask if width >= 8 else b.zext(mask, bits), sign_place(written, row, piece)).align = 1

        def whole_rows() -> None:
            for row in range(rows):
                value = b.select(inside, pixels(row), e.constant(0.0))
                for piece in range(pieces):
                    e.store(part(value, piece), to, row_of(row, piece))

        def checked_rows() -> None:
            with_signs, write = b.icmp_signed("!=", read, whole(0)), b.icmp_signed("!=", written, whole(0))
            for row in range(rows):
                value, before = pixels(row), b.block
                with b.if_then(with_signs):
                    masked, inner = read_signs(row), b.block
                keep = b.phi(masked.type)
                keep.add_incoming(inside, before)
                keep.add_incoming(masked, inner)
                value = b.select(keep, value, e.constant(0.0))
                for piece in range(pieces):
                    with b.if_then(b.icmp_signed(">", rows_left, whole(piece * rows + row))):
                        e.store(part(value, piece), to, row_of(row, piece))
                        with b.if_then(write):
                            write_signs(value, row, piece)

        no_signs = b.icmp_signed("==", b.or_(read, written), whole(0))
        with b.if_else(b.and_(no_signs, b.icmp_signed(">=", rows_left, whole(rows * pieces)))) as (plain, otherwise):
            with plain:
                whole_rows()
            with otherwise:
                checked_rows()

    return finish_


def _output_rows(e: Emitter, sums: Value, stride: Value, winograd: bool) -> list[Value]:
    b = e.b
    if not winograd:
        return [e.load(sums, whole(0))]
    m = [e.load(sums, b.mul(stride, whole(f))) for f in range(ROWS_IN)]
    near, far = b.fadd(m[1], m[2]), b.fadd(m[3], m[4])
    slope, steep = b.fsub(m[1], m[2]), b.fsub(m[3], m[4])
    return [
        b.fadd(b.fadd(m[0], near), far),
        e.scaled(FAR, steep, b.fmul(e.constant(NEAR), slope)),
        e.scaled(FAR**2, far, b.fmul(e.constant(NEAR**2), near)),
        e.scaled(FAR**3, steep, e.scaled(NEAR**3, slope, m[5])),
    ]
