"""Check entries of a leaderboard: RobustBench's keys, and additional ones where they are given.

`entry.schema.json` defines each key; this module checks what a schema cannot express. RobustBench's own files pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from gkp.attacks.options import parse_eps
from gkp.errors import BadInput, need_extra
from gkp.evaluation.robustbench.adapter import THREAT_MODELS

ACCURACIES = ("clean_acc", "autoattack_acc", "external", "reported")
_TEXTS = ("name", "dataset", "architecture", "authors", "venue", "link", "footnote")
_NEEDED = ("name", "dataset", "clean_acc", "eps")


def check_entry(entry: Mapping[str, Any], where: str, *, threat_model: str = "") -> dict[str, Any]:
    """Check an entry and return a copy with eps and accuracies in RobustBench's notation and no missing texts.

    Args:
        entry: The entry, as plain JSON types; optional keys may be missing or None.
        where: The name of the entry in errors.
        threat_model: "Linf" or "L2" for entries without it (RobustBench's files, whose folder has that name).

    Raises:
        BadInput: A value is missing, of another type, out of range, or contradicts another one.
    """
    if missing := [key for key in _NEEDED if entry.get(key) in (None, "")]:
        raise BadInput(f"{where} has no {missing[0]!r}; an entry needs {', '.join(_NEEDED)} and a robust accuracy")
    texts = {key: "" if entry.get(key) is None else entry[key] for key in _TEXTS}
    sound = {**entry, **{key: value.strip() if isinstance(value, str) else value for key, value in texts.items()}}
    sound.setdefault("threat_model", threat_model)
    sound.setdefault("autoattack_acc", None)
    sound |= {key: _accuracy(sound[key], f"{key!r} of {where}") for key in ACCURACIES if key in sound}
    need_extra("attacks", "jsonschema")
    if error := min(_validator().iter_errors(sound), key=lambda error: list(map(str, error.absolute_path)), default=None):
        key = ".".join(map(str, error.absolute_path))
        raise BadInput(f"{key!r} of {where} is {error.instance!r}; give {error.schema.get('description', error.message)}")
    sound["additional_data"] = bool(sound.get("additional_data"))
    sound["eps"] = _radius(entry["eps"], THREAT_MODELS[sound["threat_model"]], where)
    if best_known(sound) is None:
        raise BadInput(f"{where} has neither autoattack_acc nor external; an entry needs a robust accuracy")
    _check_intervals(sound, where)
    return sound


def best_known(entry: Mapping[str, Any]) -> float | None:
    """The best known (lowest) robust accuracy in percent, by which RobustBench ranks: `external` or `autoattack_acc`."""
    return next((float(entry[key]) for key in ("external", "autoattack_acc") if entry.get(key) is not None), None)


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator, validators

    types = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "array": lambda _, value: isinstance(value, list | tuple),
            "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
            "number": lambda _, value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        }
    )
    schema = json.loads((files(__package__) / "entry.schema.json").read_text(encoding="utf-8"))
    return validators.extend(Draft202012Validator, type_checker=types)(schema)


def _radius(value: Any, norm: str, where: str) -> str:
    """A radius in RobustBench's notation: "8/255" in Linf, "0.5" in L2."""
    try:
        eps = parse_eps(value, norm=norm)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error
    return f"{eps * 255:.6g}/255" if norm == "linf" else f"{eps:.6g}"


def _accuracy(value: Any, what: str) -> str | None:
    """Percent as text; None for a missing accuracy."""
    if value is None or value == "":
        return None
    try:
        number = float("boolean" if isinstance(value, bool) else value)
    except (TypeError, ValueError) as error:
        raise BadInput(f'{what} is {value!r}; give percent as a string such as "91.73"') from error
    if not 0 <= number <= 100:  # NaN fails too
        raise BadInput(f"{what} is {value!r}; give percent between 0 and 100")
    return value if isinstance(value, str) else f"{number:.2f}"


def _check_intervals(entry: Mapping[str, Any], where: str) -> None:
    known = {"best_known": best_known(entry), **{key: entry.get(key) for key in ACCURACIES}}
    for key, (low, high) in (entry.get("interval") or {}).items():
        value = known.get(key)
        if not (low <= high and (value is None or low - 0.01 <= float(value) <= high + 0.01)):  # both are rounded
            raise BadInput(f"interval {key!r} of {where} is {low} to {high}, its accuracy {value}; evaluate again")
