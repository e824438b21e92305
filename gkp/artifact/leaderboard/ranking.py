"""Who is ranked against whom, and how sure the ranks are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gkp.attacks.options import parse_eps
from gkp.evaluation.robustbench.adapter import THREAT_MODELS
from gkp.evaluation.robustbench.schema import best_known


@dataclass(frozen=True)
class Ranked:
    """An entry with its rank, and the best and worst rank that the intervals leave open (the rank itself without intervals)."""

    entry: Mapping[str, Any]
    rank: int
    best: int
    worst: int


@dataclass(frozen=True)
class Group:
    """The entries at one radius for one data set, ranked."""

    dataset: str
    threat_model: str
    eps: str
    rows: tuple[Ranked, ...]

    @property
    def key(self) -> str:
        """Its name in addresses: "cifar10-Linf-8-255"."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.dataset}-{self.threat_model}-{self.eps}").strip("-")

    @property
    def title(self) -> str:
        """Its name for readers: "cifar10, Linf, eps = 8/255"."""
        return f"{self.dataset}, {self.threat_model}, eps = {self.eps}"


def grouped(entries: Sequence[Mapping[str, Any]]) -> list[Group]:
    """One group per data set, threat model and eps, in that order, each ranked by best known robust accuracy."""
    groups: dict[tuple[str, bool, float], list[Mapping[str, Any]]] = {}
    for entry in entries:
        radius = round(parse_eps(entry["eps"], norm=THREAT_MODELS[entry["threat_model"]]), 9)
        groups.setdefault((entry["dataset"], entry["threat_model"] != "Linf", radius), []).append(entry)
    members = (groups[key] for key in sorted(groups))
    return [Group(group[0]["dataset"], group[0]["threat_model"], group[0]["eps"], ranked(group)) for group in members]


def ranked(entries: Sequence[Mapping[str, Any]]) -> tuple[Ranked, ...]:
    """The entries from the most robust to the least; equal accuracies share a rank, by name among themselves.

    One is surely better than another if its interval lies above the other's.
    """
    accuracies = [_accuracy(entry) for entry in entries]
    spans = [interval(entry) for entry in entries]
    rows = []
    for entry, accuracy, (low, high) in zip(entries, accuracies, spans, strict=True):
        rank = 1 + sum(other > accuracy for other in accuracies)
        best = 1 + sum(other_low > high for other_low, _ in spans)
        worst = len(entries) - sum(other_high < low for _, other_high in spans)
        rows.append(Ranked(entry, rank, best, worst))
    return tuple(sorted(rows, key=lambda row: (row.rank, row.entry["name"])))


def interval(entry: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of the best known robust accuracy, percent; of no width if the entry has none."""
    intervals = entry.get("interval") or {}
    low, high = intervals.get("best_known", (_accuracy(entry),) * 2)
    return float(low), float(high)


def _accuracy(entry: Mapping[str, Any]) -> float:
    accuracy = best_known(entry)
    assert accuracy is not None  # check_entry has seen to it
    return accuracy
