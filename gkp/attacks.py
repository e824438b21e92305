"""Attacks as plain functions: `attack(model, x, y, *, eps, ...)` gives images near `x` that `model` gets wrong.

| attack | what it does | cost per image |
|---|---|---|
| `fgsm` | one step along the sign of the gradient (Goodfellow et al. 2015) | 1 gradient |
| `pgd` | many small steps, each projected back into the eps ball (Madry et al. 2018) | up to `steps` gradients a restart |

Untargeted, white-box, cross-entropy, Linf or L2. `gkp.attack` is the checked entrance: it puts the network in eval mode and
leaves it as it found it. The plain functions check their options but neither the images nor the mode: the caller has done that.
What happens to an image depends on the image, its id and the seed, never on its neighbours or the batch size.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.errors import BadInput

Model = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> logits (N, K)
Bounds = tuple[float, float]

NORMS = ("linf", "l2")
# (N, K) logits, (N,) labels -> (N,) losses to climb. In float32 the probability of a confident prediction rounds to 1, which
# bends the gradient: in float64 FGSM at 0.1 in the paper protocol changes 145 of 10,000 outcomes of the authors' ResNet-20
# (accuracy 19.07 % for 19.78 %). Cross-entropy is kept as the paper and the attack libraries compute it.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
}
# CPU convolutions sum in another order for very small batches (below 4 images on one thread, 12 on two: measured), which
# changes the last bits and, through the sign, whole pixels. Batches smaller than this are topped up with copies.
MIN_ROWS = 16


def fgsm(model: Model, x: Tensor, y: Tensor, *, eps: float, norm: str = "linf", bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """Images of the same shape as `x`, one step of length `eps` away along the gradient (Goodfellow et al. 2015).

    x: (N, C, H, W) within `bounds`; y: (N,) labels; eps: radius in the units of `x`, e.g. 8 / 255 for pixels.
    norm: "linf" (the sign of the gradient) or "l2" (the gradient scaled to unit length). Where the gradient is zero the image
    stays. Raises BadInput for a network that gives NaN or no gradient.
    """
    return single_step(x, input_gradient(model, x, y), eps=eps, norm=norm, bounds=bounds)


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step: float | None = None,
    steps: int = 20,
    restarts: int = 1,
    random_start: bool = True,
    norm: str = "linf",
    seed: int = 0,
    ids: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    drop_fallen: bool = True,
    batch_size: int | None = None,
) -> Tensor:
    """Images of the same shape as `x`, within `eps` of it, after projected gradient ascent (Madry et al. 2018).

    x: (N, C, H, W) within `bounds`; y: (N,) labels; eps, step: in the units of `x`. The default step is 2.5 * eps / steps, as
    in Madry et al. section 5: from any start the far side of the ball is in reach, with moves to spare along its surface.
    random_start: from a point drawn uniformly from the ball (then cut to `bounds`) by (seed, restart, id) alone.
    ids: (N,) integers >= 0, who each image is; its position by default. restarts: ascents from different starts; of an image
    that never falls the iterate of highest loss comes back.
    drop_fallen: an image leaves at the first iterate that is misclassified, which is what comes back; one misclassified
    beforehand comes back unchanged. False: every image makes all its steps, as most libraries do.
    batch_size: at most so many images at once, refilled as images leave; all of them by default.
    Raises BadInput for options out of range and for a network that gives NaN or no gradient.
    """
    _check_pgd(step=step, steps=steps, restarts=restarts, random_start=random_start, batch_size=batch_size)
    _known_norm(norm)
    if not len(x):
        return x.clone()
    ids = torch.arange(len(x)) if ids is None else torch.as_tensor(ids)
    step, batch_size = 2.5 * eps / steps if step is None else step, batch_size or len(x)
    found, rows = x.clone(), torch.arange(len(x), device=x.device)
    if drop_fallen:
        rows = rows[_losses(model, x, y, batch_size)[0] == y]
    best_down = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    best_loss = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
    for restart in range(restarts):
        if not len(rows):
            break

        def start(chosen: Tensor, rows: Tensor = rows, restart: int = restart) -> Tensor:
            here, who = x[rows[chosen]], ids[rows[chosen].to(ids.device)]
            return _random_start(here, who, eps, norm, bounds, seed, restart) if random_start else here

        candidate = _ascend(
            model,
            x[rows],
            y[rows],
            start,
            eps=eps,
            step=step,
            steps=steps,
            norm=norm,
            bounds=bounds,
            drop_fallen=drop_fallen,
            batch_size=batch_size,
        )
        if restarts == 1:
            found[rows] = candidate
            break
        predicted, loss = _losses(model, candidate, y[rows], batch_size)
        down = predicted != y[rows]
        better = (down & ~best_down[rows]) | ((down == best_down[rows]) & (loss > best_loss[rows]))
        winners = rows[better]
        found[winners], best_down[winners], best_loss[winners] = candidate[better], down[better], loss[better]
        rows = rows[~down] if drop_fallen else rows
    return found


ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd}


def attack(model: nn.Module, x: Tensor, y: Tensor, name: str, *, eps: float | str, seed: int = 0, **options: Any) -> Tensor:
    """Images of the same shape as `x`, within `eps` of it, found by the attack `name` ("fgsm", "pgd").

    x: (N, C, H, W) float in [0, 1]; y: (N,) int64 true labels; eps: radius in pixel units, 8 / 255 or "8/255".
    options: the attack's own, e.g. steps=20, norm="l2". The network is put in eval mode for the attack and restored, module by
    module; parameters, their .grad, buffers and the global generators stay as they are.
    Raises BadInput for anything that does not fit: name, option, eps, images, labels, a network without finite logits.
    """
    check_options(name, options)
    options = {**options, "eps": parse_eps(eps, norm=options.get("norm", "linf"))}
    check_images(x, y, options.get("bounds", (0.0, 1.0)))
    if "ids" in options:
        options["ids"] = _checked_ids(options["ids"], len(x))
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise BadInput(f"seed must be an integer in 0..2**64-1, not {seed!r}")
    if "seed" in inspect.signature(ATTACKS[name]).parameters:
        options["seed"] = int(seed)
    with evaluating(model):
        check_labels(y, probe(model, x))
        return ATTACKS[name](model, x.detach(), y, **options)


# --- the network, asked ---------------------------------------------------------------------------------------------


def logits_of(model: Model, x: Tensor) -> Tensor:
    """Logits (N, K) of `x`, no graph kept. Raises BadInput when they are not finite."""
    with torch.no_grad():
        return _checked_logits(model(_topped_up(x)), len(x))


def logits_and_gradient(model: Model, x: Tensor, y: Tensor | None, *, loss: str = "ce") -> tuple[Tensor, Tensor]:
    """Logits (N, K) and the gradient (N, C, H, W) of each image's loss with respect to that image, from one pass.

    y: (N,) labels, or None for the network's own predictions. Only the gradient of the images is computed: parameters' .grad
    stay as they are. Raises BadInput for an unknown loss and for a network that gives NaN or no gradient.
    """
    if loss not in LOSSES:
        raise BadInput(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
    with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
        leaf = _topped_up(x).detach().clone().requires_grad_(True)
        logits = _checked_logits(model(leaf), len(x))
        labels = logits.detach().argmax(1) if y is None else y.clone()
        if not logits.requires_grad:
            raise BadInput("the logits carry no gradient; give a network that does not detach them or wrap itself in no_grad")
        (gradient,) = torch.autograd.grad(LOSSES[loss](logits, labels).sum(), leaf, allow_unused=True)
    if gradient is None:
        raise BadInput("the logits do not depend on the images by any differentiable path; gradient attacks need one")
    if not bool(gradient.isfinite().all()):
        raise BadInput("the gradient of the images has NaN or Inf; check the network's weights and BatchNorm variances")
    return logits.detach(), gradient[: len(x)]


def input_gradient(model: Model, x: Tensor, y: Tensor, loss: str = "ce") -> Tensor:
    """The gradient (N, C, H, W) of each image's loss with respect to that image; see `logits_and_gradient`."""
    return logits_and_gradient(model, x, y, loss=loss)[1]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode; afterwards every module is in the mode it was in. Raises BadInput if it is no nn.Module."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"the model is a {type(model).__name__}; give a torch.nn.Module that maps images in [0, 1] to logits")
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def probe(model: Model, x: Tensor) -> int:
    """How many logits `model` gives the first image of `x`. Raises BadInput when it does not take such images."""
    try:
        return logits_of(model, x[:1]).shape[1]
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        what = f"{x.dtype} images of shape {tuple(x.shape[1:])} on {x.device}"
        raise BadInput(f"the network does not take {what}: {reason}") from error


def _checked_logits(logits: Tensor, n: int) -> Tensor:
    """The first `n` rows, the others being copies."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) < n or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise BadInput(f"the network gives {shape} for a batch of images; it must give logits (N, classes), classes >= 2")
    if not bool(logits.isfinite().all()):
        raise BadInput("the network gives logits with NaN or Inf; check its weights and that it takes images in [0, 1]")
    return logits[:n]


def _topped_up(x: Tensor) -> Tensor:
    n = len(x)
    return x if n >= MIN_ROWS or n == 0 else x[torch.arange(MIN_ROWS, device=x.device) % n]


# --- steps and balls ------------------------------------------------------------------------------------------------


def single_step(x: Tensor, gradient: Tensor, *, eps: float, norm: str = "linf", bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """`x` moved by `eps` along `gradient` and cut to `bounds`: FGSM once the gradient is known."""
    return (x + eps * _direction(gradient, _known_norm(norm))).clamp(*bounds)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    """Steepest ascent of unit length in `norm`; zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)  # first, so that the squares of tiny gradients do not vanish
    scaled = gradient / torch.where(largest > 0, largest, 1)
    return scaled / _length(scaled).clamp_min(torch.finfo(gradient.dtype).tiny)


def _project(moved: Tensor, x: Tensor, eps: float, norm: str, bounds: Bounds) -> Tensor:
    """The point of the eps ball around `x` nearest to `moved`, cut to `bounds`."""
    if norm == "linf":
        return torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(*bounds)
    delta = moved - x
    shrink = (eps / _length(delta).clamp_min(torch.finfo(x.dtype).tiny)).clamp(max=1)
    return (x + delta * shrink).clamp(*bounds)


def _length(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1)[:, None, None, None]


def _random_start(x: Tensor, ids: Tensor, eps: float, norm: str, bounds: Bounds, seed: int, restart: int) -> Tensor:
    """A point of each image's eps ball, uniform, from a counter-based generator keyed by (seed; id, restart)."""
    size = x[0].numel()
    noise = np.empty((len(x), size), dtype=np.float32)
    for row, identity in zip(noise, ids.tolist(), strict=True):
        generator = np.random.Generator(np.random.Philox(key=int(seed), counter=(0, 0, restart, identity)))
        if norm == "linf":
            generator.random(out=row, dtype=np.float32)
            row[:] = 2 * row - 1
        else:
            generator.standard_normal(out=row, dtype=np.float32)
            row *= generator.random() ** (1 / size) / np.linalg.norm(row)
    offset = torch.from_numpy(noise).view(x.shape).to(x.device, x.dtype)
    return _project(x + eps * offset, x, eps, norm, bounds)


def _ascend(
    model: Model, x: Tensor, y: Tensor, start: Callable[[Tensor], Tensor], *, eps: float, step: float, steps: int,
    norm: str, bounds: Bounds, drop_fallen: bool, batch_size: int,
) -> Tensor:  # fmt: skip
    """One ascent of every image: its first misclassified iterate if `drop_fallen`, otherwise its last.

    start: gives the first iterates of the images at these positions. Images that leave make room for waiting ones.
    """
    found, waiting = x.clone(), 0
    rows = taken = torch.empty(0, dtype=torch.long, device=x.device)  # who is in the batch, and how many steps each has made
    now = x[:0]
    while waiting < len(x) or len(rows):
        fresh = torch.arange(waiting, min(waiting + batch_size - len(rows), len(x)), device=x.device)
        if len(fresh):
            waiting += len(fresh)
            rows, taken, now = torch.cat([rows, fresh]), torch.cat([taken, fresh * 0]), torch.cat([now, start(fresh)])
        logits, gradient = logits_and_gradient(model, now, y[rows])
        if drop_fallen:
            fallen = logits.argmax(1) != y[rows]
            found[rows[fallen]] = now[fallen]
            rows, taken, now, gradient = rows[~fallen], taken[~fallen], now[~fallen], gradient[~fallen]
        now = _project(now + step * _direction(gradient, norm), x[rows], eps, norm, bounds)
        taken = taken + 1
        done = taken == steps
        found[rows[done]] = now[done]
        rows, taken, now = rows[~done], taken[~done], now[~done]
    return found


def _losses(model: Model, x: Tensor, y: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Predicted classes (N,) and cross-entropy (N,)."""
    logits = torch.cat([logits_of(model, part) for part in x.split(batch_size)])
    return logits.argmax(1), LOSSES["ce"](logits, y).to(x.dtype)


# --- checks ---------------------------------------------------------------------------------------------------------


def parse_eps(eps: float | str, *, norm: str = "linf") -> float:
    """The radius as a number: 8 / 255 from 8 / 255 or "8/255". Raises BadInput for one that is no radius in pixel units."""
    hint = 'write pixel units as 8 / 255 or "8/255"'
    value: Any = eps
    if isinstance(eps, str):
        top, slash, bottom = eps.partition("/")
        try:
            value = float(top) / float(bottom if slash else 1)
        except (ValueError, ZeroDivisionError) as error:
            raise BadInput(f"eps {eps!r} is not a number; {hint}") from error
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or not math.isfinite(value):
        raise BadInput(f"eps {eps!r} is not a finite number; {hint}")
    if value < 0:
        raise BadInput(f"eps {eps!r} is negative; {hint}")
    if value > 1 and _known_norm(norm) == "linf":
        raise BadInput(f'eps {eps!r} is above 1, the whole range of a pixel; for {value:g} of 255 levels write "{value:g}/255"')
    return float(value)


def check_options(name: str, options: Mapping[str, Any], *, reserved: Sequence[str] = ()) -> None:
    """Raises BadInput for an unknown attack, norm, or option of it; `reserved` ones are not for the caller to set."""
    if name not in ATTACKS:
        raise BadInput(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
    known = [key for key in list(inspect.signature(ATTACKS[name]).parameters)[3:] if key not in ("eps", "seed", *reserved)]
    if unknown := [key for key in options if key not in known]:
        raise BadInput(f"{name} has no option {unknown[0]!r}; its options: {', '.join(known)}")
    _known_norm(options.get("norm", "linf"))


def check_images(x: Tensor, y: Tensor, bounds: Bounds = (0.0, 1.0)) -> None:
    """Raises BadInput unless `x` is a float (N, C, H, W) batch within `bounds` and `y` its (N,) int64 labels."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise BadInput(f"images are {what}; give a float tensor in [0, 1], e.g. images.float() / 255")
    if x.ndim != 4 or 0 in x.shape:
        raise BadInput(f"images have the shape {tuple(x.shape)}; give (N, C, H, W) with at least one image")
    low, high = bounds
    if not bool(((x >= low) & (x <= high)).all()):  # NaN fails both
        span = "NaN among them" if bool(x.isnan().any()) else f"they run from {x.min():.4g} to {x.max():.4g}"
        raise BadInput(f"images must lie in [{low:g}, {high:g}], {span}; give pixels / 255, the network normalises inside")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        what = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise BadInput(f"labels are {what}; give an int64 tensor of shape ({len(x)},), one label per image")


def check_labels(y: Tensor, classes: int) -> None:
    """Raises BadInput unless every label is one of the network's classes."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise BadInput(f"labels run from {low} to {high}, but the network has {classes} logits: give 0..{classes - 1}")


def _checked_ids(ids: Any, n: int) -> Tensor:
    ids = torch.as_tensor(ids)
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.shape != (n,) or int(ids.min()) < 0:
        raise BadInput(f"ids are {ids.dtype} {tuple(ids.shape)}; give {n} integers >= 0, one per image")
    return ids


def _known_norm(norm: str) -> str:
    if norm not in NORMS:
        raise BadInput(f"unknown norm {norm!r}; known: {', '.join(NORMS)}")
    return norm


def _check_pgd(*, step: float | None, steps: int, restarts: int, random_start: bool, batch_size: int | None) -> None:
    for name, value in (("steps", steps), ("restarts", restarts), ("batch_size", batch_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise BadInput(f"{name} of pgd must be a whole number of 1 or more, not {value!r}")
    if step is not None and not (isinstance(step, int | float) and 0 < step < math.inf):
        raise BadInput(f"step of pgd must be a number above 0, not {step!r}; leave it out for 2.5 * eps / steps")
    if restarts > 1 and not random_start:
        raise BadInput(f"{restarts} restarts of pgd without random_start repeat one ascent; give restarts=1")
