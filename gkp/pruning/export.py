"""Write a network as ONNX, for runtimes other than torch.

Stock runtimes do not profit from grouped kernels at the paper's rates: they run a grouped convolution of CIFAR width far below
the speed of a dense one. In ONNX Runtime on one and two threads of an AMD EPYC, at batches of 1, 32 and 128, the compact
networks of SR-GKP with n = 8 filter groups take, relative to the dense network, in medians of interleaved runs:

| rate | ResNet-20 | ResNet-56 |
|---|---|---|
| 7/16 | 4.1 to 5.8 | 4.4 to 5.7 |
| 10/16 | 2.9 to 3.9 | 3.0 to 4.0 |

`gkp run --profile cifar10 --only speed` measures it again, beside other engines.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp.attacks.network import ordinary_tensors
from gkp.errors import BadInput, need_extra
from gkp.files import one_line, replace_file
from gkp.networks.copies import copy_of
from gkp.networks.wrappers import unwrapped
from gkp.pruning.arguments import checked_shape
from gkp.pruning.masks import unmask
from gkp.pruning.probe import find_input_shape
from gkp.pruning.watched import in_mode


@ordinary_tensors()
def export(net: nn.Module, path: str | Path, *, input_shape: Sequence[int] | None = None) -> Path:
    """Write `net`, in eval mode, as one ONNX file; `net` itself is left as it was.

    The file takes `images` `(N, C, H, W)`, for any N, in the form that the network takes, and gives `logits` `(N, classes)`.
    What is exported is the network as it stands: a masked twin becomes a dense network, its `.compact()` a small one. A small
    file of grouped kernels is not a fast one: at the rate 7/16 with n = 8 groups ONNX Runtime takes 4.1 to 5.8 times as long
    for it as for the dense network (CIFAR ResNets; see the head of this module). Whole filters that go save time.

    Args:
        net: A dense or compact network, or a masked twin; float32.
        path: The file to write; its folder is made.
        input_shape: (C, H, W) of the images, if it is not a usual one.

    Returns:
        The path.

    Raises:
        BadInput: No nn.Module, a network that takes no such images, gives no logits, has other numbers than float32 or looks at
            numbers to decide what to compute, a file that is not named so or cannot be written, or the extra "onnx" is missing.
    """
    need_extra("onnx", "onnx", "onnxscript")
    if not isinstance(net, nn.Module):
        raise BadInput(f"export writes a torch.nn.Module, not {type(net).__name__}")
    if (other := Path(path).suffix) and other != ".onnx":
        raise BadInput(f"{path} would be no {other} file: export writes ONNX; name it .onnx, or use gkp.save_model")
    frozen = in_mode(unmask(copy_of(unwrapped(net)))).cpu()
    dtypes = {tensor.dtype for tensor in (*frozen.parameters(), *frozen.buffers()) if tensor.is_floating_point()}
    if others := dtypes - {torch.float32}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
        raise BadInput(f"{type(net).__name__} has {names} numbers; call .float() before gkp.export")
    shape = checked_shape(input_shape) if input_shape is not None else find_input_shape(frozen)
    images = torch.zeros(2, *shape)  # two: torch.export takes a size of 0 or 1 for a constant
    _check_logits(frozen, images)
    return replace_file(Path(path), _as_onnx(frozen, images))


def _check_logits(net: nn.Module, images: Tensor) -> None:
    try:
        with torch.no_grad():
            logits = net(images)
    except Exception as error:
        what = f"{tuple(images.shape[1:])} images do not pass through {type(net).__name__} ({one_line(error)[:160]})"
        raise BadInput(f"{what}; give input_shape=(C, H, W)") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        raise BadInput(f"{type(net).__name__} does not give logits (N, classes); export a network that does")


def _as_onnx(net: nn.Module, images: Tensor) -> bytes:
    """The bytes of the ONNX file, checked, the same each time."""
    import onnx

    with _quietly():
        try:
            batch = ({0: torch.export.Dim("N", min=1)},)
            program = torch.export.export(net, (images,), dynamic_shapes=batch, strict=False)
            written = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"], external_data=False
            )
            assert written is not None
            model = written.model_proto
            _tidy(model.graph)
            onnx.checker.check_model(model)
            return model.SerializeToString(deterministic=True)
        except Exception as error:
            why = f"torch cannot export {type(net).__name__} for any number of images ({one_line(error)[:200]})"
            raise BadInput(f"{why}; give a network whose operations depend on neither numbers nor batch size") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch prints of a graph that it cannot make, and what torch and onnxscript deprecate in each other."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _tidy(graph: Any) -> None:
    """Call the first axis N and leave out torch's notes, which hold stack traces with paths of this machine."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.ClearField("metadata_props")
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:  # setting it would clear a fixed size
                dim.dim_param = dim.dim_param.replace(symbol, "N")
    for part in (graph, *graph.node, *graph.initializer):
        part.ClearField("metadata_props")
