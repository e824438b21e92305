"""The card of an audited network: front matter, 22 checks, accuracies with intervals, paired tests; Markdown and JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gkp.evaluation.audit.masking import MASKING
from gkp.evaluation.audit.verdict import FAIL, NOT_RUN, PASS, WARN, Check
from gkp.files import replace_files

FORMAT = 1
_COLUMNS = ("number", "name", "status", "value", "threshold", "n", "note")
_MARKS = {PASS: "pass", WARN: "**warn**", FAIL: "**FAIL**", NOT_RUN: "not run"}


@dataclass(frozen=True, eq=False)
class Card:
    """What an audit says of one network at one radius.

    checks: all 22, in order. facts: what was attacked and every outcome (`Evidence.to_json`), enough to
    evaluate again with `gkp.evaluation.audit.replay.reevaluate`. accuracies, tests: `gkp.evaluation.audit.checks.accuracies`
    and `paired_tests`. reported: the robust accuracy, a fraction: right without attack and under every attack.
    """

    checks: tuple[Check, ...]
    facts: Mapping[str, Any]
    accuracies: tuple[Mapping[str, Any], ...]
    tests: tuple[Mapping[str, Any], ...]
    reported: float

    @property
    def status(self) -> str:
        """The worst of "pass", "warn", "fail" among the checks that ran; "not run" if none did."""
        found = {check.status for check in self.checks}
        return next((status for status in (FAIL, WARN, PASS) if status in found), NOT_RUN)

    @property
    def flags(self) -> tuple[str, ...]:
        """The checks that failed, e.g. ("9 black-box attacks add little",)."""
        return tuple(f"{check.number} {check.name}" for check in self.checks if check.status == FAIL)

    @property
    def masked(self) -> bool:
        """Whether a check that tells gradient masking failed: the robust accuracy is then an upper bound, not a figure."""
        return any(check.status == FAIL and check.number in MASKING for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON types."""
        return {
            "format": FORMAT, "status": self.status, "flags": list(self.flags), "masked": self.masked,
            "robust_accuracy": self.reported, **self.facts, "checks": [check.to_json() for check in self.checks],
            "accuracies": [dict(row) for row in self.accuracies], "paired_tests": [dict(row) for row in self.tests],
        }  # fmt: skip

    def to_frame(self) -> pd.DataFrame:
        """One row per check (index "number"): name, status, value, threshold, n, note."""
        return pd.DataFrame([check.to_json() for check in self.checks], columns=list(_COLUMNS)).set_index("number")

    def to_markdown(self) -> str:
        """The card for people: YAML front matter (JSON values, one a line), then tables."""
        threat = self.facts["threat_model"]
        front = {"status": self.status, "flags": list(self.flags), "robust_accuracy": self.reported, **threat}
        head = ["---", *(f"{name}: {json.dumps(value)}" for name, value in front.items()), "---"]
        worst = self.accuracies[-1]
        counts = Counter(check.status for check in self.checks)
        where = f"Linf {threat['eps_text']}, first {threat['n']:,} images of {threat['dataset']}/{threat['split']}"
        span = f"{100 * worst['low']:.2f} - {100 * worst['high']:.2f}"
        summary = [
            "# Robustness card",
            f"{where}: robust accuracy {100 * self.reported:.2f} % ({span}), the worst case over all attacks per image.",
            f"Audit: **{self.status}** ({', '.join(f'{counts[status]} {status}' for status in _MARKS if counts[status])}).",
        ]
        if self.masked:
            summary.append("**Gradient masking: the robust accuracy is an upper bound.**")
        checks = [
            (c.number, c.name, _MARKS[c.status], _number(c.value), _number(c.threshold), c.n or "", c.note) for c in self.checks
        ]
        accuracies = [
            (r["attack"], r["kind"], f"{100 * r['accuracy']:.2f}", f"{100 * r['low']:.2f} - {100 * r['high']:.2f}", r["n"])
            for r in self.accuracies
        ]
        tests = [(t["first"], t["second"], t["only_first"], t["only_second"], f"{t['p']:.3g}") for t in self.tests]
        parts = [
            "\n".join(head), *summary,
            "## Checks", _table(("", "check", "status", "value", "threshold", "n", "note"), checks),
            "## Accuracy, %, with 95 % Wilson intervals", _table(("attack", "kind", "accuracy", "interval", "n"), accuracies),
            "## Exact McNemar tests on the same images",
            _table(("first", "second", "right under the first only", "under the second only", "p"), tests),
        ]  # fmt: skip
        return "\n\n".join(parts) + "\n"

    def save(self, folder: str | Path) -> Path:
        """The folder, now holding `card.md` and `card.json`, each written beside and renamed.

        Raises BadInput when it cannot be written, nothing being left half done.
        """
        markdown, numbers = self.to_markdown(), json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"
        return replace_files(Path(folder), {"card.md": markdown.encode(), "card.json": numbers.encode()}, "the card")


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(str(cell).replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
