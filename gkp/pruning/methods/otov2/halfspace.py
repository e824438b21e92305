"""The arithmetic of DHSPG on groups, whose values x and gradients g come in as x.x, x.g and g.g, all `(N,)`."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-6


def cosine(xx: Tensor, xg: Tensor, gg: Tensor) -> Tensor:
    """The cosine between x and g, which is that between the way to zero and descent; 0 where one of them is zero."""
    return xg / (xx * gg).sqrt().clamp_min(torch.finfo(xx.dtype).tiny)


def redundancy(cosines: Tensor, norms: Tensor, sizes: Tensor) -> Tensor:
    """The score of each group, higher where it is more redundant: descent goes to zero, and the values are small.

    Args:
        cosines: Between x and g.
        norms: Of x.
        sizes: Number of values in each group.
    """
    return (_normalised(cosines) + _normalised(1 / (norms / sizes + TINY))) / 2


def pull(xx: Tensor, xg: Tensor, gg: Tensor, *, sparsity: float, amplify: float, hat: float) -> Tensor:
    """lambda of each group: `sparsity`, or more where descent would make the group larger.

    There lambda has to lie above -x.g / |x|, that the group gets smaller, and below -|g|^2 |x| / x.g, that the loss falls. As
    released, the clip to `hat` times `sparsity` comes before the upper bound, so that the lower one is often missed.
    """
    norm = xx.sqrt()
    lower, upper = -xg / norm, -gg * norm / xg
    found = (amplify * lower).clamp(sparsity, sparsity * hat)
    found = torch.where(found >= upper, (lower + upper) / 2, found)
    return torch.where(xg < 0, found, sparsity)


def leaves(dot: Tensor, xx: Tensor, eps: float) -> Tensor:
    """Whether a step from x to x' leaves the half-space x'.x >= eps * |x|^2; dot: x'.x."""
    return dot < eps * xx


def _normalised(values: Tensor) -> Tensor:
    return values / values.norm().clamp_min(torch.finfo(values.dtype).tiny)
