"""A fingerprint of a network's weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from gkp.networks.wrappers import unwrapped


def state_sha256(model: nn.Module) -> str:
    """sha256 (hex) of the network's parameters and buffers: names, types, shapes and bytes, in order of name.

    That of a wrapped network (DataParallel, compiled, averaged) is that of the network inside.
    """
    digest = hashlib.sha256()
    for name, value in sorted(unwrapped(model).state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {value!r}\n".encode())
    return digest.hexdigest()
