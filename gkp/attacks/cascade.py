"""Several attacks, each on the images that those before it left standing: their worst case at a fraction of the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gkp.attacks.ascent import rounds
from gkp.attacks.balls import Bounds
from gkp.attacks.network import Model
from gkp.attacks.options import ATTACKS, check_counts, known_norm, members


def cascade(
    model: Model, x: Tensor, y: Tensor, *, eps: float, attacks: Sequence[str | Mapping[str, Any]] = ("fgsm", "pgd", "apgd-ce"),
    norm: str = "linf", seed: int = 0, ids: Tensor | None = None, bounds: Bounds = (0.0, 1.0), batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Several attacks, each on the images that none before it brought down.

    Cost: one forward pass before the attacks, one after each on the images it was given, and the attacks themselves.

    Args:
        model: Images (N, C, H, W) to logits (N, K), in eval mode.
        x: Images (N, C, H, W) within `bounds`.
        y: Labels (N,).
        eps: Radius of the ball, in the units of `x`.
        attacks: In the order they run in, cheap ones first; each a name or {"attack": name, **its own options}.
        norm: "linf" or "l2", for every attack.
        seed: For every attack.
        ids: Who each image is, (N,) integers >= 0; its position by default.
        bounds: Least and largest value of a pixel.
        batch_size: Images in one pass at most; all of them by default.

    Returns:
        Images of the same shape: of each what the first attack that fools the network found or, if none does, what the attack
        of highest cross-entropy left. One that is misclassified before the attacks is returned as it is.

    Raises:
        BadInput: An unknown attack or option, a cascade in a cascade, or what the attacks themselves refuse.
    """
    check_counts("cascade", batch_size=batch_size)
    known_norm(norm)
    steps, size = members(attacks), batch_size or max(len(x), 1)
    who = torch.arange(len(x)) if ids is None else torch.as_tensor(ids)

    def attempt(rows: Tensor, name: str, options: Mapping[str, Any]) -> Tensor:
        shared = {"norm": norm, "seed": seed, "ids": who[rows.to(who.device)], "bounds": bounds, "batch_size": size}
        return ATTACKS[name](model, x[rows], y[rows], eps=eps, **shared, **options)

    return rounds(model, x, y, [partial(attempt, name=name, options=options) for name, options in steps], batch_size=size)
