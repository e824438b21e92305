"""Attacks by name. The package's `__init__` enters them, so that an attack may call others (a cascade) without a cycle."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gkp.attacks.balls import NORMS, Bounds
from gkp.errors import BadInput
from gkp.files import one_line

ATTACKS: dict[str, Callable[..., Tensor]] = {}
_FORWARDED = ("norm", "ids", "bounds", "batch_size")  # what a cascade hands to each of its attacks


def check_options(name: str, options: Mapping[str, Any], *, reserved: Sequence[str] = ()) -> None:
    """Raises BadInput for an unknown attack, norm, or option of it; `reserved` ones are not for the caller to set."""
    if name not in ATTACKS:
        raise BadInput(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
    known = [key for key in list(inspect.signature(ATTACKS[name]).parameters)[3:] if key not in ("eps", "seed", *reserved)]
    if unknown := [key for key in options if key not in known]:
        raise BadInput(f"{name} has no option {unknown[0]!r}; its options: {', '.join(known)}")
    known_norm(options.get("norm", "linf"))
    if name == "cascade" and "attacks" in options:
        members(options["attacks"])


def members(attacks: Sequence[str | Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The attacks of a cascade and the options of each. Raises BadInput for what is no attack, or one that cannot be in it."""
    form = 'give names, or {"attack": name, **options}'
    if isinstance(attacks, str | Mapping) or not isinstance(attacks, Sequence) or not attacks:
        raise BadInput(f"the attacks of a cascade are {attacks!r}; {form}, in a list of at least one")
    found = []
    for item in attacks:
        if not isinstance(item, str) and not (isinstance(item, Mapping) and isinstance(item.get("attack"), str)):
            raise BadInput(f"an attack of a cascade is {item!r}; {form}")
        name, options = (item, {}) if isinstance(item, str) else (item["attack"], {**item})
        options.pop("attack", None)
        if name == "cascade":
            raise BadInput("a cascade cannot be in a cascade; give its attacks in one list")
        check_options(name, options, reserved=_FORWARDED)
        found.append((name, options))
    return found


def parse_eps(eps: float | str, *, norm: str = "linf", bounds: Bounds = (0.0, 1.0)) -> float:
    """The radius as a number: 8 / 255 from 8 / 255 or "8/255".

    Raises BadInput for one that is no radius in the units of images within `bounds`.
    """
    hint = 'write pixel units as 8 / 255 or "8/255"'
    value: Any = eps.item() if isinstance(eps, Tensor) and eps.ndim == 0 else float(eps) if isinstance(eps, Fraction) else eps
    if isinstance(eps, str):
        top, slash, bottom = eps.partition("/")
        try:
            value = float(top) / float(bottom if slash else 1)
        except (ValueError, ZeroDivisionError) as error:
            raise BadInput(f"eps {eps!r} is not a number; {hint}") from error
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or not math.isfinite(value):
        raise BadInput(f"eps {one_line(repr(eps))[:80]} is not a finite number; {hint}")
    if value < 0:
        raise BadInput(f"eps {eps!r} is negative; {hint}")
    low, high = bounds
    if value > high - low and known_norm(norm) == "linf":
        if (low, high) != (0.0, 1.0):
            raise BadInput(f"eps {eps!r} is above {high - low:g}, the whole range of images in [{low:g}, {high:g}]")
        raise BadInput(f'eps {eps!r} is above 1, the whole range of a pixel; for {value:g} of 255 levels write "{value:g}/255"')
    return float(value)


def check_images(x: Tensor, y: Tensor, bounds: Bounds = (0.0, 1.0)) -> None:
    """Raises BadInput unless `x` is a float (N, C, H, W) batch within `bounds` and `y` its (N,) int64 labels."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise BadInput(f"images are {what}; give a float tensor in [0, 1], e.g. images.float() / 255")
    if x.layout != torch.strided or x.is_meta:
        raise BadInput(
            f"images are {x.layout} on {x.device}; give an ordinary tensor that holds numbers, e.g. images.to_dense()"
        )
    if x.ndim != 4 or 0 in x.shape:
        raise BadInput(f"images have the shape {tuple(x.shape)}; give (N, C, H, W) with at least one image")
    low, high = check_bounds(bounds)
    if not bool(((x >= low) & (x <= high)).all()):  # NaN fails both
        span = "NaN among them" if bool(x.isnan().any()) else f"they run from {x.min():.4g} to {x.max():.4g}"
        mend = "give pixels / 255, the network normalises inside" if (low, high) == (0.0, 1.0) else "give other bounds="
        raise BadInput(f"images must lie in [{low:g}, {high:g}], {span}; {mend}")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        what = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        if isinstance(y, Tensor) and y.ndim == 2 and len(y) == len(x):
            mend = "y.squeeze(1).long()" if y.shape[1] == 1 else "y.argmax(1), if they are one-hot"
            raise BadInput(f"labels are {what}; give one int64 label per image: {mend}")
        raise BadInput(f"labels are {what}; give an int64 tensor of shape ({len(x)},), one label per image")
    if y.device != x.device:
        raise BadInput(f"labels are on {y.device}, images on {x.device}; give both on one device, e.g. y.to({str(x.device)!r})")


def check_bounds(bounds: Any) -> Bounds:
    """The bounds as two numbers. Raises BadInput unless they are finite and the first is below the second."""
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"bounds are {one_line(repr(bounds))}; give two numbers, the least and the largest value of a pixel"
        ) from error
    if not -math.inf < low < high < math.inf:
        raise BadInput(f"bounds are {bounds!r}; give two finite numbers, the smaller one first")
    return low, high


def check_labels(y: Tensor, classes: int) -> None:
    """Raises BadInput unless every label is one of the network's classes."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise BadInput(f"labels run from {low} to {high}, but the network has {classes} logits: give 0..{classes - 1}")


def checked_ids(ids: Any, n: int) -> Tensor:
    """The ids as a tensor. Raises BadInput unless they are `n` integers >= 0."""
    try:
        ids = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"ids are {one_line(repr(ids))[:80]}; give {n} integers >= 0, one per image") from error
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.shape != (n,) or int(ids.min()) < 0:
        raise BadInput(f"ids are {ids.dtype} {tuple(ids.shape)}; give {n} integers >= 0, one per image")
    return ids


def known_norm(norm: str) -> str:
    """The norm itself. Raises BadInput for one that is not in NORMS."""
    if norm not in NORMS:
        raise BadInput(f"unknown norm {norm!r}; known: {', '.join(NORMS)}")
    return norm


def check_counts(attack: str, **counts: int | None) -> None:
    """Raises BadInput unless every option of `attack` given here is a whole number of 1 or more, or None."""
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise BadInput(f"{name} of {attack} must be a whole number of 1 or more, not {value!r}")
