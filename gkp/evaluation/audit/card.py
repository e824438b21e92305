"""The card of an audited network as Markdown and JSON, and evaluating again from the JSON alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from gkp.attacks.network import ordinary_tensors
from gkp.data.dataset import Dataset
from gkp.data.sources import load_dataset
from gkp.errors import BadInput
from gkp.evaluation.audit.checks import MASKING
from gkp.evaluation.audit.evidence import of_text
from gkp.evaluation.audit.measure import Scaled
from gkp.evaluation.audit.probing import Subject
from gkp.evaluation.audit.verdict import FAIL, NOT_RUN, PASS, WARN, Check
from gkp.evaluation.outcomes import AttackSpec
from gkp.files import replace_files
from gkp.networks.fingerprint import state_sha256

FORMAT = 1
_COLUMNS = ("number", "name", "status", "value", "threshold", "n", "note")
_MARKS = {PASS: "pass", WARN: "**warn**", FAIL: "**FAIL**", NOT_RUN: "not run"}


@dataclass(frozen=True, eq=False)
class Card:
    """The result of an audit of one network at one radius.

    Attributes:
        checks: The 22 checks, in order.
        facts: What was attacked and all outcomes (`Evidence.to_json`), as `reevaluate` needs them.
        accuracies, tests: As returned by `gkp.evaluation.audit.evidence.accuracies` and `paired_tests`.
        reported: The robust accuracy, the fraction of images classified correctly without attack and under all attacks.
    """

    checks: tuple[Check, ...]
    facts: Mapping[str, Any]
    accuracies: tuple[Mapping[str, Any], ...]
    tests: tuple[Mapping[str, Any], ...]
    reported: float

    @property
    def status(self) -> str:
        """The worst status among the checks that ran: "fail", "warn" or "pass"; "not run" if none did."""
        found = {check.status for check in self.checks}
        return next((status for status in (FAIL, WARN, PASS) if status in found), NOT_RUN)

    @property
    def flags(self) -> tuple[str, ...]:
        """The checks that failed, e.g. ("9 black-box attacks add little",)."""
        return tuple(f"{check.number} {check.name}" for check in self.checks if check.status == FAIL)

    @property
    def masked(self) -> bool:
        """Whether a check for gradient masking failed, so that the robust accuracy is only an upper bound."""
        return any(check.status == FAIL and check.number in MASKING for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The whole card as plain JSON types."""
        return {
            "format": FORMAT, "status": self.status, "flags": list(self.flags), "masked": self.masked,
            "robust_accuracy": self.reported, **self.facts, "checks": [check.to_json() for check in self.checks],
            "accuracies": [dict(row) for row in self.accuracies], "paired_tests": [dict(row) for row in self.tests],
        }  # fmt: skip

    def to_frame(self) -> pd.DataFrame:
        """One row per check (index "number"): name, status, value, threshold, n, note."""
        return pd.DataFrame([check.to_json() for check in self.checks], columns=list(_COLUMNS)).set_index("number")

    def to_markdown(self) -> str:
        """The card as Markdown: YAML front matter (a JSON value in each line), then tables."""
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
        """Write `card.md` and `card.json` into a folder, atomically, and return the folder.

        Raises:
            BadInput: It cannot be written.
        """
        numbers = json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"
        return replace_files(Path(folder), {"card.md": self.to_markdown(), "card.json": numbers}, "the card")


@ordinary_tensors()
def reevaluate(
    facts: Mapping[str, Any],
    model: nn.Module,
    dataset: Dataset | None = None,
    *,
    parent: nn.Module | None = None,
    images: int = 4,
) -> dict[str, tuple[int, int]]:
    """Attack some images again from the JSON of a card alone.

    For each attack some misclassified images are tried and, unless it makes queries, as many others. Attacks whose outcome
    depends on the batch (AutoAttack) are left out.

    Args:
        facts: `Card.to_json()`, or the contents of card.json.
        model: The network of the card.
        dataset: The split it was made on; None to load it by its name.
        parent: The dense parent; None to leave out the images attacked for it.
        images: The largest number of images of each outcome.

    Returns:
        Attack -> (images with the recorded outcome, images tried).

    Raises:
        BadInput: The network or data set is not that of the card, or `facts` is not the JSON of a card.
    """
    try:
        threat, clean = facts["threat_model"], of_text(facts["clean"])
        data = load_dataset(threat["dataset"], threat["split"]) if dataset is None else dataset
        for what, key, here in (("data set", "data_sha256", data.sha256), ("network", "model_sha256", state_sha256(model))):
            wanted = threat[key]
            if here != wanted:
                raise BadInput(f"the card is of another {what} (sha256 {wanted[:8]}, here {here[:8]}); give the same one")
        subject = Subject(model, data, data.first(threat["n"]), threat["seed"], batch_size=200, progress=False)
        again = {}
        for name, row in facts["attacks"].items():
            spec, right = AttackSpec(**row["spec"]), of_text(row["right"])
            chosen = np.flatnonzero(clean & ~right)[:images]
            if "queries" not in spec.options:  # images that are never misclassified take all queries
                chosen = np.union1d(chosen, np.flatnonzero(clean & right)[:images])
            if spec.together or (row["source"] == "parent" and parent is None):
                continue
            if parent is not None and row["source"] == "parent":
                found = subject.transferred(parent, spec, chosen)
            elif len(chosen):
                attacked = Scaled(model, facts["logit_scale"]) if row["source"] == "scaled logits" else model
                found = subject.outcomes([spec], model=attacked, positions=chosen).right[1]
            else:
                found = right[chosen]
            again[name] = int((found == right[chosen]).sum()), len(chosen)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"not the JSON of an audit's card ({type(error).__name__}: {error}); audit the network again") from error
    return again


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(str(cell).replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
