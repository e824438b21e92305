"""Attacks by name. The package's `__init__` enters them, so that an attack may call others (a cascade) without a cycle."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from gkp.attacks.checks import known_norm
from gkp.errors import BadInput

ATTACKS: dict[str, Callable[..., Tensor]] = {}


def check_options(name: str, options: Mapping[str, Any], *, reserved: Sequence[str] = ()) -> None:
    """Raises BadInput for an unknown attack, norm, or option of it; `reserved` ones are not for the caller to set."""
    if name not in ATTACKS:
        raise BadInput(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
    known = [key for key in list(inspect.signature(ATTACKS[name]).parameters)[3:] if key not in ("eps", "seed", *reserved)]
    if unknown := [key for key in options if key not in known]:
        raise BadInput(f"{name} has no option {unknown[0]!r}; its options: {', '.join(known)}")
    known_norm(options.get("norm", "linf"))
