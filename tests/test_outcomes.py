"""The outcome matrix: its statistics, curves and unions, and what becomes of it on disk."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toys import Net, made, noise

from gkp.errors import BadInput
from gkp.evaluation.benchmark import benchmark, predict
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.networks.fingerprint import state_sha256

# --- statistics -----------------------------------------------------------------------------------------------------


def test_the_wilson_interval_is_the_one_computed_by_hand():
    out = made([True] * 8 + [False] * 2, [True] * 5 + [False] * 5)
    # z = 1.959964, n = 10: (p + z^2 / 20 +- z sqrt(p (1 - p) / 10 + z^2 / 400)) / (1 + z^2 / 10)
    assert out.interval()["clean"] == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert out.interval()["fgsm-1/255"] == pytest.approx((0.236593, 0.763407), abs=1e-6)
    z = 1.6448536  # 90 %
    half = z * (0.16 / 10 + z**2 / 400) ** 0.5 / (1 + z**2 / 10)
    low, high = out.interval(0.9)["clean"]
    assert high - low == pytest.approx(2 * half, abs=1e-7)


def test_the_interval_of_a_perfect_score_ends_at_one_and_of_none_at_zero():
    intervals = made([True] * 10, [False] * 10).interval()
    z2 = 1.959963985**2
    assert intervals["clean"] == pytest.approx((10 / (10 + z2), 1.0)) and intervals["clean"][1] <= 1
    assert intervals["fgsm-1/255"] == pytest.approx((0.0, z2 / (10 + z2)), abs=1e-9) and intervals["fgsm-1/255"][0] >= 0
    many = made([True] * 10_000, [False] * 10_000).interval()  # where statsmodels rounds 0 to 2e-19
    assert many["clean"][1] == 1 and many["fgsm-1/255"][0] == 0


def test_the_frame_shows_accuracy_interval_and_n_for_every_key():
    out = made([True, True, True, False], [True, False, False, False], protocol="pixel")
    frame = out.to_frame()
    assert list(frame.index) == ["clean", "fgsm-1/255", "worst-case-1/255"] and frame.index.name == "attack"
    assert list(frame.columns) == ["accuracy", "low", "high", "n"]
    assert frame["accuracy"].tolist() == [0.75, 0.25, 0.25] and set(frame["n"]) == {4}
    assert tuple(frame.loc["clean", ["low", "high"]]) == out.interval()["clean"]


def test_a_matrix_that_contradicts_itself_is_refused():
    out = made([True, False], [True, False])
    with pytest.raises(BadInput, match="contradicts its own labels"):
        replace(out, predictions=np.array([1, 1]))
    with pytest.raises(BadInput, match=r"shape \(1, 2\) instead of \(2, 2\)"):
        replace(out, right=out.right[:1])


def test_outcomes_cannot_be_edited_by_accident():
    out = made([True, False])
    with pytest.raises(ValueError, match="read-only"):
        out.right[0, 0] = False


# --- curves ---------------------------------------------------------------------------------------------------------


def test_a_curve_starts_at_the_clean_accuracy_and_goes_by_growing_eps():
    specs = (
        AttackSpec("pgd", "4/255"),
        AttackSpec("fgsm", "1/255"),
        AttackSpec("pgd", "1/255"),
        AttackSpec("pgd", 0.5, options={"norm": "l2"}),
    )
    out = made([1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], attacks=specs)
    curve = out.curve("pgd")
    assert list(curve.columns) == ["eps", "accuracy", "low", "high", "n"]
    assert curve["eps"].tolist() == [0, 1 / 255, 4 / 255] and curve["accuracy"].tolist() == [0.75, 0.5, 0]
    assert curve["n"].tolist() == [4, 4, 4] and curve["n"].dtype.kind == "i"
    assert (curve["low"].iloc[1], curve["high"].iloc[1]) == out.interval()["pgd-1/255"]
    worst = out.curve("worst-case")  # at 1/255 the second image alone survives both
    assert worst["eps"].tolist() == [0, 1 / 255, 4 / 255] and worst["accuracy"].tolist() == [0.75, 0.25, 0]
    assert out.curve("pgd", norm="l2")[["eps", "accuracy"]].to_numpy().tolist() == [[0, 0.75], [0.5, 0.25]]
    assert out.curve("worst-case", norm="l2")["accuracy"].tolist() == [0.75, 0.25]


def test_rows_of_one_attack_with_other_options_or_labels_are_curves_of_their_own():
    strong = [AttackSpec("pgd", e, options={"steps": 50}, key=f"pgd-50-{k}/255") for k, e in ((1, "1/255"), (2, "2/255"))]
    out = made([1, 1], [1, 0], [0, 0], [1, 1], attacks=(*strong, AttackSpec("pgd", "2/255")))
    assert out.curve("pgd-50")["accuracy"].tolist() == [1, 0.5, 0] and out.curve("pgd")["accuracy"].tolist() == [1, 1]
    paper = benchmark(Net(), noise(30), protocol="paper", true_labels=True)
    for name in ("fgsm", "fgsm-true"):
        suffix = name.removeprefix("fgsm")
        expected = [paper.accuracy()[key] for key in ("clean", f"fgsm-0.01{suffix}", f"fgsm-0.1{suffix}")]
        assert paper.curve(name)["eps"].tolist() == [0, 0.01, 0.1] and paper.curve(name)["accuracy"].tolist() == expected


def test_a_cascade_counts_in_the_worst_case_of_its_radius():
    both = (AttackSpec("fgsm", "1/255"), AttackSpec("pgd", "1/255", options={"steps": 3}, key="cascade-1/255"))
    assert made([1, 1, 1], [1, 1, 0], [0, 1, 1], attacks=both).curve("worst-case")["accuracy"].tolist() == [1, 1 / 3]


def test_a_curve_that_is_not_there_is_refused_with_those_that_are():
    out = made([1, 1], [1, 0])
    with pytest.raises(BadInput, match="no linf rows of 'pdg'; there are: fgsm"):
        out.curve("pdg")
    with pytest.raises(BadInput, match="no l2 rows of 'fgsm'; there are: none"):
        out.curve("fgsm", norm="l2")
    with pytest.raises(BadInput, match="no linf rows of 'worst-case'"):
        replace(out, protocol="paper").curve("worst-case")


# --- unions ---------------------------------------------------------------------------------------------------------


def test_parts_of_an_evaluation_merge_into_the_bytes_of_the_whole(tmp_path):
    net, data = Net(), noise(50)
    whole = benchmark(net, data, attacks="fgsm,pgd", eps="2/255", seed=5)
    first, last = (benchmark(net, data, attacks="fgsm,pgd", eps="2/255", seed=5, indices=i) for i in (range(20), range(15, 50)))
    fgsm, pgd = (benchmark(net, data, attacks=name, eps="2/255", seed=5) for name in ("fgsm", "pgd"))
    expected = (whole.save(tmp_path / "whole") / "outcomes.npz").read_bytes()
    for i, merged in enumerate(
        (last.merge(first), fgsm.merge(pgd), fgsm.merge(pgd, whole), whole.merge(first, pgd), whole.merge())
    ):
        assert (merged.save(tmp_path / str(i)) / "outcomes.npz").read_bytes() == expected
        assert merged.attacks == whole.attacks and merged.accuracy() == whole.accuracy()
        assert Outcomes.load(tmp_path / str(i)).attacks == whole.attacks
    assert fgsm.merge(pgd).seconds == pytest.approx(fgsm.seconds + pgd.seconds, abs=2e-3)
    assert benchmark(net, data, attacks="fgsm", eps="2/255", indices=[7, 3]).indices.tolist() == [3, 7]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_sha256": "x"}, "model_sha256 is 'm' in one, 'x' in the other"),
        ({"data_sha256": "x"}, "data_sha256 is 'd' in one, 'x' in the other"),
        ({"dataset": "x"}, "dataset is 'made' in one, 'x' in the other"),
        ({"protocol": "paper"}, "protocol is 'pixel' in one, 'paper' in the other"),
        ({"seed": 1}, "seed is 0 in one, 1 in the other"),
        ({"versions": {"torch": "3"}}, "torch is '2' in one, '3' in the other"),
        ({"right": np.array([[1, 1, 0], [1, 1, 0]], dtype=bool)}, "contradict each other"),
        (
            {"right": np.array([[1, 0, 0], [1, 0, 0]], dtype=bool), "predictions": np.array([1, 0, 0])},
            "predicts other classes for the same images",
        ),
        ({"attacks": (AttackSpec("pgd", 0.1, options={"steps": 3}, key="fgsm-1/255"),)}, "fgsm-1/255 is not the same attack"),
        (
            {"attacks": (AttackSpec("pgd", 0.1),), "indices": np.array([7, 8, 9])},
            "3 of 6 images have no outcome under fgsm-1/255",
        ),
    ],
)
def test_outcomes_of_another_evaluation_are_refused_not_merged(fields, message):
    with pytest.raises(BadInput, match=message) as caught:
        made([1, 1, 0], [1, 0, 0]).merge(made([1, 1, 0], [1, 0, 0], **fields))
    assert "\n" not in str(caught.value)


# --- on disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    specs = ["fgsm", AttackSpec("pgd", 0.5, options={"norm": "l2", "steps": 2})]
    return benchmark(Net(), noise(30), attacks=specs, eps="2/255", seed=7).save(tmp_path / "deep" / "folder")


def test_saved_outcomes_come_back_as_they_were(saved, tmp_path):
    out = Outcomes.load(saved)
    again = Outcomes.load(out.save(tmp_path / "again"))
    for one in (out, again):
        assert one.accuracy() == benchmark(Net(), noise(30), attacks=list(out.attacks), seed=7).accuracy()
        assert one.attacks == (AttackSpec("fgsm", 2 / 255), AttackSpec("pgd", 0.5, options={"norm": "l2", "steps": 2}))
        assert (one.dataset, one.split, one.protocol, one.seed, one.bounds) == ("noise", "test", "pixel", 7, (0.0, 1.0))
        assert one.data_sha256 == noise(30).sha256 and one.model_sha256 == state_sha256(Net())
        assert one.labels.tolist() == noise(30).labels.tolist() and one.indices.tolist() == list(range(30))
        assert one.predictions.tolist() == predict(Net(), noise(30)).argmax(1).tolist()
        assert set(one.versions) == {"python", "torch", "numpy", "pyautoattack"} and one.seconds > 0
    assert sorted(os.listdir(saved)) == ["outcomes.json", "outcomes.npz"]
    for name in os.listdir(saved):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_what_is_saved_can_be_read_without_this_package(saved):
    header = json.loads((saved / "outcomes.json").read_text())
    with np.load(saved / "outcomes.npz", allow_pickle=False) as arrays:
        right = arrays["right"]
    assert right.dtype == bool and right.shape == (3, 30) and header["n"] == 30
    assert header["accuracy"]["fgsm-2/255"] == right[1].mean()
    assert [attack["key"] for attack in header["attacks"]] == ["fgsm-2/255", "pgd-l2-0.5"]


def test_saving_again_replaces_what_was_there(saved):
    other = made([True, False])
    other.save(saved)
    assert Outcomes.load(saved).accuracy() == other.accuracy()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "outcomes.npz").unlink(), "outcomes.npz cannot be read"),
        (lambda f: (f / "outcomes.json").unlink(), "outcomes.json cannot be read"),
        (lambda f: flip(f / "outcomes.npz", 200), "outcomes.npz is truncated or tampered with"),
        (lambda f: os.truncate(f / "outcomes.npz", 100), "outcomes.npz is truncated or tampered with"),
        (lambda f: os.truncate(f / "outcomes.json", 100), "outcomes.json is truncated or no outcome file"),
        (lambda f: (f / "outcomes.json").write_text("[1]"), "outcomes.json is truncated or no outcome file"),
        (lambda f: (f / "outcomes.json").write_bytes(b"\xff\xfe"), "outcomes.json is truncated or no outcome file"),
        (lambda f: edit(f, accuracy={"clean": 1.0}), "outcomes.json was tampered with"),
        (lambda f: edit(f, seed=8), "outcomes.json was tampered with"),
    ],
)
def test_damaged_outcomes_are_refused(saved, damage, message):
    damage(saved)
    with pytest.raises(BadInput, match=message) as caught:
        Outcomes.load(saved)
    assert "\n" not in str(caught.value)


def edit(folder: Path, **fields) -> None:
    path = folder / "outcomes.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}, indent=1))


def test_the_matrix_of_one_evaluation_does_not_pass_for_that_of_another(saved, tmp_path):
    other = made([True, False]).save(tmp_path / "other")
    (saved / "outcomes.npz").write_bytes((other / "outcomes.npz").read_bytes())
    with pytest.raises(BadInput, match="truncated or tampered with"):
        Outcomes.load(saved)


def test_a_folder_that_cannot_be_written_is_refused_and_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match=r"cannot write outcomes to .*file.*choose a folder"):
        made([True]).save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_up_leaves_the_old_outcomes_and_no_litter(saved, monkeypatch):
    before = Outcomes.load(saved).accuracy()
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name.startswith("outcomes.json"):
            write(self, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadInput, match="No space left on device"):
        made([True, False]).save(saved)
    assert Outcomes.load(saved).accuracy() == before and sorted(os.listdir(saved)) == ["outcomes.json", "outcomes.npz"]


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attack": "cw"}, "unknown attack 'cw'"),
        ({"options": {"step_size": 1}}, "pgd has no option 'step_size'"),
        ({"options": {"ids": [1]}}, "pgd has no option 'ids'"),
        ({"options": {"norm": "l1"}}, "unknown norm 'l1'"),
        ({"labels": "guessed"}, 'labels of pgd must be "true" or "predicted"'),
        ({"eps": "8"}, 'write "8/255"'),
        ({"eps": "-1/255"}, "eps '-1/255' is negative"),
        ({"eps": 1.5}, "eps 1.5 is above 1"),
        ({"eps": -0.5, "options": {"norm": "l2"}}, "eps -0.5 is negative"),
        ({"options": {"step": np.float32(0.1)}}, "options of pgd are no plain values"),
        ({"options": {"step": float("nan")}}, "options of pgd are no plain values"),
    ],
)
def test_a_row_that_cannot_be_run_is_refused_when_it_is_described(fields, message):
    with pytest.raises(BadInput, match=message):
        AttackSpec(**{"attack": "pgd", "eps": 0.1, **fields})


def test_a_confidence_outside_0_1_is_refused():
    with pytest.raises(BadInput, match=r"confidence must lie between 0 and 1, not 95"):
        made([True]).interval(95)
