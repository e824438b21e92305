"""Checks that arguments of `prune` and options of a method are of their types, before anything is computed."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gkp.errors import BadInput

_KINDS: dict[Any, str] = {float: "a number", int: "a whole number", bool: "True or False", str: "text", types.NoneType: "None"}


def checked_options(who: str, cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, numbers of numpy and fractions as plain ones.

    Raises BadInput for one that is not of the type that the dataclass `cls` declares for it.

    Args:
        who: Name for the message.
        cls: The dataclass.
        options: Values by name of field.
    """
    hints = get_type_hints(cls)
    for name, value in options.items():
        if not _is_of(value, hints[name]):
            raise BadInput(f"{who}: {name} is {_shown(value)}; give {_in_words(hints[name])}")
    return {name: _plain(value) for name, value in options.items()}


def check_arguments(rate: Any, seed: Any, budget: Any = None, **counts: Any) -> None:
    """Raise BadInput for arguments of `prune` that cannot be used.

    Args:
        rate, seed, budget: As there.
        counts: groups and time_limit, as there.
    """
    check_rate(rate)
    for name, value, kind in (
        ("seed", seed, int),
        ("budget", 1 if budget is None else budget, float),
        ("groups", counts.get("groups", 1), int),
        ("time_limit", counts.get("time_limit", 1.0), float),
    ):
        if not _is_of(value, kind):
            raise BadInput(f"{name} is {_shown(value)}; give {_KINDS[kind]}")
    if not 0 <= seed < 2**32:  # what scikit-learn takes
        raise BadInput(f"seed must be an integer in 0..2**32-1, not {_shown(seed)}")


def check_rate(rate: Any) -> None:
    """Raise BadInput unless `rate` is a number between 0 and 1."""
    if not _is_of(rate, float) or not 0 < rate < 1:
        raise BadInput(f"rate must lie between 0 and 1, not {_shown(rate)}; the paper uses 7/16 = 0.4375 and 10/16 = 0.625")


def check_measured(seconds: Any, **sizes: Any) -> None:
    """Raise BadInput unless `seconds` can be measured for, and `sizes` are whole numbers above 0."""
    for name, value in sizes.items():
        if not _is_of(value, int) or value < 1:
            raise BadInput(f"{name} is {_shown(value)}; give a whole number of 1 or more")
    if not _is_of(seconds, float) or not 0 < seconds < math.inf:
        raise BadInput(f"seconds is {_shown(seconds)}; give a number above 0")


def checked_layers(layers: Any) -> Any:
    """The choice of layers in a form that can be read twice. Raises BadInput for anything else."""
    if layers is None or callable(layers) or isinstance(layers, str):
        return layers
    names = list(layers) if isinstance(layers, Iterable) else [layers]
    if not all(isinstance(name, str) for name in names):
        raise BadInput(f"layers is {_shown(layers)}; give names of layers, or a function of name and convolution")
    return names


def checked_shape(shape: Any) -> tuple[int, ...]:
    """The shape of one image. Raises BadInput for what is none."""
    sizes = tuple(shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else ()
    if not sizes or not all(_is_of(size, int) and size > 0 for size in sizes):
        raise BadInput(f"input_shape is {_shown(shape)}; give (C, H, W), such as (3, 32, 32)")
    return tuple(map(int, sizes))


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; what is neither a number nor text is left to who uses it."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_of(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint in (int, float):
        kind = Integral if hint is int else Real
        return isinstance(value, kind) and not isinstance(value, bool) and not math.isnan(value)
    return isinstance(value, hint) if hint in (bool, str, types.NoneType) else True


def _plain(value: Any) -> Any:
    if not isinstance(value, Real) or isinstance(value, bool | int | float):
        return float(value) if isinstance(value, float) else value  # a float64 of numpy is a float too
    return int(value) if isinstance(value, Integral) else float(value)


def _in_words(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_in_words(one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return _KINDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"


def _shown(value: Any) -> str:
    return " ".join(repr(value).split())[:60]
