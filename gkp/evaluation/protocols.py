"""What a protocol attacks and where: the rows of the outcome matrix, the space its images live in, the clip box.

`paper` (the paper's released code): attacks work on normalised images with one clip box for all channels; FGSM at 0.01 and 0.1,
for which the labels are the network's own predictions; PGD at 8/255 in 3 steps of 2/255 with true labels; all in normalised
units; on Tiny-ImageNet and ImageNet FGSM at 0.001, 0.01 and 0.1, and PGD at 4/255 in 3 steps of 1/255 (Tables 3 and 13).
Misclassified images are attacked too, and count when the attack makes them right.

`pixel` (RobustBench): images in [0, 1], true labels, any attack at k/255. An image that is misclassified
without attack is wrong under every attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gkp.attacks.balls import Bounds
from gkp.attacks.network import Model, asked
from gkp.attacks.options import check_options, parse_eps
from gkp.data.dataset import Dataset
from gkp.data.folders import KNOWN
from gkp.errors import BadInput
from gkp.evaluation.folding import folded
from gkp.evaluation.outcomes import AttackSpec
from gkp.evaluation.subject import first_images, images_home
from gkp.networks.wrappers import unwrapped

PROTOCOLS = ("paper", "pixel")
PIXEL_EPS = tuple(k / 255 for k in (0.25, 0.5, 1, 2, 4, 8))  # naturally trained networks are told apart below 8 / 255
L2_EPS = (0.5,)  # RobustBench's
PAPER_BOX = {"cifar10": (-2.4291, 2.7537)}  # as the paper's code has it, in four decimals; computed for other data sets
Radii = Sequence[float | str] | float | str
Attacks = Sequence[str | AttackSpec | Mapping[str, Any]] | str | AttackSpec | Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """Where a protocol attacks: how it gets there from pixels, the network seen from there, and the clip box.

    Attributes:
        of_pixels: From images in [0, 1] to images in this space.
        model: The network as seen from this space, from images to logits.
        bounds: Least and largest value of an image.
        attacks_all: Whether images that are misclassified without attack are attacked too, and count if that makes them right.
        twin: What attacks that ask hundreds of times are run on, None for the network itself, which judges what they find.
    """

    of_pixels: Callable[[Tensor], Tensor]
    model: Model
    bounds: Bounds
    attacks_all: bool
    twin: Model | None = None


def space_of(net: nn.Module, data: Dataset, protocol: str, *, fold: bool = False) -> Space:
    """The paper's loader normalises by the data set's mean and std, in float32 as torchvision does.

    fold: in the pixel protocol, attack a twin with its BatchNorms folded into the convolutions, where there is one.
    """
    if protocol == "pixel":
        twin = folded(net, first_images(net, data)) if fold else net
        return Space(lambda x: x, net, (0.0, 1.0), attacks_all=False, twin=None if twin is net else twin)
    device, dtype = images_home(net)
    mean, std = (torch.tensor(numbers, device=device, dtype=dtype).view(1, -1, 1, 1) for numbers in (data.mean, data.std))
    lows = [(0 - m) / s for m, s in zip(data.mean, data.std, strict=True)]
    highs = [(1 - m) / s for m, s in zip(data.mean, data.std, strict=True)]
    bounds = computed = (min(lows), max(highs))
    rounded = PAPER_BOX.get(data.name.partition("+")[0], computed)  # "cifar10+rotate-10" too
    if all(abs(a - b) < 1e-4 for a, b in zip(rounded, computed, strict=True)):  # not of images normalised by other numbers
        bounds = rounded
    known = net if hasattr(net, "from_normalised") else unwrapped(net)
    inside = getattr(known, "from_normalised", None)
    if inside is not None and _same(getattr(known, "mean", None), mean) and _same(getattr(known, "std", None), std):
        model: Model = inside  # the paper's path, bit for bit
    else:

        def model(z: Tensor) -> Tensor:
            return asked(net, z * std + mean)

    return Space(lambda x: (x - mean) / std, model, bounds, attacks_all=True)


def asks_often(spec: AttackSpec) -> bool:
    """Whether the attack is run on the folded twin: all but FGSM, which asks twice, and autoattack, which agrees with
    RobustBench's to the image."""
    return spec.attack != "fgsm" and not spec.together


def attack_rows(
    protocol: str,
    *,
    eps: Radii | None = None,
    attacks: Attacks | None = None,
    true_labels: bool = False,
    pgd_random_start: bool = False,
    batch_size: int = 200,
    dataset: str = "cifar10",
) -> tuple[AttackSpec, ...]:
    """The rows of the outcome matrix after the clean one; the arguments are those of `gkp.evaluation.benchmark.benchmark`.

    dataset: its name; the paper has other attacks on ImageNet. batch_size: becomes an option of the attacks whose outcomes
    depend on it. Raises BadInput for what the protocol has not.
    """
    if protocol not in PROTOCOLS:
        raise BadInput(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    if protocol == "paper":
        known = {spec.key: spec for spec in _paper_attacks(true_labels, pgd_random_start, dataset)}
        keys = list(known) if attacks is None else _listed(attacks)
        if eps is not None or any(not isinstance(key, str) or key not in known for key in keys):
            rows = ", ".join(known)
            raise BadInput(f'protocol "paper" has its own attacks and eps; choose among {rows}, or use protocol "pixel"')
        return tuple(known[str(key)] for key in dict.fromkeys(keys))
    if true_labels or pgd_random_start:
        raise BadInput('true_labels and pgd_random_start belong to protocol "paper": "pixel" always has both')
    specs = [spec for item in (("fgsm", "pgd") if attacks is None else _listed(attacks)) for spec in _specs(item, eps)]
    keys = [spec.key for spec in specs]
    if repeated := {key for key in keys if keys.count(key) > 1 or key == "clean" or key.startswith("worst-case-")}:
        raise BadInput(f"two rows would be called {min(repeated)!r}; give each AttackSpec a key of its own, each eps once")
    if predicted := [spec.key for spec in specs if spec.labels != "true"]:
        raise BadInput(f'{predicted[0]} asks for predicted labels, which only protocol "paper" has')
    settled = (replace(s, options={"batch_size": batch_size, **s.options}) if s.together else s for s in specs)
    return tuple(settled)


def _paper_attacks(true_labels: bool, pgd_random_start: bool, dataset: str) -> tuple[AttackSpec, ...]:
    """The attacks of the paper's tables, radii in normalised units. PGD makes all its steps, as in the library that it used."""
    radii, step = ((0.001, 0.01, 0.1), 1 / 255) if dataset.partition("+")[0] in KNOWN else ((0.01, 0.1), 2 / 255)
    fgsm = [AttackSpec("fgsm", e, labels="predicted", key=f"fgsm-{e}") for e in radii]
    steps = {"step": step, "steps": 3, "random_start": pgd_random_start, "drop_fallen": False}
    true = [AttackSpec("fgsm", e, key=f"fgsm-{e}-true") for e in radii] if true_labels else []
    return (*fgsm, AttackSpec("pgd", 4 * step, options=steps), *true)


def _listed(attacks: Attacks) -> list[str | AttackSpec | Mapping[str, Any]]:
    """The attacks one by one, "a,b" being two."""
    items = [attacks] if isinstance(attacks, str | Mapping | AttackSpec) else list(attacks)
    return [part for item in items for part in (_names(item) if isinstance(item, str) else [item])]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _specs(item: str | AttackSpec | Mapping[str, Any], eps: Radii | None) -> list[AttackSpec]:
    """The row of this attack at every radius of `eps`, or at its own if it has one."""
    if isinstance(item, AttackSpec):
        return [item]
    if isinstance(item, str):
        item = {"attack": item}
    if not isinstance(item, Mapping):
        raise BadInput(f"an attack is a {type(item).__name__}; give its name, an AttackSpec, or a dict of AttackSpec's fields")
    known = [field.name for field in fields(AttackSpec)]
    if "attack" not in item or (unknown := [name for name in item if name not in known]):
        what = f"has the unknown field {unknown[0]!r}" if "attack" in item else 'has no field "attack"'
        raise BadInput(
            f"a dict that describes an attack {what}; its fields: {', '.join(known)} (steps and the like are options)"
        )
    if "eps" in item:
        return [AttackSpec(**item)]
    check_options(item["attack"], {})
    norm = str((item.get("options") or {}).get("norm", "linf"))
    return [AttackSpec(**item, eps=radius) for radius in _radii(eps, norm)]


def _radii(eps: Radii | None, norm: str) -> Iterable[float]:
    if eps is None:
        return PIXEL_EPS if norm == "linf" else L2_EPS
    if isinstance(eps, str):
        return [parse_eps(part, norm=norm) for part in _names(eps)]
    if isinstance(eps, Iterable) and not isinstance(eps, Tensor | np.ndarray):
        return [parse_eps(radius, norm=norm) for radius in eps]
    return [parse_eps(eps, norm=norm)]


def _same(numbers: object, expected: Tensor) -> bool:
    alike = isinstance(numbers, Tensor) and numbers.dtype == expected.dtype
    return alike and torch.equal(numbers.flatten(), expected.flatten())  # type: ignore[attr-defined]
