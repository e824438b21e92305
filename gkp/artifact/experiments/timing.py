"""The stages "timing", the cost of grouping and pruning a network (Table 7), and "latency", the speed of a pruned network.

They measure seconds, which differ between runs. Only ratios can be compared; they are taken within one process, both sides in
turn. Their arguments are explained in `gkp.artifact.experiments.stages`. Cost for ResNet-20 on one core: a minute, half of it
for TMI-GKP's clusterings; a latency takes `seconds` for each of two networks at each batch size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from gkp.artifact.experiments.entry import figures_of
from gkp.checkpoints import load_model
from gkp.engine.compile import compile_all
from gkp.networks.build import build_model
from gkp.networks.classifier import Classifier
from gkp.pruning.cost import latency
from gkp.pruning.methods.tmi_gkp.clusterings import CLUSTERINGS, cluster
from gkp.pruning.prune import prune
from gkp.pruning.sr_gkp.grouping import smoothness_snaking

if TYPE_CHECKING:
    from gkp.artifact.experiments.compute import Context

METHODS = ("sr-gkp", "greedy-gkp", "l2-gkp", "l1norm-b")  # which need weights only
ROUNDS = 5  # repetitions of what takes well under a second


def timing(params: Mapping[str, Any], parents: Mapping[str, Path], folder: Path, context: Context) -> dict[str, Any]:
    """Time grouping, pruning by each of METHODS, and inference of each form, on `context.threads` threads.

    Returns:
        "grouping": seconds to group the same layers by smoothness snaking and by each clustering of TMI-GKP; "pruning": method
        -> median seconds; "latency": rows of form, batch_size, median and iqr in seconds, number of measurements.
    """
    net = load_model(parents["net"] / "model")
    parent = figures_of(parents["net"])
    shape = tuple(parent["input_shape"])
    pruned = prune(net, "sr-gkp", rate=params["rate"], groups=params["groups"], input_shape=shape)
    convs = dict(net.named_modules())
    weights = [cast(nn.Conv2d, convs[name]).weight.detach() for name in pruned.plan][: params["clustered"]]
    slim = prune(net, "l1norm-b", rate=params["rate"], input_shape=shape).compact()
    forms = {"dense": net, "grouped": pruned.compact(), "filters removed": slim}
    return {
        "model": parent["model"],
        "threads": context.threads,
        "grouping": {"layers": len(weights), "of": len(pruned.plan), **_grouping(weights, params["groups"])},
        "pruning": {name: _pruning(net, name, params, shape) for name in METHODS},
        "latency": _latency(forms, shape, params, context.threads),
    }


def latency_of(params: Mapping[str, Any], parents: Mapping[str, Path], folder: Path, context: Context) -> dict[str, Any]:
    """Time a compact network and the dense network of its architecture in one engine, on `context.threads` threads.

    Returns:
        "latency": a row for each batch size with the seconds of both (medians of ROUNDS rounds, in turn) and the median, lowest
        and highest ratio of a round.
    """
    parent = figures_of(parents["net"])
    shape = tuple(parent["input_shape"])
    compact = cast(Classifier, load_model(parents["net"] / "compact"))
    made = compact.architecture
    like = build_model(made.name, num_classes=made.num_classes, shortcut=made.shortcut).eval()  # its weights do not matter
    forms: list[nn.Module] = [like, compact]
    if params.get("engine") == "fast":
        forms = [compile_all(net) for net in forms]
    rows = []
    for size in params["batch_sizes"]:
        options = {"input_shape": shape, "batch_size": size, "threads": context.threads, "seconds": params["seconds"] / ROUNDS}
        rounds = [[latency(net, **options).median for net in forms] for _ in range(ROUNDS)]
        ratios = [small / dense for dense, small in rounds]
        dense, small = (statistics.median(column) for column in zip(*rounds, strict=True))
        facts = {"ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios), "rounds": ROUNDS}
        rows.append({"batch_size": size, "dense": dense, "compact": small, **facts})
    return {"model": parent["model"], "threads": context.threads, "latency": rows}


def _grouping(weights: list[Tensor], groups: int) -> dict[str, float]:
    """Seconds to group these layers in each way; the clusterings, which are slow, are measured once."""
    found = {"snaking": _seconds(lambda: [smoothness_snaking(weight, groups) for weight in weights], ROUNDS)}
    for name in CLUSTERINGS:
        found[name] = _seconds(partial(_cluster_all, name, weights, groups), 1)
    return found


def _cluster_all(name: str, weights: list[Tensor], groups: int) -> None:
    for weight in weights:
        cluster(name, weight, groups, seed=0)


def _pruning(net: nn.Module, method: str, params: Mapping[str, Any], shape: tuple[int, ...]) -> float:
    return _seconds(lambda: prune(net, method, rate=params["rate"], groups=params["groups"], input_shape=shape), ROUNDS)


def _latency(
    nets: Mapping[str, nn.Module], shape: tuple[int, ...], params: Mapping[str, Any], threads: int
) -> list[dict[str, Any]]:
    rows = []
    for size in params["batch_sizes"]:
        for form, net in nets.items():
            took = latency(net, input_shape=shape, batch_size=size, threads=threads, seconds=params["seconds"])
            rows.append({"form": form, "batch_size": size, "median": took.median, "iqr": took.iqr, "measurements": took.runs})
    return rows


def _seconds(work: Callable[[], object], rounds: int) -> float:
    """The median seconds over `rounds`."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
