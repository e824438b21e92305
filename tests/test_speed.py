"""The stage that times networks in several engines: what it measures, not how fast this machine is."""

import pytest
import torch
from torch import nn

from gkp.artifact.experiments import speed
from gkp.networks.build import build_model
from gkp.pruning.cost import cost


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when an engine runs."""
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(speed, "ONNX", ("no_such_package",))
    return now


def head(slowness):
    net = nn.Sequential(nn.AvgPool2d(4), nn.Flatten()).eval()
    net.slowness = slowness
    return net


def engine(clock, seconds, needed=()):
    """An engine that takes so many seconds an image of a network of slowness 1 on one thread."""

    def make(form, threads):
        def run(x):
            clock[0] += seconds * len(x) * form.net.slowness / threads
            return form.net(x)

        return run

    return needed, make


def test_medians_and_ratios_to_the_dense_network_in_the_best_stock_engine(clock, monkeypatch):
    seconds = {"slow": 4.0, "good": 2.0, speed.FASTEST: 1.0}
    engines = {name: engine(clock, took) for name, took in seconds.items()}
    monkeypatch.setattr(speed, "ENGINES", {**engines, "missing": engine(clock, 0.1, ("no_such_package",))})
    rows = speed.measure({"dense": head(1), "grouped, 7/16": head(0.5)}, (1, 8, 8), (1, 4), (1, 2), 3)
    found = {tuple(row[key] for key in ("form", "engine", "threads", "batch_size")): row for row in rows}
    assert len(found) == len(rows) == 2 * 3 * 2 * 2
    assert found["dense", "slow", 1, 4]["seconds"] == found["dense", "slow", 1, 4]["fastest"] == 16
    assert found["grouped, 7/16", "gkp", 2, 4]["seconds"] == 1
    ratios = {key[:2]: row["ratio"] for key, row in found.items() if key[2:] == (2, 1)}
    assert ratios == {
        ("dense", "slow"): 2, ("dense", "good"): 1, ("dense", "gkp"): 0.5,
        ("grouped, 7/16", "slow"): 1, ("grouped, 7/16", "good"): 0.5, ("grouped, 7/16", "gkp"): 0.25,
    }  # fmt: skip
    assert {row["difference"] for row in rows} == {0.0}


def test_the_ratio_is_that_of_one_round(clock):
    slower_and_slower = {("dense", "a"): [1.0, 2.0, 4.0], ("dense", "b"): [2.0, 1.0, 8.0], ("dense", "gkp"): [0.1, 0.1, 0.1]}
    assert speed._ratio([0.5, 0.5, 1.0], slower_and_slower) == 0.5  # of 0.5 / 1, 0.5 / 1, 1 / 4


def test_short_passes_are_repeated_until_they_can_be_measured(clock, monkeypatch):
    calls = []

    def make(form, threads):
        def run(x):
            calls.append(len(x))
            clock[0] += speed.BLOCK / 10
            return form.net(x)

        return run

    monkeypatch.setattr(speed, "ENGINES", {"stock": ((), make)})
    (row,) = speed.measure({"dense": head(1)}, (1, 8, 8), (1,), (1,), 3)
    assert row["seconds"] == pytest.approx(speed.BLOCK / 10) and 32 <= len(calls) <= 36  # 3 rounds of 10 or 11


@pytest.mark.parametrize("engine", speed.ENGINES)
def test_every_engine_that_is_installed_computes_the_logits_of_torch(engine):
    needed, make = speed.ENGINES[engine]
    if not speed.installed(needed):
        pytest.skip(f"needs {', '.join(needed)}")
    net = speed.forms_of(build_model("resnet20"), (7 / 16,), 8, (3, 16, 16))["grouped, 7/16"]
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    file = speed._onnx_file(net, (3, 16, 16)) if "onnx" in needed else None
    with torch.inference_mode():
        found = torch.as_tensor(make(speed.Form(net, x, file), 1)(x))
        torch.testing.assert_close(found, net(x), rtol=0, atol=1e-4)


def test_every_rate_is_run_with_grouped_kernels_and_with_fewer_filters_of_the_same_macs():
    forms = speed.forms_of(build_model("resnet20"), (7 / 16, 10 / 16), 8, (3, 32, 32))
    assert list(forms) == ["dense", "grouped, 7/16", "filters, 7/16", "grouped, 10/16", "filters, 10/16"]
    for rate in ("7/16", "10/16"):
        grouped, filters = (cost(forms[f"{kind}, {rate}"]).paper_macs for kind in ("grouped", "filters"))
        assert filters == pytest.approx(grouped, rel=0.01)
