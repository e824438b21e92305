"""Changed test sets by name: each has one name, what it stands for, and how cells of the grid carry it."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gkp.artifact.experiments.kinds import EvaluateCell, PretrainedCell, TrainCell
from gkp.artifact.experiments.rates import part_of
from gkp.artifact.experiments.stages import evaluate
from gkp.artifact.groups import under_autoattack
from gkp.checkpoints import save_model
from gkp.data.dataset import Dataset
from gkp.data.shifts import CONVENTIONS, DEFAULT, gaussian_noise, high_frequency, low_frequency, rotate, shift
from gkp.data.sources import CIFAR10_MEAN, CIFAR10_STD, load_dataset
from gkp.data.variants import EXAMPLES, parse_variant, variant
from gkp.errors import BadInput
from gkp.evaluation.benchmark import benchmark
from gkp.evaluation.outcomes import Outcomes
from gkp.networks.build import build_model

BASELINE = TrainCell(dataset="digits", model="resnet20", epochs=1)

NAMED = {
    "high-frequency-0.3": lambda data: high_frequency(data, 0.3),
    "high-frequency-corner-0.5": lambda data: high_frequency(data, 0.5, convention="corner"),
    "high-frequency-0.7-zero-mean": lambda data: high_frequency(data, 0.7, keep_mean=False),
    "low-frequency-0.5": lambda data: low_frequency(data, 0.5),
    "low-frequency-pixels-4": lambda data: low_frequency(data, 4, convention="pixels"),
    "gaussian-noise-0.05": lambda data: gaussian_noise(data, 0.05),
    "gaussian-noise-0.05-seed-7": lambda data: gaussian_noise(data, 0.05, seed=7),
    "gaussian-noise-1e-05": lambda data: gaussian_noise(data, 1e-5),
    "shift-2-0": lambda data: shift(data, 2, 0),
    "shift--2--1": lambda data: shift(data, -2, -1),
    "rotate-10": lambda data: rotate(data, 10),
    "rotate--7.5": lambda data: rotate(data, -7.5),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_name_stands_for_the_data_set_that_carries_it(name):
    data = load_dataset("digits", "test").first(5)
    expected = NAMED[name](data)
    assert expected.name == f"digits+{name}"  # so that what an outcome says can be asked for again
    found = variant(data, name)
    assert (found.name, found.sha256) == (expected.name, expected.sha256)


def test_no_name_is_the_data_set_itself():
    data = load_dataset("digits", "test")
    assert variant(data, "") is data


def test_every_convention_but_the_default_has_its_place_in_the_name():
    data = load_dataset("digits", "test").first(2)
    for convention in CONVENTIONS:
        test = high_frequency(data, 0.25, convention=convention)
        assert test.name == f"digits+high-frequency-{'' if convention == DEFAULT else convention + '-'}0.25"
        assert torch.equal(variant(data, test.name.partition("+")[2]).images, test.images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blur-2", "unknown changed test set 'blur-2'; names look like high-frequency-0.3"),
        ("high-frequency", "unknown changed test set"),
        ("high-frequency-round-0.3", "unknown changed test set"),
        ("low-frequency-0.3-zero-mean", "unknown changed test set"),
        ("gaussian-noise-0.05-seed-0", "unknown changed test set"),
        ("shift-1.5-0", "unknown changed test set"),
        ("rotate-10\n", "unknown changed test set"),
        ("high-frequency-0.30", "write 0.3 for 0.30 in 'high-frequency-0.30': a changed test set has one name"),
        ("rotate-10.0", "write 10 for 10.0"),
        ("rotate--0", "write 0 for -0"),
        ("shift-02-0", "write 2 for 02"),
        ("high-frequency-1.5", "theta is 1.5"),
        ("gaussian-noise--1", "sigma is -1"),
    ],
)
def test_a_name_that_stands_for_nothing_or_is_not_the_name_is_refused(name, message):
    with pytest.raises(BadInput, match=message):
        variant(load_dataset("digits", "test").first(2), name)


def test_reading_a_name_loads_neither_torch_nor_data():
    read = f"from gkp.data.variants import parse_variant; [parse_variant(name) for name in {EXAMPLES}]"
    code = f"{read}; import sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_changed_set_is_attacked_in_the_box_that_the_paper_gives_the_set_itself():
    images, labels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 9])
    data = Dataset("cifar10", "test", images, labels, 10, CIFAR10_MEAN, CIFAR10_STD)
    boxes = [benchmark(build_model("resnet20"), test, protocol="paper", attacks=()).bounds for test in (data, rotate(data, 10))]
    assert boxes == [(-2.4291, 2.7537)] * 2


# --- cells ----------------------------------------------------------------------------------------------------------


def test_a_cell_without_a_change_keeps_the_hash_it_had_before_changes_were_known():
    net = PretrainedCell(model="resnet20")
    before = EvaluateCell(net=net, examples=100, protocol="pixel")
    assert "variant" not in before.params and before.label == "cifar10-resnet20-akamaster-pixel-n100"
    fields = {"protocol": "pixel", "examples": 100, "seed": 0, "batch_size": 200, "eps": None, "attacks": None}
    assert before.params == {"threads": 1, **fields, "true_labels": False}
    assert before.hash == EvaluateCell(net=net, examples=100, variant="").hash


def test_a_change_is_part_of_the_hash_and_of_the_label_once():
    cells = [EvaluateCell(net=BASELINE, variant=name) for name in ("", "shift-2-0", "rotate-10")]
    assert len({cell.hash for cell in cells}) == 3
    assert cells[1].label == f"{BASELINE.label}-pixel-shift-2-0"
    assert (
        EvaluateCell(net=BASELINE, variant="rotate-10", purpose="rotate-10", examples=9).label
        == f"{BASELINE.label}-rotate-10-n9"
    )
    assert EvaluateCell(net=BASELINE, variant="rotate-10", purpose="beyond").label == f"{BASELINE.label}-beyond-rotate-10"


def test_a_purpose_names_the_role_of_given_attacks_and_their_own_names_do_without_one():
    attacks = tuple({"attack": "autoattack", "eps": eps} for eps in ("0.5/255", "8/255"))
    cells = [EvaluateCell(net=BASELINE, attacks=attacks[1:]), *under_autoattack([BASELINE], engine="fast")]
    assert [cell.part for cell in cells] == ["autoattack", "autoattack-small"]
    assert EvaluateCell(net=BASELINE, attacks=("fgsm", attacks[0]), engine="fast").part == "fgsm+autoattack-fast"
    # an image that withstands AutoAttack takes many times as long as one that is misclassified at once
    assert [part_of(cell.params) for cell in cells] == ["autoattack", "autoattack, small radius"]
    assert part_of(EvaluateCell(net=BASELINE, attacks=("autoattack",), eps=("1/255",)).params) == "autoattack, small radius"


@pytest.mark.parametrize("eps", ["a pixel", "1/0", "1/255, 2/255", ["1/255"]])
def test_a_radius_that_cannot_be_read_is_left_to_the_evaluation_to_refuse(eps):
    cell = EvaluateCell(net=BASELINE, attacks=({"attack": "autoattack", "eps": eps},))
    assert part_of(cell.params) == "autoattack"


def test_a_misspelt_change_is_refused_when_the_cell_is_made():
    with pytest.raises(BadInput, match="unknown changed test set 'high-frequency'"):
        EvaluateCell(net=BASELINE, variant="high-frequency")
    assert parse_variant("rotate-10") == ("rotate", {"degrees": 10.0})


def test_the_evaluate_stage_evaluates_the_changed_test_set_and_says_so(tmp_path):
    data = load_dataset("digits", "test")
    net = build_model("resnet20", seed=0, mean=data.mean, std=data.std)
    save_model(net, tmp_path / "net" / "model")
    (tmp_path / "net" / "result.json").write_text(json.dumps({"figures": {"dataset": "digits"}}))
    found = {}
    for name in ("", "gaussian-noise-0.2"):
        cell = EvaluateCell(net=BASELINE, examples=40, attacks=(), variant=name)
        folder = tmp_path / f"result{name}"
        folder.mkdir()
        params = json.loads(json.dumps(cell.params))
        found[name] = evaluate(params, {"net": tmp_path / "net"}, folder, SimpleNamespace(scratch=tmp_path / f"scratch{name}"))
        assert Outcomes.load(folder).dataset == found[name]["dataset"] == variant(data, name).name
    changed = gaussian_noise(data, 0.2)
    assert found[""]["data_sha256"] == data.sha256 and found["gaussian-noise-0.2"]["data_sha256"] == changed.sha256
    expected = benchmark(net, changed, n_examples=40, attacks=())
    assert np.array_equal(Outcomes.load(tmp_path / "resultgaussian-noise-0.2").predictions, expected.predictions)
