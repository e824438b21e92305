"""The number of images that a GPU attacks at once: from the memory of one, and without a say in what comes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gkp.artifact.experiments import stages
from gkp.data.dataset import Dataset
from gkp.data.sources import load_dataset
from gkp.evaluation.batches import AT_MOST, attack_batch, bytes_per_image, fitting
from gkp.evaluation.benchmark import benchmark
from gkp.networks.build import build_model

GB = 2**30


def digits(n: int = 40) -> Dataset:
    return load_dataset("digits", "test").first(n)


@pytest.mark.parametrize(
    ("free", "each", "at_least", "size"),
    [
        (80 * GB, 2**20, 200, 4096),  # 6826 would fit: the largest power of two, and no more than AT_MOST
        (24 * GB, 2**20, 200, 2048),
        (12 * 2**20 * 1024, 2**20, 200, 1024),  # a quarter of it for 1024 images at three times what each keeps
        (12 * 2**20 * 1024 - 1, 2**20, 200, 512),
        (GB, 2**20, 200, 200),  # 85 would fit: what was asked for stays
        (0, 2**20, 200, 200),
        (GB, 0, 16, AT_MOST),
    ],
)
def test_the_batch_is_the_largest_power_of_two_that_fits_into_a_quarter_of_the_free_memory(free, each, at_least, size):
    assert fitting(free, each, at_least) == size


def test_the_bytes_of_an_image_are_what_the_gradient_needs_of_it_without_weights():
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 8 * 8, 10))
    # the convolution keeps its input, the ReLU its output, which is what the linear layer keeps too
    assert bytes_per_image(net, torch.rand(1, 3, 8, 8)) == 4 * (3 + 5) * 8 * 8


def test_on_a_cpu_the_batch_is_as_asked_for():
    assert attack_batch(build_model("resnet20"), digits(), "cpu", at_least=123) == 123


@pytest.mark.parametrize(
    "options",
    [
        {"protocol": "paper", "true_labels": True},
        {"attacks": ("fgsm", "pgd", {"attack": "apgd-ce", "options": {"steps": 5}}), "eps": ("1/255", "8/255")},
    ],
)
def test_outcomes_are_the_same_in_batches_of_any_size(options: dict[str, Any]):
    net, data = build_model("resnet20", seed=3, num_classes=10), digits()
    found = [benchmark(net, data, batch_size=size, progress=False, **options).right for size in (7, 16, 40, 4096)]
    assert all((found[0] == other).all() for other in found[1:])


def test_a_cell_is_evaluated_in_large_batches_but_for_an_attack_that_depends_on_them(monkeypatch):
    net, data = build_model("resnet20"), digits()
    monkeypatch.setattr(stages, "attack_batch", lambda net, data, device, at_least: 4096)
    params = {"protocol": "pixel", "eps": None, "true_labels": False, "batch_size": 200}
    assert stages._batch_size(net, data, {**params, "attacks": None}, "cpu") == 4096
    assert stages._batch_size(net, data, {**params, "protocol": "paper", "attacks": None}, "cpu") == 4096
    assert stages._batch_size(net, data, {**params, "attacks": [{"attack": "autoattack", "eps": "8/255"}]}, "cpu") == 200


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_larger_and_give_what_small_ones_give():
    class Where(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = build_model("resnet20", seed=3), []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append((x.is_cuda, len(x)))
            return self.net(x)

    data, net = load_dataset("digits", "test"), Where()
    size = attack_batch(net, data, "cuda")
    assert size >= 512
    small, large = (benchmark(net, data, batch_size=n, device="cuda", progress=False).right for n in (64, size))
    assert (small != large).mean() < 0.005
