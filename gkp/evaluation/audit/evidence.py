"""The measurements of an audit, as plain data: outcomes of each image, and probes of the network.

`gkp.evaluation.audit.measure` makes them, `gkp.evaluation.audit.checks` judges them, and `card.json` stores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.evaluation.statistics import discordant, mcnemar, share

WHITE, BLACK, MIXED = "white-box", "black-box", "mixed"


class Missing(Exception):
    """A measurement that a check needs is missing; the message is the reason on the card."""


@dataclass(frozen=True, eq=False)
class Row:
    """One attack at the audited radius.

    Attributes:
        right: Whether each image is classified correctly under it, (N,) bool.
        spec: The attack.
        kind: "white-box" if it uses gradients of this network, "black-box" if not, "mixed" for a combination of attacks.
        source: The attacked network: "network", "scaled logits" (logits multiplied by `Evidence.logit_scale`) or "parent".
    """

    right: np.ndarray
    spec: AttackSpec
    kind: str = WHITE
    source: str = "network"


@dataclass(frozen=True)
class Probe:
    """The behaviour of an attack in a short run on a few correctly classified images.

    Attributes:
        n: The number of images.
        moved_at_zero: The number of images changed with eps = 0.
        farthest: The largest |x_adv - x|.
        outside, not_finite: The numbers of images with pixels outside [0, 1], and with NaN or infinite pixels.
        otherwise: The number of images with another outcome when attacked apart from others in smaller batches.
    """

    n: int
    moved_at_zero: int
    farthest: float
    outside: int
    not_finite: int
    otherwise: int


@dataclass(frozen=True, eq=False)
class InputPath:
    """Measurements of whether the network normalises its input itself.

    Attributes:
        right: Whether each image is classified correctly when it was normalised before, by the mean and std of the data set,
            (N,) bool.
        difference: The largest difference between logits of images in [0, 1] and logits of the same images, normalised as a
            loader does, given to `from_normalised`; relative to the largest logit. None for networks without `from_normalised`.
        reference: The known accuracy without attack, a fraction; None if not given.
    """

    right: np.ndarray
    difference: float | None
    reference: float | None


@dataclass(frozen=True)
class Gradients:
    """Input gradients of the cross-entropy for correctly classified images.

    Attributes:
        n: The number of images.
        zero: The number of gradients that are zero everywhere.
        not_finite: The number of gradients with NaN or infinite entries.
    """

    n: int
    zero: int
    not_finite: int


@dataclass(frozen=True, eq=False)
class Evidence:
    """All measurements that the checks use. Outcomes are (N,) bool, True for images classified correctly.

    Attributes:
        threat: The threat model (check 1).
        clean: Outcomes without attack.
        rows: Name -> attack at the audited radius.
        ladder: Radius -> outcomes under PGD.
        matrices: All outcome matrices that were used.
        probes: Name of an attack -> how it behaves.
        states: The sha256 of the network before and after the audit.
        unstable: The number of images, out of `probed`, whose logits change in a second pass or whose class changes with the
            batch size.
        probed: The number of images for `unstable`.
        path: Whether the network normalises its input itself.
        gradients: Whether input gradients are usable.
        logit_scale: The factor of the scaled logits.
        reported: The robust accuracy on the card, a fraction.
        changed: Name -> outcomes on images changed without knowledge of the network.
        parent_clean: Outcomes of the parent without attack; None without a parent.
        reevaluated: Name of an attack -> (images with the same outcome when evaluated from the JSON, images tried).
        self_test: "planted" and "plain" -> numbers of the masking checks that failed.
        selection: How the checkpoint was chosen; None if not stated.
        missing: Name -> why it was not measured.
    """

    threat: Mapping[str, Any]
    clean: np.ndarray
    rows: Mapping[str, Row]
    ladder: Mapping[float, np.ndarray]
    matrices: tuple[Outcomes, ...]
    probes: Mapping[str, Probe]
    states: tuple[str, str]
    unstable: int
    probed: int
    path: InputPath
    gradients: Gradients
    logit_scale: float
    reported: float
    changed: Mapping[str, np.ndarray] = field(default_factory=dict)
    parent_clean: np.ndarray | None = None
    reevaluated: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    self_test: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    selection: str | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.clean)

    def row(self, name: str) -> np.ndarray:
        """Outcomes under an attack, (N,) bool. Raises Missing if it did not run or no image could be attacked."""
        if not self.clean.any():
            raise Missing("no image is classified correctly without attack, so attacks have nothing to break")
        if name not in self.rows:
            raise Missing(f"{name}: {self.missing.get(name, 'was not run')}")
        return self.rows[name].right

    def conduct(self) -> tuple[Mapping[str, Probe], int]:
        """The probe of each attack, and the number of images. Raises Missing if there was no image for probes."""
        if not self.probes:
            raise Missing("no image is classified correctly without attack, so attacks could not be tried")
        return self.probes, max(probe.n for probe in self.probes.values())

    def survivors(self, kind: str | None = None) -> np.ndarray:
        """Images classified correctly without attack and under all attacks of a kind, None for any kind; (N,) bool."""
        return np.logical_and.reduce([self.clean, *(row.right for row in self.rows.values() if kind in (None, row.kind))])

    def to_json(self) -> dict[str, Any]:
        """All that is needed to evaluate again, and all outcomes, as plain JSON types.

        Outcomes are text with one character for each image: "1" for correctly classified, "0" for misclassified.
        """
        rows = {
            name: {"kind": row.kind, "source": row.source, "spec": asdict(row.spec), "right": _text(row.right)}
            for name, row in self.rows.items()
        }
        return {
            "threat_model": dict(self.threat),
            "logit_scale": self.logit_scale,
            "clean": _text(self.clean),
            "attacks": rows,
            "ladder": {f"{eps:.9g}": _text(right) for eps, right in self.ladder.items()},
            "changed_images": {name: _text(right) for name, right in self.changed.items()},
        }


def of_text(text: str) -> np.ndarray:
    """Outcomes (N,) bool from the text that `to_json` writes."""
    return np.array([character == "1" for character in text])


def _text(right: np.ndarray) -> str:
    return "".join("01"[int(value)] for value in right)


def accuracies(evidence: Evidence) -> list[dict[str, Any]]:
    """Rows of attack, kind, accuracy, low, high (95 % Wilson) and n; the last one is the worst case over all attacks."""
    rows = {"clean": ("", evidence.clean), **{name: (row.kind, row.right) for name, row in evidence.rows.items()}}
    others = [eps for eps in evidence.ladder if eps not in (0.0, evidence.threat["eps"])]
    rows |= {f"pgd at {eps * 255:.6g}/255": (WHITE, evidence.ladder[eps]) for eps in others}
    rows |= {name: ("changed images", right) for name, right in evidence.changed.items()}
    rows["worst case"] = ("", evidence.survivors())
    return [{"attack": name, "kind": kind, **share(int(r.sum()), evidence.n)} for name, (kind, r) in rows.items()]


def paired_tests(evidence: Evidence) -> list[dict[str, Any]]:
    """Rows of exact two-sided McNemar tests: first, second, images correct under only one of them, and p."""
    rows = {"clean": evidence.clean, **{name: row.right for name, row in evidence.rows.items()}}
    if evidence.parent_clean is not None:
        rows["parent, clean"] = evidence.parent_clean
    pairs = (("pgd", "fgsm"), ("apgd-ce", "pgd"), ("apgd-ce", "apgd-dlr"), ("pgd", "pgd-scaled"), ("fgsm", "noise"),
             ("apgd-ce", "square"), ("pgd", "transfer-pgd"), ("clean", "parent, clean"))  # fmt: skip
    tests = []
    for first, second in pairs:
        if first in rows and second in rows:
            only = discordant(rows[first], rows[second])
            tests.append({"first": first, "second": second, "only_first": only[0], "only_second": only[1], "p": mcnemar(*only)})
    return tests
