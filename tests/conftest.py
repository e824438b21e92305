"""What the tests share: where the real data is, and small nets."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gkp.files import given_folders, locate, searched_folders

# Tests change folders: make what the user gave absolute while it still means what the user meant.
os.environ["GKP_DATA"] = os.pathsep.join(str(folder) for folder in given_folders())
if "PYTEST_XDIST_WORKER" in os.environ:  # there is a worker for each core, and what tests start inherits this
    os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell; some tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(torch.get_num_threads(), 2))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums over threads are ordered by their number: bit-equality is promised for the same number only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The folder with CIFAR-10, or a skip that says how to get it."""
    for name in ("cifar10_test.npz", "cifar-10-batches-py"):
        if found := locate(name):
            return found.parent
    pytest.skip("needs CIFAR-10: set GKP_DATA to a folder that holds it")


@pytest.fixture(scope="session")
def public_weights() -> Path:
    """The folder with the public checkpoints, or a skip that says how to get them."""
    if found := locate("checkpoints/resnet20-12fca82f.safetensors"):
        return found.parent
    pytest.skip("needs the public checkpoints: set GKP_DATA to a folder with checkpoints/")


@pytest.fixture(scope="session")
def official_weights() -> Path:
    """The file with the authors' ResNet-20, or a skip that says how to get it."""
    if found := locate("checkpoints/srgkp_official_resnet20.safetensors"):
        return found
    pytest.skip("needs the authors' ResNet-20: set GKP_DATA to a folder with checkpoints/srgkp_official_resnet20.safetensors")


@pytest.fixture(scope="session")
def official_selection() -> dict[str, dict[str, list]]:
    """What the released code selects on the authors' ResNet-20: per layer, output_permutation and kept; or a skip."""
    for folder in searched_folders():
        file = folder.parent / "conformance" / "srgkp_resnet20.json"
        if file.is_file():
            return json.loads(file.read_text())["layers"]
    pytest.skip("needs conformance/srgkp_resnet20.json beside a folder of GKP_DATA")


@pytest.fixture(autouse=True)
def no_network_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nobody listens to: a test that tries to download fails at once instead of waiting."""
    if {"GKP_TEST_NETWORK", "GKP_OLDEST"}.isdisjoint(os.environ):
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture(autouse=True)
def registered_alone() -> Iterator[None]:
    """Methods and kinds of spec that a test registers are gone after it: no test sees those of another."""
    from gkp.pruning import registry, spec

    tables = (registry._REGISTRY, spec._KINDS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
