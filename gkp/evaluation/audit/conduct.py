"""Checks 1 to 5 of the audit: were the attacks given the right network, and did they keep to the rules? Free."""

from __future__ import annotations

from gkp.evaluation.audit.evidence import Evidence, Missing
from gkp.evaluation.audit.verdict import (
    FAIL,
    PASS,
    Check,
    finding,
    invariant,
    named,
    numbered,
    percent,
    probed_images,
    probes_of,
    strength_status,
)
from gkp.evaluation.statistics import wilson

_THREAT = ("norm", "eps", "space", "bounds", "labels", "dataset", "split", "n", "indices_sha256", "data_sha256", "model_sha256",
           "seed", "versions")  # fmt: skip


@numbered(1, "threat model recorded")
def threat_model_recorded(evidence: Evidence) -> Check:
    """Check 1: norm, eps, space, clip box, n, the hash of the indices, seed, versions are recorded. Value: how many are not."""
    absent = [name for name in _THREAT if evidence.threat.get(name) in (None, "", [], {})]
    return invariant(len(absent), evidence.n, f"not recorded: {', '.join(absent)}" if absent else "")


@numbered(2, "eps = 0 changes nothing")
def zero_radius_is_clean(evidence: Evidence) -> Check:
    """Check 2: at eps = 0 every attack returns its images, bit for bit, hence clean accuracy exactly. Value: images changed."""
    moved = {name: probe.moved_at_zero for name, probe in probes_of(evidence).items() if probe.moved_at_zero}
    return invariant(sum(moved.values()), probed_images(evidence), named("changed at eps = 0 by", moved))


@numbered(3, "perturbations within eps and range")
def within_the_ball(evidence: Evidence) -> Check:
    """Check 3: no perturbation exceeds eps + 1e-6, none leaves [0, 1], none holds NaN. Value: the farthest, in units of eps."""
    eps = evidence.threat["eps"]
    wrong = {
        name: count
        for name, probe in probes_of(evidence).items()
        if (count := probe.outside + probe.not_finite + (not probe.farthest <= eps + 1e-6))  # NaN fails
    }
    farthest = max(probe.farthest for probe in probes_of(evidence).values())
    note = named("outside the ball or the range:", wrong)
    return finding(FAIL if wrong else PASS, farthest / eps, 1 + 1e-6 / eps, probed_images(evidence), note)


@numbered(4, "network unchanged and deterministic")
def network_stands_still(evidence: Evidence) -> Check:
    """Check 4: weights and buffers have the same hash after the attacks; logits are the same when asked again, and classes for
    any batch size. Value: images that did not stand still (all of them if the hash changed)."""
    changed = evidence.states[0] != evidence.states[1]
    count = evidence.probed if changed else evidence.unstable
    reason = "weights or buffers changed while being attacked" if changed else "logits or classes changed when asked again"
    return invariant(count, evidence.probed, reason if count else "")


@numbered(5, "normalises inside")
def normalises_inside(evidence: Evidence) -> Check:
    """Check 5: the network on [0, 1] images equals the loader-normalised path, and [0, 1] is what it expects.

    Fails when the network's own entrance for normalised images gives other logits (by more than 1e-4 of the largest); when
    normalising images beforehand makes it significantly better (McNemar); and when a reference accuracy is given that lies
    outside the 99 % Wilson interval of the accuracy found. Not run where none of the three can tell. Value: accuracy on
    [0, 1] images, threshold: the reference, else the accuracy on images normalised beforehand.
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
        raise Missing("no reference accuracy was given, and [0, 1] images do no better than images normalised beforehand")
    return finding(PASS, ours, theirs if path.reference is None else path.reference, n, "")
