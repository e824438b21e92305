"""Auto-PGD: projected gradient ascent with momentum that finds its own step size (Croce & Hein 2020, algorithm 1).

| attack | climbs |
|---|---|
| `apgd_ce` | cross-entropy |
| `apgd_dlr` | the difference of logits ratio, which does not vanish where a network is sure of itself |
| `apgd_t` | that ratio towards each of the likeliest other classes in turn |

Step size and momentum are each image's own. Cost: up to `steps` + 1 gradients an image for every restart and target; an image
leaves at its first misclassified iterate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gkp.attacks.ascent import State, ascend, rounds
from gkp.attacks.balls import Bounds, direction, project, uniform_start
from gkp.attacks.network import (
    Loss,
    Model,
    check_classes,
    cross_entropy,
    dlr,
    logits_of,
    probe,
    targeted_dlr,
)
from gkp.attacks.options import check_counts, known_norm

RHO = 0.75  # share of the steps since the last checkpoint that must have raised the loss, or the step size is halved
MOMENTUM = 0.75  # share of a move that is new, the rest being the last move; alpha in the paper


def apgd_ce(
    model: Model, x: Tensor, y: Tensor, *, eps: float, steps: int = 100, restarts: int = 1, norm: str = "linf", seed: int = 0,
    ids: Tensor | None = None, bounds: Bounds = (0.0, 1.0), batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Auto-PGD on the cross-entropy (Croce & Hein 2020, algorithm 1).

    Args:
        model: Images (N, C, H, W) to logits (N, K), in eval mode.
        x: Images (N, C, H, W) within `bounds`.
        y: Labels (N,).
        eps: Radius of the ball, in the units of `x`.
        steps: Number of steps of an ascent.
        restarts: Number of ascents, from points drawn uniformly from the ball and cut to `bounds`.
        norm: "linf" or "l2".
        seed: Of the starts. An image's start depends on seed, restart and id alone.
        ids: Who each image is, (N,) integers >= 0; its position by default.
        bounds: Least and largest value of a pixel.
        batch_size: Images in one pass at most, refilled as images leave; all of them by default.

    Returns:
        Images of the same shape: of each its first misclassified iterate or, if it never falls, that of highest loss. One that
        is misclassified before the attack is returned as it is.

    Raises:
        BadInput: An option is out of range, or the network's logits or gradients are not finite.
    """
    check_counts("apgd-ce", steps=steps, restarts=restarts, batch_size=batch_size)
    return _auto_pgd(
        model, x, y, [lambda _: cross_entropy] * restarts,
        eps=eps, steps=steps, norm=norm, seed=seed, ids=ids, bounds=bounds, batch_size=batch_size,
    )  # fmt: skip


def apgd_dlr(
    model: Model, x: Tensor, y: Tensor, *, eps: float, steps: int = 100, restarts: int = 1, norm: str = "linf", seed: int = 0,
    ids: Tensor | None = None, bounds: Bounds = (0.0, 1.0), batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Auto-PGD on the difference of logits ratio, `gkp.attacks.network.dlr`. Arguments and result are those of `apgd_ce`.

    Raises:
        BadInput: As `apgd_ce`, and for a network with two classes: the ratio needs a third.
    """
    check_counts("apgd-dlr", steps=steps, restarts=restarts, batch_size=batch_size)
    if len(x):
        check_classes("apgd-dlr", probe(model, x), 3)
    return _auto_pgd(
        model, x, y, [lambda _: dlr] * restarts,
        eps=eps, steps=steps, norm=norm, seed=seed, ids=ids, bounds=bounds, batch_size=batch_size,
    )  # fmt: skip


def apgd_t(
    model: Model, x: Tensor, y: Tensor, *, eps: float, targets: int = 9, steps: int = 100, restarts: int = 1,
    norm: str = "linf", seed: int = 0, ids: Tensor | None = None, bounds: Bounds = (0.0, 1.0), batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Auto-PGD towards other classes in turn. Arguments and result are those of `apgd_ce`, but for `targets`.

    Args:
        targets: Number of classes that are aimed at: those of highest logit on the clean image after the true one, or all
            others if there are fewer. Every restart of every target has a start of its own.

    Raises:
        BadInput: As `apgd_ce`, and for a network with fewer than four classes, which the targeted ratio needs.
    """
    check_counts("apgd-t", targets=targets, steps=steps, restarts=restarts, batch_size=batch_size)
    if not len(x):
        return x.clone()
    logits = torch.cat([logits_of(model, part) for part in x.split(batch_size or len(x))])
    check_classes("apgd-t", logits.shape[1], 4)
    others = logits.scatter(1, y[:, None], -torch.inf).topk(min(targets, logits.shape[1] - 1)).indices

    def towards(target: Tensor, rows: Tensor) -> Loss:
        return partial(targeted_dlr, target=target[rows])

    return _auto_pgd(
        model, x, y, [partial(towards, target) for target in others.T for _ in range(restarts)],
        eps=eps, steps=steps, norm=norm, seed=seed, ids=ids, bounds=bounds, batch_size=batch_size,
    )  # fmt: skip


def checkpoints(steps: int) -> list[int]:
    """After how many of `steps` steps the step size is looked at: 0, 22, 41, 57, 70, 80, 87, 93, 99 of 100 (section 3.2)."""
    percent, gap = [0, 22], 22
    while percent[-1] + (gap := max(gap - 3, 6)) < 100:
        percent.append(percent[-1] + gap)
    return list(dict.fromkeys(-(-p * steps // 100) for p in percent))


def watch(state: State, losses: Tensor, since: Tensor) -> tuple[State, Tensor]:
    """Watch the progress of ascents, and halve the step size of those that make too little (section 3.2 there).

    Halved are those whose loss rose in fewer than RHO of the steps since the last checkpoint, or whose highest loss and step
    size are what they were at that checkpoint.

    Args:
        state: Of each ascent loss, the last one, (n,); highest, the highest so far, (n,); rises, since the last checkpoint,
            (n,); highest_then and halved_then, how things stood there, (n,); size, the step size, (n, 1, 1, 1).
        losses: The new losses, (n,).
        since: Steps since the last checkpoint of those that are at one now, -1 of the others, (n,).

    Returns:
        The state after these losses, and whose step size was halved, (n,).
    """
    at, highest = since >= 0, torch.maximum(losses, state["highest"])
    rises = state["rises"] + (losses > state["loss"])
    stuck = ~state["halved_then"] & (highest == state["highest_then"])
    halved = at & ((rises < RHO * since) | stuck)
    after = {
        "loss": highest.where(halved, losses),  # a halved image goes back to where its loss was highest
        "highest": highest,
        "rises": rises.where(~at, torch.zeros_like(rises)),
        "highest_then": highest.where(at, state["highest_then"]),
        "halved_then": halved.where(at, state["halved_then"]),
        "size": (state["size"] / 2).where(_spread(halved), state["size"]),
    }
    return {**state, **after}, halved


def _auto_pgd(
    model: Model, x: Tensor, y: Tensor, losses: Sequence[Callable[[Tensor], Loss]], *, eps: float, steps: int, norm: str,
    seed: int, ids: Tensor | None, bounds: Bounds, batch_size: int | None,
) -> Tensor:  # fmt: skip
    """One ascent for each of `losses`, functions from positions in `x` to what these images climb."""
    known_norm(norm)
    if not len(x):
        return x.clone()
    who, size = torch.arange(len(x)) if ids is None else torch.as_tensor(ids), batch_size or len(x)
    when = torch.tensor(checkpoints(steps), device=x.device)
    since = torch.full((steps + 1,), -1, device=x.device).scatter(0, when, when.diff(prepend=when[:1]))

    def attempt(rows: Tensor, number: int) -> Tensor:
        def start(chosen: Tensor) -> State:
            image, names = x[rows[chosen]], who[rows[chosen].to(who.device)]
            return _at_rest(image, uniform_start(image, names, eps, norm, bounds, seed, number), 2 * eps)

        return ascend(
            model, y[rows], start, partial(_move, eps=eps, norm=norm, bounds=bounds, since=since),
            steps=steps + 1,  # one more, to see where the last step led
            loss_of=lambda chosen: losses[number](rows[chosen]), batch_size=size, last="best",
        )  # fmt: skip

    return rounds(model, x, y, [partial(attempt, number=number) for number in range(len(losses))], batch_size=size)


def _at_rest(image: Tensor, now: Tensor, size: float) -> State:
    """The state before the first gradient."""
    low, none = now.new_full((len(now),), -torch.inf), torch.zeros(len(now), dtype=torch.long, device=now.device)
    return {
        "image": image, "now": now, "before": now, "best": now, "best_gradient": now,
        "size": now.new_full((len(now), 1, 1, 1), size), "rises": none,
        "loss": -low, "highest": low, "highest_then": low, "halved_then": none == 0,  # so that nothing is halved at the start
    }  # fmt: skip


def _move(state: State, losses: Tensor, gradient: Tensor, *, eps: float, norm: str, bounds: Bounds, since: Tensor) -> State:
    losses, better = losses.to(gradient.dtype), _spread(losses > state["highest"])
    best, best_gradient = state["now"].where(better, state["best"]), gradient.where(better, state["best_gradient"])
    state, halved = watch(state, losses, since[state["taken"]])
    back = _spread(halved)
    here, gradient = best.where(back, state["now"]), best_gradient.where(back, gradient)
    there = project(here + state["size"] * direction(gradient, norm), state["image"], eps, norm, bounds)
    new = _spread(torch.where(state["taken"] > 0, MOMENTUM, 1.0).to(here.dtype))
    there = project(here + new * (there - here) + (1 - new) * (here - state["before"]), state["image"], eps, norm, bounds)
    return {**state, "now": there, "before": here, "best": best, "best_gradient": best_gradient}


def _spread(per_image: Tensor) -> Tensor:
    return per_image[:, None, None, None]
