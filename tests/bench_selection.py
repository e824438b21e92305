"""Seconds of SR-GKP's selection on whole networks, one core: `python tests/bench_selection.py [compiled|numpy] [network ...]`.

Not a test. Seconds are CPU time, which other processes of the machine change least. Each row is the median of three (one for
more than 5 s) beside its budget, which is that of the compiled search; loading the machine code is a row of its own, and memory
is what comes on top of the libraries. Random weights: the time hardly depends on them.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator

import torch
from torch import nn

import gkp
from gkp.networks.build import build_model
from gkp.pruning.prune import layers_for
from gkp.pruning.registry import make_method, method_info
from gkp.pruning.sr_gkp import selection_compiled

NETWORKS = {
    "resnet20": (7 / 16, 0.2),
    "resnet56": (7 / 16, 0.6),
    "resnet110": (7 / 16, 1.2),
    "resnet18": (1 / 2, 8.0),
    "resnet50": (3 / 4, 20.0),
}


def network(name: str) -> nn.Module:
    """The CIFAR-10 network of this name, or torchvision's of ImageNet."""
    if name not in ("resnet18", "resnet50"):
        return build_model(name)
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name)


def seconds(name: str, rate: float) -> float:
    """The median time of `gkp.prune`."""
    net, times = network(name), []
    while len(times) < 3 and not (times and times[0] > 5):
        started = time.process_time()
        gkp.prune(net, "sr-gkp", rate=rate)
        times.append(time.process_time() - started)
    return statistics.median(times)


def select(name: str, rate: float) -> None:
    """The selection alone, without the copies by which `gkp.prune` checks what comes of it."""
    net = network(name)
    make_method("sr-gkp", rate=rate).plan(net, layers_for(method_info("sr-gkp"), net, None, 8, None)[0])


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rows(engine: str = "compiled", names: tuple[str, ...] = tuple(NETWORKS)) -> Iterator[tuple[str, float, str, float]]:
    """What was measured, the value, its unit and the budget; on one thread."""
    torch.set_num_threads(1)
    before, selection_compiled.engine = selection_compiled.engine, engine
    try:
        if engine == "compiled":
            started = time.process_time()
            selection_compiled.prepare(0.0)
            yield "loading (the first time: compiling) the selection", time.process_time() - started, "s", 60.0
        gkp.prune(build_model("resnet20"), "sr-gkp")  # what a first call costs is not the selection's
        libraries = peak_megabytes()
        for name in names:  # before any whole pruning: a peak never falls again
            select(name, NETWORKS[name][0])
        yield "memory that networks and their selection need", peak_megabytes() - libraries, "MB", 1024.0
        for name in names:
            rate, budget = NETWORKS[name]
            yield f"SR-GKP selection, {name} at {rate:g}, one core, {engine}", seconds(name, rate), "s", budget
    finally:
        selection_compiled.engine = before


if __name__ == "__main__":
    for what, value, unit, budget in rows(*sys.argv[1:2], *[tuple(sys.argv[2:])] * (len(sys.argv) > 2)):
        print(f"{what:<62}{value:>9.2f} {unit:<3} budget {budget:g} {unit}", flush=True)
