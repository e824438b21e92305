"""`make bench`, Square: what the search costs beside the forward passes that it cannot do without."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from gkp.attacks.network import logits_of
from gkp.attacks.square import square
from gkp.networks.build import build_model


class Row(NamedTuple):
    """One measurement: what, the value, its unit, and the most it may be."""

    what: str
    value: float
    unit: str
    budget: float


def square_rows(images: int = 100, queries: int = 20, rounds: int = 5) -> list[Row]:
    """Square against a bare loop of as many forward passes, ResNet-20 at 32x32; eps is so small that no image falls."""
    net = build_model("resnet20").eval()
    x = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = logits_of(net, x).argmax(1)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(1 + queries):  # one to know what is right without attack
                net(x).argmax(1)

    def searching(norm: str) -> Callable[[], object]:
        return lambda: square(net, x, y, eps=1e-6, norm=norm, queries=queries)

    return [
        Row(f"Square ({norm}), {queries} queries / bare forward loop", _ratio(searching(norm), bare, rounds), "x", 1.1)
        for norm in ("linf", "l2")
    ]


def _ratio(ours: Callable[[], object], bare: Callable[[], object], rounds: int) -> float:
    """The median over `rounds` of ours / bare, the two taking turns so that a busy machine slows both."""
    ours(), bare()  # warm up
    return statistics.median(_seconds(ours) / _seconds(bare) for _ in range(rounds))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    for row in square_rows():
        print(f"{row.what:<62}{row.value:>9.2f} {row.unit:<3} budget {row.budget:g}")
