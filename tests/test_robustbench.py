"""RobustBench: its benchmark on our networks, and entries that say what they are."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gkp
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.evaluation.robustbench.adapter import AutoAttack, _evaluation_module, robustbench_benchmark
from gkp.evaluation.robustbench.entry import entry, load_entries, save_entry
from gkp.evaluation.robustbench.schema import best_known, check_entry
from gkp.networks.build import build_model
from gkp.networks.fingerprint import state_sha256

CHEAP = {"version": "custom", "attacks_to_run": ["apgd-ce"]}


def mine(n: int = 12) -> gkp.Dataset:
    """Random images that `net()` classifies correctly, but for the first."""
    pixels = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = net()(pixels.float() / 255).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    return gkp.Dataset("mine", "test", pixels, labels, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 10)).eval()


# --- robustbench.benchmark() ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm, threat_model, eps", [("linf", "Linf", 0.02), ("l2", "L2", 0.2)])
def test_robustbench_and_gkp_agree_to_the_image_for_the_same_seed_and_batch_size(norm: str, threat_model: str, eps: float):
    data, model = mine(), net().train()
    spec = AttackSpec("autoattack", eps, options={**CHEAP, "norm": norm})
    clean, robust = robustbench_benchmark(
        model, dataset=data, eps=eps, threat_model=threat_model, batch_size=5, seed=3, **CHEAP
    )
    ours = gkp.benchmark(model, data, attacks=[spec], batch_size=5, seed=3).accuracy()
    assert clean == pytest.approx(11 / 12) == ours["clean"]
    assert robust == pytest.approx(ours[spec.key])
    assert 0 < robust < clean and model.training


def test_robustbench_and_gkp_agree_on_cifar10_under_full_autoattack(cifar10_root: Path, public_weights: Path):
    model = gkp.load_model("resnet20", weights="akamaster")
    clean, robust = robustbench_benchmark(model, n_examples=16, eps="8/255", batch_size=16, seed=1)
    ours = gkp.benchmark(model, attacks=[AttackSpec("autoattack", 8 / 255)], n_examples=16, batch_size=16, seed=1).accuracy()
    assert (clean, robust) == (pytest.approx(ours["clean"]), pytest.approx(ours["autoattack-8/255"]))


def test_nothing_is_printed_and_the_generators_stay(capfd: pytest.CaptureFixture):
    state = torch.get_rng_state()
    robustbench_benchmark(net(), dataset=mine(), n_examples=4, eps=0.2, **CHEAP)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)


def test_robustbench_is_left_as_it_was_found():
    robustbench_benchmark(net(), dataset=mine(), n_examples=2, eps=0.2, **CHEAP)
    from robustbench import data as robustbench_data
    from robustbench import eval as robustbench_eval

    assert "autoattack" not in sys.modules and "autoattack.state" not in sys.modules
    assert robustbench_eval.AutoAttack is AutoAttack
    assert robustbench_eval.load_clean_dataset is robustbench_data.load_clean_dataset


def test_an_autoattack_that_is_really_installed_is_not_shadowed(tmp_path: Path):
    package = tmp_path / "autoattack"
    package.mkdir()
    (package / "__init__.py").write_text("class AutoAttack:\n    real = True\n")
    (package / "state.py").write_text("class EvaluationState:\n    real = True\n")
    script = (
        "import gkp.evaluation.robustbench.adapter as adapter\n"
        "module = adapter._evaluation_module()\n"
        "assert module.AutoAttack.real and module.EvaluationState.real\n"
        "import autoattack\n"
        "assert autoattack.AutoAttack is module.AutoAttack\n"
    )
    given = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": ""}
    subprocess.run([sys.executable, "-c", script], env=given, check=True, timeout=200)


def test_importing_it_warns_of_nothing_and_leaves_no_stand_in():
    script = (
        "import sys, warnings\n"
        "from gkp.evaluation.robustbench.adapter import _evaluation_module\n"
        "warnings.simplefilter('error')\n"
        "_evaluation_module()\n"
        "assert 'autoattack' not in sys.modules and 'robustbench.eval' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_robustbench_that_does_not_import_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    def fail(name: str) -> None:
        raise ImportError("No module named 'pkg_resources'")

    monkeypatch.delitem(sys.modules, "robustbench.eval", raising=False)
    monkeypatch.setattr("gkp.evaluation.robustbench.adapter.import_module", fail)
    with pytest.raises(gkp.BadInput, match=r"robustbench cannot be imported .*requirements\.lock"):
        _evaluation_module()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"threat_model": "linf"}, "known: Linf, L2"),
        ({"threat_model": "corruptions"}, r"gkp\.evaluation\.corruptions"),
        ({"eps": "8"}, "8/255"),
        ({"n_examples": 13}, "give 1 to 12"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"attacks_to_run": ["square"]}, "custom"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(options: dict, words: str):
    with pytest.raises(gkp.BadInput, match=words):
        robustbench_benchmark(net(), dataset=mine(), **options)


# --- entries --------------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


def made_up(model: nn.Module, rows: dict[AttackSpec, int], *, clean: int = 90, n: int = 100) -> Outcomes:
    """Outcomes in which the first so many images are right."""
    labels = np.zeros(n, dtype=np.int64)
    right = np.stack([np.arange(n) < count for count in (clean, *rows.values())])
    facts = {"dataset": "mine", "split": "test", "data_sha256": "d" * 64, "model_sha256": state_sha256(model)}
    return Outcomes(
        right=right, indices=np.arange(n), labels=labels, predictions=np.where(right[0], 0, 1), attacks=tuple(rows),
        protocol="pixel", bounds=(0.0, 1.0), seed=7, versions={"torch": "2"}, seconds=1.0, **facts,
    )  # fmt: skip


class Spec(AttackSpec):
    __hash__ = object.__hash__  # a key of a dictionary


SHAPE = {"input_shape": (3, 8, 8), "latency_seconds": 0.01}


def test_an_entry_has_robustbenchs_keys_and_what_its_users_miss():
    model = Tiny()
    outcomes = made_up(model, {Spec("autoattack", 8 / 255): 40, Spec("pgd", 8 / 255): 45})
    made = entry(
        outcomes, model, name="Tiny", authors="A. B.", venue="NeurIPS 2023", link="https://example.org", reported=0.5, **SHAPE
    )
    _evaluation_module()  # robustbench imports only with it
    from robustbench.utils import ModelInfo

    assert {key for key in ModelInfo.__dataclass_fields__ if not key.startswith("corruptions")} <= set(made)
    assert (made["clean_acc"], made["autoattack_acc"], made["reported"], made["eps"]) == ("90.00", "40.00", "50.00", "8/255")
    assert "external" not in made and made["unreliable"] is False and made["footnote"] == ""
    low, high = outcomes.interval()["autoattack-8/255"]
    assert made["interval"]["autoattack_acc"] == [round(100 * low, 2), round(100 * high, 2)]
    assert made["parameters"] == 3 * 4 * 9 + 4 + 40 + 10 and made["macs"] == 64 * 3 * 4 * 9 + 40
    assert made["latency"]["seconds"] > 0 and made["latency"]["threads"] == 1
    assert (made["n"], made["seed"], made["threat_model"]) == (100, 7, "Linf")
    assert made["attacks"][0]["attack"] == "autoattack" and made["model_sha256"] == outcomes.model_sha256
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_a_cascade_is_not_passed_off_as_autoattack():
    model = Tiny()
    made = entry(made_up(model, {Spec("cascade", 8 / 255): 30}), model, name="Tiny", **SHAPE)
    assert made["autoattack_acc"] is None and made["external"] == "30.00" and made["unreliable"] is None
    assert "Not evaluated with standard AutoAttack" in made["footnote"] and "cascade" in made["footnote"]


def test_a_custom_autoattack_is_not_autoattack():
    model = Tiny()
    spec = Spec("autoattack", 8 / 255, options={"version": "custom", "attacks_to_run": ["apgd-ce"]})
    assert entry(made_up(model, {spec: 30}), model, name="Tiny", **SHAPE)["autoattack_acc"] is None


def test_where_other_attacks_break_more_they_are_the_best_known_and_autoattack_is_unreliable():
    model = Tiny()
    made = entry(made_up(model, {Spec("autoattack", 0.1): 40, Spec("square", 0.1): 39}), model, name="Tiny", **SHAPE)
    assert (made["autoattack_acc"], made["external"], made["unreliable"]) == ("40.00", "39.00", True)
    assert best_known(made) == 39.0


def test_robustbenchs_own_code_ranks_by_the_best_known_figure_of_ours():
    _evaluation_module()  # robustbench imports only with it
    from robustbench.model_zoo.enums import ThreatModel
    from robustbench.utils import ACC_FIELDS, get_key

    model = Tiny()
    for rows in (
        {Spec("cascade", 0.1): 30},
        {Spec("autoattack", 0.1): 30},
        {Spec("autoattack", 0.1): 40, Spec("pgd", 0.1): 30},
    ):
        assert get_key(entry(made_up(model, rows), model, name="Tiny", **SHAPE), ACC_FIELDS[ThreatModel.Linf]) == 30.0


def test_the_radius_is_chosen_among_several_and_l2_is_written_as_robustbench_does():
    model = Tiny()
    rows = {Spec("pgd", "1/255"): 80, Spec("pgd", "8/255"): 10, Spec("pgd", 0.5, options={"norm": "l2"}): 20}
    outcomes = made_up(model, rows)
    assert best_known(entry(outcomes, model, name="Tiny", eps="1/255", **SHAPE)) == 80.0
    l2 = entry(outcomes, model, name="Tiny", eps=0.5, norm="l2", **SHAPE)
    assert (l2["threat_model"], l2["eps"], best_known(l2)) == ("L2", "0.5", 20.0)
    with pytest.raises(gkp.BadInput, match=r"no radius was given; the outcomes have 1/255, 8/255, l2-0\.5"):
        entry(outcomes, model, name="Tiny", **SHAPE)
    with pytest.raises(gkp.BadInput, match="no attack at 2/255"):
        entry(outcomes, model, name="Tiny", eps="2/255", **SHAPE)


def test_outcomes_of_another_network_or_of_the_paper_protocol_are_refused():
    model = Tiny()
    outcomes = made_up(model, {Spec("pgd", 0.1): 30})
    with pytest.raises(gkp.BadInput, match="another network"):
        entry(outcomes, net(), name="Tiny", **SHAPE)
    with pytest.raises(gkp.BadInput, match="pixel"):
        entry(replace(outcomes, protocol="paper"), model, name="Tiny", **SHAPE)
    with pytest.raises(gkp.BadInput, match="input_shape"):
        entry(outcomes, model, name="Tiny")


def test_a_masked_twin_is_counted_and_timed_as_the_compact_network_it_stands_for():
    pruned = gkp.prune(build_model("resnet20"), "l2-gkp", rate=7 / 16)
    made = entry(made_up(pruned, {Spec("pgd", 0.1): 30}), pruned, name="L2-GKP", input_shape=(3, 32, 32), latency_seconds=0.01)
    assert made["parameters"] == sum(p.numel() for p in pruned.compact().parameters())
    assert "compact" in made["latency"]["how"] and made["architecture"] == "resnet20"


def test_what_is_saved_is_what_is_loaded_and_lies_where_robustbench_looks(tmp_path: Path):
    model = Tiny()
    outcomes = made_up(model, {Spec("pgd", "1/255"): 80, Spec("pgd", "8/255"): 10})
    entries = [entry(outcomes, model, name="Tiny/net", eps=eps, **SHAPE) for eps in ("1/255", "8/255")]
    paths = [save_entry(made, tmp_path) for made in entries]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "mine/Linf/Tiny-net_1-255.json",
        "mine/Linf/Tiny-net_8-255.json",
    ]
    assert load_entries(tmp_path) == entries == load_entries([tmp_path])
    assert save_entry(entries[0], tmp_path) == paths[0]  # again: the same network
    with pytest.raises(gkp.BadInput, match="another network"):
        save_entry({**entries[0], "model_sha256": "0" * 64}, tmp_path)


def test_robustbenchs_own_files_are_entries(tmp_path: Path):
    theirs = {
        "link": "https://arxiv.org/abs/1", "name": "A", "authors": "B", "additional_data": True, "number_forward_passes": 1,
        "dataset": "cifar10", "venue": "", "architecture": "ResNet-50", "eps": "8/255", "clean_acc": "91.08",
        "reported": "73.27", "autoattack_acc": "72.91", "unreliable": False,
    }  # fmt: skip
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    (folder / "A.json").write_text(json.dumps(theirs))
    (loaded,) = load_entries(tmp_path)
    assert {key: loaded[key] for key in theirs} == theirs and loaded["threat_model"] == "Linf"


SOUND = {
    "name": "A",
    "dataset": "cifar10",
    "threat_model": "Linf",
    "eps": "8/255",
    "clean_acc": "90.00",
    "autoattack_acc": "40.00",
}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"name": ""}, "no 'name'"),
        ({"clean_acc": None}, "no 'clean_acc'"),
        ({"clean_acc": "much"}, "'clean_acc' of x is 'much'"),
        ({"clean_acc": "101"}, "between 0 and 100"),
        ({"autoattack_acc": math.nan}, "between 0 and 100"),
        ({"autoattack_acc": None}, "neither autoattack_acc nor external"),
        ({"eps": "8"}, "8/255"),
        ({"threat_model": "corruptions"}, "ranks Linf and L2"),
        ({"link": "javascript:alert(1)"}, "https://"),
        ({"authors": ["A"]}, "give a text"),
        ({"macs": -1}, "whole number"),
        ({"n": 0}, "whole number"),
        ({"seed": "0"}, "whole number"),
        ({"unreliable": "yes"}, "true, false or null"),
        ({"interval": {"best_known": [50, 60]}}, "its accuracy 40"),
        ({"interval": {"clean_acc": [95]}}, "low and high"),
        ({"latency": {"seconds": 0}}, "above 0"),
    ],
)
def test_an_entry_that_is_not_sound_is_refused(change: dict, words: str):
    assert check_entry(SOUND, "x")["autoattack_acc"] == "40.00"
    with pytest.raises(gkp.BadInput, match=words):
        check_entry({**SOUND, **change}, "x")


def test_folders_without_sound_entries_are_refused_by_name(tmp_path: Path):
    with pytest.raises(gkp.BadInput, match="is no folder"):
        load_entries(tmp_path / "nowhere")
    with pytest.raises(gkp.BadInput, match="holds no entries"):
        load_entries(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(gkp.BadInput, match=r"bad\.json cannot be read"):
        load_entries(tmp_path)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(gkp.BadInput, match=r"bad\.json is a JSON list"):
        load_entries(tmp_path)
