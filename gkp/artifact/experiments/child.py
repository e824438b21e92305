"""The process that computes cells for one worker: `-m gkp.artifact.experiments.child <jobs> <outcomes> <alive>` (descriptors).

It stays for many cells, so libraries are imported and data sets loaded once per worker, and can be killed at any moment
without harm to the worker: for a cell past its limits that is how it ends. It dies by itself with the worker.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from gkp.artifact.experiments.compute import Job, compute


def main(jobs: int, outcomes: int, alive: int) -> None:
    """Computes the jobs that arrive, one after the other, until the pipe is closed."""
    threading.Thread(target=_die_with_the_worker, args=(alive,), daemon=True).start()
    _be_the_first_to_go_when_memory_is_short()
    incoming, outgoing = Connection(jobs, writable=False), Connection(outcomes, readable=False)
    import_module("torch")  # seconds that are not the first cell's
    outgoing.send("ready")
    while True:
        try:
            job = Job(**incoming.recv())
        except EOFError:
            return
        outgoing.send(asdict(compute(job, capture=True)))


def _die_with_the_worker(alive: int) -> None:
    os.read(alive, 1)  # nobody ever writes: it returns when the worker's end is closed, by its death at the latest
    os._exit(1)


def _be_the_first_to_go_when_memory_is_short() -> None:
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
