"""Losses that gradient attacks climb, each (N, K) logits and (N,) labels to (N,) losses, and how a network is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.errors import BadInput, RunFailed
from gkp.files import one_line

Loss = Callable[[Tensor, Tensor], Tensor]  # (N, K) logits, (N,) labels -> (N,) losses to climb


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log of the probability of each label (N,).

    In float32 the probability of a confident prediction rounds to 1, which bends the gradient: in float64 FGSM at 0.1 in the
    paper protocol changes 145 of 10,000 outcomes of the authors' ResNet-20 (accuracy 19.07 % for 19.78 %). It is kept as the
    paper and the attack libraries compute it.
    """
    return F.cross_entropy(logits, y, reduction="none")


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The difference of logits ratio of each label (N,), blind to the scale of the logits (Croce & Hein 2020, equation 6).

    -(z_y - largest other z) / (z_1st - z_3rd), sorted from the largest; above 0 means misclassified.
    Raises BadInput below three classes.
    """
    check_classes("the difference of logits ratio", logits.shape[1], 3)
    largest = logits.topk(3, dim=1).values
    label = logits.gather(1, y[:, None])[:, 0]
    other = largest[:, 0].where(logits.argmax(1) != y, largest[:, 1])
    return (other - label) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The same towards one class (N,), `target` (N,): -(z_y - z_target) / (z_1st - (z_3rd + z_4th) / 2) (equation 7).

    Raises BadInput below four classes.
    """
    check_classes("the targeted difference of logits ratio", logits.shape[1], 4)
    largest = logits.topk(4, dim=1).values
    label, wanted = logits.gather(1, y[:, None])[:, 0], logits.gather(1, target[:, None])[:, 0]
    return (wanted - label) / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + _TINY)


def check_classes(what: str, classes: int, needed: int) -> None:
    """Raises BadInput when `what` needs more classes than there are."""
    if classes < needed:
        raise BadInput(f"{what} needs {needed} classes, the network has {classes}; use cross-entropy, e.g. apgd-ce")


_TINY = 1e-12  # equal logits give 0, not NaN
LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr}
Model = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> logits (N, K)
# CPU convolutions sum in another order for very small batches (below 4 images on one thread, 12 on two: measured), which
# changes the last bits and, through the sign, whole pixels. Batches smaller than this are topped up with copies.
MIN_ROWS = 16
HALF = (torch.float16, torch.bfloat16)
ALIKE = 1e-4  # logits of one image, asked twice, may differ by this share of the largest


def logits_of(model: Model, x: Tensor) -> Tensor:
    """Logits (N, K) of `x`, no graph kept. Raises BadInput when they are not finite."""
    with torch.no_grad():
        return _checked_logits(asked(model, _topped_up(x)), len(x))


def asked(model: Model, x: Tensor) -> Tensor:
    """The logits of images `x`, which stay as they are whatever `model` does to its input.

    A network in half precision gets the images in its own type and its logits come back in float32, so that everything around
    it is computed in float32. Gradients of a confident prediction are smaller than what float16 can hold: each image's is
    scaled to 1 on its way into the network and back at the images.

    Raises BadInput when it does not take them.
    """
    given = x.clone()
    rows: list[Tensor] = []  # what the gradient of each row of logits was divided by, once it is known
    if given.requires_grad:
        given.register_hook(lambda gradient: gradient * _like(rows[0], gradient) if rows else None)
    own = home(model)[1] if isinstance(model, nn.Module) else x.dtype
    try:
        logits = model(given.to(own) if own in HALF else given)
    except (BadInput, RunFailed, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a foreign forward says
        raise BadInput(f"the network does not take {_named(x)}: {one_line(error)[:200]}") from error
    if not isinstance(logits, Tensor) or logits.dtype not in HALF:
        return logits

    def scaled(gradient: Tensor) -> Tensor:
        rows[:] = [gradient.abs().flatten(1).amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)]
        return gradient / _like(rows[0], gradient)

    logits = logits.float()
    if logits.requires_grad:
        logits.register_hook(scaled)
    return logits


def _like(rows: Tensor, tensor: Tensor) -> Tensor:
    """A number for each row `(N,)`, broadcastable to `tensor` `(N, ...)`."""
    return rows.view(-1, *[1] * (tensor.ndim - 1))


def apart_from_others(model: Model, x: Tensor, logits: Tensor | None = None) -> float:
    """The change of the first images' logits when they are asked alone and in another order, as a share of the largest.

    BatchNorm without running statistics and noise do that; otherwise it is 0, or rounding.
    logits: Those of `x`, at most MIN_ROWS images, if they are known.
    """
    x = x[:MIN_ROWS]
    logits = logits_of(model, x) if logits is None else logits
    alone, turned = logits_of(model, x[:1]), logits_of(model, x.flip(0)).flip(0)
    apart = torch.maximum((alone - logits[:1]).abs().max(), (turned - logits).abs().max())
    return float((apart / logits.abs().max().clamp_min(torch.finfo(logits.dtype).tiny)).detach())


def logits_and_gradient(model: Model, x: Tensor, y: Tensor | None, *, loss: str = "ce") -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of each image's loss with respect to that image, from one pass.

    Only the gradient of the images is computed: the parameters' own stay as they are.

    Args:
        model: Images (N, C, H, W) to logits (N, K), in eval mode.
        x: Images (N, C, H, W).
        y: Labels (N,), or None for the network's own predictions.
        loss: A key of LOSSES.

    Returns:
        Logits (N, K) and gradients (N, C, H, W).

    Raises:
        BadInput: The loss is unknown, or the network's logits or gradients are not finite.
    """
    if loss not in LOSSES:
        raise BadInput(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
    logits, _, gradient = climb(model, x, y, LOSSES[loss])
    return logits, gradient


def climb(model: Model, x: Tensor, y: Tensor | None, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, K), losses (N,) and the gradient (N, C, H, W) of each loss, as `logits_and_gradient` for any loss."""
    with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
        leaf = _topped_up(x).detach().clone().requires_grad_(True)
        logits = _checked_logits(asked(model, leaf), len(x))
        labels = logits.detach().argmax(1) if y is None else y.clone()
        if not logits.requires_grad:
            raise BadInput("the logits carry no gradient; give a network that does not detach them or wrap itself in no_grad")
        losses = loss(logits, labels)
        try:
            (gradient,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # reentrant checkpoints, operations without a derivative
            raise BadInput(f"the network gives no gradient of the images: {one_line(error)[:200]}") from error
    if gradient is None:
        raise BadInput("the logits do not depend on the images by any differentiable path; gradient attacks need one")
    if not bool(gradient.isfinite().all()):
        raise BadInput("the gradient of the images has NaN or Inf; check the network's weights and BatchNorm variances")
    return logits.detach(), losses.detach(), gradient[: len(x)]


def input_gradient(model: Model, x: Tensor, y: Tensor, loss: str = "ce") -> Tensor:
    """The gradient (N, C, H, W) of each image's loss with respect to that image; see `logits_and_gradient`."""
    return logits_and_gradient(model, x, y, loss=loss)[1]


def predictions_and_losses(model: Model, x: Tensor, y: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Predicted classes (N,) and cross-entropy (N,)."""
    logits = torch.cat([logits_of(model, part) for part in x.split(batch_size)])
    return logits.argmax(1), LOSSES["ce"](logits, y).to(x.dtype)


def home(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device of the network and the floating-point type it computes in (CPU and float32 if it has no tensors)."""
    for tensor in chain(net.parameters(), net.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def images_home(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and the type for images of `net`: its own, or float32 for a network in half precision."""
    device, dtype = home(net)
    return device, torch.float32 if dtype in HALF else dtype


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Within, new tensors take gradients and hold numbers, also under torch.inference_mode and torch.device("meta")."""
    with torch.inference_mode(False), torch.device("cpu") if torch.get_default_device().type == "meta" else nullcontext():
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode and in `full_precision`; afterwards every module is in the mode it was in.

    Raises BadInput if it is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"the model is a {type(model).__name__}; give a torch.nn.Module that maps images in [0, 1] to logits")
    modes = [(module, module.training) for module in model.modules()]
    try:
        with suppress(NotImplementedError):  # an exported network has one mode
            model.eval()
        with full_precision(), ordinary_tensors():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 is float32 for a while, and a GPU takes the same kernels each time; afterwards torch's settings are as before.

    By default torch lets convolutions of a GPU round their inputs to 10 bits (TF32): enough to change the sign of a small
    gradient, and so the pixels of an attack. cuDNN is held to its deterministic kernels and does not choose them by a race.
    On a CPU nothing changes.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    wanted: list[tuple[Any, str, object]] = [(cudnn, "benchmark", False), (cudnn, "deterministic", True)]
    wanted.append((cudnn, "allow_tf32", False))
    if hasattr(cudnn, "conv"):  # since torch 2.9
        wanted += [(cudnn.conv, "fp32_precision", "ieee"), (cudnn.rnn, "fp32_precision", "ieee")]
    try:
        usual = torch.get_float32_matmul_precision()
    except RuntimeError:  # the user has set the newer fp32_precision, which the older setting cannot say
        usual = "highest"
        wanted.append((matmul, "fp32_precision", "ieee"))
    changes: list[tuple[Any, str, object, object]] = []
    for where, name, value in wanted:
        with suppress(RuntimeError):  # likewise of allow_tf32
            changes.append((where, name, getattr(where, name), value))
    try:
        for where, name, _, value in changes:
            setattr(where, name, value)
        if usual != "highest":
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        for where, name, before, _ in changes:
            setattr(where, name, before)
        if usual != "highest":
            torch.set_float32_matmul_precision(usual)


def probe(model: Model, x: Tensor) -> int:
    """The number of logits that `model` gives the first image of `x`. Raises BadInput when it does not take such images."""
    return logits_of(model, x[:1]).shape[1]


def _named(x: Tensor) -> str:
    return f"{x.dtype} images of shape {tuple(x.shape[1:])} on {x.device}, {len(x)} at once"


def _checked_logits(logits: Tensor, n: int) -> Tensor:
    """The first `n` rows, the others being copies."""
    if isinstance(logits, Tensor) and not logits.is_floating_point():
        raise BadInput(f"the network gives {logits.dtype} numbers; it must give logits, which are floats")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) < n or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise BadInput(f"the network gives {shape} for a batch of images; it must give logits (N, classes), classes >= 2")
    if not bool(logits.isfinite().all()):
        raise BadInput("the network gives logits with NaN or Inf; check its weights and that it takes images in [0, 1]")
    return logits[:n]


def _topped_up(x: Tensor) -> Tensor:
    n = len(x)
    return x if n >= MIN_ROWS or n == 0 else x[torch.arange(MIN_ROWS, device=x.device) % n]
