"""What a GPU does a second: measured once a machine, and the hours and numbers of jobs that follow."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gkp.artifact import experiments as grid
from gkp.artifact import profiles
from gkp.artifact.experiments import probe as probing
from gkp.artifact.experiments import provenance
from gkp.artifact.experiments.kinds import EvaluateCell, PruneCell, TrainCell
from gkp.artifact.experiments.rates import Images, Rates, images_of
from gkp.artifact.experiments.status import Durations
from gkp.errors import RunFailed

NET = TrainCell(dataset="cifar10", model="resnet56", epochs=300, log_examples=10_000, threads=0)
RATES = Rates("A GPU", {"resnet56": 10_000.0}, {"resnet56": 20_000.0}, {1: 1.0, 2: 1.8, 4: 2.4, 8: 2.5}, "graph")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probing, "cache_folder", lambda: tmp_path / "cache")


def test_the_work_of_a_cell_on_a_gpu_is_the_images_it_trains_on_and_evaluates():
    assert images_of(NET) == Images("resnet56", 300 * 45_000, 300 * 10_000)
    some = PruneCell(net=NET, epochs=30, log_examples=1000, log_epochs=(10, 20, 30), threads=0)
    assert images_of(some) == Images("resnet56", 30 * 45_000, 3 * 1000)
    paper, pixel, fast = (
        images_of(EvaluateCell(net=NET, examples=1000, threads=0, **options))
        for options in ({"protocol": "paper"}, {"protocol": "pixel"}, {"protocol": "pixel", "engine": "fast"})
    )
    assert (paper, fast) == (Images("resnet56", 0, 1000), None)
    assert pixel == Images("resnet56", 0, pytest.approx(1000 * 60 / 8))
    assert images_of(TrainCell(dataset="cifar10")) is None, "a cell for a core"


def test_seconds_follow_from_the_rates_and_recorded_cells_of_the_same_kind_come_first():
    durations = Durations(RATES)
    assert durations.estimate(NET) == 300 * 45_000 / 10_000 + 300 * 10_000 / 20_000 == 1500
    other = TrainCell(dataset="cifar10", model="resnet110", threads=0)
    assert durations.estimate(other) == Durations().estimate(other), "no rate of this network: as without a GPU"
    durations.add(NET, 1234.0)
    assert durations.estimate(NET) == 1234


def test_the_number_of_jobs_is_the_smallest_that_is_nearly_the_fastest():
    assert RATES.jobs == 4 and [RATES.gain(n) for n in (1, 2, 3, 4, 100)] == [1.0, 1.8, 1.8, 2.4, 2.5]
    assert Rates("x", {}, {}, {1: 1.0, 2: 0.9}, "eager").jobs == 1
    assert Rates.from_json(json.loads(json.dumps(RATES.to_json()))) == RATES


def test_a_dry_run_of_cells_for_a_gpu_says_what_was_measured_and_the_hours_by_it(tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "has_gpu", lambda: True)
    monkeypatch.setattr(probing, "probe", lambda models, **options: RATES)
    store = grid.Store(tmp_path / "cells")
    report = grid.run([NET], store=store, dry_run=True, quiet=True)
    assert report.lines[1] == (
        "measured on A GPU: images/s in training resnet56 10,000 (step: graph), evaluated resnet56 20,000; "
        "4 cells at once are 2.4 times as fast as one"
    )
    assert report.lines[2] == "to compute: 1 cells, 0.42 h of work, about 10 min with 4 jobs"
    assert not store.root.exists()


def test_only_cells_for_a_gpu_are_probed_for_where_there_is_one_and_once_a_machine(monkeypatch):
    asked: list[tuple[str, ...]] = []

    def measured(models, **options):
        asked.append(tuple(models))
        return Rates("A GPU", dict.fromkeys(models, 1.0), dict.fromkeys(models, 1.0), {1: 1.0}, "graph")

    monkeypatch.setattr(probing, "probe", measured)
    monkeypatch.setattr(probing, "has_gpu", lambda: False)
    assert probing.rates_for(profiles.cells("paper", "half-hour"), None) is None
    monkeypatch.setattr(probing, "has_gpu", lambda: True)
    assert probing.rates_for(profiles.cells("cifar10", "main"), None) is None
    assert probing.rates_for([NET], False) is None and asked == []
    first = probing.rates_for([NET], None)
    again = probing.rates_for([NET], None)
    more = probing.rates_for(profiles.cells("paper", "half-hour"), None)
    assert first == again and more is not None and set(more.trained) == {"resnet20", "resnet56"}
    assert asked == [("resnet56",), ("resnet20",)], "what is known is not measured again"


class Answers:
    """In place of a process: networks train at given rates, which fall when more than two share the device."""

    busy = 0

    def __init__(self, *_, **__) -> None:
        self.pipe = self

    def send(self, request: dict) -> None:
        Answers.busy = Answers.busy + 1 if request.get("train_only") else 0
        self.request = request["model"]

    def poll(self, seconds: float) -> bool:
        return True

    def recv(self):
        trained = {"resnet20": 100.0, "resnet56": 50.0}.get(self.request, 0.0) * min(1, 2 / max(1, Answers.busy))
        return {"device": "A GPU", "trained": trained, "evaluated": 7.0, "steps": "graph", "processes": 16}

    def kill(self) -> None:
        Answers.busy = 0


def test_more_processes_are_tried_side_by_side_as_long_as_that_is_worth_it(monkeypatch):
    monkeypatch.setattr(probing, "Child", Answers)
    monkeypatch.setattr(probing, "cores", lambda: 16)
    Answers.busy = 0
    found = probing.probe(["resnet20", "resnet56"], device="cuda", most=8)
    assert found.trained == {"resnet20": 100.0, "resnet56": 50.0} and found.steps == "graph"
    assert set(found.together) == {1, 2, 4} and found.together[2] == 2.0, "four gain nothing, eight are not tried"
    assert found.jobs == 2


def test_a_process_of_its_own_measures_a_network_and_says_in_one_line_what_it_cannot():
    child, soon = probing.Child(probing.serve, quiet=True), time.monotonic() + 200
    request = {"device": "cpu", "seconds": 0.001}
    try:
        probing.ask(child, model="resnet20", **request)
        found = probing.answer(child, soon)
        assert found["trained"] > 0 and found["evaluated"] > 0 and found["steps"] == "eager" and found["device"]
        with pytest.raises(RunFailed, match=r"could not be measured \(BadInput: unknown model .*\); go on without: --no-probe"):
            probing.ask(child, model="resnet21", **request)
            probing.answer(child, soon)
        with pytest.raises(RunFailed, match="no answer"):
            probing.answer(child, time.monotonic())
    finally:
        child.kill()
    probing.ask(child, model="resnet20", **request)
    with pytest.raises(RunFailed, match="no answer"):
        probing.answer(child, soon)


def test_a_result_names_the_gpu_although_the_hardware_was_looked_at_before_torch_was_there(monkeypatch):
    monkeypatch.setattr(provenance, "_torch_with_gpu", lambda: None)
    assert "gpu" not in provenance.hardware()
    loaded = SimpleNamespace(cuda=SimpleNamespace(get_device_name=lambda index: "A GPU"))
    monkeypatch.setattr(provenance, "_torch_with_gpu", lambda: loaded)
    assert provenance.hardware()["gpu"] == "A GPU" and provenance.hardware()["cores"] > 0


@pytest.mark.skipif(not probing.has_gpu(), reason="needs a GPU")
def test_on_a_gpu_the_probe_takes_half_a_minute_at_most_and_finds_a_graph():
    began = time.monotonic()
    found = probing.probe(["resnet20", "resnet56"], device="cuda", most=4)
    assert found.steps == "graph" and found.trained["resnet20"] > found.trained["resnet56"] > 1000
    assert time.monotonic() - began < 60 and found.jobs >= 1
