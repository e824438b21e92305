"""Attacks by name. The package's `__init__` enters them, so that an attack may call others (a cascade) without a cycle."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from gkp.attacks.checks import known_norm
from gkp.errors import BadInput

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
