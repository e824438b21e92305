"""Stages and cells for the grid's own tests: arithmetic, and every way in which a cell can go wrong.

Kept apart from the tests because worker processes import it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gkp.artifact.experiments.cell import Cell


@dataclass(frozen=True, kw_only=True)
class Number(Cell):
    """value = x, plus the parent's value; writes the value to a file too. `counter` names a file that gets a line per
    computation (it is part of the specification only because that is the simplest way to pass it)."""

    stage = "test-number"
    x: float = 0.0
    seed: int = 0
    counter: str = ""
    source: Cell | None = None

    @property
    def label(self) -> str:
        return f"number-{self.x:g}-s{self.seed}"

    @staticmethod
    def compute(params, parents, folder, context):
        if params["counter"]:
            with open(params["counter"], "a", encoding="utf-8") as file:
                file.write(f"{context.cell_id}\n")
        below = float((parents["source"] / "value.txt").read_text()) if "source" in parents else 0.0
        value = below + params["x"]
        (folder / "value.txt").write_text(str(value))
        context.log(f"x is {params['x']}")
        return {"value": value, "seed": params["seed"], "n": 1}


@dataclass(frozen=True, kw_only=True)
class Trouble(Cell):
    """A cell that ends as `how` says; `note` is a file in which it leaves traces for the test."""

    stage = "test-trouble"
    how: str = "raise"
    note: str = ""
    source: Cell | None = None

    @property
    def label(self) -> str:
        return f"trouble-{self.how}"

    @staticmethod
    def compute(params, parents, folder, context):
        print("about to", params["how"], flush=True)
        return {"done": _WAYS[params["how"]](Path(params["note"]), folder, context) or 1}


def _raise(note, folder, context):
    raise RuntimeError("the sky is falling")


def _sleep(note, folder, context):
    (folder / "half-written.bin").write_bytes(b"x" * 1000)
    note.write_text(f"{os.getppid()} {os.getpid()}")
    time.sleep(600)


def _eat_memory(note, folder, context):
    eaten = []
    for _ in range(4000):
        eaten.append(bytearray(b"\1") * 2**20)
        time.sleep(0.001)


def _swallow(note, folder, context):
    """Catches the first interruption; ends after some seconds, for a test that fails."""
    with suppress(BaseException):
        time.sleep(3)
    time.sleep(3)


def _print_and_raise(note, folder, context):
    print("the last words")
    raise RuntimeError("the sky is falling")


def _crash(note, folder, context):
    os.abort()


def _fill_the_disk(note, folder, context):
    (folder / "half-written.bin").write_bytes(b"x" * 1000)
    with open("/dev/full", "wb") as full:
        full.write(b"x")


def _fill_the_file_system(note, folder, context):
    (folder / "big.bin").write_bytes(b"x" * 10_000_000)


def _sleep_the_first_time(note, folder, context):
    """Hangs until somebody kills its worker; the second attempt is quick and says so."""
    if note.exists():
        return 2
    return _sleep(note, folder, context)


def _wait_for_the_note_to_go(note, folder, context):
    (folder / "half-written.bin").write_bytes(b"x" * 1000)
    note.with_suffix(".begun").write_text(f"{os.getppid()} {os.getpid()}")
    while note.exists():
        time.sleep(0.02)


def _kill_the_worker(note, folder, context):
    os.kill(os.getppid(), 9)
    time.sleep(600)


def _resume(note, folder, context):
    """Keeps an epoch checkpoint in the scratch folder, and hangs after the first epoch unless it finds one."""
    checkpoint = context.scratch / "epoch"
    if checkpoint.exists():
        return int(checkpoint.read_text()) + 1
    checkpoint.write_text("1")
    return _sleep(note, folder, context)


_WAYS = {
    "raise": _raise,
    "hang": _sleep,
    "eat": _eat_memory,
    "swallow": _swallow,
    "print": _print_and_raise,
    "crash": _crash,
    "fill": _fill_the_disk,
    "fill-really": _fill_the_file_system,
    "hang-once": _sleep_the_first_time,
    "wait": _wait_for_the_note_to_go,
    "kill-worker": _kill_the_worker,
    "resume": _resume,
    "nan": lambda *_: float("nan"),
}


@dataclass(frozen=True, kw_only=True)
class TinyTraining(Cell):
    """Trains a small convolution net on random images for a few steps, with whatever leaks: global generators, threads."""

    stage = "test-training"
    seed: int = 0
    size: int = 12

    @property
    def label(self) -> str:
        return f"training-s{self.seed}"

    @staticmethod
    def compute(params, parents, folder, context):
        import numpy as np
        import torch
        from safetensors.torch import save_file

        generator = torch.Generator().manual_seed(params["seed"])
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3),
            torch.nn.BatchNorm2d(16),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 16, 3),
            torch.nn.Flatten(),
            torch.nn.LazyLinear(10),
        )
        x = torch.rand(64, 3, params["size"], params["size"], generator=generator)
        y = torch.randint(10, (64,), generator=generator)
        optimiser, losses = None, []
        for _ in range(4):
            loss = torch.nn.functional.cross_entropy(net(x), y)
            optimiser = optimiser or torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        save_file(net.state_dict(), folder / "net.safetensors")
        return {
            "losses": losses,
            "leak": float(np.random.rand()),  # noqa: NPY002
            "threads": torch.get_num_threads(),
        }
