"""The cost of a network: parameters, multiply-accumulates by our counter and by the paper's, and measured latency.

Ours counts one MAC for each multiplication of a convolution (1-d, 2-d, 3-d, transposed, as a layer or a function), a linear
layer, a matrix product or attention, operation by operation (torch.utils.flop_counter); operations without a formula there are
listed in `Cost.left_out`. The paper's tables also count biases, 2 per BatchNorm output, 1 per ReLU *module* output, and kernel
area x outputs for MaxPool2d and AvgPool2d (functional ReLUs, additions and adaptive pools are free). With that rule the ResNet
and VGG numbers of its tables come out to the last digit. Two things to know: its unpruned ImageNet ResNet-50 has ReLU modules
and its rebuilt, pruned one functional ReLUs, so 9.6 M of the 1,397 M "saved" are ReLUs no longer counted; and VGG-16 unpruned
gives 314.433 M where the paper prints 313.433, surely a misprint, since the pruned 178.184 agrees.

One image is sent through a copy of the network, in which the layers of a network of ours compute nothing: 3 ms for ResNet-20.
(Not on the meta device, whose first use makes torch import its compiler, 1.3 s.) MACs mislead on CPUs: a stock grouped
convolution of CIFAR width is 2-7 times slower than the dense one it came from. Look at `latency` before you claim a speed-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gkp.networks.classifier import GlobalAvgPool
from gkp.networks.copies import copy_of, skeleton_of
from gkp.networks.wrappers import unwrapped
from gkp.pruning.arguments import check_measured
from gkp.pruning.grouped import GroupedKernelConv2d
from gkp.pruning.outline import is_as_built, is_ours, stubbed
from gkp.pruning.plan import replace_layers
from gkp.pruning.probe import image_for, send, undisturbed
from gkp.pruning.twin import PrunedModel
from gkp.pruning.watched import Dispatched, in_mode


@dataclass(frozen=True)
class Cost:
    """The cost of a network.

    Attributes:
        params: Number of parameters.
        macs: Multiply-accumulates for one image.
        paper_macs: The same by the paper's counter.
        left_out: Operations with multiplications that are not counted, each once.
    """

    params: int
    macs: int
    paper_macs: int
    left_out: tuple[str, ...] = field(default=(), compare=False)


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
    return count(_small(net), input_shape)


def macs_of_layers(net: nn.Module, *, input_shape: Sequence[int] = (3, 32, 32)) -> dict[str, int]:
    """Multiply-accumulates of each convolution and linear layer by name; arguments and errors as in `cost`."""
    return _macs_of(stubbed(in_mode(_small(net))), input_shape)


def _macs_of(small: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """The same of a network that this spoils."""
    macs: dict[str, int] = {}

    def listen(name: str, layer: nn.Module) -> None:
        def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            macs[name] = macs.get(name, 0) + _macs(module, output)

        layer.register_forward_hook(add)

    for name, module in small.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            listen(name, module)
    with _asking():
        send(small, input_shape)
    return macs


def count(small: nn.Module, input_shape: Sequence[int]) -> Cost:
    """The cost of a dense or compact network, which this spoils (hooks, stubs); it may be on the meta device."""
    in_mode(small)
    extras = {"paper": 0}

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        extras["paper"] += _paper_extra(module, inputs, output)

    rebuilt = any(isinstance(module, GroupedKernelConv2d) for module in small.modules())
    uncounted = rebuilt and getattr(small, "relus_uncounted_when_pruned", False)
    for module in stubbed(small).modules():
        if not (uncounted and isinstance(module, nn.ReLU)) and not isinstance(module, torch.jit.ScriptModule):  # no hooks
            module.register_forward_hook(add)
    params = sum(p.numel() for p in small.parameters())
    if is_ours(small):  # convolutions and linear layers multiply alone
        macs = sum(_macs_of(small, input_shape).values())
        return Cost(params, macs, macs + extras["paper"], ())
    with _asking(), _Counting() as counting:
        send(small, input_shape)
    macs = counting.flops // 2
    return Cost(params, macs, macs + extras["paper"], tuple(counting.left_out))


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
        BadInput: Such a batch does not pass through the network, or a number that makes no sense.
    """
    check_measured(seconds, batch_size=batch_size, threads=threads)
    from torch.utils import benchmark  # late: it looks for a CUDA toolkit and complains where there is none

    frozen = in_mode(copy_of(net))
    send(frozen, input_shape, batch_size)
    x = image_for(frozen, input_shape, batch_size)
    with torch.inference_mode():
        timer = benchmark.Timer("net(x)", globals={"net": frozen, "x": x}, num_threads=threads)
        measured = timer.blocked_autorange(min_run_time=seconds)
    return Latency(measured.median, measured.iqr, len(measured.times), threads, batch_size)


def _small(net: nn.Module) -> nn.Module:
    """A copy of the network inside wrappers, compact if it is a masked twin, or where it has one inside."""
    net = unwrapped(net)
    if isinstance(net, PrunedModel):
        return net.compact()
    if is_as_built(net):
        return skeleton_of(net)
    small = copy_of(net)
    replace_layers(small, {name: part.compact() for name, part in small.named_modules() if isinstance(part, PrunedModel)})
    return small


_aten = torch.ops.aten
# Operations with multiplications for which the library has no formula.
_NO_FORMULA = frozenset(
    "mkldnn_rnn_layer _thnn_fused_lstm_cell _thnn_fused_gru_cell _cudnn_rnn miopen_rnn _trilinear _cdist_forward _fft_r2c "  # noqa: SIM905
    "_fft_c2r _fft_c2c _transformer_encoder_layer_fwd _native_multi_head_attention _weight_int4pack_mm _int_mm "
    "_scaled_dot_product_flash_attention_for_cpu _addmm_activation addbmm conv_tbc _grouped_mm _lu_with_info matrix_exp "
    "_sparse_addmm _sparse_sparse_matmul sparse_sampled_addmm "
    "cholesky cholesky_inverse cholesky_solve triangular_solve ormqr geqrf lu_solve".split()
)
_OF_VALUES = frozenset(("linalg_vector_norm", "linalg_cross"))  # value by value; other linear algebra has matrix products


def _multiplies(name: str) -> bool:
    """Whether an operation of torch has multiplications of matrices and no formula."""
    return name in _NO_FORMULA or (name.lstrip("_").startswith("linalg_") and name not in _OF_VALUES)


class _Counting(Dispatched):
    """Counts the floating-point operations of what runs within, two to a MAC."""

    def __init__(self) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry  # loads triton, which only a count needs

        self._formulas = flop_registry
        self.flops = 0
        self.left_out: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func._overloadpacket
        if packet not in self._formulas:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        output = func(*args, **kwargs)
        if packet in self._formulas:
            self.flops += self._formulas[packet](*args, **kwargs, out_val=output)
        elif packet in (_aten.mv, _aten.addmv, _aten.dot):
            matrix = args[1] if packet is _aten.addmv else args[0]
            self.flops += 2 * matrix.numel()
        elif func.namespace not in ("aten", "prim", "prims") or _multiplies(packet.__name__):
            self.left_out[f"{func.namespace}.{packet.__name__}"] = None
        return output


@contextmanager
def _asking() -> Iterator[None]:
    """One forward pass in which attention is made of matrix products, so that they are seen."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with undisturbed(), torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _macs(module: nn.Module, output: Any) -> int:
    """Multiply-accumulates of one call of a convolution or linear layer."""
    assert isinstance(module.weight, Tensor)
    return int(output.numel() * module.weight[0].numel()) if isinstance(output, Tensor) else 0


def _paper_extra(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    """What the paper's counter counts of one call of `module` beside its multiply-accumulates."""
    if not isinstance(output, Tensor):
        return 0
    outputs = output.numel()
    if isinstance(module, nn.Conv2d | nn.Linear):
        return outputs if module.bias is not None else 0
    if isinstance(module, nn.BatchNorm2d):
        return 2 * outputs
    if isinstance(module, nn.ReLU):
        return outputs
    if isinstance(module, GlobalAvgPool):
        return int(inputs[0].numel())
    if isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
        kernel = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,) * 2
        return int(outputs * kernel[0] * kernel[1])
    return 0
