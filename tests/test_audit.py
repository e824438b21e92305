"""The 22 checks on evidence made by hand, and whole audits of networks with a masked gradient and of some without."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from gkp.checkpoints import load_model
from gkp.data.dataset import Dataset
from gkp.data.sources import load_dataset
from gkp.errors import BadInput, ModelWarning
from gkp.evaluation.audit import audit, judge, probing
from gkp.evaluation.audit.card import Card, reevaluate
from gkp.evaluation.audit.checks import CHECKS
from gkp.evaluation.audit.evidence import BLACK, Evidence, Gradients, InputPath, Probe, Row
from gkp.evaluation.audit.measure import Effort, planned
from gkp.evaluation.audit.verdict import share_status, strength_status
from gkp.evaluation.benchmark import benchmark
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.networks.fingerprint import state_sha256
from gkp.training.loop import train
from gkp.training.recipe import Recipe

EPS, N = 24 / 255, 40
QUICK = Effort(steps=10, apgd_steps=10, queries=200, draws=3, probes=6)
MEAN, STD = 0.3052, 0.3185  # of the digits


class Small(nn.Module):
    """Two convolutions with BatchNorm for the digits; normalises inside."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - MEAN) / STD)


class Around(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net


class Saturated(Around):
    """Logits so large that softmax is 0 or 1 in float32 and the gradient of the cross-entropy vanishes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * 1e4


class Quantised(Around):
    """Pixels rounded to quarters: the gradient is zero everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 4).round() / 4)


class Misleading(Around):
    """The same with a straight-through gradient, of the image upside down."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x.detach() * 4).round() / 4 + (x - x.detach()).flip(2))


class Bare(Around):
    """Expects images that the loader has normalised."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * STD + MEAN)


class Restless(Around):
    """Draws noise in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.3 * torch.rand_like(x))


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    net = Small()
    train(net, load_dataset("digits", "train+val"), Recipe(epochs=4, lr=0.1, schedule="one-cycle"), progress=False)
    return net


@pytest.fixture(scope="module")
def card(plain: nn.Module) -> Card:
    return quick(plain, parent=Quantised(plain), reference_accuracy=0.95, selection="last epoch")


def quick(net: nn.Module, data: str | Dataset = "digits", **options) -> Card:
    return audit(net, data, **{"n_examples": N, "eps": EPS, "effort": QUICK, "progress": False, **options})


def failed(card: Card) -> set[int]:
    return {check.number for check in card.checks if check.status == "fail"}


def status(card: Card, number: int) -> str:
    return next(check.status for check in card.checks if check.number == number)


# --- whole audits ---------------------------------------------------------------------------------------------------


def test_a_plain_network_is_not_flagged_and_every_check_runs(card):
    assert card.flags == () and not card.masked and card.status in ("pass", "warn")
    assert [check.number for check in card.checks] == list(range(1, 23))
    assert {check.number for check in card.checks if check.status == "not run"} == set()
    assert card.reported < 0.2  # attacks do work on it


def test_a_public_network_is_not_flagged(public_weights, cifar10_root):
    net = load_model("resnet20", weights="akamaster")
    found = audit(net, "cifar10", n_examples=16, effort=Effort(5, 5, 20, 2, 2), reference_accuracy=0.9173, progress=False)
    assert found.flags == () and found.reported == 0
    assert status(found, 5) == "pass" and next(c for c in found.checks if c.number == 5).threshold == 0.9173


@pytest.mark.parametrize(("masked", "caught_by"), [(Saturated, {7, 12}), (Quantised, {9, 12}), (Misleading, {9})])
def test_a_network_with_a_masked_gradient_is_flagged(plain, masked, caught_by):
    found = quick(masked(plain))
    assert found.masked and found.status == "fail" and caught_by <= failed(found)
    assert "upper bound" in found.to_markdown()
    assert failed(found) <= {6, 7, 8, 9, 10, 11, 12}  # the evaluation itself was in order


def test_a_network_that_expects_normalised_images_is_recognised(plain):
    for options in ({"reference_accuracy": 0.95}, {}):
        found = next(check for check in quick(Bare(plain), n_examples=20, **options).checks if check.number == 5)
        assert found.status == "fail" and "normalise inside" in found.note
    assert found.value < 0.5 < 0.9 < found.threshold


def test_a_network_that_is_not_deterministic_is_found_out_and_warned_of_once(plain):
    with pytest.warns(ModelWarning, match="not deterministic") as caught:
        found = quick(Restless(plain), n_examples=16)
    assert len([w for w in caught if issubclass(w.category, ModelWarning)]) == 1
    assert status(found, 4) == "fail"


def test_the_audit_leaves_the_network_as_it_was(plain):
    plain.train()
    plain.body[1].eval()
    modes, state = [module.training for module in plain.modules()], state_sha256(plain)
    quick(plain, n_examples=4)
    assert [module.training for module in plain.modules()] == modes and state_sha256(plain) == state
    assert all(parameter.grad is None for parameter in plain.parameters())
    plain.eval()


def test_images_made_for_the_parent_are_tried_on_the_network(card, plain):
    kinds = {name: row["source"] for name, row in card.facts["attacks"].items()}
    assert {name for name, source in kinds.items() if source == "parent"} == {"transfer-fgsm", "transfer-pgd"}
    without = quick(plain, n_examples=8)
    assert status(without, 11) == "not run" and status(without, 19) == "not run"
    assert "no parent" in next(check.note for check in without.checks if check.number == 11)


def test_a_network_with_two_classes_is_audited_without_the_ratio_that_needs_three():
    images = torch.randint(256, (30, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Dataset("two", "test", images, (images[:, 0, 0, 0] > 127).long(), 2, (0.5,), (0.25,))
    found = audit(Threshold(), data, n_examples=30, eps=0.1, effort=QUICK, progress=False)
    assert found.flags == () and "apgd-dlr not compared" in next(c.note for c in found.checks if c.number == 12)
    assert 0 < found.reported < 1


def test_a_network_without_a_finite_gradient_gets_a_card_that_says_so():
    class Root(Threshold):  # finite logits; the gradient of the root is infinite at zero, and times zero NaN
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * (x - x).abs().sqrt().sum((1, 2, 3))[:, None]

    images = torch.tensor([0, 255] * 8, dtype=torch.uint8).view(-1, 1, 1, 1)
    data = Dataset("two", "test", images, (images[:, 0, 0, 0] > 127).long(), 2, (0.5,), (0.25,))
    found = audit(Root(), data, eps=0.4, effort=QUICK, progress=False)
    assert "12 gradients usable" in found.flags and status(found, 6) == "not run"
    assert "NaN" in next(check.note for check in found.checks if check.number == 6)
    assert status(found, 14) == "pass"  # Square needs no gradient


class Threshold(nn.Module):
    """Class 1 where the first pixel is above a half."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        score = self.slope * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([-score / 2, score / 2], dim=1)


# --- what the caller has already ------------------------------------------------------------------------------------


def test_outcomes_that_are_there_are_not_computed_again_and_others_join_the_worst_case(plain, card, monkeypatch):
    specs = [*planned(EPS, QUICK).values(), AttackSpec("pgd", EPS, options={"steps": 3}, key="short")]
    named = [replace(spec, key=f"row {i}") for i, spec in enumerate(specs)]
    given = benchmark(plain, "digits", attacks=named, n_examples=N, progress=False)
    run: list[str] = []

    def counted(model, dataset, *, attacks, **options):
        run.extend(spec.attack for spec in attacks if "indices" in options and len(options["indices"]) == N)
        return benchmark(model, dataset, attacks=attacks, **options)

    monkeypatch.setattr(probing, "benchmark", counted)
    again = quick(plain, outcomes=given, n_examples=None)
    assert set(run) == {"pgd"}  # the ladder, and the scaled logits
    assert "given row 8" in again.facts["attacks"] and status(again, 18) == "pass"
    for name in planned(EPS, QUICK):
        assert again.facts["attacks"][name]["right"] == card.facts["attacks"][name]["right"]


def test_outcomes_with_predicted_labels_are_found_out(plain):
    given = benchmark(plain, "digits", protocol="paper", n_examples=8, progress=False)
    found = quick(plain, outcomes=given, n_examples=None)
    assert status(found, 16) == "fail" and "fgsm-0.01" in next(c.note for c in found.checks if c.number == 16)


def test_robust_images_that_are_wrong_without_attack_are_found_out():
    # One grey level on the wrong side: FGSM with the network's own prediction as its label pushes it over, at both radii.
    images = torch.full((20, 1, 4, 4), 128, dtype=torch.uint8)
    data = Dataset("grey", "test", images, torch.tensor([0, 1] * 10), 2, (0.5,), (0.25,))
    given = benchmark(Threshold(), data, protocol="paper", attacks=["fgsm-0.01", "fgsm-0.1"], progress=False)
    found = audit(Threshold(), data, eps=0.1, outcomes=given, effort=QUICK, progress=False)
    assert {16, 17} <= failed(found) and next(c.value for c in found.checks if c.number == 17) == 10
    clean = audit(Threshold(), data, n_examples=20, eps=0.1, effort=QUICK, progress=False)
    assert {16, 17}.isdisjoint(failed(clean))


def test_images_that_stand_class_by_class_are_the_same_ones_in_every_row(plain):
    whole = load_dataset("digits", "test")
    by_class = whole.subset(whole.labels.argsort(stable=True))
    given = benchmark(plain, by_class, attacks=["fgsm"], eps=EPS, n_examples=20, progress=False)
    assert set(given.labels) == set(range(10))  # `leading` takes all classes in turn, 20 in a row would be of one
    alone = quick(plain, data=by_class, n_examples=20)
    for card in (alone, quick(plain, data=by_class, n_examples=None, outcomes=given)):
        assert card.facts["clean"] == "".join("01"[int(right)] for right in given.right[0])
        assert card.facts["attacks"]["fgsm"]["right"] == "".join("01"[int(right)] for right in given.right[1])
        assert {17, 18}.isdisjoint(failed(card))
    assert reevaluate(alone.to_json(), plain, by_class)  # the card's images are found again
    with pytest.raises(BadInput, match="not of the images of"):
        quick(plain, data=by_class, n_examples=12, outcomes=given)


def test_an_audit_within_inference_mode_is_the_same(plain, card):
    with torch.inference_mode():
        again = quick(plain)
    assert again.facts["attacks"].items() <= card.facts["attacks"].items() and len(again.facts["attacks"]) > 5


def test_a_parent_of_another_type_is_attacked_in_its_own(plain):
    found = quick(plain, n_examples=8, parent=copy.deepcopy(plain).double())
    assert status(found, 11) in ("pass", "warn", "fail")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_sha256": "0" * 64}, "outcomes are of another network"),
        ({"data_sha256": "0" * 64}, "outcomes are of other images"),
        ({"seed": 7}, "give seed=7"),
        ({"indices": np.arange(2, 10)}, r"not of the images of benchmark\(n_examples=8\)"),
    ],
)
def test_outcomes_of_something_else_are_refused(plain, changed, message):
    given = benchmark(plain, "digits", attacks=["fgsm"], eps=EPS, n_examples=8, progress=False)
    with pytest.raises(BadInput, match=message):
        quick(plain, outcomes=replace(given, **changed), n_examples=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": "8"}, 'write "8/255"'),
        ({"eps": 0}, "above 0 and below 0.5"),
        ({"eps": 0.5}, "above 0 and below 0.5"),
        ({"reference_accuracy": 95}, "give a fraction"),
        ({"selection": "best"}, "last epoch, validation, test"),
        ({"n_examples": 501}, "give 1 to 500"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_input_is_refused(plain, options, message):
    with pytest.raises(BadInput, match=message):
        quick(plain, **options)


# --- the card -------------------------------------------------------------------------------------------------------


def test_a_card_on_disk_is_enough_to_evaluate_again(card, plain, tmp_path):
    facts = json.loads((card.save(tmp_path) / "card.json").read_text())
    again = reevaluate(facts, plain)
    assert "pgd" in again and "transfer-pgd" not in again  # which need the parent
    assert all(same == tried for same, tried in again.values()) and sum(tried for _, tried in again.values()) > 30
    flipped = facts["attacks"]["pgd"]["right"].translate(str.maketrans("01", "10"))
    facts["attacks"]["pgd"]["right"] = flipped
    same, tried = reevaluate(facts, plain)["pgd"]
    assert same == 0 < tried


def test_a_card_is_not_evaluated_again_on_another_network_or_from_something_else(card, plain):
    facts = json.loads(json.dumps(card.to_json()))
    with pytest.raises(BadInput, match="another network"):
        reevaluate(facts, Small())
    with pytest.raises(BadInput, match="another data set"):
        reevaluate(facts, plain, load_dataset("digits", "val"))
    with pytest.raises(BadInput, match=r"not the JSON of an audit's card \(KeyError: 'threat_model'"):
        reevaluate({}, plain)


def test_the_front_matter_says_what_was_attacked_and_how(card, plain):
    text = card.to_markdown()
    front = yaml.safe_load(text.split("---\n")[1])
    digits = load_dataset("digits", "test")
    assert (front["norm"], front["eps"], front["n"], front["seed"]) == ("linf", EPS, N, 0)
    assert front["model_sha256"] == state_sha256(plain) and front["data_sha256"] == digits.sha256
    assert set(front["versions"]) >= {"python", "torch", "numpy"} and front["robust_accuracy"] == card.reported
    table = text.split("## Checks")[1].split("##")[0]
    assert table.count("\n| ") == 2 + 22 and all(f"| {check.name} |" in table for check in card.checks)


def test_the_worst_case_is_the_union_and_no_accuracy_lacks_its_interval(card):
    frame = {row["attack"]: row for row in card.accuracies}
    rows = [row["right"] for row in card.facts["attacks"].values()]
    union = sum(all(c == "1" for c in column) for column in zip(card.facts["clean"], *rows, strict=True))
    assert frame["worst case"]["accuracy"] == card.reported == union / N
    assert all(row["low"] <= row["accuracy"] <= row["high"] and row["n"] == N for row in frame.values())
    assert list(card.to_frame().index) == list(range(1, 23))


def test_a_card_that_cannot_be_written_leaves_what_was_there(card, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="cannot write the card"):
        card.save(tmp_path / "file")
    card.save(tmp_path / "deep")
    before = {path.name: path.read_bytes() for path in (tmp_path / "deep").iterdir()}

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadInput, match="No space left"):
        judge(evidence()).save(tmp_path / "deep")
    assert {path.name: path.read_bytes() for path in (tmp_path / "deep").iterdir()} == before
    assert sorted(os.listdir(tmp_path / "deep")) == ["card.json", "card.md"]


# --- check by check, on evidence made by hand -----------------------------------------------------------------------


def first(k: int, n: int = 100) -> np.ndarray:
    """(n,) bool, the first k right: what fewer leave right, more leave right too."""
    return np.arange(n) < k


def but(k: int, *broken: int) -> np.ndarray:
    right = first(k)
    right[list(broken)] = False
    return right


def rows(**changed) -> dict[str, Row]:
    """Rows of an audit at 8/255 by name (- as _), as counts of images left right, as arrays, or None to leave one out."""
    counts = {"fgsm": 40, "pgd": 20, "pgd_2x_steps": 20, "pgd_2x_restarts": 20, "apgd_ce": 20, "apgd_dlr": 20,
              "pgd_scaled": 20, "square": 30, "noise": 85, "transfer_fgsm": 70, "transfer_pgd": 60}  # fmt: skip
    specs = planned(8 / 255, Effort())
    made = {}
    for key, right in {**counts, **changed}.items():
        if right is not None:
            name = key.replace("_", "-")
            spec = specs.get(name, AttackSpec("fgsm" if name == "transfer-fgsm" else "pgd", 8 / 255))
            source = {"pgd-scaled": "scaled logits", "transfer-fgsm": "parent", "transfer-pgd": "parent"}.get(name, "network")
            kind = {"kind": BLACK} if name in ("square", "noise") or source == "parent" else {}
            made[name] = Row(first(right) if isinstance(right, int) else right, spec, source=source, **kind)
    return made


def matrix(*right: np.ndarray, labels: str = "true") -> Outcomes:
    specs = [AttackSpec("fgsm", k / 255, labels=labels) for k in range(1, len(right))]
    n = len(right[0])
    return Outcomes(
        right=np.array(right), indices=np.arange(n), labels=np.ones(n, dtype=int), predictions=right[0].astype(int),
        attacks=tuple(specs), protocol="pixel", bounds=(0.0, 1.0), dataset="made", split="test", data_sha256="d",
        model_sha256="m", seed=0, versions={"torch": "2"}, seconds=1.0,
    )  # fmt: skip


THREAT = {
    "norm": "linf", "eps": 8 / 255, "eps_text": "8/255", "space": "pixels", "bounds": [0, 1], "labels": "true",
    "dataset": "made", "split": "test", "n": 100, "indices_sha256": "i", "data_sha256": "d", "model_sha256": "m", "seed": 0,
    "versions": {"torch": "2"},
}  # fmt: skip
SOUND = Probe(n=16, moved_at_zero=0, farthest=8 / 255, outside=0, not_finite=0, otherwise=0)


def evidence(**changed) -> Evidence:
    """Evidence on 100 images that passes every check, with changes."""
    fields = {
        "threat": THREAT, "clean": first(90), "rows": rows(), "matrices": (matrix(first(90), first(40)),),
        "ladder": {0.0: first(90), 4 / 255: first(50), 8 / 255: first(20), 0.5: first(0)},
        "probes": {"fgsm": SOUND, "pgd": SOUND}, "states": ("s", "s"), "unstable": 0, "probed": 16,
        "path": InputPath(first(20), 1e-7, 0.9), "gradients": Gradients(90, 0, 0), "logit_scale": 1.0, "reported": 0.2,
        "changed": {"gaussian noise 0.01": first(88), "gaussian noise 0.08": first(20)}, "parent_clean": first(92),
        "reevaluated": dict.fromkeys(rows(), (4, 4)), "self_test": {"planted": (9, 12), "plain": ()},
        "selection": "validation",
    }  # fmt: skip
    return Evidence(**{**fields, **changed})


def probes(**fields) -> dict[str, Probe]:
    return {"fgsm": SOUND, "pgd": replace(SOUND, **fields)}


def test_sound_evidence_passes_every_check():
    found = judge(evidence())
    assert {check.number: check.status for check in found.checks} == dict.fromkeys(range(1, 23), "pass")
    assert found.status == "pass" and not found.flags and not found.masked


CASES = [
    (1, "fail", {"threat": {**THREAT, "seed": None}}),
    (1, "fail", {"threat": {k: v for k, v in THREAT.items() if k != "indices_sha256"}}),
    (2, "fail", {"probes": probes(moved_at_zero=1)}),
    (2, "not run", {"probes": {}}),
    (3, "fail", {"probes": probes(farthest=8 / 255 + 2e-6)}),
    (3, "pass", {"probes": probes(farthest=8 / 255 + 5e-7)}),
    (3, "fail", {"probes": probes(farthest=float("nan"))}),
    (3, "fail", {"probes": probes(outside=1)}),
    (3, "fail", {"probes": probes(not_finite=1)}),
    (4, "fail", {"states": ("s", "t")}),
    (4, "fail", {"unstable": 1}),
    (5, "fail", {"path": InputPath(first(20), None, 0.99)}),
    (5, "fail", {"path": InputPath(first(20), 1e-3, 0.9)}),
    (5, "fail", {"path": InputPath(first(20), float("nan"), 0.9)}),
    (5, "fail", {"path": InputPath(first(96), None, None)}),
    (5, "pass", {"path": InputPath(first(20), None, None)}),
    (5, "not run", {"path": InputPath(first(90), None, None)}),
    (6, "fail", {"rows": rows(pgd=45)}),
    (6, "warn", {"rows": rows(pgd=44)}),
    (6, "not run", {"rows": rows(pgd=None)}),
    (6, "not run", {"clean": first(0)}),
    (7, "warn", {"ladder": {0.0: first(90), 8 / 255: first(20), 0.5: first(2)}}),
    (7, "fail", {"ladder": {0.0: first(90), 8 / 255: first(20), 0.5: first(5)}}),
    (7, "fail", {"ladder": {0.0: first(90), 4 / 255: first(15), 8 / 255: first(20), 0.5: first(0)}}),
    (7, "not run", {"ladder": {0.0: first(90), 8 / 255: first(20)}}),
    (8, "pass", {"rows": rows(pgd_2x_steps=19)}),
    (8, "warn", {"rows": rows(pgd_2x_steps=17)}),
    (8, "fail", {"rows": rows(pgd_2x_restarts=15)}),
    (9, "warn", {"rows": rows(square=but(30, 0))}),
    (9, "fail", {"rows": rows(square=but(30, 0, 1))}),
    (9, "fail", {"rows": rows(transfer_pgd=but(60, 0), noise=but(85, 1))}),
    (9, "not run", {"rows": rows(square=None)}),
    (10, "fail", {"rows": rows(noise=30)}),
    (10, "warn", {"rows": rows(noise=39)}),
    (11, "fail", {"rows": rows(transfer_fgsm=10)}),
    (11, "not run", {"rows": rows(transfer_fgsm=None), "missing": {"transfer-fgsm": "no parent was given"}}),
    (12, "warn", {"gradients": Gradients(90, 1, 0)}),
    (12, "fail", {"gradients": Gradients(90, 5, 0)}),
    (12, "fail", {"gradients": Gradients(90, 0, 1)}),
    (12, "fail", {"rows": rows(apgd_dlr=10)}),
    (12, "fail", {"rows": rows(pgd_scaled=10)}),
    (12, "warn", {"rows": rows(apgd_dlr=30)}),
    (12, "pass", {"rows": rows(apgd_dlr=None)}),
    (12, "not run", {"rows": rows(apgd_dlr=None, pgd_scaled=None)}),
    (12, "fail", {"rows": rows(apgd_dlr=None, pgd_scaled=None), "gradients": Gradients(90, 90, 0)}),
    (12, "not run", {"gradients": Gradients(0, 0, 0)}),
    (13, "fail", {"reported": 0.45}),  # the mean of attacks
    (13, "not run", {"rows": {}}),
    (14, "fail", {"rows": rows(square=None)}),
    (15, "fail", {"self_test": {"planted": (9,), "plain": ()}}),
    (15, "fail", {"self_test": {"planted": (9, 12), "plain": (8,)}}),
    (15, "not run", {"self_test": {}}),
    (16, "fail", {"matrices": (matrix(first(90), first(91)),)}),
    (16, "fail", {"matrices": (matrix(first(90), first(40), labels="predicted"),)}),
    (17, "fail", {"matrices": (matrix(first(90), first(91)),)}),
    (17, "pass", {"matrices": (matrix(first(90), first(91), first(40)),)}),
    (17, "fail", {"rows": {"fgsm": rows(fgsm=95)["fgsm"]}}),
    (18, "fail", {"probes": probes(otherwise=1)}),
    (18, "fail", {"matrices": (matrix(first(90), first(40)), matrix(first(90), first(41)))}),
    (18, "fail", {"matrices": (matrix(first(90)), matrix(first(89)))}),
    (18, "pass", {"matrices": (matrix(first(90), first(40)), matrix(first(60, 60), first(40, 60)))}),
    (19, "warn", {"selection": "test"}),
    (19, "pass", {"selection": "last epoch"}),
    (19, "not run", {"selection": None}),
    (20, "fail", {"rows": {}, "parent_clean": None}),
    (21, "warn", {"changed": {"shift +1,+0": first(70)}}),
    (21, "pass", {"changed": {"shift +1,+0": first(75)}}),  # 15 of 100 do not show that more than a tenth is lost
    (21, "not run", {"changed": {}}),
    (22, "fail", {"reevaluated": {**dict.fromkeys(rows(), (4, 4)), "pgd": (3, 4)}}),
    (22, "warn", {"reevaluated": {"pgd": (4, 4)}}),
    (22, "not run", {"reevaluated": {}}),
]


@pytest.mark.parametrize(("number", "expected", "changed"), CASES)
def test_each_check_passes_warns_and_fails_where_it_should(number, expected, changed):
    found = CHECKS[number](evidence(**changed))
    assert (found.number, found.status) == (number, expected), found
    assert found.note or expected == "pass"  # whatever is not well says why
    json.dumps(found.to_json(), allow_nan=False)


def test_no_check_is_left_out_above_and_each_says_which_it_is():
    exercised = {number for number, expected, _ in CASES if expected in ("fail", "warn")}
    assert exercised == set(CHECKS) == set(range(1, 23))
    for number, check in CHECKS.items():
        assert f"Check {number}:" in (check.__doc__ or "")


def test_twenty_images_are_too_few_for_intervals_that_say_something():
    few = {name: replace(row, right=row.right[:20]) for name, row in rows().items()}
    changed = {"clean": first(18, 20), "rows": few, "ladder": {0.0: first(18, 20)}, "changed": {}, "parent_clean": None}
    found = CHECKS[20](evidence(**changed))
    assert found.status == "warn" and found.value > 10


@pytest.mark.parametrize(
    ("k", "n", "limit", "expected"),
    [
        (0, 64, 0.002, "pass"),  # no image: nothing to flag, and nothing proven either
        (1, 64, 0.002, "warn"),  # P(X >= 1) = 1 - 0.998^64 = 0.12
        (2, 64, 0.002, "fail"),  # P(X >= 2) = 0.0075
        (2, 1000, 0.002, "pass"),
        (5, 1000, 0.002, "warn"),  # 0.0525
        (6, 1000, 0.002, "fail"),  # 0.0165
        (1, 64, 0.01, "warn"),
        (1, 10_000, 0.0, "fail"),
    ],
)
def test_a_share_above_its_limit_fails_only_when_the_sample_shows_it(k, n, limit, expected):
    assert share_status(k, n, limit) == expected


def test_an_attack_is_called_weaker_when_the_sign_test_says_so():
    assert strength_status(first(44), first(40)) == "warn"  # 4 to 0: p = 1 / 16
    assert strength_status(first(45), first(40)) == "fail"  # 5 to 0: p = 1 / 32
    assert strength_status(but(45, 0), first(40)) == "warn"  # 5 to 1: p = 7 / 64
    assert strength_status(first(40), first(40)) == strength_status(first(39), first(40)) == "pass"
