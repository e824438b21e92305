"""The loops that iterative attacks share: a batch that is refilled as images leave it, and rounds over images still standing.

Cost: `ascend` takes one gradient a step for each image that is still in the batch, `rounds` one forward pass over the images
beforehand and, where there are several rounds, one after each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gkp.attacks.network import Loss, Model, climb, predictions_and_losses

State = dict[str, Tensor]  # what an attack knows of the images in the batch, one row each; "now": where each one is


def ascend(
    model: Model, y: Tensor, start: Callable[[Tensor], State], move: Callable[[State, Tensor, Tensor], State], *, steps: int,
    loss_of: Callable[[Tensor], Loss], batch_size: int, drop_fallen: bool = True, last: str = "now",
) -> Tensor:  # fmt: skip
    """One ascent of every image, in a batch that is refilled as images leave it.

    Args:
        model: Images (N, C, H, W) to logits (N, K), in eval mode.
        y: Labels (N,) of all images.
        start: Positions in `y` to the state of these images before any step.
        move: State, losses (n,) and gradients (n, C, H, W) to the state after one step.
        steps: Moves of an image.
        loss_of: Positions in `y` to the loss that these images climb.
        batch_size: Images in the batch at most.
        drop_fallen: Whether an image leaves at its first misclassified iterate.
        last: The key of the state that holds what an image returns after `steps` moves.

    Returns:
        Images (N, C, H, W): the first misclassified iterate of each, if it has one and `drop_fallen`, else `last`.
    """
    waiting = min(batch_size, len(y))
    rows = torch.arange(waiting, device=y.device)  # who is in the batch
    state = {**start(rows), "taken": torch.zeros_like(rows)}  # and how many steps each has made
    found = state["now"].new_empty(len(y), *state["now"].shape[1:])
    while len(rows):
        logits, losses, gradient = climb(model, state["now"], y[rows], loss_of(rows))
        fallen = logits.argmax(1) != y[rows]
        if drop_fallen and fallen.any():
            found[rows[fallen]] = state["now"][fallen]
            rows, losses, gradient, state = rows[~fallen], losses[~fallen], gradient[~fallen], _of(state, ~fallen)
        state = {**move(state, losses, gradient), "taken": state["taken"] + 1}
        done = state["taken"] == steps
        if done.any():
            found[rows[done]] = state[last][done]
            rows, state = rows[~done], _of(state, ~done)
        fresh = torch.arange(waiting, min(waiting + batch_size - len(rows), len(y)), device=y.device)
        if len(fresh):
            waiting += len(fresh)
            new = {**start(fresh), "taken": torch.zeros_like(fresh)}
            rows, state = torch.cat([rows, fresh]), {key: torch.cat([state[key], new[key]]) for key in new}
    return found


def rounds(
    model: Model, x: Tensor, y: Tensor, attempts: Sequence[Callable[[Tensor], Tensor]], *, batch_size: int,
    drop_fallen: bool = True,
) -> Tensor:  # fmt: skip
    """Several attempts, each on the images that none before it brought down.

    Args:
        model: Images (N, C, H, W) to logits (N, K), in eval mode.
        x: Images (N, C, H, W).
        y: Labels (N,).
        attempts: Functions from positions in `x` to attacked images.
        batch_size: Images in one pass at most.
        drop_fallen: False makes every attempt on every image.

    Returns:
        Images of the same shape as `x`. Of an image that never falls, the attempt of highest cross-entropy; one that is
        misclassified beforehand as it is.
    """
    found, rows = x.clone(), torch.arange(len(x), device=x.device)
    if drop_fallen:
        rows = rows[predictions_and_losses(model, x, y, batch_size)[0] == y]
    best_down = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    best_loss = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
    for attempt in attempts:
        if not len(rows):
            break
        candidate = attempt(rows)
        if len(attempts) == 1:
            found[rows] = candidate
            break
        predicted, loss = predictions_and_losses(model, candidate, y[rows], batch_size)
        down = predicted != y[rows]
        better = (down & ~best_down[rows]) | ((down == best_down[rows]) & (loss > best_loss[rows]))
        winners = rows[better]
        found[winners], best_down[winners], best_loss[winners] = candidate[better], down[better], loss[better]
        rows = rows[~down] if drop_fallen else rows
    return found


def _of(state: State, chosen: Tensor) -> State:
    return {key: value[chosen] for key, value in state.items()}
