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
    """Images of the same shape as `x`, within `eps` of it: of each, what the first attack found that fools `model`.

    x: (N, C, H, W) within `bounds`; y: (N,) labels; eps: in the units of `x`. attacks: in the order given, each a name or
    {"attack": name, **its own options}; cheap ones first. An image misclassified beforehand comes back unchanged, one that no
    attack fools as the attack of highest cross-entropy left it. norm, seed, ids, bounds, batch_size go to every attack.
    Cost: one forward pass beforehand, one after each attack on what it was given, and the attacks. Raises BadInput for an
    attack or option that there is none of, for a cascade in a cascade, and for whatever the attacks refuse.
    """
    check_counts("cascade", batch_size=batch_size)
    known_norm(norm)
    steps, size = members(attacks), batch_size or max(len(x), 1)
    who = torch.arange(len(x)) if ids is None else torch.as_tensor(ids)

    def attempt(rows: Tensor, name: str, options: Mapping[str, Any]) -> Tensor:
        shared = {"norm": norm, "seed": seed, "ids": who[rows.to(who.device)], "bounds": bounds, "batch_size": size}
        return ATTACKS[name](model, x[rows], y[rows], eps=eps, **shared, **options)

    return rounds(model, x, y, [partial(attempt, name=name, options=options) for name, options in steps], batch_size=size)
