"""What `gkp.compile` gains: seconds relative to the best stock engine's dense network, in one run, contestants taking turns.

`python tests/bench_engine.py [SECONDS]` prints the rows; tests/bench.py has them among its own. Needs the extras fast, onnx and
bench. ONNX Runtime and OpenVINO get as many threads as we, and OpenVINO float32 (by itself it would take bfloat16 where the
processor has it). Each ratio is of medians; that of minima, which a busy machine moves less, stands beside it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import gkp
from gkp.errors import BadInput, need_extra
from gkp.evaluation.folding import folded
from gkp.networks.build import build_model

SECONDS = 12.0  # of turns for each network and batch
TURN = 0.01
RATES = {"7/16": 7 / 16, "10/16": 10 / 16}
BATCHES = (1, 32, 128)
Row = tuple[str, float, str, float]
Runner = Callable[[Tensor], object]
NO_BUDGET = float("inf")


def rows(seconds: float = SECONDS) -> list[Row]:
    """(what, value, unit, budget) of every measurement; none, and a line that says why, where an extra is missing."""
    try:
        need_extra("fast", "numba")
        need_extra("bench", "onnxruntime", "openvino")
        need_extra("onnx", "onnx", "onnxscript")
    except BadInput as error:
        print(f"engine: not measured, {error}")
        return []
    torch.set_num_threads(1)
    found = []
    for name, budgets in (("resnet56", {"7/16": 0.50, "10/16": 0.38}), ("resnet20", {"7/16": 0.52}), ("vgg16_bn", {})):
        nets = networks(name)
        for batch in BATCHES:
            found += forward_rows(name, nets, batch, budgets if batch != 32 else {}, seconds)
    nets = networks("resnet56")
    return [*found, threads_row(nets["7/16"], seconds), *gradient_rows(nets, seconds), *agreement_rows()]


def networks(name: str) -> dict[str, nn.Module]:
    """The dense network, compact ones, and one from which whole filters went at the MACs of 7/16."""
    net = build_model(name).eval()
    small = {rate: gkp.prune(net, "sr-gkp", rate=value).compact() for rate, value in RATES.items()}
    return {"dense": net, **small, "filters": gkp.prune(net, "l2", rate=RATES["7/16"]).compact()}


def forward_rows(name: str, nets: dict[str, nn.Module], batch: int, budgets: dict[str, float], seconds: float) -> list[Row]:
    """Forward passes on one thread, relative to the dense network in the faster of ONNX Runtime and OpenVINO."""
    x = torch.rand(batch, 3, 32, 32)
    last = x.contiguous(memory_format=torch.channels_last)
    quick = folded(nets["dense"], x)
    runners: dict[str, Runner] = {
        **{f"{kind} {engine}": make(nets[kind], batch) for kind in ("dense", "filters") for engine, make in STOCK.items()},
        "dense torch": nets["dense"],
        "dense torch, folded, channels_last": lambda _: quick(last),
        "7/16 torch": nets["7/16"],
        **{f"{kind} ours": gkp.compile(net, threads=1) for kind, net in nets.items()},
    }
    with torch.inference_mode():
        times = in_turn(runners, x, seconds)
    best = {engine: times[f"dense {engine}"] for engine in STOCK}
    what = f"{name}, batch {batch}"
    found = [
        ratio(f"{what}: {kind} / best stock dense", taken, best, budgets.get(kind.removesuffix(" ours"), NO_BUDGET))
        for kind, taken in times.items()
        if kind not in [f"dense {engine}" for engine in STOCK]
    ]
    limit = 0.75 if name == "resnet56" and budgets else NO_BUDGET
    return [*found, ratio(f"{what}: 7/16 ours / dense ours", times["7/16 ours"], {"": times["dense ours"]}, limit)]


def threads_row(small: nn.Module, seconds: float) -> Row:
    """Two threads relative to one."""
    runners = {str(threads): gkp.compile(small, threads=threads) for threads in (1, 2)}
    with torch.inference_mode():
        times = in_turn(runners, torch.rand(128, 3, 32, 32), seconds)
    return ratio("resnet56, batch 128: 7/16 ours, two threads / one", times["2"], {"": times["1"]}, 0.60)


def gradient_rows(nets: dict[str, nn.Module], seconds: float) -> list[Row]:
    """A forward pass and the gradient of the images, relative to torch on the dense network."""
    quick = folded(nets["dense"], torch.rand(16, 3, 32, 32))
    models: dict[str, nn.Module] = {"torch": nets["dense"], "dense torch, folded, channels_last": quick}
    models |= {f"{kind} ours": gkp.compile(nets[kind], threads=1) for kind in ("dense", *RATES)}

    def both(model: nn.Module) -> Runner:
        def run(x: Tensor) -> None:
            layout = torch.channels_last if model is quick else torch.contiguous_format
            leaf = x.to(memory_format=layout, copy=True).requires_grad_()
            torch.autograd.grad(model(leaf).logsumexp(1).sum(), leaf)

        return run

    times = in_turn({kind: both(model) for kind, model in models.items()}, torch.rand(128, 3, 32, 32), seconds)
    dense = {"": times.pop("torch")}
    what = "resnet56, batch 128, forward + input gradient"
    return [
        ratio(f"{what}: {kind} / torch dense", taken, dense, 0.45 if kind == "7/16 ours" else NO_BUDGET)
        for kind, taken in times.items()
    ]


def agreement_rows() -> list[Row]:
    """The largest difference of logits between the engine and the masked twin, over batches of 1 to 130 images."""
    found = []
    for name in ("resnet20", "resnet56", "vgg16_bn"):
        net = build_model(name)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            net.train()(torch.rand(64, 3, 32, 32))  # now its activations are of the order of 1
        largest = 0.0
        for rate in RATES.values():
            twin = gkp.prune(net.eval(), "sr-gkp", rate=rate)
            fast = gkp.compile(twin.compact())
            with torch.inference_mode():
                for batch in (1, 2, 7, 8, 9, 64, 130):
                    x = torch.rand(batch, 3, 32, 32)
                    largest = max(largest, (fast(x) - twin(x)).abs().max().item())
        found.append((f"{name}: largest difference of logits to the masked twin", largest, "", 1e-4))
    return found


def in_turn(runners: dict[str, Runner], x: Tensor, seconds: float) -> dict[str, list[float]]:
    """Seconds of each contestant, in as many rounds as `seconds` has room for; in each, every one runs for about TURN."""
    times: dict[str, list[float]] = {kind: [] for kind in runners}
    repeats = {}
    for kind, run in runners.items():
        run(x)
        started = time.perf_counter()
        run(x)
        repeats[kind] = max(1, int(TURN / (time.perf_counter() - started)))
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times[next(iter(times))]) < 5:
        for kind, run in runners.items():
            started = time.perf_counter()
            for _ in range(repeats[kind]):
                run(x)
            times[kind].append((time.perf_counter() - started) / repeats[kind])
    return times


def ratio(what: str, taken: list[float], others: dict[str, list[float]], budget: float) -> Row:
    """A row: the median relative to the least of the others' medians."""
    middle = statistics.median(taken) / min(map(statistics.median, others.values()))
    least = min(taken) / min(map(min, others.values()))
    return f"{what} (minima: {least:.2f})", middle, "x", budget


def onnxruntime_of(net: nn.Module, batch: int) -> Runner:
    """The network in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(
            gkp.export(net, Path(folder) / "net.onnx"), options, providers=["CPUExecutionProvider"]
        )
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})


def openvino_of(net: nn.Module, batch: int) -> Runner:
    """The network in OpenVINO."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    with tempfile.TemporaryDirectory() as folder:
        model = openvino.Core().read_model(gkp.export(net, Path(folder) / "net.onnx"))
        model.reshape([batch, 3, 32, 32])
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda x: request.infer({0: x.numpy()}, share_inputs=True)


STOCK: dict[str, Callable[[nn.Module, int], Runner]] = {"ONNX Runtime": onnxruntime_of, "OpenVINO": openvino_of}


def main(seconds: float) -> int:
    """Print the rows; 1 when a budget is missed."""
    missed = 0
    for what, value, unit, budget in rows(seconds):
        missed += value > budget
        limit = "" if budget == NO_BUDGET else f" (at most {budget:g}){'  MISSED' if value > budget else ''}"
        print(f"{what}: {value:.2g} {unit}{limit}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
