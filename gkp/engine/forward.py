"""Turn operations into a program for images of one size: assign memory to values, and append steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gkp.engine import layout
from gkp.engine.layout import MapShape
from gkp.engine.operations import Conv, Flatten, Linear, Load, MaxPool, Mean, Operation, Shortcut
from gkp.engine.program import Buffer, Builder, Program, Weights


@dataclass(eq=False)
class Segment:
    """Operations that run as one program, from tensors to tensors.

    Attributes:
        operations: The operations, in order.
        inputs: The values that are tensors before, one for each `Load`.
        outputs: The values that are tensors afterwards.
        shapes: Value -> its shape for one image, (C, H, W) or (features,), for all values of the network.
        lanes: Floats in a vector.
        signs: Value -> place of its bits for the gradient.
        sign_slot: Bytes of these bits for each image.
        forward, inference: The program with and without keeping these bits.
    """

    operations: list[Operation]
    inputs: list[int]
    outputs: list[int]
    shapes: dict[int, tuple[int, ...]]
    lanes: int
    signs: dict[int, int] = field(default_factory=dict)
    sign_slot: int = 0

    def __post_init__(self) -> None:
        # Maps of one size have the same layout, so that they can be added. Gradients pass a convolution in reverse.
        self._halos: dict[tuple[int, ...], int] = {}
        for operation in self.operations:
            if isinstance(operation, Conv):
                for value in (operation.inputs[0], operation.output):
                    size, reach = self.shapes[value][1:], operation.weight.shape[-1] // 2
                    self._halos[size] = max(self._halos.get(size, 1), reach)
        self.forward: Program = _forward(self)
        self.inference = self.forward.without_signs()

    def layout(self, value: int) -> MapShape | int:
        """The layout of a value in memory."""
        shape = self.shapes[value]
        if len(shape) != 3:
            return shape[0]
        return MapShape(*shape, self.lanes, self._halos.get(shape[1:], 1))


def output_shape(operation: Operation, shapes: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the output of an operation for one image, (C, H, W) or (features,)."""
    shape = shapes[operation.inputs[0]]
    if isinstance(operation, Conv):
        return len(operation.bias), -(-shape[1] // operation.stride), -(-shape[2] // operation.stride)
    if isinstance(operation, Shortcut):
        channels = shape[0] if operation.channels is None else len(operation.channels)
        height, width = (-(-side // operation.stride) for side in shape[1:])
        return operation.before + channels + operation.after, height, width
    if isinstance(operation, MaxPool):
        return shape[0], operation.side(shape[1]), operation.side(shape[2])
    if isinstance(operation, Mean):
        return (shape[0],)
    if isinstance(operation, Flatten):
        return (int(np.prod(shape)),)
    if isinstance(operation, Linear):
        return (len(operation.bias),)
    return shape


def shortcut_channels(operation: Shortcut, channels: int) -> list[int]:
    """The input channel of each output channel of a shortcut; -1 for zeros."""
    chosen = range(channels) if operation.channels is None else operation.channels.tolist()
    return [-1] * operation.before + list(chosen) + [-1] * operation.after


def pool_fields(operation: MaxPool) -> dict[str, int]:
    """The window of a pool as fields of its step, and of the step of its gradient."""
    return {"kernel": operation.window, "stride": operation.stride, "tile": operation.padding}


def normalisation(operation: Load, channels: int) -> np.ndarray:
    """The means of all channels, then the standard deviations, (2 * channels,)."""
    mean = np.zeros(1) if operation.mean is None else operation.mean
    std = np.ones(1) if operation.std is None else operation.std
    return np.concatenate([np.broadcast_to(mean, channels), np.broadcast_to(std, channels)])


def _forward(segment: Segment) -> Program:
    builder = Builder(segment.lanes)
    readers = {value: segment.outputs.count(value) for value in segment.shapes}
    for operation in segment.operations:
        for value in operation.inputs:
            readers[value] += 1
    memory: dict[int, Buffer] = {}
    loads = 0
    for operation in segment.operations:
        shape = segment.layout(operation.output)
        target = builder.buffer(shape, max(1, readers[operation.output]))
        memory[operation.output] = target
        if isinstance(operation, Load):
            stride = int(np.prod(segment.shapes[operation.inputs[0]]))
            row = builder.step(layout.LOAD, target, target, io=loads, io_stride=stride)
            if operation.mean is not None or operation.std is not None:
                row[layout.BIAS] = builder.constant(normalisation(operation, row[layout.CHANNELS]))
            loads += 1
            continue
        _compute(builder, segment, operation, [memory[value] for value in operation.inputs], target)
        for value in operation.inputs:
            builder.release(memory[value])
    for i, value in enumerate(segment.outputs):
        stride = int(np.prod(segment.shapes[value]))
        builder.step(layout.STORE, memory[value], None, io=loads + i, io_stride=stride)
    return builder.program()


def _compute(builder: Builder, segment: Segment, operation: Operation, sources: list[Buffer], target: Buffer) -> None:
    """Append the step of one operation."""
    source, shape = sources[0], target.shape
    if isinstance(operation, Conv):
        fields = {"other": sources[1].place if len(sources) > 1 else -1}
        if operation.relu:
            assert isinstance(shape, MapShape)
            fields |= {"floor": 0, "written": _signs(segment, operation.output, shape.sign_bytes)}
        filters, kept = np.arange(len(operation.bias)), list(operation.kept)
        weights = Weights(operation.weight, operation.bias, filters, operation.group_of_filter, kept, operation.stride)
        builder.convolution(source, target, weights, **fields)
    elif isinstance(operation, Shortcut):
        channels = segment.shapes[operation.inputs[0]][0]
        used = builder.table(shortcut_channels(operation, channels))
        builder.step(layout.SHORTCUT, source, target, stride=operation.stride, used=used)
    elif isinstance(operation, MaxPool):
        pixels = int(np.prod(segment.shapes[operation.output]))
        builder.step(
            layout.MAX_POOL, source, target, written=_signs(segment, operation.output, pixels), **pool_fields(operation)
        )
    elif isinstance(operation, Mean):
        builder.step(layout.MEAN, source, target)
    elif isinstance(operation, Flatten):
        builder.step(layout.FLATTEN, source, target)
    elif isinstance(operation, Linear):
        bias = builder.constant(np.concatenate([operation.weight.ravel(), operation.bias]))
        builder.step(layout.LINEAR, source, target, bias=bias)
    else:
        raise TypeError(f"no step for {type(operation).__name__}")


def _signs(segment: Segment, value: int, size: int) -> int:
    place = segment.signs[value] = segment.sign_slot
    segment.sign_slot += layout.round_up(size, 64)
    return place
