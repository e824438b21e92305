"""FGSM and PGD: steps along the gradient of the cross-entropy, projected back into the eps ball."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from gkp.attacks.ascent import State, ascend, rounds
from gkp.attacks.balls import Bounds, direction, project, uniform_start
from gkp.attacks.network import Model, cross_entropy, input_gradient
from gkp.attacks.options import check_counts, known_norm
from gkp.errors import BadInput


def fgsm(
    model: Model, x: Tensor, y: Tensor, *, eps: float, norm: str = "linf", seed: int = 0, ids: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0), batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Images of the same shape as `x`, one step of length `eps` away along the gradient (Goodfellow et al. 2015).

    x: (N, C, H, W) within `bounds`; y: (N,) labels; eps: radius in the units of `x`, e.g. 8 / 255 for pixels.
    norm: "linf" (the sign of the gradient) or "l2" (the gradient scaled to unit length). Where the gradient is zero the image
    stays. Images that are misclassified beforehand are moved too. batch_size: at most so many images at once.
    seed, ids: taken so that all attacks are called alike; nothing is drawn here.
    Raises BadInput for a network that gives NaN or no gradient.
    """
    check_counts("fgsm", batch_size=batch_size)
    parts = zip(x.split(batch_size or max(len(x), 1)), y.split(batch_size or max(len(x), 1)), strict=True)
    gradient = torch.cat([input_gradient(model, images, labels) for images, labels in parts])
    return single_step(x, gradient, eps=eps, norm=norm, bounds=bounds)


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
    check_counts("pgd", steps=steps, restarts=restarts, batch_size=batch_size)
    _check_pgd(step=step, restarts=restarts, random_start=random_start)
    known_norm(norm)
    if not len(x):
        return x.clone()
    ids = torch.arange(len(x)) if ids is None else torch.as_tensor(ids)
    length, batch_size = 2.5 * eps / steps if step is None else step, batch_size or len(x)

    def ascent(rows: Tensor, restart: int) -> Tensor:
        images, who = x[rows], ids[rows.to(ids.device)]

        def start(chosen: Tensor) -> State:
            here = images[chosen]
            there = uniform_start(here, who[chosen.to(who.device)], eps, norm, bounds, seed, restart) if random_start else here
            return {"image": here, "now": there}

        def move(state: State, losses: Tensor, gradient: Tensor) -> State:
            moved = state["now"] + length * direction(gradient, norm)
            return {**state, "now": project(moved, state["image"], eps, norm, bounds)}

        return ascend(
            model,
            y[rows],
            start,
            move,
            steps=steps,
            loss_of=lambda _: cross_entropy,
            batch_size=batch_size,
            drop_fallen=drop_fallen,
        )

    attempts = [partial(ascent, restart=restart) for restart in range(restarts)]
    return rounds(model, x, y, attempts, batch_size=batch_size, drop_fallen=drop_fallen)


def single_step(x: Tensor, gradient: Tensor, *, eps: float, norm: str = "linf", bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """`x` moved by `eps` along `gradient` and cut to `bounds`: FGSM once the gradient is known."""
    return (x + eps * direction(gradient, known_norm(norm))).clamp(*bounds)


def _check_pgd(*, step: float | None, restarts: int, random_start: bool) -> None:
    if step is not None and not (isinstance(step, int | float) and 0 < step < math.inf):
        raise BadInput(f"step of pgd must be a number above 0, not {step!r}; leave it out for 2.5 * eps / steps")
    if restarts > 1 and not random_start:
        raise BadInput(f"{restarts} restarts of pgd without random_start repeat one ascent; give restarts=1")
