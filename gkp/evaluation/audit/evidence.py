"""What an audit measured, as plain data: outcomes per image, and a few probes of the network.

`gkp.evaluation.audit.measure` makes it, `gkp.evaluation.audit.checks` judges it, `card.json` holds it.
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
    """Something that a check needs was not measured; the message is the reason that the card gives."""


@dataclass(frozen=True, eq=False)
class Row:
    """One attack at the audited radius.

    Attributes:
        right: (N,) bool.
        spec: The attack.
        kind: "white-box" if it used this network's gradients, "black-box" if not, "mixed" if it is made of several attacks.
        source: The network attacked: "network", "scaled logits" (logits multiplied by `Evidence.logit_scale`) or "parent".
    """

    right: np.ndarray
    spec: AttackSpec
    kind: str = WHITE
    source: str = "network"


@dataclass(frozen=True)
class Probe:
    """One attack, run with few steps on a few correctly classified images.

    Attributes:
        n: How many images.
        moved_at_zero: Images that eps = 0 changed.
        farthest: Largest |x_adv - x|.
        outside, not_finite: Images that leave [0, 1], or hold NaN or Inf.
        otherwise: Images with another outcome in smaller batches, or attacked apart from their neighbours.
    """

    n: int
    moved_at_zero: int
    farthest: float
    outside: int
    not_finite: int
    otherwise: int


@dataclass(frozen=True, eq=False)
class InputPath:
    """Where the network normalises.

    Attributes:
        right: (N,) bool for images that are normalised beforehand by the data set's mean and std.
        difference: Largest |difference| of logits between [0, 1] images and its own entrance for normalised ones, normalised as
            a loader does, relative to the largest logit; None for a network without such an entrance.
        reference: The accuracy to be met.
    """

    right: np.ndarray
    difference: float | None
    reference: float | None


@dataclass(frozen=True)
class Gradients:
    """Input gradients of the cross-entropy of n correctly classified images: how many are all zero, how many not finite."""

    n: int
    zero: int
    not_finite: int


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that the checks read.

    Attributes:
        threat: What was attacked and how (check 1).
        clean: (N,) bool, right without attack.
        rows: Name -> Row at the audited radius.
        ladder: Radius -> (N,) bool under PGD.
        matrices: Every outcome matrix that was used.
        probes: Name -> Probe of each attack.
        states: sha256 of the network before and after.
        unstable: Of `probed` images, those whose logits changed on a second pass, or whose class changed with the batch size.
        path: Where the network normalises.
        gradients: Whether input gradients are usable.
        logit_scale: The factor of the scaled logits.
        reported: The robust accuracy that the card gives, a fraction.
        changed: Name -> (N,) bool on images changed without looking at the network.
        parent_clean: (N,) bool, the parent on the same images.
        reevaluated: Name -> (images with the same outcome from the JSON alone, images tried).
        self_test: "planted" and "plain" -> numbers of the masking checks that failed there.
        selection: How the checkpoint was chosen.
        missing: Name -> why it is not among the above.
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
        """How many images."""
        return len(self.clean)

    def row(self, name: str) -> np.ndarray:
        """(N,) bool under this attack. Raises Missing if it did not run or there was nothing to attack."""
        if not self.clean.any():
            raise Missing("no image is classified correctly without attack, so attacks show nothing")
        if name not in self.rows:
            raise Missing(f"{name}: {self.missing.get(name, 'was not run')}")
        return self.rows[name].right

    def conduct(self) -> tuple[Mapping[str, Probe], int]:
        """Each attack's probe, and on how many images. Raises Missing if there was no image to try attacks on."""
        if not self.probes:
            raise Missing("no image is classified correctly without attack, so there was none to try attacks on")
        return self.probes, max(probe.n for probe in self.probes.values())

    def survivors(self, kind: str | None = None) -> np.ndarray:
        """(N,) bool: right without attack and under every attack of that kind (default: of any)."""
        return np.logical_and.reduce([self.clean, *(row.right for row in self.rows.values() if kind in (None, row.kind))])

    def to_json(self) -> dict[str, Any]:
        """What it takes to evaluate again, and every outcome, as plain JSON types.

        An outcome is one character an image: "1" right, "0" wrong.
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
    """(N,) bool of the "0" and "1" that `to_json` writes."""
    return np.array([character == "1" for character in text])


def _text(right: np.ndarray) -> str:
    return "".join("01"[int(value)] for value in right)


def accuracies(evidence: Evidence) -> list[dict[str, Any]]:
    """One row per accuracy: attack, kind, accuracy, low, high (95 % Wilson), n; the last is the worst case over all attacks."""
    rows = {"clean": ("", evidence.clean), **{name: (row.kind, row.right) for name, row in evidence.rows.items()}}
    others = [eps for eps in evidence.ladder if eps not in (0.0, evidence.threat["eps"])]
    rows |= {f"pgd at {eps * 255:.6g}/255": (WHITE, evidence.ladder[eps]) for eps in others}
    rows |= {name: ("changed images", right) for name, right in evidence.changed.items()}
    rows["worst case"] = ("", evidence.survivors())
    return [{"attack": name, "kind": kind, **share(int(r.sum()), evidence.n)} for name, (kind, r) in rows.items()]


def paired_tests(evidence: Evidence) -> list[dict[str, Any]]:
    """Exact two-sided McNemar tests: first, second, and the images that only one of them left right."""
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
