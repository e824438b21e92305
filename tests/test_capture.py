"""Training as a GPU does it, tested on a CPU as far as it goes there: the same bits, or 1e-6 where SGD is fused."""

from __future__ import annotations

import hashlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gkp.attacks.network import evaluating, full_precision
from gkp.data.augmentation import augmented_batches
from gkp.data.dataset import Dataset, to_unit
from gkp.data.sources import load_dataset
from gkp.errors import BadInput, ModelWarning, OutOfTime
from gkp.networks.build import build_model
from gkp.pruning.prune import prune
from gkp.training import step as steps_of_training
from gkp.training.callback import Callback
from gkp.training.loop import train
from gkp.training.recipe import Recipe

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


pytestmark = pytest.mark.usefixtures("one_thread")


class Small(nn.Module):
    """BatchNorm, dropout and a ReLU on images of any size: 3 channels -> 10 logits."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(F.relu(self.bn(self.conv(x))).mean((2, 3))))


def small(**options: Any) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Small(**options)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def like_cifar10(n: int = 300) -> Dataset:
    images = torch.randint(256, (n, 3, 32, 32), generator=seeded(0)).to(torch.uint8)
    return Dataset("cifar10-like", "train", images, torch.arange(n) % 10, 10, (0.5,) * 3, (0.25,) * 3, pad=4, flip=True)


def digits(n: int = 200) -> Dataset:
    return load_dataset("digits", "train").first(n)


def furthest(a: nn.Module, b: nn.Module) -> float:
    both = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x.double().cpu() - y.double().cpu()).abs().max()) for x, y in both)


# --- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [None, False, True])
@pytest.mark.parametrize(
    ("data", "size", "drop_last", "sha256"),
    [
        (like_cifar10, 64, False, "b7a41c2060a0e32a2be1bbaec3fead13"),
        (like_cifar10, 64, True, "e6a1801c5357408fd3a49f1b51c8821b"),
        (digits, 48, False, "a92ddb9405dbb2f8cd550e2033951d3a"),
    ],
)
def test_an_epoch_has_the_bytes_it_always_had_drawn_batch_by_batch_or_ahead(data, size, drop_last, sha256, ahead):
    digest = hashlib.sha256()
    for x, y in augmented_batches(data(), size, generator=seeded(7), drop_last=drop_last, ahead=ahead):
        digest.update(x.contiguous().numpy().tobytes() + y.numpy().tobytes())
    assert digest.hexdigest()[:32] == sha256


def test_pixels_are_correctly_rounded_quotients():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_unit(every), torch.from_numpy((np.arange(256) / 255).astype(np.float32)))


def test_data_is_moved_once_with_its_hash_and_not_at_all_where_it_is():
    data = digits(20)
    assert data.to("cpu") is data
    known = data.sha256
    moved = data.to("meta")
    assert (moved.sha256, moved.images.device.type, moved.labels.device.type, moved.pad) == (known, "meta", "meta", data.pad)


# --- training: the same bits as ever --------------------------------------------------------------------------------


def written_out(net: nn.Module, data: Dataset, recipe: Recipe, seed: int) -> float:
    """The training of `gkp.training.loop.train` as a plain loop, and its last mean loss."""
    net.to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(
        net.parameters(), lr=1.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    steps, n = -(-len(data) // recipe.batch_size), len(data)
    for epoch in range(1, recipe.epochs + 1):
        epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        draw, total = seeded(epoch_seed), 0.0
        order = torch.randperm(n, generator=draw)
        torch.manual_seed(epoch_seed)
        net.train()
        for step in range(steps):
            chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            images, p = data.images[chosen], data.pad
            top, left = torch.randint(2 * p + 1, (2, len(chosen)), generator=draw).tolist()
            padded, (height, width) = F.pad(images, (p,) * 4), images.shape[2:]
            crops = [padded[i, :, top[i] : top[i] + height, left[i] : left[i] + width] for i in range(len(chosen))]
            if data.flip:
                turned = torch.randint(2, (len(chosen),), generator=draw).tolist()
                crops = [crop.flip(2) if turn else crop for crop, turn in zip(crops, turned, strict=True)]
            x = (torch.stack(crops).float() / 255).contiguous(memory_format=torch.channels_last)
            sgd.param_groups[0]["lr"] = recipe.lr_at((epoch - 1) * steps + step, steps)
            sgd.zero_grad()
            loss = F.cross_entropy(net(x), data.labels[chosen], label_smoothing=recipe.label_smoothing)
            loss.backward()
            sgd.step()
            total += float(loss.detach() * len(chosen))
    return total / n


@pytest.mark.parametrize(
    ("data", "recipe"),
    [
        (like_cifar10, Recipe(epochs=2, lr=0.05)),
        (digits, Recipe(epochs=3, lr=0.1, schedule="one-cycle", batch_size=48, nesterov=True, label_smoothing=0.1)),
    ],
)
def test_on_a_cpu_training_is_a_plain_loop_to_the_bit(data, recipe):
    ours, theirs = small(), small()
    log = train(ours, data(), recipe, seed=5)
    with torch.random.fork_rng(devices=[]):
        loss = written_out(theirs, data(), recipe, seed=5)
    assert furthest(ours, theirs) == 0 and log.last["train_loss"] == loss and log.steps == "eager"


# --- training: captured steps ---------------------------------------------------------------------------------------


def masked() -> nn.Module:
    return prune(build_model("resnet20", seed=1), "sr-gkp")


def compile_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without a compiler: it traces and differentiates as always, and runs the graph as it is."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_step_on_fixed_buffers_equals_an_eager_one_also_for_a_last_batch_that_is_small(nesterov):
    eager, captured, recipe = small(), small(), Recipe(epochs=3, lr=0.05, nesterov=nesterov)  # 300 images: 4 x 64 and 44
    logs = [train(net, like_cifar10(), recipe, capture=how, seed=2) for net, how in ((eager, "eager"), (captured, "graph"))]
    assert furthest(eager, captured) < 1e-6
    assert [log.steps for log in logs] == ["eager", "buffers"]
    for ours, theirs in zip(logs[0].rows, logs[1].rows, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-6)
        assert ours["train_accuracy"] == theirs["train_accuracy"] and ours["lr"] == theirs["lr"]


def test_a_compiled_step_of_a_masked_network_equals_an_eager_one_and_leaves_removed_weights_at_zero(monkeypatch):
    compile_quickly(monkeypatch)
    eager, compiled, recipe = masked(), masked(), Recipe(epochs=1, lr=0.02, batch_size=16)
    train(eager, digits(40), recipe, capture="eager")
    log = train(compiled, digits(40), recipe, capture="compile")  # 16, 16, and 8 that are not compiled
    assert log.steps == "compile" and furthest(eager, compiled) < 1e-6
    removed = [p == 0 for p in masked().parameters() if p.ndim == 4]
    weights = [p for p in compiled.parameters() if p.ndim == 4]
    assert sum(int(gone.sum()) for gone in removed) > 100_000
    assert all(bool((w[gone] == 0).all()) for w, gone in zip(weights, removed, strict=True))


def test_a_captured_training_resumes_to_the_same_bits(tmp_path: Path):
    whole, halves, recipe = small(), small(), Recipe(epochs=4, lr=0.05)
    options: dict[str, Any] = {"capture": "graph", "seed": 3}
    log = train(whole, like_cifar10(), recipe, **options)
    path = tmp_path / "checkpoint"
    with pytest.raises(OutOfTime, match="after epoch 1 of 4"):
        train(halves, like_cifar10(), recipe, checkpoint=path, until=time.time(), **options)
    resumed = small()
    again = train(resumed, like_cifar10(), recipe, checkpoint=path, until=time.time() + 3600, **options)
    assert furthest(whole, resumed) == 0
    assert [row["train_loss"] for row in log.rows] == [row["train_loss"] for row in again.rows]


def test_what_cannot_be_captured_is_trained_eagerly_from_where_it_was_with_the_reason_in_one_line(monkeypatch):
    class Refusing(steps_of_training.CapturedStep):
        def _record(self):
            self._body()  # a step made in vain
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    eager, fallen = small(), small()
    train(eager, digits(), Recipe(epochs=2), capture="eager")
    monkeypatch.setattr(steps_of_training, "CapturedStep", Refusing)
    with pytest.warns(ModelWarning, match="not captured"):
        log = train(fallen, digits(), Recipe(epochs=2), capture="graph")
    assert log.steps == "eager: RuntimeError: operation not permitted when stream is capturing"
    assert furthest(eager, fallen) < 1e-6


def test_a_callback_inside_of_a_step_keeps_it_eager_and_one_between_steps_does_not():
    class Inside(Callback):
        def loss_term(self, net: nn.Module) -> Tensor:
            return 0 * sum(p.sum() for p in net.parameters())

    class Between(Callback):
        calls = 0

        def after_step(self, net: nn.Module) -> None:
            self.calls += 1

    log = train(small(), digits(100), Recipe(epochs=1), capture="graph", callbacks=[Inside()])
    assert log.steps == "eager: Inside.loss_term acts inside of a step"
    between = Between()
    log = train(small(), digits(100), Recipe(epochs=1), capture="graph", callbacks=[between])
    assert log.steps == "buffers" and between.calls == 2


def test_an_unknown_way_to_capture_is_refused():
    with pytest.raises(BadInput, match="capture is 'jit'; give eager, graph, compile, or None"):
        train(small(), digits(100), Recipe(epochs=1), capture="jit")


class Waits(TorchDispatchMode):
    """Counts what makes Python wait for a GPU: numbers, truths and shapes read from tensors."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_gpu(monkeypatch):
    monkeypatch.setattr("gkp.training.loop.augmented_batches", partial(augmented_batches, ahead=True))

    def waits(n: int) -> int:
        data, net = like_cifar10(n), masked()
        with Waits() as waiting:
            train(net, data, Recipe(epochs=1, batch_size=8), callbacks=[])
        return waiting.count

    assert waits(8) == waits(32) > 0


# --- precision ------------------------------------------------------------------------------------------------------


def settings() -> tuple[Any, ...]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, cudnn.conv.fp32_precision, matmul.fp32_precision


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_evaluations_and_trainings_run_in_float32_whatever_is_set_and_leave_the_settings_alone(precision):
    usual = torch.get_float32_matmul_precision()
    seen = []

    class Looking(Small):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((*settings(), torch.get_float32_matmul_precision()))
            return super().forward(x)

    try:
        torch.set_float32_matmul_precision(precision)
        before = settings()
        net = Looking()
        train(net, digits(20), Recipe(epochs=1))
        with evaluating(net):
            net(digits(20).pixels())
        assert settings() == before and torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(usual)
    assert len(seen) >= 2
    for tf32, deterministic, race, conv, matmul, words in seen[-2:]:
        assert (tf32, deterministic, race, conv, words) == (False, True, False, "ieee", "highest")
        assert matmul in ("ieee", "none")


def test_the_newer_settings_of_precision_are_honoured_and_restored():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with pytest.raises(ZeroDivisionError), full_precision():
            assert matmul.fp32_precision == "ieee"
            1 / 0  # noqa: B018
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_the_newer_settings_of_convolutions_are_honoured_and_restored():
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    try:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = "ieee", "tf32"  # what the older allow_tf32 cannot say
        with full_precision():
            assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "ieee") and cudnn.deterministic
        assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "tf32") and not cudnn.deterministic
    finally:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before
    assert isinstance(cudnn.allow_tf32, bool)


# --- on a GPU -------------------------------------------------------------------------------------------------------


@needs_gpu
def test_images_on_a_gpu_are_augmented_there_to_the_same_bits():
    data = like_cifar10()
    here, there = (list(augmented_batches(d, 64, generator=seeded(7), device=d.images.device)) for d in (data, data.to("cuda")))
    for (x, y), (u, v) in zip(here, there, strict=True):
        assert u.is_cuda and torch.equal(x, u.cpu()) and torch.equal(y, v.cpu())


@needs_gpu
@pytest.mark.parametrize("make", [partial(small, dropout=0.0), masked])
@pytest.mark.parametrize("capture", ["graph", "compile"])
def test_on_a_gpu_a_captured_training_is_the_eager_one_and_the_same_again(make, capture):
    recipe, nets = Recipe(epochs=2, lr=0.01), [make() for _ in range(3)]
    ways = ("eager", capture, capture)
    logs = [train(net, like_cifar10(), recipe, device="cuda", capture=how) for net, how in zip(nets, ways, strict=True)]
    assert [log.steps for log in logs] == list(ways)
    assert furthest(nets[0], nets[1]) < 1e-3 and furthest(nets[1], nets[2]) == 0


@needs_gpu
def test_on_a_gpu_a_step_is_a_graph_by_default_and_dropout_differs_from_step_to_step():
    first, second = small(), small()
    log = train(first, like_cifar10(), Recipe(epochs=1), device="cuda")
    train(second, like_cifar10(), Recipe(epochs=1), device="cuda", capture="eager")
    assert log.steps == "graph" and furthest(first, second) < 1e-3
