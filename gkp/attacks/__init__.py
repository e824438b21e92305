"""Attacks as plain functions: `attack(model, x, y, *, eps, ...)` gives images near `x` that `model` gets wrong.

| attack | what it does | cost per image |
|---|---|---|
| `fgsm` | one step along the sign of the gradient (Goodfellow et al. 2015) | 1 gradient |
| `pgd` | many small steps, each projected back into the eps ball (Madry et al. 2018) | up to `steps` gradients a restart |
| `apgd-ce`, `apgd-dlr` | with momentum and a step size that finds itself (Croce & Hein 2020) | up to `steps` + 1 a restart |
| `apgd-t` | that, towards one other class after another | up to `steps` + 1 a restart and target |
| `square` | random squares, from logits alone (Andriushchenko et al. 2020) | up to `queries` forward passes |
| `cascade` | several attacks, each on what the ones before left standing | the sum, fallen images apart |
| `autoattack` | pyautoattack's ensemble (Croce & Hein 2020); **its batch size is part of its result** | 250 to 17,000 passes |

Untargeted, Linf or L2. `gkp.attack` is the checked entrance: it puts the network in eval mode and leaves it as it found it.
The plain functions check their options but neither the images nor the mode: the caller has done that.
What happens to an image depends on the image, its id and the seed, never on its neighbours or the batch size.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gkp.attacks.apgd import apgd_ce, apgd_dlr, apgd_t
from gkp.attacks.autoattack import autoattack
from gkp.attacks.balls import NORMS, Bounds
from gkp.attacks.cascade import cascade
from gkp.attacks.gradient import fgsm, pgd, single_step
from gkp.attacks.network import (
    ALIKE,
    HALF,
    LOSSES,
    MIN_ROWS,
    Model,
    apart_from_others,
    evaluating,
    input_gradient,
    logits_and_gradient,
    logits_of,
    ordinary_tensors,
    probe,
)
from gkp.attacks.options import (
    ATTACKS,
    check_bounds,
    check_images,
    check_labels,
    check_options,
    checked_ids,
    parse_eps,
)
from gkp.attacks.square import square
from gkp.errors import BadInput, ModelWarning

__all__ = [
    "ATTACKS",
    "LOSSES",
    "MIN_ROWS",
    "NORMS",
    "Bounds",
    "Model",
    "apgd_ce",
    "apgd_dlr",
    "apgd_t",
    "attack",
    "cascade",
    "check_images",
    "check_labels",
    "check_options",
    "evaluating",
    "fgsm",
    "input_gradient",
    "logits_and_gradient",
    "logits_of",
    "parse_eps",
    "pgd",
    "probe",
    "single_step",
    "square",
]

ASCENDING = ("pgd",)  # gradient ascents that can go on after an image has fallen
# Every attack is entered here, one line each: `f(model, x, y, *, eps, norm, seed, ids, bounds, batch_size, ...) -> images`.
ATTACKS.update(
    {
        "fgsm": fgsm,
        "pgd": pgd,
        "apgd-ce": apgd_ce,
        "apgd-dlr": apgd_dlr,
        "apgd-t": apgd_t,
        "square": square,
        "cascade": cascade,
        "autoattack": autoattack,
    }
)


def attack(model: nn.Module, x: Tensor, y: Tensor, name: str, *, eps: float | str, seed: int = 0, **options: Any) -> Tensor:
    """Attack a network: images near `x` that it gets wrong.

    The network is in eval mode for the attack, and every module in its own mode again afterwards; parameters, their gradients,
    buffers and the global random generators stay as they are.

    Args:
        model: A network from images to logits (N, K).
        x: Images (N, C, H, W), floats in [0, 1], or in `bounds`.
        y: True labels (N,), int64.
        name: A key of `ATTACKS`: "fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "square", "cascade" or "autoattack".
        eps: Radius of the ball around each image, in the units of `x`: 8 / 255 or "8/255" for pixels in [0, 1].
        seed: Of the random starts and proposals. An image's own depend on it and on the image's position (or `ids`) alone.
        **options: The attack's own, e.g. steps=20, norm="l2": see its function in `gkp.attacks`.

    Returns:
        Images of the same shape as `x`, within `eps` of it and within `bounds`. Where the network or the images are in half
        precision, the attack computes in float32, and so are these images. An image that is misclassified before the attack is
        moved by fgsm and by pgd as far as the others; the other attacks return it as it is.

    Raises:
        BadInput: An unknown attack or option, a radius, images or labels that do not fit, a network without finite logits.

    Source:
        The paper attacks by FGSM and PGD (pages 7 to 9); the other attacks are those of the field.
    """
    check_options(name, options)
    bounds = check_bounds(options.get("bounds", (0.0, 1.0)))
    options |= {"bounds": bounds} if "bounds" in options else {}
    options = {**options, "eps": parse_eps(eps, norm=options.get("norm", "linf"), bounds=bounds)}
    check_images(x, y, bounds)
    with ordinary_tensors():  # gradients do not go through tensors that were made for inference
        x, y = (one.clone() if one.is_inference() else one for one in (x, y))
    x = x.float() if x.dtype in HALF else x
    if "ids" in options:
        options["ids"] = checked_ids(options["ids"], len(x))
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise BadInput(f"seed must be an integer in 0..2**64-1, not {seed!r}")
    with evaluating(model):
        check_labels(y, probe(model, x))
        if len(x) > 1 and (apart := apart_from_others(model, x)) > ALIKE:
            warnings.warn(
                f"logits of an image differ by {apart:.2g} of the largest with the images beside it (BatchNorm without running "
                "statistics, noise): what is found depends on the batch; give a network to which each image is alone",
                ModelWarning,
                stacklevel=2,
            )
        found = ATTACKS[name](model, x.detach(), y, seed=int(seed), **options)
        return _moved(model, x, y, found, name, seed=int(seed), **options)


def _moved(model: nn.Module, x: Tensor, y: Tensor, found: Tensor, name: str, **options: Any) -> Tensor:
    """The images found, those that came back unchanged taken up the loss as far as the attack goes.

    An image that is misclassified as it is has nothing to be attacked for, and an evaluation leaves it alone; whoever asks for
    adversarial images, to train on them or to look at them, wants one of it too.
    """
    still = (found == x.to(found.dtype)).flatten(1).all(1)
    if name not in ASCENDING or not options.get("drop_fallen", True) or not still.any():
        return found
    ids = options.pop("ids", None)
    ids = torch.arange(len(x), device=x.device) if ids is None else ids
    again = ATTACKS[name](model, x[still].detach(), y[still], ids=ids[still], **{**options, "drop_fallen": False})
    return found.masked_scatter(still.view(-1, *[1] * (x.ndim - 1)).expand_as(found), again)
