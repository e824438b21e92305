"""Measure in about 20 seconds what a GPU does: images a second of each network, and how many processes are best at once.

The processes of a run do not share Python, so the probe starts some too: one measures each network alone, then two, four and
eight train side by side as long as that raises their throughput and memory lasts. Small networks share a GPU best under
NVIDIA's multi-process service (`nvidia-cuda-mps-control -d`), without which they take turns; whichever there is is measured.
The result is kept for this machine in the user's cache folder.
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

_MOST = 8  # processes side by side
_WORTH = 1.05  # a doubling of the processes that gains less ends the search
_SECONDS = 0.5  # of each measurement
_PATIENCE = 120.0  # seconds after which a probe is given up


def has_gpu() -> bool:
    """Whether there seems to be a GPU that this process may use; torch is not asked, since it takes seconds to load."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and bool(glob("/dev/nvidia[0-9]*") or glob("/dev/dxg"))


def rates_for(cells: Iterable[Cell], asked: bool | None) -> Rates | None:
    """The rates of this machine for the networks of these cells, measured if they are not known.

    Args:
        cells: Those to be computed.
        asked: Whether to probe; None: where there is a GPU and all cells are meant for one.
    """
    found = list(cells)
    models = sorted({images.model for cell in found if (images := images_of(replace(cell, threads=0))) is not None})
    wanted = has_gpu() and all(cell.threads == 0 for cell in found) if asked is None else asked
    return cached(models, "cuda" if has_gpu() else "cpu") if wanted and models else None


def cached(models: Sequence[str], device: str) -> Rates:
    """The rates for these networks, from the cache of this machine as far as it has them."""
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
    """Measure these networks one by one, and the first of them in several processes side by side.

    Args:
        models: Names of `gkp.networks.build`.
        device: "cuda" or "cpu".
        most: Processes side by side at most.

    Raises:
        RunFailed: A process did not answer, or could not train the network.
    """
    children = [Child(serve, quiet=True) for _ in range(max(1, min(most, cores())))]
    until = time.monotonic() + _PATIENCE
    try:
        request = {"device": device, "seconds": _SECONDS}
        for child in children[1:]:
            ask(child, model="", **request)  # loads what it needs while the first one measures
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
    """What `measure` returned in the process.

    Args:
        child: A process that was asked.
        until: When it is given up, by `time.monotonic`.

    Raises:
        RunFailed: It failed, or there is no answer.
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
            except Exception as error:  # to be told where it is read
                found = {"error": f"{type(error).__name__}: {one_line(error)[:200]}"}
            pipe.send(found)


def measure(model: str, *, device: str, seconds: float, train_only: bool = False) -> dict[str, Any]:
    """Rates of one network in this process; without a name nothing but the libraries and the device are made ready."""
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
        own = torch.cuda.max_memory_reserved() + 2**29  # what CUDA itself takes of a process, about
        found["processes"] = max(1, int(torch.cuda.mem_get_info()[1] * 0.9 / (2 * own)))  # evaluations take more than trainings
    if not train_only:
        data = data if gpu else data.first(16)
        size, spent = attack_batch(net, data, device), 0.0
        for _ in range(2 if gpu else 1):  # the second time libraries have chosen their kernels
            spent = benchmark(net, data, protocol="paper", true_labels=True, batch_size=size, progress=False).seconds
        found["evaluated"] = len(data) / max(spent, 1e-6)
    return found
