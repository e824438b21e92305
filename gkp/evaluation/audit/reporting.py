"""Checks 13 to 22 of the audit: is the right figure reported, and can it be had again? Free."""

from __future__ import annotations

import json

import numpy as np

from gkp.evaluation.audit.evidence import BLACK, Evidence, Missing, accuracies, paired_tests
from gkp.evaluation.audit.masking import MASKING
from gkp.evaluation.audit.verdict import (
    FAIL,
    PASS,
    WARN,
    Check,
    finding,
    invariant,
    named,
    numbered,
    probed_images,
    probes_of,
    share_status,
)
from gkp.evaluation.outcomes import AttackSpec

MILD = ("gaussian noise 0.01", "shift +1,+0", "shift -1,+0", "shift +0,+1", "shift +0,-1", "rotation -5", "rotation +5")
SELECTIONS = ("last epoch", "validation", "test")


@numbered(13, "union reported")
def union_is_reported(evidence: Evidence) -> Check:
    """Check 13: the robust accuracy on the card is the share of images that every attack left right, never a mean of attacks.
    Value: what the card reports, threshold: the union."""
    if not evidence.rows:
        raise Missing("no attack could be run")
    union = int(np.logical_and.reduce([evidence.clean, *(row.right for row in evidence.rows.values())]).sum()) / evidence.n
    if evidence.reported != union:
        return finding(FAIL, evidence.reported, union, evidence.n, "what is reported is not the worst case per image")
    return finding(PASS, evidence.reported, union, evidence.n, "")


@numbered(14, "gradient-free attack included")
def gradient_free_attack_included(evidence: Evidence) -> Check:
    """Check 14: at least one attack does without gradients and searches (noise alone does not count). Value: how many."""
    count = sum(row.kind == BLACK and row.spec.attack not in ("fgsm", "pgd") for row in evidence.rows.values())
    note = "" if count else f"square: {evidence.missing.get('square', 'was not run')}"
    return finding(PASS if count else FAIL, count, 1, evidence.n, note)


@numbered(15, "planted network recognised")
def planted_network_is_recognised(evidence: Evidence) -> Check:
    """Check 15: a toy network whose gradients were rounded away fails checks 9 and 12, its honest twin no masking check
    (`gkp.evaluation.audit.planted`, through the same code, in this process). Value: of these two verdicts, how many
    were wrong."""
    if not evidence.self_test:
        raise Missing("the self-test was not run")
    missed = [number for number in (9, 12) if number not in evidence.self_test["planted"]]
    alarms = [number for number in evidence.self_test["plain"] if number in MASKING]
    notes = [f"checks {missed} did not see the planted network"] * bool(missed) + [f"false alarm of {alarms}"] * bool(alarms)
    return invariant(len(notes), 2, "; ".join(notes))


@numbered(16, "true labels used")
def true_labels_used(evidence: Evidence) -> Check:
    """Check 16: attacks were given true labels, and no image that was misclassified counts as right after an attack. Looks at
    every outcome matrix, those the caller gave included. Value: images that became right."""
    revived = np.zeros(0, dtype=int)
    for matrix in evidence.matrices:
        revived = np.union1d(revived, matrix.indices[(~matrix.right[0] & matrix.right[1:].any(0))])
    rows = [*(row.spec for row in evidence.rows.values()), *(spec for matrix in evidence.matrices for spec in matrix.attacks)]
    predicted = sorted({spec.key for spec in rows if spec.labels != "true"})
    notes = [f"{', '.join(predicted)} was given predicted labels"] * bool(predicted)
    notes += [f"{len(revived)} misclassified images count as right after an attack"] * bool(len(revived))
    return finding(FAIL if notes else PASS, len(revived), 0, evidence.n, "; ".join(notes))


@numbered(17, "robust implies clean-correct")
def robust_implies_correct(evidence: Evidence) -> Check:
    """Check 17: no image is right under all attacks of an outcome matrix and wrong without attack. Value: such images."""
    everywhere = [(~matrix.right[0] & matrix.right[1:].all(0)).sum() for matrix in evidence.matrices if matrix.attacks]
    if evidence.rows:
        robust = np.logical_and.reduce([row.right for row in evidence.rows.values()])
        everywhere.append((robust & ~evidence.clean).sum())
    count = int(max(everywhere, default=0))
    return invariant(count, evidence.n, f"{count} images count as robust that are wrong without attack")


@numbered(18, "same outcomes for any batch and split")
def outcomes_are_repeatable(evidence: Evidence) -> Check:
    """Check 18: with the same seed, images attacked apart from the others and in smaller batches, as a resumed evaluation does,
    have the same outcome; where two matrices of this seed hold the same attack, they agree. Value: images that differ."""
    differs = {name: probe.otherwise for name, probe in probes_of(evidence).items() if probe.otherwise}
    first: dict[str, np.ndarray] = {}
    for matrix in (matrix for matrix in evidence.matrices if matrix.seed == evidence.threat["seed"]):
        for name, right in zip(["no attack", *map(_described, matrix.attacks)], matrix.right, strict=True):
            known = first.setdefault(f"{matrix.protocol} {name}", right)
            shared = min(len(known), len(right))
            if count := int((known[:shared] != right[:shared]).sum()):
                differs[name] = differs.get(name, 0) + count
    return invariant(sum(differs.values()), probed_images(evidence), named("other outcomes of", differs))


@numbered(19, "checkpoint not chosen on the test set")
def checkpoint_selection(evidence: Evidence) -> Check:
    """Check 19: "last epoch" and "validation" pass; "test" is "warn", for then the card says so; not run if nobody said."""
    if evidence.selection is None:
        raise Missing(f"nobody said how the checkpoint was chosen; give selection, one of {', '.join(SELECTIONS)}")
    chosen = evidence.selection == "test"
    note = "chosen on the test set: its accuracies are optimistic" if chosen else f"chosen by: {evidence.selection}"
    return finding(WARN if chosen else PASS, None, None, evidence.n, note)


@numbered(20, "intervals and paired tests given")
def intervals_and_paired_tests(evidence: Evidence) -> Check:
    """Check 20: the card has paired tests (exact McNemar) and 95 % Wilson intervals that say something: "warn" when one of them
    reaches 10 points or more to one side, n being too small to rank anything; "fail" without tests. Value: that reach."""
    table, tests = accuracies(evidence), paired_tests(evidence)
    if not tests:
        return finding(FAIL, 0, 1, evidence.n, "no paired test: no two attacks could be run")
    reach = max(max(row["accuracy"] - row["low"], row["high"] - row["accuracy"]) for row in table)
    note = "" if reach < 0.1 else f"{evidence.n} images leave {100 * reach:.0f} points open"
    return finding(PASS if reach < 0.1 else WARN, 100 * reach, 10, evidence.n, note)


@numbered(21, "beyond Linf")
def beyond_linf(evidence: Evidence) -> Check:
    """Check 21: a ladder of Gaussian noise, small shifts and rotations were measured. "warn" when one of the mildest of them
    (noise of 0.01, one pixel, 5 degrees) costs significantly more than 10 points; never "fail", for this is no error of the
    evaluation. Value: what the worst of the mild ones costs, in points; binomial test on the net number of images."""
    if not evidence.changed:
        raise Missing(evidence.missing.get("changed", "no changed images were tried"))
    mild = [name for name in evidence.changed if name in MILD]
    losses = {name: int(evidence.clean.sum()) - int(evidence.changed[name].sum()) for name in mild}
    if not losses:
        raise Missing("none of the mild changes was tried")
    name, lost = max(losses.items(), key=lambda item: item[1])
    status = WARN if share_status(max(lost, 0), evidence.n, 0.1) == FAIL else PASS
    return finding(status, 100 * lost / evidence.n, 10, evidence.n, f"worst of the mild changes: {name}")


@numbered(22, "can be re-evaluated from its JSON")
def can_be_reevaluated(evidence: Evidence) -> Check:
    """Check 22: from the JSON alone, with the network and the images, some images of every attack were attacked again and had
    the same outcome (`gkp.evaluation.audit.replay`). Value: images that had another."""
    if not evidence.reevaluated:
        raise Missing(evidence.missing.get("reevaluated", "nothing was re-evaluated"))
    differ = {name: tried - same for name, (same, tried) in evidence.reevaluated.items() if same != tried}
    untried = [name for name in evidence.rows if name not in evidence.reevaluated]
    note = "; ".join(filter(None, [named("other outcomes of", differ), named("not tried:", dict.fromkeys(untried, 1))]))
    tried = sum(number for _, number in evidence.reevaluated.values())
    return finding(FAIL if differ else WARN if untried else PASS, sum(differ.values()), 0, tried, note)


def _described(spec: AttackSpec) -> str:
    return json.dumps([spec.attack, spec.eps, spec.labels, dict(spec.options)], sort_keys=True)
