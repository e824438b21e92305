"""Forward passes of networks that are not ours, watched: which numbers they read, and whether they end.

A network that reads a number of a tensor (`if x.mean() > 0.5`, `.item()`) may go another way for other images. So a pass can be
made again with one of these numbers turned into another one, to see that way too. A pass that takes too long is ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

PASS_LIMIT = 60.0  # seconds that one forward pass may take
_READS = 8  # numbers of a pass that are turned, at most
_FAR = 1e3  # what other numbers are turned into, and its negative
# What a foreign forward pass may raise: anything; those that dislike an image may call `exit`
FAILURES = (Exception, SystemExit)
Turn = tuple[int, bool | int | float]


class Dispatched(TorchDispatchMode):
    """Base of what looks at operations one by one; torch would load its compiler (a second) only to keep it away from that."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Watched(Dispatched):
    """Within, the numbers that are read of tensors are noted, one of them perhaps turned.

    Args:
        turn: Which of the numbers is turned, by its place in the order of reading, and into what.
        seconds: When they are over, the next operation raises TimeoutError.

    Attributes:
        read: The numbers as they were.
    """

    def __init__(self, turn: Turn | None = None, seconds: float = PASS_LIMIT):
        super().__init__()
        self.read: list[bool | int | float] = []
        self._turn, self._seconds, self._end = turn, seconds, time.monotonic() + seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.monotonic() > self._end:
            raise TimeoutError(f"one pass takes more than {self._seconds:g} seconds")
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default:
            self.read.append(output)
            if self._turn is not None and self._turn[0] == len(self.read) - 1:
                return self._turn[1]
        return output


def turns(read: Sequence[bool | int | float]) -> Iterator[Turn]:
    """The ways to turn one of the first numbers that a pass has read."""
    for place, number in enumerate(read[:_READS]):
        if isinstance(number, bool):
            yield place, not number
        elif isinstance(number, int):  # it may count what is made or done
            yield from ((place, other) for other in (0, number + 1))
        else:
            yield from ((place, other) for other in (-_FAR, _FAR))


def in_mode(net: nn.Module, *, training: bool = False) -> nn.Module:
    """`net` itself, in eval mode or in training mode; its own `train` need not return it."""
    net.train(training)
    return net
