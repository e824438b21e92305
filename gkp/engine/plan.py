"""Plan how a network runs for images of one size: segments of the engine, and operations that torch runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from gkp.engine.emitter import LANES
from gkp.engine.execution import Runner
from gkp.engine.forward import Segment, output_shape
from gkp.engine.gradient import backward
from gkp.engine.graph import Translation
from gkp.engine.operations import Conv, Linear, Load, MaxPool, Operation, Stock
from gkp.errors import BadInput

PROBE = 2  # images that stock modules are run on to find the shapes of their outputs


class Part:
    """A segment that can be called.

    Args:
        segment: The operations for images of one size.
    """

    def __init__(self, segment: Segment):
        self.segment = segment
        self._inference = Runner(segment.inference, segment.sign_slot)
        self._forward = Runner(segment.forward, segment.sign_slot)
        self._backward: Runner | None = None

    def __call__(self, inputs: tuple[Tensor, ...], threads: int) -> tuple[Tensor, ...]:
        """The outputs for contiguous float32 inputs, on at most `threads` threads; differentiable in the inputs."""
        for x, value in zip(inputs, self.segment.inputs, strict=True):
            if x.dtype != torch.float32 or tuple(x.shape) != (len(inputs[0]), *self.segment.shapes[value]):
                raise BadInput(f"a stock module gave {x.dtype} {tuple(x.shape)} instead of the shape that it gave before")
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            return _Pass.apply(self, threads, *inputs)
        return self.forward(inputs, threads, keep=False)[0]

    def forward(self, inputs: tuple[Tensor, ...], threads: int, *, keep: bool) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Run the segment.

        Args:
            inputs: Contiguous float32 tensors (N, ...).
            threads: The largest number of threads.
            keep: Whether to keep the bits that the gradient needs.

        Returns:
            The outputs, and the bits or None.
        """
        segment, images = self.segment, len(inputs[0])
        outputs = tuple(torch.empty(images, *segment.shapes[value]) for value in segment.outputs)
        signs = torch.empty(images * segment.sign_slot, dtype=torch.uint8) if keep else None
        runner = self._forward if keep else self._inference
        runner([*inputs, *outputs], signs, images, threads)
        return outputs, signs

    def backward(self, gradients: tuple[Tensor, ...], signs: Tensor, images: int, threads: int) -> tuple[Tensor, ...]:
        """The gradients with respect to the inputs.

        Args:
            gradients: The gradients with respect to the outputs.
            signs: The bits that `forward` kept.
            images: The number of images.
            threads: The largest number of threads.
        """
        segment = self.segment
        if self._backward is None:
            self._backward = Runner(backward(segment), segment.sign_slot)
        outputs = tuple(torch.zeros(images, *segment.shapes[value]) for value in segment.inputs)
        self._backward([*(g.contiguous() for g in gradients), *outputs], signs, images, threads)
        return outputs


class _Pass(torch.autograd.Function):
    """A segment with its input gradient, for autograd."""

    @staticmethod
    def forward(ctx, part, threads, *inputs):
        ctx.part, ctx.threads, ctx.images = part, threads, len(inputs[0])
        outputs, ctx.signs = part.forward(inputs, threads, keep=True)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        return None, None, *ctx.part.backward(gradients, ctx.signs, ctx.images, ctx.threads)


def plan(translation: Translation, size: tuple[int, ...]) -> list[Part | Stock]:
    """Plan how a network runs for images of one size.

    Args:
        translation: The operations of the network.
        size: (C, H, W) of an image.

    Returns:
        Segments and operations of torch, in order.

    Raises:
        BadInput: The network does not take images of this size.
    """
    shapes: dict[int, tuple[int, ...]] = {0: size}
    samples: dict[int, Any] = {0: torch.zeros(PROBE, *size)}
    for operation in translation.operations:
        if isinstance(operation, Stock):
            with torch.no_grad():
                made = operation.call(*(samples[v] for v in operation.inputs))
            shapes[operation.output] = tuple(made.shape[1:]) if isinstance(made, Tensor) else ()
        else:
            _check_input(operation, shapes, samples[operation.inputs[0]])
            shapes[operation.output] = output_shape(operation, shapes)
            _check_output(operation, shapes)
            made = torch.zeros(PROBE, *shapes[operation.output])
        samples[operation.output] = made
    parts: list[Part | Stock] = []
    for stock, together in groupby(translation.operations, key=lambda o: isinstance(o, Stock)):
        run = list(together)
        parts += [o for o in run if isinstance(o, Stock)] if stock else [Part(_segment(run, translation, shapes))]
    return parts


def _segment(run: list[Operation], translation: Translation, shapes: dict[int, tuple[int, ...]]) -> Segment:
    made = {operation.output for operation in run}
    elsewhere = {v for o in translation.operations if o not in run for v in o.inputs} | {translation.result}
    operations: list[Operation] = []
    known = dict(shapes)
    loaded: dict[int, int] = {}
    for operation in run:
        if not isinstance(operation, Load):
            for value in operation.inputs:
                if value not in made and value not in loaded:
                    loaded[value] = max(known) + 1
                    known[loaded[value]] = shapes[value]
                    operations.append(Load([value], loaded[value]))
            operation = replace(operation, inputs=[loaded.get(value, value) for value in operation.inputs])
        operations.append(operation)
    inputs = [o.inputs[0] for o in operations if isinstance(o, Load)]
    return Segment(operations, inputs, sorted(made & elsewhere), known, LANES)


def _check_input(operation: Operation, shapes: dict[int, tuple[int, ...]], sample: Any) -> None:
    """Raise BadInput where an operation does not fit its input."""
    shape, problem = shapes[operation.inputs[0]], None
    if isinstance(operation, Load):
        channels = {len(values) for values in (operation.mean, operation.std) if values is not None} - {1}
        if not isinstance(sample, Tensor) or sample.dtype != torch.float32 or len(sample) != PROBE or len(shape) != 3:
            problem = f"{tuple(getattr(sample, 'shape', ()))} is no batch of feature maps"
        elif channels - set(shape[:1]):
            problem = f"it normalises {max(channels)} channels"
    elif isinstance(operation, Conv) and operation.takes not in (None, shape[0]):
        problem = f"a convolution takes {operation.takes} channels, not {shape[0]}"
    elif isinstance(operation, Conv) and int(operation.kept.max()) >= shape[0]:
        problem = f"a convolution reads channel {int(operation.kept.max())} of {shape[0]}"
    elif isinstance(operation, Linear) and shape != (operation.weight.shape[1],):
        problem = f"the classifier takes {operation.weight.shape[1]} features, and these images give {shape[0]}"
    elif isinstance(operation, MaxPool) and min(map(operation.side, shape[1:])) < 1:
        problem = "nothing is left of the images after pooling"
    _refuse(problem, shapes)


def _check_output(operation: Operation, shapes: dict[int, tuple[int, ...]]) -> None:
    """Raise BadInput where a residual does not have the shape of the output that it is added to."""
    made = shapes[operation.output]
    other = shapes[operation.inputs[1]] if len(operation.inputs) > 1 else made
    _refuse(None if other == made else f"a sum of maps of shapes {made} and {other}", shapes)


def _refuse(problem: str | None, shapes: dict[int, tuple[int, ...]]) -> None:
    if problem:
        raise BadInput(f"the network does not take images of shape {shapes[0]}: {problem}")
