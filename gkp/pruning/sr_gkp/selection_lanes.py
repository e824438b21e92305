"""Vector instructions that Numba does not write by itself: sums in the order of numpy, smallest entries, comparisons.

Of a loop over eight partial sums Numba makes scalar code of half the speed, and of a search for an index likewise. Offsets
count entries of a contiguous array; counts are multiples of 8.

Numba does not see a change of this file: after one, touch `selection_rows.py` and `selection_kernels.py`, or their cached
machine code is used on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gkp.pruning.sr_gkp.selection_compiled import LANES

INTEGER = ir.IntType(64)
FLOATS, INTEGERS = ir.VectorType(ir.DoubleType(), LANES), ir.VectorType(INTEGER, LANES)
Combine = Callable[[Any, Any, Any], Any]


def _load(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Write code that loads 8 entries of an array from `offset` on."""
    start = builder.gep(context.make_array(kind)(context, builder, array).data, [offset])
    return builder.load(builder.bitcast(start, FLOATS.as_pointer()), align=8)


def _all_lanes(builder: Any, value: Any) -> Any:
    """Write code that puts `value` in each of 8 lanes."""
    empty = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _combined(builder: Any, vector: Any, combine: Combine) -> Any:
    """Write code that combines 8 lanes to one number: ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))."""
    count = LANES
    while count > 1:
        pairs = [ir.Constant(ir.VectorType(ir.IntType(32), count // 2), list(range(first, count, 2))) for first in (0, 1)]
        vector = combine(builder, *(builder.shuffle_vector(vector, vector, lanes) for lanes in pairs))
        count //= 2
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _add(builder: Any, x: Any, y: Any) -> Any:
    return builder.fadd(x, y)


def _smaller(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", x, y), x, y)


def _smaller_integer(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.icmp_signed("<", x, y), x, y)


def _reduced(start: float, combine: Combine) -> Any:
    """An intrinsic `(array, first, count) -> float` that combines `count` entries: 8 lanes, and those in pairs."""

    def write_code(typing_context, array, first, count):
        def code(context, builder, signature, arguments):
            lanes = cgutils.alloca_once_value(builder, ir.Constant(FLOATS, [start] * LANES))
            first, count = arguments[1:]
            zero, step = ir.Constant(INTEGER, 0), ir.Constant(INTEGER, LANES)
            with cgutils.for_range_slice(builder, zero, count, step, INTEGER) as (k, _):
                entries = _load(context, builder, array, arguments[0], builder.add(first, k))
                builder.store(combine(builder, builder.load(lanes), entries), lanes)
            return _combined(builder, builder.load(lanes), combine)

        return types.float64(array, types.uint64, types.uint64), code

    return intrinsic(write_code)


def _write_below(typing_context, array, first, bound):
    """Code of `(array, first, bound) -> int`, whose bit k tells whether entry first + k, of 8, is below `bound`."""

    def code(context, builder, signature, arguments):
        entries = _load(context, builder, array, *arguments[:2])
        hits = builder.fcmp_ordered("<", entries, _all_lanes(builder, arguments[2]))
        return builder.zext(builder.bitcast(hits, ir.IntType(LANES)), INTEGER)

    return types.uint64(array, types.uint64, types.float64), code


def _write_next_lowest(typing_context, array, first, count, value, index):
    """Code of `(array, first, count, value, index) -> int`: where behind `first` the entry after (`value`, `index`) stands.

    Entries are ordered by value and, if equal, by index; the last place is returned if nothing finite comes after.
    """

    def code(context, builder, signature, arguments):
        data, first, count, value, index = arguments
        values, indices = _all_lanes(builder, value), _all_lanes(builder, index)
        zero, step = ir.Constant(INTEGER, 0), ir.Constant(INTEGER, LANES)
        last = _all_lanes(builder, builder.sub(count, ir.Constant(INTEGER, 1)))
        infinite = ir.Constant(FLOATS, [float("inf")] * LANES)
        lowest, at = cgutils.alloca_once_value(builder, infinite), cgutils.alloca_once_value(builder, last)
        with cgutils.for_range_slice(builder, zero, count, step, INTEGER) as (k, _):
            entries = _load(context, builder, array, data, builder.add(first, k))
            places = builder.add(_all_lanes(builder, k), ir.Constant(INTEGERS, list(range(LANES))))
            later = builder.and_(builder.fcmp_ordered("==", entries, values), builder.icmp_signed(">", places, indices))
            after = builder.or_(builder.fcmp_ordered(">", entries, values), later)
            better = builder.and_(after, builder.fcmp_ordered("<", entries, builder.load(lowest)))
            builder.store(builder.select(better, entries, builder.load(lowest)), lowest)
            builder.store(builder.select(better, places, builder.load(at)), at)
        lanes = builder.load(lowest)
        smallest = _all_lanes(builder, _combined(builder, lanes, _smaller))
        found = builder.select(builder.fcmp_ordered("==", lanes, smallest), builder.load(at), last)
        return _combined(builder, found, _smaller_integer)

    return types.uint64(array, types.uint64, types.uint64, types.float64, types.int64), code


def _write_lowest_bit(typing_context, bits):
    """Code of `(bits) -> int`: the number of the lowest bit that is set; one must be."""

    def code(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), code


sum_in_lanes, lowest_in_lanes = _reduced(0.0, _add), _reduced(float("inf"), _smaller)
below: Any = intrinsic(_write_below)
next_lowest: Any = intrinsic(_write_next_lowest)
lowest_bit: Any = intrinsic(_write_lowest_bit)
