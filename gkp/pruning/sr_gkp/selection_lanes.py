"""Sum as numpy does, in vector instructions: of a loop over the eight partial sums Numba makes scalar code of half the speed.

Numba does not see a change of this file: after one, touch `selection_kernels.py`, or its cached machine code is used on.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gkp.pruning.sr_gkp.selection_compiled import LANES


def _write_code(typing_context, a, first_a, b, first_b, count):
    """Write code that sums the larger of `count` entries of a and b, a multiple of 8, in 8 interleaved partial sums.

    first_a and first_b are offsets into the contiguous arrays a and b. The additions are those of numpy, one vector at a time.
    """

    def code(context, builder, signature, arguments):
        vector, length = ir.VectorType(ir.DoubleType(), LANES), arguments[4]
        sums = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES))
        starts = [
            builder.gep(context.make_array(kind)(context, builder, array).data, [first])
            for kind, array, first in ((a, arguments[0], arguments[1]), (b, arguments[2], arguments[3]))
        ]
        step = ir.Constant(length.type, LANES)
        with cgutils.for_range_slice(builder, ir.Constant(length.type, 0), length, step, length.type) as (k, _):
            x, y = (builder.load(builder.bitcast(builder.gep(start, [k]), vector.as_pointer()), align=8) for start in starts)
            larger = builder.select(builder.fcmp_ordered(">", x, y), x, y)
            builder.store(builder.fadd(builder.load(sums), larger), sums)
        parts = [builder.extract_element(builder.load(sums), ir.Constant(ir.IntType(32), lane)) for lane in range(LANES)]
        while len(parts) > 1:  # ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))
            parts = [builder.fadd(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    return types.float64(a, types.uint64, b, types.uint64, types.uint64), code


sum_in_lanes: Any = intrinsic(_write_code)
