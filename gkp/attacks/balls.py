"""The eps ball around an image, Linf or L2: directions of unit length, projection, uniform random starts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Bounds = tuple[float, float]
NORMS = ("linf", "l2")


def direction(gradient: Tensor, norm: str) -> Tensor:
    """Steepest ascent of unit length in `norm`; zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)  # first, so that the squares of tiny gradients do not vanish
    scaled = gradient / torch.where(largest > 0, largest, 1)
    return scaled / length(scaled).clamp_min(torch.finfo(gradient.dtype).tiny)


def project(moved: Tensor, x: Tensor, eps: float, norm: str, bounds: Bounds) -> Tensor:
    """The point of the ball nearest to `moved`, cut to `bounds`.

    Args:
        moved: Where the images were moved to, (N, C, H, W).
        x: The centres of the balls, of the same shape.
        eps: Their radius, in the units of `x`.
        norm: "linf" or "l2".
        bounds: Least and largest value of a pixel.
    """
    if norm == "linf":
        return torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(*bounds)
    delta = moved - x
    shrink = (eps / length(delta).clamp_min(torch.finfo(x.dtype).tiny)).clamp(max=1)
    return (x + delta * shrink).clamp(*bounds)


def length(v: Tensor) -> Tensor:
    """The L2 norm of each image, (N, 1, 1, 1)."""
    return v.flatten(1).norm(dim=1)[:, None, None, None]


def uniform_start(x: Tensor, ids: Tensor, eps: float, norm: str, bounds: Bounds, seed: int, restart: int) -> Tensor:
    """A point of each image's ball, drawn uniformly and cut to `bounds`.

    Args:
        x: The centres of the balls, (N, C, H, W).
        ids: Who each image is, (N,) integers >= 0.
        eps: Radius of the balls, in the units of `x`.
        norm: "linf" or "l2".
        bounds: Least and largest value of a pixel.
        seed: Key of the counter-based generator (Philox); its counter is (id, restart).
        restart: Which start of the image.
    """
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
    return project(x + eps * offset, x, eps, norm, bounds)
