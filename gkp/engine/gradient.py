"""The program of the gradient with respect to the images, made of the same kinds of steps.

A network in eval mode is linear between its ReLUs and pools, so the gradient needs one bit for each rectified value and the
position of each maximum; activations are not kept. The gradient of a convolution is a convolution with mirrored kernels, whose
filters are the input channels. Where several groups read a channel, their contributions are added.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from gkp.engine import layout
from gkp.engine.forward import Segment, normalisation, pool_fields, shortcut_channels
from gkp.engine.layout import MapShape
from gkp.engine.operations import Conv, Flatten, Linear, Load, MaxPool, Mean, Operation, Shortcut
from gkp.engine.program import Buffer, Builder, Program, Weights

_MASKING = (layout.COMBINE, layout.UNMEAN, layout.UNPOOL)  # steps that multiply by the ReLU's derivative, as convolutions do


def backward(segment: Segment) -> Program:
    """The program from the gradients of a segment's outputs to the gradients of its inputs, one for each load, in order."""
    return _Backward(segment).run()


class _Backward:
    """Goes through a segment in reverse; a gradient is the sum of its readers' contributions, times the ReLU's derivative."""

    def __init__(self, segment: Segment):
        self.segment = segment
        self.builder = Builder(segment.lanes)
        self.waiting: dict[int, list[Buffer]] = defaultdict(list)  # contributions so far
        self.to_come = {value: segment.outputs.count(value) for value in segment.shapes}
        self.rectified = {o.output for o in segment.operations if isinstance(o, Conv) and o.relu}
        for operation in segment.operations:
            for value in operation.inputs:
                self.to_come[value] += 1

    def run(self) -> Program:
        segment = self.segment
        for i, value in enumerate(segment.outputs):
            target = self.builder.buffer(segment.layout(value), 1)
            self.builder.step(layout.LOAD, target, target, io=i, io_stride=int(np.prod(segment.shapes[value])))
            self.waiting[value].append(target)
            self.to_come[value] -= 1
        loads = [o for o in segment.operations if isinstance(o, Load)]
        for operation in reversed(segment.operations):
            gradient = self._gradient(operation.output)
            if gradient is None:
                for value in operation.inputs:
                    self.to_come[value] -= 1
            elif isinstance(operation, Load):
                self._store(operation, gradient, len(segment.outputs) + loads.index(operation))
            else:
                self._pass_on(operation, gradient)
            if gradient is not None:
                self.builder.release(gradient)
        return self.builder.program()

    def _gradient(self, value: int) -> Buffer | None:
        """The complete gradient of a value before its ReLU; None if nothing depends on it."""
        waiting = self.waiting[value]
        while waiting and (len(waiting) > 1 or value in self.rectified):
            first = waiting.pop()
            other = waiting.pop() if waiting else None
            self._emit(value, layout.COMBINE, first, other)
        return waiting.pop() if waiting else None

    def _emit(self, value: int, op: int, source: Buffer, other: Buffer | None, **fields: int) -> Buffer:
        """Append a step that adds `other` to a contribution to the gradient of `value`."""
        target = self.builder.buffer(self.segment.layout(value), 1)
        fields |= self._fields(value, other, masks=op in _MASKING)
        self.builder.step(op, source, target, **fields)
        self._arrived(value, target, other)
        if op == layout.COMBINE:
            self.builder.release(source)
        return target

    def _fields(self, value: int, other: Buffer | None, masks: bool = True) -> dict[str, int]:
        """The value to add, and the signs to mask with if this is the last contribution and its step can do so."""
        last = masks and value in self.rectified and self.to_come[value] == 0 and not self.waiting[value]
        if last:
            self.rectified.discard(value)
        return {"other": -1 if other is None else other.place, "read": self.segment.signs[value] if last else -1}

    def _arrived(self, value: int, target: Buffer, other: Buffer | None) -> None:
        self.waiting[value].append(target)
        if other is not None:
            self.builder.release(other)

    def _store(self, operation: Load, gradient: Buffer, io: int) -> None:
        row = self.builder.step(layout.STORE, gradient, None, io=io)
        row[layout.IO_STRIDE] = int(np.prod(self.segment.shapes[operation.output]))
        if operation.mean is not None or operation.std is not None:
            row[layout.BIAS] = self.builder.constant(normalisation(operation, row[layout.CHANNELS]))

    def _pass_on(self, operation: Operation, gradient: Buffer) -> None:
        """From the gradient of the output of an operation to those of its inputs."""
        value = operation.inputs[0]
        if len(operation.inputs) > 1:  # the residual: the same gradient
            residual = operation.inputs[1]
            gradient.readers += 1
            self.waiting[residual].append(gradient)
            self.to_come[residual] -= 1
        self.to_come[value] -= 1
        if isinstance(operation, Conv):
            self._convolution(operation, gradient)
        elif isinstance(operation, Linear):
            zeros = np.zeros(operation.weight.shape[1])
            constants = self.builder.constant(np.concatenate([operation.weight.T.ravel(), zeros]))
            self._emit(value, layout.LINEAR, gradient, None, bias=constants)
        elif isinstance(operation, Mean):
            self._emit(value, layout.UNMEAN, gradient, None)
        elif isinstance(operation, MaxPool):
            signs = self.segment.signs[operation.output]
            self._emit(value, layout.UNPOOL, gradient, None, written=signs, **pool_fields(operation))
        elif isinstance(operation, Flatten):
            shape = self.segment.layout(value)
            assert isinstance(shape, MapShape)
            sizes = {"channels": shape.channels, "height": shape.height, "width": shape.width, "pitch": shape.pitch}
            self._emit(value, layout.UNFLATTEN, gradient, None, plane=shape.plane, **sizes)
        elif isinstance(operation, Shortcut):
            channels = self.segment.shapes[value][0]
            made = shortcut_channels(operation, channels)
            used = self.builder.table(made.index(c) if c in made else -1 for c in range(channels))
            self._emit(value, layout.SPREAD, gradient, None, stride=operation.stride, used=used)
        else:
            raise TypeError(f"no gradient of {type(operation).__name__}")

    def _convolution(self, operation: Conv, gradient: Buffer) -> None:
        value = operation.inputs[0]
        channels = self.segment.shapes[value][0]
        spread = None
        if operation.stride == 2:  # pixels that the stride skips get zeros: then the stride is 1
            filters = len(operation.bias)
            shape = self.segment.layout(value)
            assert isinstance(shape, MapShape)
            spread = self.builder.buffer(replace(shape, channels=filters), 1)
            self.builder.step(layout.SPREAD, gradient, spread, stride=2, used=self.builder.table(range(filters)))
        waiting = self.waiting[value]
        other = waiting.pop() if waiting else None
        target = self.builder.buffer(self.segment.layout(value), 1)
        self.builder.convolution(spread or gradient, target, transposed(operation, channels), **self._fields(value, other))
        self._arrived(value, target, other)
        if spread is not None:
            self.builder.release(spread)


def transposed(conv: Conv, channels: int) -> Weights:
    """The weights of the gradient of `conv`, as of stride 1, with respect to its input of `channels` channels."""
    mirrored = conv.weight[:, :, ::-1, ::-1]
    kernel, parts = conv.weight.shape[-1], []
    for group, kept in enumerate(conv.kept):
        filters = np.flatnonzero(conv.group_of_filter == group)
        unique, place = np.unique(kept, return_inverse=True)
        weight = np.zeros((len(unique), len(filters), kernel, kernel))
        np.add.at(weight, place, mirrored[filters].transpose(1, 0, 2, 3))  # a channel that is read twice
        if len(filters):
            parts.append((weight, unique, filters))
    most = max(len(filters) for _, _, filters in parts)
    weights = [np.pad(weight, ((0, 0), (0, most - weight.shape[1]), (0, 0), (0, 0))) for weight, _, _ in parts]
    reads = np.concatenate([unique for _, unique, _ in parts])
    once = len(reads) == channels and len(np.unique(reads)) == channels
    group_of_filter = np.repeat(np.arange(len(parts)), [len(unique) for _, unique, _ in parts])
    groups = [filters for _, _, filters in parts]
    return Weights(np.concatenate(weights), np.zeros(channels), reads, group_of_filter, groups, 1, adding=not once)
