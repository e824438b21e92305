"""`make bench`: what things cost, as medians and ratios within this one run, beside the budget of each.

Not a test: machines are shared and noisy. Ratios compare two loops that took turns; seconds are of this machine. Exits 1 where
a budget is missed.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import bench_attacks
import bench_engine
import bench_grid
import bench_selection
import torch
from torch.nn import functional as F

import gkp
from gkp.networks.build import build_model
from gkp.pruning.methods.tmi_gkp.clusterings import CLUSTERINGS, cluster
from gkp.pruning.prune import layers_for
from gkp.pruning.registry import make_method
from gkp.pruning.sr_gkp.grouping import smoothness_snaking
from gkp.training.loop import train
from gkp.training.recipe import Recipe


class Row(NamedTuple):
    """One measurement: what, the value, its unit, and the most it may be."""

    what: str
    value: float
    unit: str
    budget: float


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(ours: Callable[[], object], bare: Callable[[], object], rounds: int = 5) -> float:
    """The median over `rounds` of ours / bare, the two taking turns so that a busy machine slows both."""
    ours(), bare()  # warm up
    return statistics.median(seconds(ours) / seconds(bare) for _ in range(rounds))


def selection_rows() -> list[Row]:
    """Smooth beam greedy on one core, whole networks (the released code: 400-510 s for ResNet-20); see bench_selection.py."""
    return [Row(*row) for row in bench_selection.rows()]


def method_rows() -> list[Row]:
    """Scoring and planning of every one-shot method on one core, ResNet-20; the images are noise, which costs the same."""
    torch.set_num_threads(1)
    net, rows = build_model("resnet20"), []
    data = noise(4096)
    for info in gkp.methods().values():
        if info.procedure == "one-shot" and "training snapshots" not in info.needs and info.name != "nppm":
            slow = info.name in ("cc", "chip")
            budget = (60.0 if slow else 20.0) if "data" in info.needs else 3.0
            took = seconds(lambda name=info.name: gkp.prune(net, name, data=data))
            rows.append(Row(f"scoring and planning, {info.name}, one core", took, "s", budget))
    return rows


def grouping_rows() -> list[Row]:
    """Clustering of TMI-GKP, and how many times as long as smoothness snaking it takes (Table 7 claims up to 1,600 times).

    In seconds of the processor, for a busy machine would stretch the long one of the two more.
    """
    weights = [
        conv.weight.detach() for name, conv in build_model("resnet20").named_modules() if name.endswith(("conv1", "conv2"))
    ]
    weights = [weight for weight in weights if weight.shape[1] > 3]
    started = time.process_time()
    for weight, _ in itertools.product(weights, range(20)):
        smoothness_snaking(weight, 8)
    snaking, started = (time.process_time() - started) / 20, time.process_time()
    for weight, name in itertools.product(weights, CLUSTERINGS):
        cluster(name, weight, 8, seed=0)
    clustering = time.process_time() - started
    what = "TMI-GKP's clustering, ResNet-20, one core"
    return [
        Row(what, clustering, "s", float("inf")),
        Row("... / smoothness snaking", clustering / snaking, "x", float("inf")),
    ]


def noise(images: int) -> gkp.Dataset:
    """Random images of CIFAR-10's shape."""
    pixels, labels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (images,))
    return gkp.Dataset("noise", "train", pixels, labels, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3, pad=4, flip=True)


def fgsm_row(images: int = 1000, batch: int = 200) -> Row:
    """FGSM and its evaluation against a bare forward + backward + forward loop, ResNet-20 at 32x32."""
    net = build_model("resnet20").eval()
    x, y = torch.rand(images, 3, 32, 32), torch.randint(10, (images,))
    batches = list(zip(x.split(batch), y.split(batch), strict=True))

    def bare() -> None:
        for xb, yb in batches:
            xb = xb.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(xb), yb), xb)
            with torch.no_grad():
                net((xb + 8 / 255 * gradient.sign()).clamp(0, 1)).argmax(1)

    def ours() -> None:
        for xb, yb in batches:
            adversarial = gkp.attack(net, xb, yb, "fgsm", eps=8 / 255)
            with torch.no_grad():
                net(adversarial).argmax(1)

    return Row(f"FGSM over {images:,} images / bare loop", ratio(ours, bare), "x", 1.15)


def training_row(images: int = 1024, batch: int = 64) -> Row:
    """One epoch of `train`, augmentation included, against a bare loop of SGD steps on batches made beforehand."""
    data = noise(images)
    batches = list(data.batches(batch))

    def bare() -> None:
        net = build_model("resnet20").to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y).backward()
            optimizer.step()

    def ours() -> None:
        train(build_model("resnet20"), data, Recipe(epochs=1), progress=False)

    return Row(f"training, one epoch of {images:,} images / bare loop", ratio(ours, bare), "x", 1.1)


# methods that prune while they train -> the most plain steps that one step of theirs may take; options of theirs
STEPS = {"dhp": 1.3, "gal": 1.5, "otov2": 1.15, "rap-admm": 4.2}
FEW = {"rap-admm": {"attack_steps": 3}}


def step_rows(images: int = 1280) -> list[Row]:
    """An epoch of methods that prune while they train against a plain one, ResNet-20 at 32x32, without their preparations."""
    data, recipe = noise(images), Recipe(epochs=1)
    convs = {name: layers_for(gkp.methods()[name], build_model("resnet20"), None)[0] for name in STEPS}

    def epoch(*methods: str) -> float:
        net, planners = build_model("resnet20"), {name: make_method(name, **FEW.get(name, {})) for name in methods}
        for planner in planners.values():
            net = planner.network(net) if hasattr(planner, "network") else net
        callbacks = [planner.callback(convs[name]) for name, planner in planners.items()]
        return train(net, data, recipe, progress=False, callbacks=callbacks).last["seconds"]

    rows = [
        Row(f"a step of {name} / plain step", statistics.median(epoch(name) / epoch() for _ in range(5)), "x", budget)
        for name, budget in STEPS.items()
    ]
    size = recipe.batch_size
    method = make_method("nppm", data=data, share=1.0, batch_size=size, steps=images // size)
    search = method.search(net := build_model("resnet20"), layers_for(gkp.methods()["nppm"], net, None)[0])
    for gates in torch.rand(140, len(search.weights)).round():  # enough for the predictor to take part
        search.memory.insert(gates, float(gates.mean()))

    def searched() -> float:
        search.done = 0
        return seconds(search.run)

    searched()
    value = statistics.median(searched() / epoch() for _ in range(5))
    return [*rows, Row(f"a step of nppm on {size} images / plain step", value, "x", 0.9)]


def attack_rows() -> list[Row]:
    """PGD and a cascade against foolbox and pyautoattack; see tests/bench_attacks.py."""
    return [Row(what, value, unit, budget) for what, value, unit, budget in bench_attacks.rows()]


def engine_rows() -> list[Row]:
    """The engine against stock engines; see tests/bench_engine.py."""
    return [Row(what, value, unit, budget) for what, value, unit, budget in bench_engine.rows()]


def print_rows(rows: list[Row]) -> None:
    for row in rows:
        verdict = "ok" if row.value <= row.budget else "OVER BUDGET"
        print(f"{row.what:<62}{row.value:>9.2f} {row.unit:<3} budget {row.budget:g} {row.unit:<3} {verdict}", flush=True)


def main() -> int:
    cores = torch.get_num_threads()
    grid = [Row(what, value, unit, budget) for what, value, unit, budget in bench_grid.rows()]
    print_rows(grid)
    missed = any(row.value > row.budget for row in grid)
    loops = (lambda: [fgsm_row()], lambda: [training_row()], step_rows)
    for measure in (selection_rows, method_rows, grouping_rows, *loops, attack_rows, engine_rows):
        torch.set_num_threads(cores)
        rows = measure()
        print_rows(rows)
        missed |= any(row.value > row.budget for row in rows)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
