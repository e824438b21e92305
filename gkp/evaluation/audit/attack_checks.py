"""Checks 1 to 12: the attacks had the right network and kept to the threat model (1 to 5); gradients are not masked."""

from __future__ import annotations

from itertools import pairwise

from gkp.evaluation.audit.evidence import BLACK, WHITE, Evidence, Missing
from gkp.evaluation.audit.verdict import (
    FAIL,
    PASS,
    WARN,
    Check,
    at_least_as_strong,
    check,
    finding,
    invariant,
    named,
    percent,
    share_status,
    strength_status,
    worst_of,
)
from gkp.evaluation.statistics import upper_bound, wilson

_THREAT = ("norm", "eps", "space", "bounds", "labels", "dataset", "split", "n", "indices_sha256", "data_sha256", "model_sha256",
           "seed", "versions")  # fmt: skip


@check(1, "threat model recorded")
def threat_model_recorded(evidence: Evidence) -> Check:
    """Check 1: norm, eps, space, clip box, n, hashes, seed and versions are recorded. Value: how many are missing."""
    absent = [name for name in _THREAT if evidence.threat.get(name) in (None, "", [], {})]
    return invariant(len(absent), evidence.n, f"not recorded: {', '.join(absent)}")


@check(2, "eps = 0 changes nothing")
def zero_radius_is_clean(evidence: Evidence) -> Check:
    """Check 2: with eps = 0 every attack returns its images bit for bit. Value: images changed."""
    probes, n = evidence.conduct()
    moved = {name: probe.moved_at_zero for name, probe in probes.items()}
    return invariant(sum(moved.values()), n, named("changed at eps = 0 by", moved))


@check(3, "perturbations within eps and range")
def within_the_ball(evidence: Evidence) -> Check:
    """Check 3: perturbations are within eps + 1e-6, images within [0, 1] and finite. Value: the largest, in units of eps."""
    (probes, n), eps = evidence.conduct(), evidence.threat["eps"]
    far = {name: p.outside + p.not_finite + (not p.farthest <= eps + 1e-6) for name, p in probes.items()}  # NaN fails
    farthest, note = max(probe.farthest for probe in probes.values()), named("outside the ball or the range:", far)
    return finding(FAIL if note else PASS, farthest / eps, 1 + 1e-6 / eps, n, note)


@check(4, "network unchanged and deterministic")
def network_stands_still(evidence: Evidence) -> Check:
    """Check 4: the network is not changed by attacks and is deterministic.

    Weights and buffers have the same hash afterwards, logits are the same when computed again, and classes for any batch size.
    Value: images for which they are not; all if the hash changed.
    """
    changed = evidence.states[0] != evidence.states[1]
    reason = "weights or buffers changed while being attacked" if changed else "logits or classes changed when asked again"
    return invariant(evidence.probed if changed else evidence.unstable, evidence.probed, reason)


@check(5, "normalises inside")
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


@check(6, "PGD at least as strong as FGSM")
def pgd_beats_fgsm(evidence: Evidence) -> Check:
    """Check 6: accuracy under PGD is not above accuracy under FGSM. Value: the difference in points; McNemar."""
    return at_least_as_strong("PGD", evidence.row("pgd"), "FGSM", evidence.row("fgsm"))


@check(7, "accuracy falls to zero with eps")
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


@check(8, "more steps or restarts change little")
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


@check(9, "black-box attacks add little")
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


@check(10, "noise weaker than FGSM")
def noise_is_weak(evidence: Evidence) -> Check:
    """Check 10: random noise (the best of a few draws) is not stronger than FGSM. Value: the difference in points; McNemar."""
    return at_least_as_strong("FGSM", evidence.row("fgsm"), "noise", evidence.row("noise"))


@check(11, "transfer weaker than white-box")
def transfer_is_weaker(evidence: Evidence) -> Check:
    """Check 11: images attacked for the dense parent are not stronger than white-box attacks. Value: points; McNemar."""
    transferred = evidence.row("transfer-fgsm") & evidence.row("transfer-pgd")
    return at_least_as_strong("white-box", evidence.survivors(WHITE), "transfer from the parent", transferred)


@check(12, "gradients usable")
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
