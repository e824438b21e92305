"""Checks 6 to 12 of EVALUATION section 6: do the attacks see the gradient, or is it masked? Free."""

from __future__ import annotations

from itertools import pairwise

from gkp.evaluation.audit.evidence import BLACK, WHITE, Evidence, Missing
from gkp.evaluation.audit.verdict import (
    FAIL,
    LEVEL,
    PASS,
    WARN,
    Check,
    at_least_as_strong,
    finding,
    numbered,
    percent,
    share_status,
    strength_status,
    worst_of,
)
from gkp.evaluation.statistics import upper_bound

MASKING = (6, 7, 8, 9, 10, 11, 12)  # the checks whose failure says that the attacks see no gradient to follow


@numbered(6, "PGD at least as strong as FGSM")
def pgd_beats_fgsm(evidence: Evidence) -> Check:
    """Check 6: PGD leaves no more images right than FGSM. Value: points that it leaves more; McNemar."""
    return at_least_as_strong("PGD", evidence.row("pgd"), "FGSM", evidence.row("fgsm"))


@numbered(7, "accuracy falls to zero with eps")
def accuracy_falls_to_zero(evidence: Evidence) -> Check:
    """Check 7: under PGD accuracy never rises with eps (McNemar between neighbouring radii) and ends at 1 % or less at eps 0.5,
    where every image can turn into the same grey. Value: accuracy there."""
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


@numbered(8, "more steps or restarts change little")
def attack_has_converged(evidence: Evidence) -> Check:
    """Check 8: twice the steps, or twice the restarts, of PGD move accuracy by at most 1 point. Value: the larger move, in
    points; binomial test on the net number of images."""
    base = int(evidence.row("pgd").sum())
    moves = {name: abs(int(evidence.row(f"pgd-2x-{name}").sum()) - base) for name in ("steps", "restarts")}
    name, move = max(moves.items(), key=lambda item: item[1])
    status = share_status(move, evidence.n, 0.01)
    note = f"doubling the {name} moves {move} of {evidence.n} images: give PGD more of them"
    return finding(status, 100 * move / evidence.n, 1.0, evidence.n, "" if status == PASS else note)


@numbered(9, "black-box attacks add little")
def black_box_adds_little(evidence: Evidence) -> Check:
    """Check 9: the gradient-free attack, images made for the parent, and noise together break at most 0.2 points of images that
    every white-box attack left right; else the gradient is masked. Value: those points; binomial test on their number, so that
    one image of 64 is "warn" and two are "fail"; the note says what share the sample cannot exclude."""
    evidence.row("square")
    whole = evidence.survivors(WHITE)
    count, n = int((whole & ~evidence.survivors(BLACK)).sum()), evidence.n
    highest = upper_bound(count, n, 1 - LEVEL)
    by = {name: int((whole & ~row.right).sum()) for name, row in evidence.rows.items() if row.kind == BLACK}
    broken = ", ".join(f"{name} {k}" for name, k in by.items() if k)
    note = f"{count} of {n} images" + (f" ({broken})" if broken else "") + f"; with 95 % confidence below {percent(highest)}"
    return finding(share_status(count, n, 0.002), 100 * count / n, 0.2, n, note)


@numbered(10, "noise weaker than FGSM")
def noise_is_weak(evidence: Evidence) -> Check:
    """Check 10: random noise in the ball (the best of a few draws) breaks no more images than FGSM. Value: points; McNemar."""
    return at_least_as_strong("FGSM", evidence.row("fgsm"), "noise", evidence.row("noise"))


@numbered(11, "transfer weaker than white-box")
def transfer_is_weaker(evidence: Evidence) -> Check:
    """Check 11: images made for the dense parent break no more than the white-box attacks do. Value: points more; McNemar."""
    transferred = evidence.row("transfer-fgsm") & evidence.row("transfer-pgd")
    return at_least_as_strong("white-box", evidence.survivors(WHITE), "transfer from the parent", transferred)


@numbered(12, "gradients usable")
def gradients_usable(evidence: Evidence) -> Check:
    """Check 12: no input gradient is NaN, at most 1 % are zero, and cross-entropy finds within 1 point what DLR finds (APGD)
    and what it finds itself on scaled logits (PGD): a saturated softmax blinds neither. Only cross-entropy being the weaker
    is "fail"; a weaker DLR says nothing about masking and is "warn". Pairs that could not be run (DLR needs three classes)
    are left out, and named. Value: the largest of these among the worst status, in points."""
    n, seen = evidence.n, evidence.gradients
    if not seen.n:
        raise Missing("no image is classified correctly without attack, so there is no gradient to look at")
    found = [
        (share_status(seen.zero, seen.n, 0.01), seen.zero / seen.n, f"{seen.zero} of {seen.n} gradients are zero"),
        (share_status(seen.not_finite, seen.n, 0.0), seen.not_finite / seen.n, f"{seen.not_finite} of {seen.n} are not finite"),
    ]
    pairs = (("apgd-ce", "apgd-dlr"), ("pgd", "pgd-scaled"))
    ran = [pair for pair in pairs if set(pair) <= set(evidence.rows)]
    for plain, other in ran:
        more = int(evidence.row(plain).sum()) - int(evidence.row(other).sum())  # what the plain cross-entropy misses
        status = share_status(abs(more), n, 0.01)
        status = WARN if status == FAIL and more < 0 else status
        than = f"{'more' if more > 0 else 'fewer'} than {plain}"
        found.append((status, abs(more) / n, f"{other} breaks {abs(more)} images {than}"))
    status = worst_of(status for status, _, _ in found)
    if status != FAIL and not ran:  # zero gradients alone condemn a network; usable ones alone do not clear it
        raise Missing("; ".join(f"{name}: {evidence.missing.get(name, 'was not run')}" for pair in pairs for name in pair))
    value = max(share for s, share, _ in found if s == status)
    notes = [text for s, _, text in found if s == status and status != PASS]
    notes += [f"{pair[1]} not compared" for pair in pairs if pair not in ran]
    return finding(status, 100 * value, 1.0, n, "; ".join(notes))
