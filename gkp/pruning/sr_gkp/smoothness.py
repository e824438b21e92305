"""Kernel smoothness: the summed difference of neighbouring squared weights (paper section 3, Eq 1). Lower is smoother.

The equation is printed without an absolute value, which would make every kernel score exactly 0; the released code takes it,
and so do we. It walks every ordered pair of 8-neighbours in Python; four shifted differences give the same sum at once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def smoothness(weight: Tensor) -> Tensor:
    """The smoothness of every kernel (Eq 1).

    smoothness(k) = sum over positions i and the 8-neighbours j of i inside the kernel of |k_j^2 - k_i^2|, so each unordered
    pair counts twice: 2 x 20 pairs for a 3x3 kernel, none for a 1x1 kernel, whose smoothness is 0.

    Args:
        weight: `(C_out, C_in, k_h, k_w)`.

    Returns:
        `(C_out, C_in)` float64. Sum over `C_in` for a filter's smoothness, over the filters of a group for a grouped kernel's.
    """
    q = weight.detach().double().square()
    pairs = (
        (q[..., :, 1:], q[..., :, :-1]),  # left-right
        (q[..., 1:, :], q[..., :-1, :]),  # up-down
        (q[..., 1:, 1:], q[..., :-1, :-1]),  # diagonal
        (q[..., 1:, :-1], q[..., :-1, 1:]),  # other diagonal
    )
    return 2 * torch.stack([(a - b).abs().sum(dim=(-2, -1)) for a, b in pairs]).sum(dim=0)


def grouped_roughness(weight: Tensor, group_of_filter: Tensor) -> Tensor:
    """The smoothness of every grouped kernel, `(groups, C_in)` float64, summed over the filters of its group."""
    of_kernel = smoothness(weight)  # (C_out, C_in)
    groups = int(group_of_filter.max()) + 1
    total = torch.zeros(groups, of_kernel.shape[1], dtype=of_kernel.dtype, device=of_kernel.device)
    return total.index_add(0, group_of_filter.to(of_kernel.device), of_kernel)
