"""The operations of the engine, as arrays of numbers and indices."""

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
    """An operation; values between operations are numbered.

    Attributes:
        inputs: The values that it reads.
        output: The value that it makes.
    """

    inputs: list[int]
    output: int


@dataclass(eq=False)
class Load(Operation):
    """Copy a tensor into the engine's memory and normalise it: (x - mean) / std.

    Attributes:
        mean, std: One number, or one for each channel; None for 0 and 1.
    """

    mean: Floats | None = None
    std: Floats | None = None


@dataclass(eq=False)
class Conv(Operation):
    """A convolution with BatchNorm folded in, an optional residual, and an optional ReLU.

    The residual is the second input, if there is one. The padding is `k // 2`, and k is odd.

    Attributes:
        weight: Weights (C_out, K, k, k), with filters in the order of the output channels.
        bias: Biases (C_out,).
        group_of_filter: The filter group of each filter, (C_out,).
        kept: The input channels that each group reads, (groups, K).
        stride: 1 or 2.
        relu: Whether the result is rectified.
        takes: How many channels its input must have; None where channels were selected.
    """

    weight: Floats = field(default_factory=lambda: np.zeros(0))
    bias: Floats = field(default_factory=lambda: np.zeros(0))
    group_of_filter: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    kept: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    stride: int = 1
    relu: bool = False
    takes: int | None = None

    def scale(self, factor: Floats, shift: Floats) -> None:
        """Fold `factor * y + shift` into this convolution, (C_out,) each."""
        self.weight = self.weight * factor[:, None, None, None]
        self.bias = self.bias * factor + shift

    def select(self, channels: Ints) -> None:
        """Fold a selection of output channels into this convolution."""
        self.weight, self.bias = self.weight[channels], self.bias[channels]
        self.group_of_filter = self.group_of_filter[channels]


@dataclass(eq=False)
class Shortcut(Operation):
    """A shortcut without weights: subsampling, and channels that are padded or selected.

    Attributes:
        stride: Every `stride`-th pixel is taken.
        before, after: Channels of zeros before and after the others.
        channels: The channels selected; None for all.
    """

    stride: int = 1
    before: int = 0
    after: int = 0
    channels: Ints | None = None


@dataclass(eq=False)
class MaxPool(Operation):
    """A maximum pool.

    Attributes:
        window: Pixels of a side.
        stride: Pixels between windows.
        padding: Pixels around the image, which are never the maximum.
    """

    window: int = 2
    stride: int = 2
    padding: int = 0

    def side(self, length: int) -> int:
        """The length of a side after pooling."""
        return (length + 2 * self.padding - self.window) // self.stride + 1


@dataclass(eq=False)
class Mean(Operation):
    """The mean of each channel, from a map to a vector."""


@dataclass(eq=False)
class Flatten(Operation):
    """Flatten a map to a vector `[channel][row][column]`."""


@dataclass(eq=False)
class Linear(Operation):
    """A fully connected layer.

    Attributes:
        weight: Weights (outputs, inputs).
        bias: Biases (outputs,).
    """

    weight: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    bias: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(eq=False)
class Stock(Operation):
    """An operation that torch runs.

    Attributes:
        call: From the inputs as tensors to the output, a tensor.
        name: The name of the node.
    """

    call: Callable[..., Any] = lambda x: x
    name: str = ""
