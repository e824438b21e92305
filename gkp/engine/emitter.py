"""Write functions in LLVM instructions that compiled code can call, and access memory by address."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_FEATURES: str = cpu_target.target_context.codegen().magic_tuple()[2]
LANES = 16 if "+avx512f" in _FEATURES else 8  # floats in a vector
WIDTHS = tuple(width for width in (4, 8, 16) if width <= LANES)  # pixels in a piece of a vector

F32, I1, I8, I32, I64 = ir.FloatType(), ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(F32, LANES)
Value = Any  # llvmlite's values have no useful types
Emit = Callable[..., None]


def whole(value: int) -> ir.Constant:
    """A constant int64."""
    return ir.Constant(I64, value)


class Emitter:
    """Shorthand for the instructions that operations are made of.

    Args:
        builder: An `llvmlite.ir.IRBuilder`, the attribute `b`.
    """

    def __init__(self, builder: Any):
        self.b = builder
        self._fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fma.v{LANES}f32"
        )

    def pointer(self, address: Value, kind: Any = F32) -> Value:
        """A pointer to values of type `kind` at an address."""
        return self.b.inttoptr(address, kind.as_pointer())

    def load(self, pointer: Value, offset: Value, width: int = LANES) -> Value:
        """Load `width` floats that start `offset` floats behind a pointer."""
        place = self.b.gep(pointer, [offset])
        value = self.b.load(self.b.bitcast(place, ir.VectorType(F32, width).as_pointer()))
        value.align = 4
        return value

    def store(self, value: Value, pointer: Value, offset: Value) -> None:
        """Store a vector `offset` floats behind a pointer."""
        place = self.b.bitcast(self.b.gep(pointer, [offset]), value.type.as_pointer())
        self.b.store(value, place).align = 4

    def splat(self, scalar: Value, width: int = LANES) -> Value:
        """A vector of one value."""
        empty = ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined)
        first = self.b.insert_element(empty, scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(first, empty, ir.Constant(ir.VectorType(I32, width), [0] * width))

    def constant(self, value: float) -> ir.Constant:
        """A constant vector of one value."""
        return ir.Constant(VECTOR, [value] * LANES)

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """Select lanes of `a` and `b`, which are numbered through both."""
        return self.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c with a single rounding."""
        return self.b.call(self._fma, [a, b, c])

    def scaled(self, factor: float, a: Value, plus: Value) -> Value:
        """factor * a + plus."""
        return self.fma(self.constant(factor), a, plus)

    def join(self, pieces: Sequence[Value]) -> Value:
        """Concatenate vectors."""
        while len(pieces) > 1:
            width = pieces[0].type.count
            pieces = [self.shuffle(a, b, range(2 * width)) for a, b in zip(pieces[::2], pieces[1::2], strict=True)]
        return pieces[0]

    def interleave(self, planar: Value, width: int) -> Value:
        """Reorder a vector of pieces: from piece by piece to pixel by pixel."""
        pieces = LANES // width
        if pieces == 1:
            return planar
        return self.shuffle(planar, planar, [piece * width + x for x in range(width) for piece in range(pieces)])

    def planar(self, interleaved: Value, width: int) -> Value:
        """Reorder a vector of pieces: from pixel by pixel to piece by piece."""
        pieces = LANES // width
        if pieces == 1:
            return interleaved
        return self.shuffle(interleaved, interleaved, [x * pieces + piece for piece in range(pieces) for x in range(width)])


def operation(emit: Emit, arguments: int) -> Any:
    """Make a function without a result that compiled code can call.

    Args:
        emit: `emit(emitter, *values)` writes its instructions.
        arguments: The number of its arguments, all int64.
    """
    signature = types.void(*[types.int64] * arguments)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit(Emitter(builder), *values)
        return context.get_dummy_value()

    # Numba takes the number of arguments from the signature of the function, hence the source text.
    names = ", ".join(f"a{i}" for i in range(arguments))
    scope: dict[str, Any] = {"signature": signature, "generate": generate}
    exec(f"def {emit.__name__}(context, {names}):\n    return signature, generate", scope)
    return intrinsic(scope[emit.__name__])


def choice(emits: Mapping[int, Emit], arguments: int) -> Any:
    """Make a function as `operation` does, with a first argument that selects one of several.

    Args:
        emits: Value of the first argument -> `emit` of `operation`.
        arguments: The number of further arguments.
    """

    def choose(e: Emitter, key: Value, *values: Value) -> None:
        b = e.b
        done = b.append_basic_block("done")
        switch = b.switch(key, done)
        for number, emit in emits.items():
            switch.add_case(whole(number), case := b.append_basic_block(f"case{number}"))
            b.position_at_end(case)
            emit(e, *values)
            b.branch(done)
        b.position_at_end(done)

    return operation(choose, arguments + 1)


def _reader(kind: Any, numba_type: Any) -> Any:
    def read(context: Any, address: Any) -> Any:
        def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
            return b.load(b.inttoptr(values[0], kind.as_pointer()))

        return numba_type(types.int64), generate

    return intrinsic(read)


def _writer(kind: Any, numba_type: Any) -> Any:
    def write(context: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
            b.store(values[1], b.inttoptr(values[0], kind.as_pointer()))
            return context.get_dummy_value()

        return types.void(types.int64, numba_type), generate

    return intrinsic(write)


def _indexed(kind: Any) -> Any:
    def read(context: Any, table: Any, place: Any) -> Any:
        def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
            number = b.load(b.gep(b.inttoptr(values[0], kind.as_pointer()), [values[1]]))
            return number if kind == I64 else b.sext(number, I64)

        return types.int64(types.int64, types.int64), generate

    return intrinsic(read)


get, put = _reader(F32, types.float32), _writer(F32, types.float32)  # read and write a float32 at an address
get_byte, put_byte = _reader(I8, types.uint8), _writer(I8, types.uint8)
at = _indexed(I64)  # at(p, column): the number in a column of the step at address p
entry = _indexed(I32)  # entry(tables, place): the number at a place of the int32 tables
