"""The operations that a network is made of, as the engine sees them: numbers and indices, no modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(eq=False)
class Operation:
    """One operation. `inputs` and `output` number the values that flow between operations."""

    inputs: list[int]
    output: int


@dataclass(eq=False)
class Load(Operation):
    """Images from outside, normalised: (x - mean) / std per channel, where there is a mean."""

    mean: Floats | None = None
    std: Floats | None = None


@dataclass(eq=False)
class Conv(Operation):
    """A convolution with what follows it: BatchNorm folded, residual added, ReLU.

    Attributes:
        weight: `(C_out, K, k, k)`, of the filters in the order of the output's channels.
        bias: `(C_out,)`.
        group_of_filter: `(C_out,)`, the filter group of each filter.
        kept: `(groups, K)`, the input channels that each group reads.
        stride: 1 or 2; the padding is `k // 2`, and k is odd.
        relu: whether the result is rectified.
        takes: how many channels its input must have, None where some were selected.

    The second input, if there is one, is the residual.
    """

    weight: Floats = field(default_factory=lambda: np.zeros(0))
    bias: Floats = field(default_factory=lambda: np.zeros(0))
    group_of_filter: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    kept: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    stride: int = 1
    relu: bool = False
    takes: int | None = None

    def scale(self, factor: Floats, shift: Floats) -> None:
        """Follow this convolution by `factor * y + shift` per channel."""
        self.weight = self.weight * factor[:, None, None, None]
        self.bias = self.bias * factor + shift

    def select(self, channels: Ints) -> None:
        """Follow this convolution by a selection of its output channels."""
        self.weight, self.bias = self.weight[channels], self.bias[channels]
        self.group_of_filter = self.group_of_filter[channels]


@dataclass(eq=False)
class Shortcut(Operation):
    """Every `stride`-th pixel, and `before` and `after` channels of zeros around the others; or a choice of channels."""

    stride: int = 1
    before: int = 0
    after: int = 0
    channels: Ints | None = None


@dataclass(eq=False)
class MaxPool(Operation):
    """Maxima of `window` x `window` pixels, every `stride`-th, with `padding` pixels that never win around the image."""

    window: int = 2
    stride: int = 2
    padding: int = 0

    def side(self, length: int) -> int:
        """How many maxima a side of so many pixels gives."""
        return (length + 2 * self.padding - self.window) // self.stride + 1


@dataclass(eq=False)
class Mean(Operation):
    """The mean of each channel: a map becomes a vector."""


@dataclass(eq=False)
class Flatten(Operation):
    """A map becomes a vector `[channel][row][column]`."""


@dataclass(eq=False)
class Linear(Operation):
    """A fully connected layer: weight `(outputs, inputs)`, bias `(outputs,)`."""

    weight: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    bias: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(eq=False)
class Stock(Operation):
    """An operation that the engine cannot express: `call` takes the inputs as tensors and returns a tensor."""

    call: Callable[..., Any] = lambda x: x
    name: str = ""
