"""Profiles, and the cells of this project from end to end on the digits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gkp
from gkp.artifact import experiments as grid
from gkp.artifact import groups, profiles
from gkp.artifact.experiments import stages
from gkp.artifact.experiments import store as store_module
from gkp.artifact.experiments.kinds import EvaluateCell, LatencyCell, Network, PruneCell, TimingCell, TrainCell
from gkp.data.pinned import PINNED
from gkp.data.sources import load_dataset
from gkp.errors import BadInput
from gkp.evaluation.outcomes import Outcomes
from gkp.networks.fingerprint import state_sha256
from gkp.pruning import registry
from gkp.pruning.plan import plan_of
from gkp.pruning.twin import PrunedModel, masked_twin

BASELINE = TrainCell(dataset="digits", model="resnet20", epochs=1, schedule="one-cycle", split="train+val", batch_size=128)
PRUNED = PruneCell(net=BASELINE, method="sr-gkp", epochs=1, split="train+val", batch_size=128, log_examples=10)
EVALUATED = EvaluateCell(net=PRUNED, examples=20, eps=("8/255",))

OWN = """
from dataclasses import dataclass
from gkp.artifact.experiments.cell import Cell

@dataclass(frozen=True, kw_only=True)
class Square(Cell):
    stage = "square"
    x: float = 0.0

    @staticmethod
    def compute(params, parents, folder, context):
        return {"value": params["x"] ** 2}

def cells():
    return [Square(x=x) for x in range(3)]
"""


# --- profiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", profiles.PROFILES)
def test_a_profile_has_every_network_evaluated_in_both_protocols_beside_the_unpruned_one(profile):
    cells = profiles.cells(profile)
    assert len({cell.id for cell in cells}) == len({cell.hash for cell in cells}) == len(cells)
    protocols: dict[str, set[str]] = {}
    for cell in cells:
        if isinstance(cell, EvaluateCell) and not cell.variant:
            protocols.setdefault(cell.net.hash, set()).add(cell.protocol)
    networks = {cell.hash for cell in cells if isinstance(cell, Network | PruneCell)}
    timed = {cell.net.hash for cell in cells if isinstance(cell, TimingCell)}
    parts = profiles.groups(profile)
    others = {cell.hash for name in ("reference", "start") for cell in parts.get(name, [])}  # in one protocol each
    others -= {cell.hash for cell in parts.get("main", [])}
    expected = {key: {"paper", "pixel"} for key in networks - others - (timed - protocols.keys())}
    assert {key: found for key, found in protocols.items() if key not in others} == expected
    methods = {cell.method for cell in cells if isinstance(cell, PruneCell)}
    weight_only = {name for name, method in gkp.methods().items() if set(method.needs) == {"weights"}}
    assert methods >= {"none"} | weight_only


def test_the_first_notebook_shows_networks_of_the_other_tables_where_they_are_trained_here():
    for profile, trained in (("quick", True), ("cifar10", True), ("paper", False)):
        start, others = profiles.start_here(profile), {cell.hash for cell in profiles.cells(profile, "main")}
        assert list(start) == ["unpruned", "SR-GKP, one shot", "SR-GKP, fine-tuned"][: 3 if trained else 2]
        assert all(cell.net.hash in others for name, cell in start.items() if "shot" not in name) is trained


@pytest.mark.parametrize("profile", profiles.PROFILES)
def test_methods_that_prune_while_they_train_get_epochs_to_do_so(profile):
    pruned = [cell for cell in profiles.cells(profile) if isinstance(cell, PruneCell) and cell.method != "none"]
    assert not [cell.id for cell in pruned if "training" in gkp.methods()[cell.method].needs and not cell.epochs]


def test_epochs_that_are_to_be_scored_must_be_left_after_a_search():
    params = {"method": "gal", "epochs": 5, "soft_epochs": 3, "log_epochs": [2]}
    assert stages._soft_epochs(params) == 3
    with pytest.raises(BadInput, match="log_epochs has 4, but after 3 epochs of search there are 2, counted from 1"):
        stages._soft_epochs({**params, "log_epochs": [1, 4]})


def test_the_methods_of_the_profiles_are_all_that_can_be_given_what_they_need():
    assert set(groups.METHODS) == {
        name for name, method in gkp.methods().items() if name != groups.SCRATCH and groups.GIVEN.issuperset(method.needs)
    }


def test_a_method_registered_by_the_caller_gets_a_row(monkeypatch):
    monkeypatch.setitem(registry._REGISTRY, "mine", replace(gkp.methods()["l2"], name="mine"))
    assert "mine" in {cell.method for cell in profiles.cells("quick", "main") if isinstance(cell, PruneCell)}


def in_a_new_process(*arguments: str, cells: Path) -> str:
    """What Python prints of `sys.modules` after a command of gkp; it inherits neither data nor torch."""
    code = f"import sys\nfrom gkp.cli import main\nmain({list(arguments)!r})\n"
    code = f"import atexit, sys\natexit.register(lambda: print('loaded:', *sys.modules))\n{code}"
    environment = {**os.environ, "GKP_DATA": "", "GKP_CELLS": str(cells), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "loaded:" in done.stdout, done.stderr
    return done.stdout


@pytest.mark.parametrize("profile", profiles.PROFILES)
def test_planning_a_profile_loads_neither_torch_nor_pandas(profile, tmp_path):
    for command in (["status", "--profile", profile, "--json"], ["run", "--profile", profile, "--dry-run"]):
        said, loaded = in_a_new_process(*command, cells=tmp_path).split("loaded:")
        assert "missing" in said and not {"torch", "pandas", "distributed"} & set(loaded.split())


def test_planning_a_profile_needs_no_data(monkeypatch):
    monkeypatch.setattr("gkp.data.sources.load_dataset", lambda *_: pytest.fail("data was asked for"))
    assert all(cell.data for cell in profiles.cells("cifar10") if isinstance(cell, EvaluateCell | TrainCell))


@pytest.mark.parametrize("profile", profiles.PROFILES)
def test_every_group_is_asked_for_by_a_notebook_so_that_reproduce_computes_the_whole_profile(profile):
    asked = {cell.hash: cell for cell in profiles.start_here(profile).values()}  # by 00_start_here
    asked |= {cell.net.hash: cell.net for cell in asked.values()}
    for notebook in (Path(__file__).parent.parent / "notebooks").glob("*.ipynb"):
        for asking in re.findall(r"profiles\.cells\(profile, (.*?)\)", notebook.read_text(encoding="utf-8")):
            asked |= {cell.hash: cell for cell in profiles.cells(profile, *re.findall(r"[\w-]+", asking))}
    assert not [cell.id for cell in profiles.cells(profile) if cell.hash not in asked]


def test_a_group_is_a_part_of_its_profile_and_an_unknown_one_is_refused():
    main = {cell.hash for cell in profiles.cells("quick", "main")}
    assert main < {cell.hash for cell in profiles.cells("quick")}
    assert {cell.hash for cell in profiles.cells("quick", "main", "seeds")} == main | {
        cell.hash for cell in profiles.cells("quick", "seeds")
    }
    models = {cell.model for cell in profiles.cells("paper", "main") if isinstance(cell, TrainCell)}
    assert models == {"resnet32", "resnet56", "resnet110", "vgg16_bn"}
    with pytest.raises(BadInput, match="profile quick has no group 'table9'; it has main, seeds, "):
        profiles.cells("quick", "table9")


@pytest.mark.parametrize("profile", ["quik", "missing.py", ""])
def test_an_unknown_profile_is_refused(profile):
    with pytest.raises(BadInput, match=r"unknown profile .*; known: quick, cifar10, paper, or the path of a file"):
        profiles.check_profile(profile)


def test_a_file_of_ones_own_is_a_profile_and_workers_find_its_stages(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    report = grid.run(profiles.cells(str(file)), jobs=2, store=grid.Store(tmp_path / "cells"), progress=False)
    assert [result["value"] for result in report] == [0, 1, 4]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cells = 3", "TypeError"),
        ("x = 1", "AttributeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def cells(: ", "SyntaxError"),
        ("def cells(): return [1]", "returned a int among its cells"),
        ("raise SystemExit(0)", "SystemExit: 0; a profile defines"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines; a profile defines"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_with_the_reason(tmp_path, text, reason):
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(BadInput, match=rf"bad\.py: .*{reason}"):
        profiles.cells(str(file))


# --- cells ----------------------------------------------------------------------------------------------------------


def test_ids_say_what_a_cell_is():
    assert PRUNED.label == "digits-resnet20-sr-gkp-r0.4375-e1-s0"
    assert EVALUATED.label == "digits-resnet20-sr-gkp-r0.4375-e1-s0-pixel-n20"
    assert replace(PRUNED, options={"alpha": 0.5}).label == "digits-resnet20-sr-gkp-alpha-0.5-r0.4375-e1-s0"
    assert replace(EVALUATED, purpose="curve").hash == EVALUATED.hash


def test_options_are_the_same_in_any_order_and_as_pairs():
    one = replace(PRUNED, options={"alpha": 0.5, "beta": "paper"})
    assert one.hash == replace(PRUNED, options=(("beta", "paper"), ("alpha", 0.5))).hash != PRUNED.hash


@pytest.mark.parametrize("name", [name for name in PINNED if name.startswith("digits")])
def test_the_pinned_hash_of_digits_is_that_of_the_data(name):
    assert load_dataset(*name.split("/")).sha256 == PINNED[name][0]


def test_the_pinned_hash_of_cifar10_is_that_of_the_data(cifar10_root):
    if not (cifar10_root / "cifar10_test.npz").exists():
        pytest.skip("this copy of CIFAR-10 is not the npz pair")
    for name in ("cifar10/test", "cifar10/train"):
        assert load_dataset(*name.split("/")).sha256 == PINNED[name][0]


def test_a_set_with_other_labels_is_refused_and_one_with_other_pixels_is_used(monkeypatch):
    data = load_dataset("digits", "test")
    monkeypatch.setattr(stages, "load_dataset", lambda *_: replace(data, images=data.images ^ 1))
    assert stages.load_pinned("digits", "test").sha256 != data.sha256
    monkeypatch.setattr(stages, "load_dataset", lambda *_: replace(data, labels=data.labels.flip(0)))
    with pytest.raises(BadInput, match="the test part of digits found here has other labels"):
        stages.load_pinned("digits", "test")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> grid.Report:
    """A baseline, the same pruned, and its evaluation, really computed."""
    store = grid.Store(tmp_path_factory.mktemp("end-to-end"))
    return grid.run([BASELINE, PRUNED, EVALUATED], jobs=1, store=store, progress=False)


def test_a_baseline_is_trained_and_can_be_loaded(report):
    result = report[0]
    net = gkp.load_model(result.file("model"))
    assert result["params"] == sum(p.numel() for p in net.parameters()) and result["n"] == 1297
    assert [row["epoch"] for row in result["epochs"]] == [1] and result.file("trace.safetensors").stat().st_size > 0
    assert len(result.run["epoch_seconds"]) == 1 and "seconds" not in result["epochs"][0]


def test_a_pruned_cell_keeps_its_plan_through_fine_tuning_and_ships_the_small_network(report):
    result = report[1]
    small = gkp.load_model(result.file("compact"))
    twin = masked_twin(small)
    assert isinstance(twin, PrunedModel) and state_sha256(twin) == result["model_sha256"]
    assert result["params"] == sum(p.numel() for p in small.parameters()) == 152_794  # the paper: 0.153 M at 7/16
    x = load_dataset("digits").pixels(slice(0, 8))
    assert (twin(x) - small(x)).abs().max() <= 1e-5
    assert {"clean", "fgsm-0.01", "fgsm-0.1"} <= result["epochs"][0].keys()
    assert {"prune_seconds", "finetune_seconds"} <= result.run.keys()


def test_an_evaluation_has_the_outcomes_its_figures_follow_from(report):
    result = report[2]
    outcomes = Outcomes.load(result.folder)
    assert result["accuracy"] == outcomes.accuracy() and result["n"] == outcomes.n == 20
    assert result["model_sha256"] == report[1]["model_sha256"] and result["interval"].keys() == result["accuracy"].keys()


def test_where_only_filters_go_the_small_network_is_the_one_that_is_trained_evaluated_and_kept(report):
    store = grid.Store(report[0].folder.parent)
    net = replace(PRUNED, method="l1norm-b")
    timings = [LatencyCell(net=cell, seconds=0.1, batch_sizes=(2,)) for cell in (net, PRUNED)]
    timings += [replace(timings[1], engine="fast")]
    assert timings[1].label + "-fast" == timings[2].label
    pruned, found, *timed = grid.run([net, replace(EVALUATED, net=net), *timings], jobs=1, store=store, progress=False)
    assert plan_of(gkp.load_model(pruned.file("compact"))).only_cuts
    assert found["model_sha256"] == pruned["model_sha256"] and pruned["paper_macs"] < report[0]["paper_macs"]
    for result in timed:
        (row,) = result["latency"]
        assert row["batch_size"] == 2 and 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["compact"] / row["dense"] == pytest.approx(row["ratio"], rel=5)


def test_training_the_small_network_is_training_the_masked_one_where_only_filters_go():
    data = load_dataset("digits").first(64)
    x = data.pixels().double()
    twin = gkp.prune(gkp.load_model("resnet20", mean=data.mean, std=data.std).double(), "l1norm-b").train()
    small, before = twin.compact(), twin(x).detach()
    for net in (twin, small):
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        for _ in range(4):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), data.labels).backward()
            optimizer.step()
    assert (twin(x) - small(x)).abs().max() < 1e-9 < 0.01 < (twin(x) - before).abs().max()


def test_a_training_that_failed_after_its_last_epoch_resumes_and_gives_the_same_bytes(report, tmp_path, monkeypatch):
    store = grid.Store(tmp_path)
    monkeypatch.setattr(store_module, "_flush_tree", lambda folder: (_ for _ in ()).throw(OSError(5, "input/output error")))
    assert grid.run([BASELINE], jobs=1, store=store, progress=False, check=False).failures[0].kind == "error"
    monkeypatch.undo()
    assert (store.scratch(BASELINE.id) / "training.pt").exists()
    monkeypatch.setattr("gkp.training.loop._epoch", lambda *_, **__: pytest.fail("trained again"))
    again = grid.run([BASELINE], jobs=1, store=store, progress=False)[0]
    for name in ("result.json", "model/model.safetensors", "trace.safetensors"):
        assert again.file(name).read_bytes() == report[0].file(name).read_bytes(), name
    assert again.run["seconds"] >= sum(again.run["epoch_seconds"]) > 0.1  # what the first run spent on it is part of its cost


def test_half_an_hour_of_a_gpu_begins_with_the_published_log_and_goes_on_with_public_weights_row_by_row():
    found = profiles.cells("paper", "half-hour")
    rows = [cell for cell in found if isinstance(cell, PruneCell)]
    log, public = rows[:3], rows[3:]
    assert {cell.hash for cell in log} == {c.hash for c in profiles.cells("paper", "log") if isinstance(c, PruneCell)}
    assert [(cell.model, cell.method) for cell in public] == [
        ("resnet56", method) for method in ("none", "sr-gkp", "l2-gkp", "l1norm-b", "tmi-gkp", "cc", "fpgm", "random-gkp")
    ]
    assert {(cell.epochs, cell.lr, cell.batch_size, cell.threads) for cell in rows} == {(300, 0.01, 64, 0)}
    assert all(cell.resumable for cell in found)
    evaluated = [cell.net for cell in found if isinstance(cell, EvaluateCell)]
    assert evaluated == [row for row in rows for _ in range(2)]
    assert [found.index(row) for row in rows] == list(range(0, 3 * len(rows), 3))
