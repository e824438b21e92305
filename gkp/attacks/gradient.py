"""FGSM and PGD: steps along the gradient of the cross-entropy, projected back into the eps ball."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gkp.attacks.balls import Bounds, direction, project, uniform_start
from gkp.attacks.checks import known_norm
from gkp.attacks.network import Model, input_gradient, logits_and_gradient, predictions_and_losses
from gkp.errors import BadInput


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
    known_norm(norm)
    if not len(x):
        return x.clone()
    ids = torch.arange(len(x)) if ids is None else torch.as_tensor(ids)
    step, batch_size = 2.5 * eps / steps if step is None else step, batch_size or len(x)
    found, rows = x.clone(), torch.arange(len(x), device=x.device)
    if drop_fallen:
        rows = rows[predictions_and_losses(model, x, y, batch_size)[0] == y]
    best_down = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    best_loss = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
    for restart in range(restarts):
        if not len(rows):
            break

        def start(chosen: Tensor, rows: Tensor = rows, restart: int = restart) -> Tensor:
            here, who = x[rows[chosen]], ids[rows[chosen].to(ids.device)]
            return uniform_start(here, who, eps, norm, bounds, seed, restart) if random_start else here

        candidate = ascend(
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
        predicted, loss = predictions_and_losses(model, candidate, y[rows], batch_size)
        down = predicted != y[rows]
        better = (down & ~best_down[rows]) | ((down == best_down[rows]) & (loss > best_loss[rows]))
        winners = rows[better]
        found[winners], best_down[winners], best_loss[winners] = candidate[better], down[better], loss[better]
        rows = rows[~down] if drop_fallen else rows
    return found


def single_step(x: Tensor, gradient: Tensor, *, eps: float, norm: str = "linf", bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """`x` moved by `eps` along `gradient` and cut to `bounds`: FGSM once the gradient is known."""
    return (x + eps * direction(gradient, known_norm(norm))).clamp(*bounds)


def ascend(
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
        now = project(now + step * direction(gradient, norm), x[rows], eps, norm, bounds)
        taken = taken + 1
        done = taken == steps
        found[rows[done]] = now[done]
        rows, taken, now = rows[~done], taken[~done], now[~done]
    return found


def _check_pgd(*, step: float | None, steps: int, restarts: int, random_start: bool, batch_size: int | None) -> None:
    for name, value in (("steps", steps), ("restarts", restarts), ("batch_size", batch_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise BadInput(f"{name} of pgd must be a whole number of 1 or more, not {value!r}")
    if step is not None and not (isinstance(step, int | float) and 0 < step < math.inf):
        raise BadInput(f"step of pgd must be a number above 0, not {step!r}; leave it out for 2.5 * eps / steps")
    if restarts > 1 and not random_start:
        raise BadInput(f"{restarts} restarts of pgd without random_start repeat one ascent; give restarts=1")
