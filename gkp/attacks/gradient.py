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
    """One step of length `eps` along the gradient of the cross-entropy (Goodfellow et al. 2015).

    Args:
        model: Images (N, C, H, W) to logits (N, K), in eval mode.
        x: Images (N, C, H, W) within `bounds`.
        y: Labels (N,).
        eps: Length of the step, in the units of `x`, e.g. 8 / 255 for pixels.
        norm: "linf" (the sign of the gradient) or "l2" (the gradient scaled to unit length).
        seed: Not used: nothing is drawn. It is here so that all attacks are called alike.
        ids: Not used, as `seed`.
        bounds: Least and largest value of a pixel.
        batch_size: Images in one pass at most; all of them by default.

    Returns:
        Images of the same shape. Those that are misclassified before the attack are moved too; where the gradient is zero a
        pixel stays.

    Raises:
        BadInput: The network's logits or gradients are not finite, or do not depend on the images.
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
    """Projected gradient ascent on the cross-entropy (Madry et al. 2018).

    Args:
        model: Images (N, C, H, W) to logits (N, K), in eval mode.
        x: Images (N, C, H, W) within `bounds`.
        y: Labels (N,).
        eps: Radius of the ball, in the units of `x`.
        step: Length of a step, in the units of `x`. By default 2.5 * eps / steps (section 5 there): from any start the far side
            of the ball is in reach, with moves to spare along its surface.
        steps: Number of steps of an ascent.
        restarts: Number of ascents, each from a start of its own.
        random_start: Start from a point drawn uniformly from the ball and cut to `bounds`, instead of from the image.
        norm: "linf" or "l2".
        seed: Of the starts. An image's start depends on seed, restart and id alone.
        ids: Who each image is, (N,) integers >= 0; its position by default.
        bounds: Least and largest value of a pixel.
        drop_fallen: Whether an image leaves at its first misclassified iterate, which is what it returns; one that is
            misclassified before the attack is returned as it is. False: every image makes all its steps, as in most libraries.
        batch_size: Images in one pass at most, refilled as images leave; all of them by default.

    Returns:
        Images of the same shape. Of an image that never falls, the last iterate, or with restarts that of highest loss.

    Raises:
        BadInput: An option is out of range, or the network's logits or gradients are not finite.
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
    """FGSM once the gradient is known.

    Args:
        x: Images (N, C, H, W).
        gradient: The gradient of the loss at each image, of the same shape.
        eps: Length of the step, in the units of `x`.
        norm: "linf" or "l2".
        bounds: Least and largest value of a pixel, to which the result is cut.
    """
    return (x + eps * direction(gradient, known_norm(norm))).clamp(*bounds)


def _check_pgd(*, step: float | None, restarts: int, random_start: bool) -> None:
    if step is not None and not (isinstance(step, int | float) and 0 < step < math.inf):
        raise BadInput(f"step of pgd must be a number above 0, not {step!r}; leave it out for 2.5 * eps / steps")
    if restarts > 1 and not random_start:
        raise BadInput(f"{restarts} restarts of pgd without random_start repeat one ascent; give restarts=1")
