"""CHIP: prune the filters whose feature maps are the least independent of the other filters' maps (Sui et al. 2021).

With the maps of one image as the rows of a matrix (C x HW), the independence of a filter is the fall of the nuclear norm when
its row is zeroed. Uses images without labels; 30 s for ResNet-20 on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkp.pruning.methods.image_method import MapMethod
from gkp.pruning.registry import register


@register(
    "chip",
    reference="Sui et al., NeurIPS 2021",
    family="filter",
    needs=("weights", "data"),
    fidelity="adapted: one rate for all layers instead of hand-set ones; images without crops and mirrors; only filters that "
    "leave the residual stream whole",
)
@dataclass(frozen=True)
class Chip(MapMethod):
    """The fields are those of `ImageMethod`; 5 batches of 128 images, as published."""

    def of_maps(self, maps: Tensor) -> Tensor:
        """The fall of the nuclear norm of an image's maps when the filter's row is zeroed."""
        return independence(maps)


def independence(maps: Tensor) -> Tensor:
    """||A||_* - ||A with row c zeroed||_* for each row c of each image, `(N, C)` float64, from maps `(N, C, H, W)`.

    The singular values of A are the roots of the eigenvalues of A A^T and of A^T A, whichever is smaller. With row a zeroed the
    first loses a row and a column, and the second a^T a.
    """
    rows = maps.double().flatten(2)
    channels, positions = rows.shape[1:]
    wide = channels <= positions
    gram = rows @ rows.transpose(1, 2) if wide else rows.transpose(1, 2) @ rows
    whole, fall = _nuclear(gram), torch.empty(rows.shape[:2], dtype=torch.float64)
    for c in range(channels):
        others = torch.arange(channels) != c
        row = rows[:, c, :, None]
        fall[:, c] = whole - _nuclear(gram[:, others][:, :, others] if wide else gram - row @ row.transpose(1, 2))
    return fall


def _nuclear(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum(dim=1)
