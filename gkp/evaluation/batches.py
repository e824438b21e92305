"""The number of images that are attacked at once: as asked for on a CPU, what the memory holds on a GPU.

A GPU works on thousands of small images as fast as on hundreds. Outcomes do not depend on the batch (see `gkp.attacks`), but
for rounding: a GPU may add up in another order for another number of images, which decides a few images in ten thousand at a
tie. AutoAttack is another matter: there the batch is a part of the attack, and stays as it was asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkp.attacks.network import asked, evaluating, images_home
from gkp.data.dataset import Dataset

AT_MOST = 4096
_SHARE = 1 / 4  # of the free memory: other cells use the same GPU
_BESIDES = 3  # what a pass takes in all, relative to what it keeps for the gradient: workspaces, gradients, a few copies


def attack_batch(net: nn.Module, data: Dataset, device: str | torch.device, *, at_least: int = 200) -> int:
    """Images in one pass of an attack on `net` at `device`.

    Args:
        net: The network, wherever it is now.
        data: Images of the shape that is attacked.
        device: Where it will be attacked.
        at_least: The answer for a CPU, and for a GPU that has no room for more.
    """
    where = torch.empty(0, device=device).device
    if where.type != "cuda":
        return at_least
    home, dtype = images_home(net)
    with evaluating(net):
        each = bytes_per_image(net, data.pixels(slice(1), home).to(dtype))
    return fitting(torch.cuda.mem_get_info(where)[0], each, at_least)


def fitting(free: int, each: int, at_least: int) -> int:
    """The largest power of two of images of `each` bytes that fit into their share of `free` bytes, at most AT_MOST."""
    room = int(free * _SHARE / (_BESIDES * max(each, 1)))
    return max(at_least, 1 << min(room, AT_MOST).bit_length() - 1) if room else at_least


def bytes_per_image(net: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the gradient of one image `x` `(1, C, H, W)`, weights not counted."""

    def kept(images: Tensor) -> int:
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = asked(net, images.requires_grad_())
        del logits  # until here the graph held all that was counted: no address was given twice
        return sum(storages.values())

    one, two = (kept(x.detach().repeat(n, 1, 1, 1)) for n in (1, 2))
    return two - one
