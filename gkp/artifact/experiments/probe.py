"""Measure the speed of a GPU in about 20 seconds: images per second of each network, and the best number of processes.

The probe starts processes as a run does: one measures each network alone, then two, four and eight train at once as long as
that raises the throughput and memory suffices. Small networks share a GPU best under NVIDIA's multi-process service
(`nvidia-cuda-mps-control -d`); without it they take turns. The result is kept for this machine in the user's cache folder.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from glob import glob
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.child import Child
from gkp.artifact.experiments.entry import read_json
from gkp.artifact.experiments.provenance import cores, hardware
from gkp.artifact.experiments.rates import Rates, images_of
from gkp.errors import BadInput, RunFailed
from gkp.files import cache_folder, json_sha256, one_line, replace_file

_MOST = 8  # processes at once
_WORTH = 1.05  # the search ends when doubling the processes gains less
_SECONDS = 0.5  # of each measurement
_PATIENCE = 120.0  # seconds after which the probe fails


def has_gpu() -> bool:
    """Whether there seems to be a GPU that this process may use, without importing torch, which takes seconds."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and bool(glob("/dev/nvidia[0-9]*") or glob("/dev/dxg"))


def rates_for(cells: Iterable[Cell], asked: bool | None) -> Rates | None:
    """The rates of this machine for the networks of some cells, measured if they are not known.

    Args:
        cells: The cells to be computed.
        asked: Whether to measure; None: if there is a GPU and all cells are meant for one.

    Returns:
        The rates; None where they are not wanted.
    """
    found = list(cells)
    models = sorted({images.model for cell in found if (images := images_of(replace(cell, threads=0))) is not None})
    wanted = has_gpu() and all(cell.threads == 0 for cell in found) if asked is None else asked
    return cached(models, "cuda" if has_gpu() else "cpu") if wanted and models else None


def cached(models: Sequence[str], device: str) -> Rates:
    """The rates for some architectures on a device ("cuda" or "cpu"), from the cache as far as it has them."""
    path = None
    with suppress(BadInput):  # without a home folder every probe is the first
        path = cache_folder() / f"probe-{json_sha256(_machine(device))[:16]}.json"
    known = None
    if path is not None and (kept := read_json(path)):
        with suppress(KeyError, TypeError, ValueError):
            known = Rates.from_json(kept)
    missing = [model for model in models if known is None or model not in known.trained]
    if not missing and known is not None:
        return known
    rates = probe(missing, device=device, most=1 if known or device == "cpu" else _MOST)
    if known is not None:
        rates = replace(
            known,
            trained={**known.trained, **rates.trained},
            evaluated={**known.evaluated, **rates.evaluated},
        )
    if path is not None:
        with suppress(BadInput):
            replace_file(path, json.dumps(rates.to_json(), indent=1) + "\n")
    return rates


def _machine(device: str) -> dict[str, Any]:
    gpus = [Path(name).read_text(encoding="utf-8") for name in sorted(glob("/proc/driver/nvidia/gpus/*/information"))]
    here = {"host": socket.gethostname(), "processor": hardware()["processor"], "cores": cores()}
    return {**here, "device": device, "gpus": gpus, "torch": version("torch")}


def probe(models: Sequence[str], *, device: str, most: int = 1) -> Rates:
    """Measure some networks one by one, and the first of them in several processes at once.

    Args:
        models: Names of `gkp.networks.build`.
        device: "cuda" or "cpu".
        most: The largest number of processes.

    Raises:
        RunFailed: A process did not answer or could not train the network.
    """
    children = [Child(serve, quiet=True) for _ in range(max(1, min(most, cores())))]
    until = time.monotonic() + _PATIENCE
    try:
        request = {"device": device, "seconds": _SECONDS}
        for child in children[1:]:
            ask(child, model="", **request)  # imports torch while the first one measures
        alone = {}
        for model in models:
            ask(children[0], model=model, **request)
            alone[model] = answer(children[0], until)
        first = alone[models[0]]
        for child in children[1:]:
            answer(child, until)
        together, count = {1: 1.0}, 2
        while count <= min(len(children), first["processes"]):
            for child in children[:count]:
                ask(child, model=models[0], train_only=True, **request)
            gain = sum(answer(child, until)["trained"] for child in children[:count]) / first["trained"]
            worth = gain >= _WORTH * together[count // 2]
            together[count], count = gain, 2 * count
            if not worth:
                break
    finally:
        for child in children:
            child.kill()
    trained, evaluated = ({name: round(found[key], 1) for name, found in alone.items()} for key in ("trained", "evaluated"))
    return Rates(first["device"], trained, evaluated, together, first["steps"])


def ask(child: Child, **request: Any) -> None:
    """Send the arguments of `measure` to a process that runs `serve`."""
    with suppress(OSError):  # it has ended: there will be no answer
        child.pipe.send(request)


def answer(child: Child, until: float) -> dict[str, Any]:
    """The result of `measure` in a process.

    Args:
        child: A process that was asked.
        until: When to stop waiting, by `time.monotonic`.

    Raises:
        RunFailed: The measurement failed, or there is no answer.
    """
    found = {"error": f"no answer within {_PATIENCE:.0f} s"}
    with suppress(EOFError, OSError):
        if child.pipe.poll(max(0.0, until - time.monotonic())):
            found = child.pipe.recv()
    if "error" in found:
        raise RunFailed(f"the speed of this machine could not be measured ({found['error']}); go on without: --no-probe")
    return found


def serve(descriptor: int) -> None:
    """Answer the requests that arrive on a pipe, until its other end is closed."""
    pipe = Connection(descriptor)
    with suppress(EOFError, OSError):
        while True:
            request = pipe.recv()
            try:
                found = measure(**request)
            except Exception as error:  # reported by `answer`
                found = {"error": f"{type(error).__name__}: {one_line(error)[:200]}"}
            pipe.send(found)


def measure(model: str, *, device: str, seconds: float, train_only: bool = False) -> dict[str, Any]:
    """Measure the rates of one network in this process.

    Args:
        model: A name of `gkp.networks.build`; "" only loads the libraries and initialises the device.
        device: "cuda" or "cpu".
        seconds: How long to train for the measurement.
        train_only: Whether to leave out evaluation.

    Returns:
        Images per second "trained" and "evaluated", the name of the "device", "steps" as in `Rates`, and "processes", the
        number that fits the memory of the device.
    """
    import torch

    from gkp.data.dataset import Dataset
    from gkp.evaluation.batches import attack_batch
    from gkp.evaluation.benchmark import benchmark
    from gkp.networks.build import build_model
    from gkp.training.loop import train
    from gkp.training.recipe import Recipe

    gpu = device == "cuda"
    name = torch.cuda.get_device_name(0) if gpu else hardware()["processor"]
    if not model:
        return {"device": name, "ready": bool(torch.zeros(1, device=device).sum() == 0)}
    images = torch.randint(256, (4096 if gpu else 64, 3, 32, 32), dtype=torch.uint8)
    data = Dataset("noise", "train", images, torch.arange(len(images)) % 10, 10, (0.5,) * 3, (0.25,) * 3, pad=4, flip=True)
    data, net = data.to(device), build_model(model, mean=(0.5,) * 3, std=(0.25,) * 3)
    log = train(net, data, Recipe(epochs=2), device=device, progress=False)
    epochs = min(50, int(seconds / log.last["seconds"]))
    if epochs:
        log = train(net, data, Recipe(epochs=epochs), device=device, progress=False)
    trained = len(data) * len(log.rows) / sum(row["seconds"] for row in log.rows) if epochs else len(data) / log.last["seconds"]
    found = {"device": name, "trained": trained, "steps": log.steps, "processes": _MOST}
    if gpu:
        own = torch.cuda.max_memory_reserved() + 2**29  # about what CUDA itself takes in each process
        found["processes"] = max(1, int(torch.cuda.mem_get_info()[1] * 0.9 / (2 * own)))  # evaluations need more than trainings
    if not train_only:
        data = data if gpu else data.first(16)
        size, spent = attack_batch(net, data, device), 0.0
        for _ in range(2 if gpu else 1):  # libraries choose their kernels in the first pass
            spent = benchmark(net, data, protocol="paper", true_labels=True, batch_size=size, progress=False).seconds
        found["evaluated"] = len(data) / max(spent, 1e-6)
    return found
