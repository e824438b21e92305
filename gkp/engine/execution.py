"""Run programs on several threads, which take blocks of images one after the other."""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gkp.engine.cache import kernel
from gkp.engine.program import BLOCK_IMAGES, Program

ONE_THREAD = 16  # with fewer images, more threads cost more than they gain


@dataclass(eq=False)
class _Workspace:
    """The memory of one thread, initialised with zeros for the halos."""

    maps: NDArray[np.float32]
    scratch: NDArray[np.float32]
    sums: NDArray[np.float32]


class Runner:
    """A program that is ready to run. Several threads may call it at once.

    Args:
        program: The program.
        sign_slot: Bytes that the program keeps for the gradient of each image.
    """

    def __init__(self, program: Program, sign_slot: int):
        self._program = program
        self._sign_slot = sign_slot
        self._constants = _aligned(len(program.constants))
        self._constants[:] = program.constants
        self._idle: deque[_Workspace] = deque()

    def __call__(self, tensors: list[Tensor], signs: Tensor | None, images: int, threads: int) -> None:
        """Run the program on a batch.

        Args:
            tensors: Contiguous inputs, then outputs, which are filled.
            signs: The bits for the gradient, (images * sign_slot,) bytes; None where there are none.
            images: The number of images.
            threads: The largest number of threads; one is used for few images.
        """
        outside = np.array([t.data_ptr() for t in tensors], np.int64)
        first_sign = 0 if signs is None else signs.data_ptr()
        claims = itertools.count(0, BLOCK_IMAGES)  # next() is atomic
        threads = 1 if images < ONE_THREAD else min(threads, -(-images // BLOCK_IMAGES))
        kernel()  # compile it before the threads would
        if threads == 1:
            self._work(claims, outside, first_sign, images)
            return
        with ThreadPoolExecutor(threads) as pool:
            for work in [pool.submit(self._work, claims, outside, first_sign, images) for _ in range(threads)]:
                work.result()

    def _work(self, claims: itertools.count[int], outside: NDArray[np.int64], signs: int, images: int) -> None:
        program, run = self._program, kernel()
        space = self._workspace(min(images, BLOCK_IMAGES))
        for first in claims:
            if first >= images:
                break
            run(
                program.steps.ctypes.data,
                len(program.steps),
                program.tables.ctypes.data,
                self._constants.ctypes.data,
                space.maps.ctypes.data,
                program.slot,
                min(BLOCK_IMAGES, images - first),
                space.scratch.ctypes.data,
                space.sums.ctypes.data,
                signs,
                self._sign_slot,
                outside.ctypes.data,
                first,
            )
        self._idle.append(space)

    def _workspace(self, images: int) -> _Workspace:
        """Memory for `images` images that no other thread uses."""
        try:
            space = self._idle.pop()
        except IndexError:
            space = None
        if space is not None and len(space.maps) >= images * self._program.slot:
            return space
        program = self._program
        return _Workspace(_aligned(images * program.slot), _aligned(program.scratch), _aligned(program.sums))


def _aligned(floats: int) -> NDArray[np.float32]:
    """Zeros that start at a cache line."""
    memory = np.zeros(floats + 16, np.float32)
    return memory[(-memory.ctypes.data // 4) % 16 :][:floats]
