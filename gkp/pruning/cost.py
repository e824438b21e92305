"""The cost of a network: parameters, multiply-accumulates by our counter and by the paper's, and measured latency.

Ours counts one MAC for each multiplication of a convolution or linear layer. The paper's tables also count biases, 2 per
BatchNorm output, 1 per ReLU *module* output, and kernel area x outputs for MaxPool2d and AvgPool2d (functional ReLUs, additions
and adaptive pools are free). With that rule the ResNet and VGG numbers of its tables come out to the last digit. Two things to
know: its unpruned ImageNet ResNet-50 has ReLU modules and its rebuilt, pruned one functional ReLUs, so 9.6 M of the 1,397 M
"saved" are ReLUs no longer counted; and VGG-16 unpruned gives 314.433 M where the paper prints 313.433, surely a misprint,
since the pruned 178.184 agrees.

One image is sent through a copy of the network: 10 ms for ResNet-20. (Shapes alone would do, but the first use of the meta
device makes torch import its compiler, 2 s.) MACs mislead on CPUs: a stock grouped convolution of CIFAR width is 2-7 times
slower than the dense one it came from. Look at `latency` before you claim a speed-up.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.networks.classifier import Classifier, GlobalAvgPool
from gkp.pruning.grouped import GroupedKernelConv2d
from gkp.pruning.twin import PrunedModel


@dataclass(frozen=True)
class Cost:
    """The cost of a network.

    Attributes:
        params: Number of parameters.
        macs: Multiply-accumulates for one image.
        paper_macs: The same by the paper's counter.
    """

    params: int
    macs: int
    paper_macs: int


@dataclass(frozen=True)
class Latency:
    """Measured seconds per forward pass of one batch.

    Attributes:
        median: Over the runs.
        iqr: Interquartile range over the runs.
        runs: Number of measured blocks.
        threads: CPU threads used.
        batch_size: Images per batch.
    """

    median: float
    iqr: float
    runs: int
    threads: int
    batch_size: int


def cost(net: nn.Module, *, input_shape: Sequence[int] = (3, 32, 32)) -> Cost:
    """Count parameters and multiply-accumulates; a masked twin counts as the compact network it stands for.

    Args:
        net: Any network.
        input_shape: (C, H, W) of one image.

    Raises:
        BadInput: An image of that shape does not pass through the network.
    """
    return count(_small(copy.deepcopy(net)), input_shape)


def macs_of_layers(net: nn.Module, *, input_shape: Sequence[int] = (3, 32, 32)) -> dict[str, int]:
    """Multiply-accumulates of each convolution and linear layer by name; arguments and errors as in `cost`."""
    small = _small(copy.deepcopy(net)).eval()
    macs: dict[str, int] = {}

    def listen(name: str, layer: nn.Module) -> None:
        def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            macs[name] = macs.get(name, 0) + _count(module, inputs, output)[0]

        layer.register_forward_hook(add)

    for name, module in small.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            listen(name, module)
    _forward_zeros(small, (1, *input_shape))
    return macs


def count(small: nn.Module, input_shape: Sequence[int]) -> Cost:
    """The cost of a dense or compact network, which this spoils (hooks, stubs); it may be on the meta device."""
    small.eval()
    totals = {"macs": 0, "paper_macs": 0}

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        macs, extra = _count(module, inputs, output)
        totals["macs"] += macs
        totals["paper_macs"] += macs + extra

    rebuilt = any(isinstance(module, GroupedKernelConv2d) for module in small.modules())
    uncounted = rebuilt and getattr(small, "relus_uncounted_when_pruned", False)
    for module in small.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None and module.weight.is_meta:
            module.forward = _same  # type: ignore[assignment, method-assign]  # takes half of the time and changes no shape
        if not (uncounted and isinstance(module, nn.ReLU)):
            module.register_forward_hook(add)
    _forward_zeros(small, (1, *input_shape))
    return Cost(sum(p.numel() for p in small.parameters()), **totals)


def latency(
    net: nn.Module, *, input_shape: Sequence[int] = (3, 32, 32), batch_size: int = 1, threads: int = 1, seconds: float = 1.0
) -> Latency:
    """Measure the latency of `net` as it stands: a masked twin is timed as the dense network it is.

    Compare ratios within one run: machines are shared and noisy.

    Args:
        net: Any network; on its own device.
        input_shape: (C, H, W) of one image.
        batch_size: Images per batch.
        threads: CPU threads.
        seconds: About how long to measure.

    Raises:
        BadInput: Such a batch does not pass through the network.
    """
    from torch.utils import benchmark  # late: it looks for a CUDA toolkit and complains where there is none

    frozen = copy.deepcopy(net).eval()
    batch = (batch_size, *input_shape)
    _forward_zeros(frozen, batch)
    x = torch.zeros(batch, device=next(frozen.parameters(), torch.zeros(())).device)
    with torch.inference_mode():
        timer = benchmark.Timer("net(x)", globals={"net": frozen, "x": x}, num_threads=threads)
        measured = timer.blocked_autorange(min_run_time=seconds)
    return Latency(measured.median, measured.iqr, len(measured.times), threads, batch_size)


def _small(net: nn.Module) -> nn.Module:
    net = getattr(net, "compiled_from", net)
    return net.compact() if isinstance(net, PrunedModel) else net


def _same(x: Tensor) -> Tensor:
    return x


def _count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> tuple[int, int]:
    """Multiply-accumulates of one call of `module`, and what the paper's counter counts beside them."""
    if not isinstance(output, Tensor):
        return 0, 0
    outputs = output.numel()
    if isinstance(module, nn.Conv2d | nn.Linear):
        return outputs * module.weight[0].numel(), outputs if module.bias is not None else 0
    if isinstance(module, nn.BatchNorm2d):
        return 0, 2 * outputs
    if isinstance(module, nn.ReLU):
        return 0, outputs
    if isinstance(module, GlobalAvgPool):
        return 0, inputs[0].numel()
    if isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
        kernel = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,) * 2
        return 0, outputs * kernel[0] * kernel[1]
    return 0, 0


def _forward_zeros(net: nn.Module, shape: tuple[int, ...]) -> None:
    """One forward pass. Raises BadInput if such images do not pass; errors of the meta device itself pass through."""
    parameter = next(net.parameters(), torch.zeros(()))
    problem = ""
    if isinstance(net, Classifier) and shape[1] != net.mean.shape[1]:  # its normalisation would broadcast them
        problem = f"it takes {net.mean.shape[1]} channels"
    else:
        try:
            with torch.inference_mode():
                net(torch.zeros(shape, device=parameter.device))
        except (RuntimeError, ValueError) as error:
            if parameter.is_meta and "meta" in str(error).lower():
                raise
            problem = str(error).splitlines()[0]
    if problem:
        raise BadInput(f"images of shape {shape[1:]} do not pass through {type(net).__name__}: {problem}")
