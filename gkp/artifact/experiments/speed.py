"""The stage "speed": the speed of a network, dense and pruned, in stock engines and in `gkp.compile`.

Seconds differ between runs and machines. Only ratios can be compared; they are taken within a round, in which all forms and
engines are measured in turn. The arguments of the stage are explained in `gkp.artifact.experiments.stages`. Cost: about a
minute for ResNet-20 and three for ResNet-56, half of it for export.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gkp.artifact.experiments.entry import figures_of
from gkp.checkpoints import load_model
from gkp.engine.compile import compile as compile_net
from gkp.evaluation.folding import folded
from gkp.pruning.export import export
from gkp.pruning.prune import prune

if TYPE_CHECKING:
    from gkp.artifact.experiments.compute import Context

BLOCK = 0.02  # seconds of one measurement at least, in which the pass is repeated
FASTEST = "gkp"  # the engine of this project; all others are stock engines
Pass = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Form:
    """A network prepared for every engine.

    Attributes:
        net: The network, in eval mode.
        images: Images (N, C, H, W), as many as the largest batch.
        onnx: The bytes of its ONNX file; None where the extra "onnx" is not installed.
    """

    net: nn.Module
    images: Tensor
    onnx: bytes | None


def _torch(form: Form, threads: int) -> Pass:
    return form.net


def _torch_folded(form: Form, threads: int) -> Pass:
    return folded(form.net, form.images)


def _onnxruntime(form: Form, threads: int) -> Pass:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads disturb others
    session = onnxruntime.InferenceSession(form.onnx, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"images": x.numpy()})[0]


def _openvino(form: Form, threads: int) -> Pass:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    ready = core.compile_model(core.read_model(form.onnx), "CPU", options)
    return lambda x: ready(x.numpy())[0]


def _gkp(form: Form, threads: int) -> Pass:
    return compile_net(form.net, threads=threads)


ONNX = ("onnx", "onnxscript")
ENGINES: dict[str, tuple[tuple[str, ...], Callable[[Form, int], Pass]]] = {  # name -> packages needed, preparing function
    "torch": ((), _torch),
    "torch, folded": ((), _torch_folded),  # channels_last, BatchNorm folded, grouped kernels dense
    "ONNX Runtime": ((*ONNX, "onnxruntime"), _onnxruntime),
    "OpenVINO": ((*ONNX, "openvino"), _openvino),
    FASTEST: (("numba",), _gkp),
}


def installed(packages: Iterable[str]) -> bool:
    """Whether all of these packages are installed."""
    return all(map(find_spec, packages))


def speed(params: Mapping[str, Any], parents: Mapping[str, Path], folder: Path, context: Context) -> dict[str, Any]:
    """Time a forward pass of every form in every installed engine, on one thread and on `context.threads`.

    Returns:
        "speed": the rows of `measure`; "versions" of the engines; "missing": engines that are not installed.
    """
    net, parent = load_model(parents["net"] / "model"), figures_of(parents["net"])
    forms = forms_of(net, params["rates"], params["groups"], tuple(parent["input_shape"]))
    threads = sorted({1, max(1, context.threads)})
    rows = measure(forms, tuple(parent["input_shape"]), params["batch_sizes"], threads, params["rounds"])
    packages = {package for needed, _ in ENGINES.values() for package in (*needed, "torch") if find_spec(package)}
    return {
        "model": parent["model"],
        "groups": params["groups"],
        "speed": rows,
        "versions": {package: version(package) for package in sorted(packages)},
        "missing": [name for name, (needed, _) in ENGINES.items() if not installed(needed)],
    }


def forms_of(net: nn.Module, rates: Iterable[float], groups: int, shape: tuple[int, ...]) -> dict[str, nn.Module]:
    """The compact forms of a network: dense, and at each rate with grouped kernels and with fewer filters of the same MACs.

    Args:
        net: The dense network.
        rates: Shares of kernels removed.
        groups: Number of filter groups.
        shape: (C, H, W) of an image.

    Returns:
        Name, such as "dense" or "grouped, 7/16" or "filters, 7/16" -> network in eval mode.
    """
    forms = {"dense": net}
    for rate in rates:
        name = f"{16 * rate:g}/16"
        forms[f"grouped, {name}"] = prune(net, "sr-gkp", rate=rate, groups=groups, input_shape=shape).compact()
        forms[f"filters, {name}"] = prune(net, "l1norm-b", rate=rate, input_shape=shape).compact()
    return {name: form.eval() for name, form in forms.items()}


def measure(
    forms: Mapping[str, nn.Module], shape: tuple[int, ...], batch_sizes: Iterable[int], threads: Iterable[int], rounds: int
) -> list[dict[str, Any]]:
    """Time every form in every installed engine.

    Args:
        forms: Name -> network in eval mode; one of them is "dense".
        shape: (C, H, W) of an image.
        batch_sizes: Images per pass.
        threads: Numbers of threads.
        rounds: Measurements of each.

    Returns:
        A row for each form, engine, threads and batch_size, with seconds (median over rounds), fastest (minimum), ratio (median
        over rounds of its time to that of the dense network in the best stock engine), and difference (largest difference of
        its logits to those of torch).
    """
    rows: list[dict[str, Any]] = []
    sizes = tuple(batch_sizes)
    images = torch.rand(max(sizes), *shape, generator=torch.Generator().manual_seed(0))
    ready = {name: Form(net, images, _onnx_file(net, shape) if installed(ONNX) else None) for name, net in forms.items()}
    for count in threads:
        with torch.inference_mode(), _torch_threads(count):
            made = {
                (name, engine): make(form, count)
                for name, form in ready.items()
                for engine, (needed, make) in ENGINES.items()
                if installed(needed)
            }
            for size in sizes:
                took = _in_turn(made, images[:size], rounds)
                for (form, engine), seconds in took.items():
                    where = {"form": form, "engine": engine, "threads": count, "batch_size": size}
                    rest = {"seconds": statistics.median(seconds), "fastest": min(seconds), "ratio": _ratio(seconds, took)}
                    difference = _difference(made[form, engine], forms[form], images[:size])
                    rows.append({**where, **rest, "difference": difference})
    return rows


def _onnx_file(net: nn.Module, shape: tuple[int, ...]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return export(net, Path(folder) / "net.onnx", input_shape=shape).read_bytes()


def _in_turn(made: Mapping[tuple[str, str], Pass], x: Tensor, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of a pass of each in each round, measured in turn."""
    repeats = {}
    for key, run in made.items():
        run(x)  # warm up
        repeats[key] = math.ceil(BLOCK / max(_seconds(run, x, 1), 1e-6))
    took: dict[tuple[str, str], list[float]] = {key: [] for key in made}
    for _ in range(rounds):
        for key, run in made.items():
            took[key].append(_seconds(run, x, repeats[key]))
    return took


def _seconds(run: Pass, x: Tensor, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run(x)
    return (time.perf_counter() - started) / repeats


def _ratio(seconds: list[float], took: Mapping[tuple[str, str], list[float]]) -> float:
    """The median over rounds of the time relative to the dense network in the best stock engine of the round."""
    stock = [times for (form, engine), times in took.items() if form == "dense" and engine != FASTEST]
    return statistics.median(mine / min(theirs) for mine, *theirs in zip(seconds, *stock, strict=True))


def _difference(run: Pass, net: nn.Module, x: Tensor) -> float:
    return float((torch.as_tensor(run(x)) - net(x)).abs().max())


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
