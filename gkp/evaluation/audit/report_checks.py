"""Checks 13 to 22: the right accuracy is reported and can be reproduced."""

from __future__ import annotations

import json

import numpy as np

from gkp.evaluation.audit.evidence import BLACK, Evidence, Missing, accuracies, paired_tests
from gkp.evaluation.audit.verdict import (
    FAIL,
    PASS,
    WARN,
    Check,
    check,
    finding,
    invariant,
    named,
    share_status,
)
from gkp.evaluation.outcomes import AttackSpec

MASKING = (6, 7, 8, 9, 10, 11, 12)  # the checks whose failure means that gradients are masked
SELECTIONS = ("last epoch", "validation", "test")
MILD = ("gaussian noise 0.01", "shift +1,+0", "shift -1,+0", "shift +0,+1", "shift +0,-1", "rotation -5", "rotation +5")


@check(13, "union reported")
def union_is_reported(evidence: Evidence) -> Check:
    """Check 13: the robust accuracy on the card is the worst case over all attacks for each image, not a mean of attacks.

    Value: the accuracy on the card; threshold: the worst case.
    """
    if not evidence.rows:
        raise Missing("no attack could be run")
    union = int(evidence.survivors().sum()) / evidence.n
    same = evidence.reported == union
    note = "" if same else "what is reported is not the worst case per image"
    return finding(PASS if same else FAIL, evidence.reported, union, evidence.n, note)


@check(14, "gradient-free attack included")
def gradient_free_attack_included(evidence: Evidence) -> Check:
    """Check 14: at least one attack searches without gradients; noise does not count. Value: how many."""
    count = sum(row.kind == BLACK and row.spec.attack not in ("fgsm", "pgd") for row in evidence.rows.values())
    note = "" if count else f"square: {evidence.missing.get('square', 'was not run')}"
    return finding(PASS if count else FAIL, count, 1, evidence.n, note)


@check(15, "planted network recognised")
def planted_network_is_recognised(evidence: Evidence) -> Check:
    """Check 15: a toy network with masked gradients fails checks 9 and 12, and the same network without masking fails none.

    See `gkp.evaluation.audit.planted`. Value: how many of the two results are wrong.
    """
    if not evidence.self_test:
        raise Missing("the self-test was not run")
    missed = [number for number in (9, 12) if number not in evidence.self_test["planted"]]
    alarms = [number for number in evidence.self_test["plain"] if number in MASKING]
    notes = [f"checks {missed} did not see the planted network"] * bool(missed) + [f"false alarm of {alarms}"] * bool(alarms)
    return invariant(len(notes), 2, "; ".join(notes))


@check(16, "true labels used")
def true_labels_used(evidence: Evidence) -> Check:
    """Check 16: attacks had true labels, and no misclassified image counts as correctly classified after an attack.

    All outcome matrices are checked, including those of the caller. Value: images that became correct.
    """
    revived = {int(i) for m in evidence.matrices for i in m.indices[~m.right[0] & m.right[1:].any(0)]}
    rows = [*(row.spec for row in evidence.rows.values()), *(spec for matrix in evidence.matrices for spec in matrix.attacks)]
    predicted = sorted({spec.key for spec in rows if spec.labels != "true"})
    notes = [f"{', '.join(predicted)} was given predicted labels"] * bool(predicted)
    notes += [f"{len(revived)} misclassified images count as right after an attack"] * bool(revived)
    return finding(FAIL if notes else PASS, len(revived), 0, evidence.n, "; ".join(notes))


@check(17, "robust implies clean-correct")
def robust_implies_correct(evidence: Evidence) -> Check:
    """Check 17: no image is correct under all attacks of a matrix and misclassified without attack. Value: such images."""
    tables = [matrix.right for matrix in evidence.matrices if matrix.attacks]
    tables += [np.stack([evidence.clean, *(row.right for row in evidence.rows.values())])] if evidence.rows else []
    count = max((int((~right[0] & right[1:].all(0)).sum()) for right in tables), default=0)
    return invariant(count, evidence.n, f"{count} images count as robust that are wrong without attack")


@check(18, "same outcomes for any batch and split")
def outcomes_are_repeatable(evidence: Evidence) -> Check:
    """Check 18: the outcome of an image does not depend on its batch, and matrices with the same attack and seed agree.

    Images are attacked in other and smaller batches, as in a resumed evaluation. Value: images with another outcome.
    """
    probes, n = evidence.conduct()
    differs = {name: probe.otherwise for name, probe in probes.items()}
    first: dict[str, np.ndarray] = {}
    for matrix in (matrix for matrix in evidence.matrices if matrix.seed == evidence.threat["seed"]):
        for name, right in zip(["no attack", *map(_described, matrix.attacks)], matrix.right, strict=True):
            known = first.setdefault(f"{matrix.protocol} {name}", right)
            shared = min(len(known), len(right))
            differs[name] = differs.get(name, 0) + int((known[:shared] != right[:shared]).sum())
    return invariant(sum(differs.values()), n, named("other outcomes of", differs))


@check(19, "checkpoint not chosen on the test set")
def checkpoint_selection(evidence: Evidence) -> Check:
    """Check 19: the checkpoint was not chosen on the test set; "test" is "warn". Not run unless stated."""
    if evidence.selection is None:
        raise Missing(f"how the checkpoint was chosen is not stated; give selection, one of {', '.join(SELECTIONS)}")
    chosen = evidence.selection == "test"
    note = "chosen on the test set: its accuracies are optimistic" if chosen else f"chosen by: {evidence.selection}"
    return finding(WARN if chosen else PASS, None, None, evidence.n, note)


@check(20, "intervals and paired tests given")
def intervals_and_paired_tests(evidence: Evidence) -> Check:
    """Check 20: the card has paired tests (exact McNemar) and informative 95 % Wilson intervals.

    "warn" if an interval extends 10 points or more to one side, because n is then too small for a ranking; "fail" without
    tests. Value: the largest extent, in points.
    """
    table, tests = accuracies(evidence), paired_tests(evidence)
    if not tests:
        return finding(FAIL, 0, 1, evidence.n, "no paired test: no two attacks could be run")
    reach = max(max(row["accuracy"] - row["low"], row["high"] - row["accuracy"]) for row in table)
    note = "" if reach < 0.1 else f"{evidence.n} images leave {100 * reach:.0f} points open"
    return finding(PASS if reach < 0.1 else WARN, 100 * reach, 10, evidence.n, note)


@check(21, "beyond Linf")
def beyond_linf(evidence: Evidence) -> Check:
    """Check 21: accuracy under Gaussian noise, shifts and rotations was measured.

    "warn" if one of the mildest changes (noise of 0.01, one pixel, 5 degrees) costs significantly more than 10 points; never
    "fail", because that is no error of the evaluation. Value: the largest cost of the mild changes, in points; binomial test on
    the net number of images.
    """
    if not evidence.changed:
        raise Missing(evidence.missing.get("changed", "no changed images were tried"))
    clean, changed = int(evidence.clean.sum()), evidence.changed
    losses = {name: clean - int(changed[name].sum()) for name in MILD if name in changed}
    if not losses:
        raise Missing("none of the mild changes was tried")
    name, lost = max(losses.items(), key=lambda item: item[1])
    status = WARN if share_status(max(lost, 0), evidence.n, 0.1) == FAIL else PASS
    return finding(status, 100 * lost / evidence.n, 10, evidence.n, f"worst of the mild changes: {name}")


@check(22, "can be re-evaluated from its JSON")
def can_be_reevaluated(evidence: Evidence) -> Check:
    """Check 22: from the JSON, the network and the data, some images of every attack have the same outcome again.

    See `gkp.evaluation.audit.card.reevaluate`. Value: images with another outcome.
    """
    if not evidence.reevaluated:
        raise Missing(evidence.missing.get("reevaluated", "nothing was re-evaluated"))
    differ = {name: tried - same for name, (same, tried) in evidence.reevaluated.items()}
    untried = [name for name in evidence.rows if name not in evidence.reevaluated]
    note = "; ".join(filter(None, [named("other outcomes of", differ), named("not tried:", dict.fromkeys(untried, 1))]))
    tried = sum(number for _, number in evidence.reevaluated.values())
    return finding(FAIL if any(differ.values()) else WARN if untried else PASS, sum(differ.values()), 0, tried, note)


def _described(spec: AttackSpec) -> str:
    return json.dumps([spec.attack, spec.eps, spec.labels, dict(spec.options)], sort_keys=True)
