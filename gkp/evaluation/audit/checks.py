"""The 22 checks, each a pure function from an `Evidence` to a `Check`; see `verdict` for how small samples are judged.

Checks 1 to 5: the attacks had the right network and kept to the threat model. 6 to 12: gradients are not masked. 13 to 22: the
right accuracy is reported and can be reproduced.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from gkp.evaluation.audit.evidence import BLACK, WHITE, Evidence, Missing, accuracies, paired_tests
from gkp.evaluation.audit.verdict import (
    FAIL,
    PASS,
    WARN,
    Check,
    Judge,
    at_least_as_strong,
    finding,
    invariant,
    named,
    numbered,
    percent,
    share_status,
    strength_status,
    worst_of,
)
from gkp.evaluation.outcomes import AttackSpec
from gkp.evaluation.statistics import upper_bound, wilson

MASKING = (6, 7, 8, 9, 10, 11, 12)  # the checks whose failure means that gradients are masked
SELECTIONS = ("last epoch", "validation", "test")
MILD = ("gaussian noise 0.01", "shift +1,+0", "shift -1,+0", "shift +0,+1", "shift +0,-1", "rotation -5", "rotation +5")
_THREAT = ("norm", "eps", "space", "bounds", "labels", "dataset", "split", "n", "indices_sha256", "data_sha256", "model_sha256",
           "seed", "versions")  # fmt: skip
CHECKS: dict[int, Judge] = {}  # number -> function of this module


def run_checks(evidence: Evidence) -> tuple[Check, ...]:
    """All 22 checks, in order."""
    return tuple(CHECKS[number](evidence) for number in sorted(CHECKS))


def _check(number: int, name: str) -> Callable[[Judge], Judge]:
    """Add the decorated function to CHECKS."""
    return lambda judge: CHECKS.setdefault(number, numbered(number, name, judge))


@_check(1, "threat model recorded")
def threat_model_recorded(evidence: Evidence) -> Check:
    """Check 1: norm, eps, space, clip box, n, hashes, seed and versions are recorded. Value: how many are missing."""
    absent = [name for name in _THREAT if evidence.threat.get(name) in (None, "", [], {})]
    return invariant(len(absent), evidence.n, f"not recorded: {', '.join(absent)}")


@_check(2, "eps = 0 changes nothing")
def zero_radius_is_clean(evidence: Evidence) -> Check:
    """Check 2: with eps = 0 every attack returns its images bit for bit. Value: images changed."""
    probes, n = evidence.conduct()
    moved = {name: probe.moved_at_zero for name, probe in probes.items()}
    return invariant(sum(moved.values()), n, named("changed at eps = 0 by", moved))


@_check(3, "perturbations within eps and range")
def within_the_ball(evidence: Evidence) -> Check:
    """Check 3: perturbations are within eps + 1e-6, images within [0, 1] and finite. Value: the largest, in units of eps."""
    (probes, n), eps = evidence.conduct(), evidence.threat["eps"]
    far = {name: p.outside + p.not_finite + (not p.farthest <= eps + 1e-6) for name, p in probes.items()}  # NaN fails
    farthest, note = max(probe.farthest for probe in probes.values()), named("outside the ball or the range:", far)
    return finding(FAIL if note else PASS, farthest / eps, 1 + 1e-6 / eps, n, note)


@_check(4, "network unchanged and deterministic")
def network_stands_still(evidence: Evidence) -> Check:
    """Check 4: the network is not changed by attacks and is deterministic.

    Weights and buffers have the same hash afterwards, logits are the same when computed again, and classes for any batch size.
    Value: images for which they are not; all if the hash changed.
    """
    changed = evidence.states[0] != evidence.states[1]
    reason = "weights or buffers changed while being attacked" if changed else "logits or classes changed when asked again"
    return invariant(evidence.probed if changed else evidence.unstable, evidence.probed, reason)


@_check(5, "normalises inside")
def normalises_inside(evidence: Evidence) -> Check:
    """Check 5: the network expects images in [0, 1] and normalises them itself.

    It fails if `from_normalised` gives other logits for normalised images (by more than 1e-4 of the largest), if normalising
    images before makes the network significantly better (McNemar), or if a given reference accuracy is outside the 99 % Wilson
    interval of the accuracy. It is not run where none of these can be decided. Value: the accuracy on [0, 1] images; threshold:
    the reference, or the accuracy on images normalised before.
    """
    path, clean, n = evidence.path, evidence.clean, evidence.n
    ours, theirs = clean.mean(), path.right.mean()
    expects = strength_status(path.right, clean) == FAIL
    if path.reference is not None:
        low, high = wilson(int(clean.sum()), n, 0.99)
        if not low <= path.reference <= high:
            note = f"accuracy {percent(ours)} is not the reference {percent(path.reference)}; check weights and normalisation"
            if expects:
                note += f": on images normalised beforehand it is {percent(theirs)}, so normalise inside"
            return finding(FAIL, ours, path.reference, n, note)
    if expects:
        note = f"accuracy rises to {percent(theirs)} on images normalised beforehand: normalise inside"
        return finding(FAIL, ours, theirs, n, note)
    if path.difference is not None and not path.difference <= 1e-4:
        note = f"logits differ by {path.difference:.2g} of the largest from the loader-normalised path"
        return finding(FAIL, path.difference, 1e-4, n, note)
    if path.reference is None and path.difference is None and strength_status(clean, path.right) != FAIL:
        raise Missing("no reference accuracy was given, and [0, 1] images do no better than images normalised before")
    return finding(PASS, ours, theirs if path.reference is None else path.reference, n)


@_check(6, "PGD at least as strong as FGSM")
def pgd_beats_fgsm(evidence: Evidence) -> Check:
    """Check 6: accuracy under PGD is not above accuracy under FGSM. Value: the difference in points; McNemar."""
    return at_least_as_strong("PGD", evidence.row("pgd"), "FGSM", evidence.row("fgsm"))


@_check(7, "accuracy falls to zero with eps")
def accuracy_falls_to_zero(evidence: Evidence) -> Check:
    """Check 7: accuracy under PGD never rises with eps and is at most 1 % at eps 0.5.

    There every image can become the same grey. Neighbouring radii are compared by McNemar's test. Value: accuracy at eps 0.5.
    """
    evidence.row("pgd")
    radii = sorted(evidence.ladder)
    if radii[-1] < 0.5:
        raise Missing(evidence.missing.get(f"ladder-{0.5:.9g}", "PGD was not run at eps 0.5"))
    end = int(evidence.ladder[radii[-1]].sum())
    statuses = {share_status(end, evidence.n, 0.01): f"{end} of {evidence.n} images stay right at eps {radii[-1]:g}"}
    for small, large in pairwise(radii):
        status = strength_status(evidence.ladder[large], evidence.ladder[small])
        statuses.setdefault(status, f"accuracy rises between eps {small:.4g} and {large:.4g}")
    status = worst_of(statuses)
    return finding(status, end / evidence.n, 0.01, evidence.n, "" if status == PASS else statuses[status])


@_check(8, "more steps or restarts change little")
def attack_has_converged(evidence: Evidence) -> Check:
    """Check 8: doubling the steps or the restarts of PGD changes accuracy by at most 1 point.

    Value: the larger change, in points; binomial test on the net number of images.
    """
    base, n = int(evidence.row("pgd").sum()), evidence.n
    moves = {name: abs(int(evidence.row(f"pgd-2x-{name}").sum()) - base) for name in ("steps", "restarts")}
    name, move = max(moves.items(), key=lambda item: item[1])
    status = share_status(move, n, 0.01)
    note = f"doubling the {name} moves {move} of {n} images: give PGD more of them"
    return finding(status, 100 * move / n, 1.0, n, "" if status == PASS else note)


@_check(9, "black-box attacks add little")
def black_box_adds_little(evidence: Evidence) -> Check:
    """Check 9: black-box attacks lower the accuracy under all white-box attacks by at most 0.2 points.

    They are the gradient-free attack, images attacked for the parent, and noise. Value: the points; binomial test on the number
    of images, so that one image of 64 is "warn" and two are "fail". The note gives the upper confidence bound of the share.
    """
    evidence.row("square")
    whole = evidence.survivors(WHITE)
    count, n = int((whole & ~evidence.survivors(BLACK)).sum()), evidence.n
    by = {name: int((whole & ~row.right).sum()) for name, row in evidence.rows.items() if row.kind == BLACK}
    broken = ", ".join(f"{name} {k}" for name, k in by.items() if k)
    highest = percent(upper_bound(count, n))
    note = f"{count} of {n} images" + (f" ({broken})" if broken else "") + f"; with 95 % confidence below {highest}"
    return finding(share_status(count, n, 0.002), 100 * count / n, 0.2, n, note)


@_check(10, "noise weaker than FGSM")
def noise_is_weak(evidence: Evidence) -> Check:
    """Check 10: random noise (the best of a few draws) is not stronger than FGSM. Value: the difference in points; McNemar."""
    return at_least_as_strong("FGSM", evidence.row("fgsm"), "noise", evidence.row("noise"))


@_check(11, "transfer weaker than white-box")
def transfer_is_weaker(evidence: Evidence) -> Check:
    """Check 11: images attacked for the dense parent are not stronger than white-box attacks. Value: points; McNemar."""
    transferred = evidence.row("transfer-fgsm") & evidence.row("transfer-pgd")
    return at_least_as_strong("white-box", evidence.survivors(WHITE), "transfer from the parent", transferred)


@_check(12, "gradients usable")
def gradients_usable(evidence: Evidence) -> Check:
    """Check 12: input gradients are usable.

    No gradient is NaN or infinite, at most 1 % are zero, and a saturated softmax does not weaken the attacks: accuracy under
    APGD with cross-entropy is within 1 point of that with DLR, and accuracy under PGD within 1 point of that on scaled logits.
    A weaker DLR is only "warn", because it does not indicate masking. Pairs that could not be run (DLR needs three classes) are
    named in the note. Value: the largest of these numbers with the worst status, in points.
    """
    n, seen = evidence.n, evidence.gradients
    if not seen.n:
        raise Missing("no image is classified correctly without attack, so there are no gradients to check")
    found = [
        (share_status(seen.zero, seen.n, 0.01), seen.zero / seen.n, f"{seen.zero} of {seen.n} gradients are zero"),
        (share_status(seen.not_finite, seen.n, 0.0), seen.not_finite / seen.n, f"{seen.not_finite} of {seen.n} are not finite"),
    ]
    pairs = (("apgd-ce", "apgd-dlr"), ("pgd", "pgd-scaled"))
    ran = [pair for pair in pairs if set(pair) <= set(evidence.rows)]
    for plain, other in ran:
        more = int(evidence.row(plain).sum()) - int(evidence.row(other).sum())  # images that plain cross-entropy does not break
        status = share_status(abs(more), n, 0.01)
        status = WARN if status == FAIL and more < 0 else status
        sign = "more" if more > 0 else "fewer"
        found.append((status, abs(more) / n, f"{other} breaks {abs(more)} images {sign} than {plain}"))
    status = worst_of(status for status, _, _ in found)
    if status != FAIL and not ran:  # zero gradients alone fail a network; usable ones alone do not pass it
        raise Missing("; ".join(f"{name}: {evidence.missing.get(name, 'was not run')}" for pair in pairs for name in pair))
    value = max(share for s, share, _ in found if s == status)
    notes = [text for s, _, text in found if s == status and status != PASS]
    notes += [f"{pair[1]} not compared" for pair in pairs if pair not in ran]
    return finding(status, 100 * value, 1.0, n, "; ".join(notes))


@_check(13, "union reported")
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


@_check(14, "gradient-free attack included")
def gradient_free_attack_included(evidence: Evidence) -> Check:
    """Check 14: at least one attack searches without gradients; noise does not count. Value: how many."""
    count = sum(row.kind == BLACK and row.spec.attack not in ("fgsm", "pgd") for row in evidence.rows.values())
    note = "" if count else f"square: {evidence.missing.get('square', 'was not run')}"
    return finding(PASS if count else FAIL, count, 1, evidence.n, note)


@_check(15, "planted network recognised")
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


@_check(16, "true labels used")
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


@_check(17, "robust implies clean-correct")
def robust_implies_correct(evidence: Evidence) -> Check:
    """Check 17: no image is correct under all attacks of a matrix and misclassified without attack. Value: such images."""
    tables = [matrix.right for matrix in evidence.matrices if matrix.attacks]
    tables += [np.stack([evidence.clean, *(row.right for row in evidence.rows.values())])] if evidence.rows else []
    count = max((int((~right[0] & right[1:].all(0)).sum()) for right in tables), default=0)
    return invariant(count, evidence.n, f"{count} images count as robust that are wrong without attack")


@_check(18, "same outcomes for any batch and split")
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


@_check(19, "checkpoint not chosen on the test set")
def checkpoint_selection(evidence: Evidence) -> Check:
    """Check 19: the checkpoint was not chosen on the test set; "test" is "warn". Not run unless stated."""
    if evidence.selection is None:
        raise Missing(f"how the checkpoint was chosen is not stated; give selection, one of {', '.join(SELECTIONS)}")
    chosen = evidence.selection == "test"
    note = "chosen on the test set: its accuracies are optimistic" if chosen else f"chosen by: {evidence.selection}"
    return finding(WARN if chosen else PASS, None, None, evidence.n, note)


@_check(20, "intervals and paired tests given")
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


@_check(21, "beyond Linf")
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


@_check(22, "can be re-evaluated from its JSON")
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
