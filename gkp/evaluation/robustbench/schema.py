"""What an entry must hold, checked: RobustBench's keys, and ours where they are there.

RobustBench's own files pass: whatever it leaves out is filled in as empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gkp.attacks.options import parse_eps
from gkp.errors import BadInput
from gkp.evaluation.robustbench.adapter import THREAT_MODELS

ACCURACIES = ("clean_acc", "autoattack_acc", "external", "reported")
_TEXTS = ("name", "dataset", "architecture", "authors", "venue", "link", "footnote")
_NEEDED = ("name", "dataset", "clean_acc", "eps")
_COUNTS = ("n", "parameters", "macs", "paper_macs")


def check_entry(entry: Mapping[str, Any], where: str, *, threat_model: str = "") -> dict[str, Any]:
    """A copy of `entry` with every text a string and eps and accuracies in RobustBench's notation.

    where: how messages name it. threat_model: "Linf" or "L2" if the entry does not say (RobustBench's files do not; the folder
    does). Raises BadInput for what is missing, is of the wrong kind, out of range, or contradicts itself.
    """
    if missing := [key for key in _NEEDED if entry.get(key) in (None, "")]:
        raise BadInput(f"{where} has no {missing[0]!r}; an entry needs {', '.join(_NEEDED)} and a robust accuracy")
    sound = dict(entry)
    for key in _TEXTS:
        sound[key] = _text(entry.get(key), f"{key!r} of {where}")
    sound["threat_model"] = _threat_model(entry.get("threat_model", threat_model), where)
    sound["eps"] = _radius(entry["eps"], THREAT_MODELS[sound["threat_model"]], where)
    for key in ACCURACIES:
        if key in entry:
            sound[key] = _accuracy(entry[key], f"{key!r} of {where}")
    sound.setdefault("autoattack_acc", None)
    if best_known(sound) is None:
        raise BadInput(f"{where} has neither autoattack_acc nor external; an entry needs a robust accuracy")
    for key in ("additional_data", "unreliable"):
        if entry.get(key) not in (None, True, False):
            raise BadInput(f"{key!r} of {where} is {entry[key]!r}; give true, false or null")
    sound["additional_data"] = bool(entry.get("additional_data"))
    for key in _COUNTS:
        if entry.get(key) is not None and not _whole(entry[key], least=1 if key == "n" else 0):
            raise BadInput(f"{key!r} of {where} is {entry[key]!r}; give a whole number")
    if entry.get("seed") is not None and not _whole(entry["seed"]):
        raise BadInput(f"'seed' of {where} is {entry['seed']!r}; give a whole number")
    _check_link(sound["link"], where)
    _check_intervals(sound, where)
    _check_latency(entry.get("latency"), where)
    return sound


def best_known(entry: Mapping[str, Any]) -> float | None:
    """The best known (lowest) robust accuracy in percent, as RobustBench ranks by: `external` if it is there."""
    for key in ("external", "autoattack_acc"):
        if entry.get(key) is not None:
            return float(entry[key])
    return None


def _text(value: Any, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInput(f"{what} is {value!r}; give a text")
    return value.strip()


def _threat_model(value: Any, where: str) -> str:
    if value not in THREAT_MODELS:
        raise BadInput(f"{where} has the threat model {value!r}; the leaderboard ranks {' and '.join(THREAT_MODELS)}")
    return str(value)


def _radius(value: Any, norm: str, where: str) -> str:
    """RobustBench's notation: "8/255" in Linf, "0.5" in L2."""
    try:
        eps = parse_eps(value, norm=norm)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error
    return f"{eps * 255:.6g}/255" if norm == "linf" else f"{eps:.6g}"


def _accuracy(value: Any, what: str) -> str | None:
    """A percent string; None stays."""
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError) as error:
        raise BadInput(f'{what} is {value!r}; give percent as a string such as "91.73"') from error
    if not 0 <= number <= 100:  # NaN fails too
        raise BadInput(f"{what} is {value!r}; give percent between 0 and 100")
    return value if isinstance(value, str) else f"{number:.2f}"


def _whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_link(link: str, where: str) -> None:
    if link and (urlsplit(link).scheme not in ("http", "https") or not urlsplit(link).netloc):
        raise BadInput(f"'link' of {where} is {link!r}; give an address that begins with https://, or leave it empty")


def _check_intervals(entry: Mapping[str, Any], where: str) -> None:
    intervals = entry.get("interval")
    if intervals is None:
        return
    if not isinstance(intervals, Mapping):
        raise BadInput(f"'interval' of {where} is {intervals!r}; give low and high in percent per accuracy")
    figures = {"best_known": best_known(entry), **{key: entry.get(key) for key in ACCURACIES}}
    for key, pair in intervals.items():
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(_number(end) for end in pair)):
            raise BadInput(f"interval {key!r} of {where} is {pair!r}; give low and high in percent")
        figure = figures.get(key)
        inside = figure is None or pair[0] - 0.01 <= float(figure) <= pair[1] + 0.01  # both are rounded
        if not (0 <= pair[0] <= pair[1] <= 100 and inside):
            raise BadInput(f"interval {key!r} of {where} is {pair[0]} to {pair[1]}, its accuracy {figure}; evaluate again")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_latency(value: Any, where: str) -> None:
    if value is not None and not (isinstance(value, Mapping) and _number(value.get("seconds")) and value["seconds"] > 0):
        raise BadInput(f"'latency' of {where} is {value!r}; give null, or how it was measured with 'seconds' above 0")
