"""Training: its arithmetic against closed forms, masks, callbacks, resuming to the bit, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.data.dataset import Dataset
from gkp.data.sources import load_dataset
from gkp.errors import BadInput
from gkp.training.callback import Callback
from gkp.training.loop import TrainingLog, train
from gkp.training.recipe import PAPER_BASELINE, PAPER_FINETUNE, Recipe

FAST = Recipe(epochs=3, lr=0.05, batch_size=16)


pytestmark = pytest.mark.usefixtures("one_thread")


class Tiny(nn.Module):
    """A small network with BatchNorm and dropout: 3x16x16 -> 10 logits."""

    def __init__(self, width: int = 8, dropout: float = 0.1, classes: int = 10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width)
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(2 * width * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(self.dropout(x.flatten(1)))


class MaskedTiny(Tiny):
    """Tiny with every second filter of conv2 held at zero, as gkp.pruning.twin.PrunedModel does it."""

    def apply_masks(self) -> None:
        with torch.no_grad():
            self.conv2.weight[::2] = 0


class Linear(nn.Module):
    """One pixel in, two logits out, no bias: small enough for pencil and paper."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3], [-0.2]]))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def tiny(kind: type[Tiny] = Tiny, **options: Any) -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind(**options)


def some_digits(n: int = 96) -> Dataset:
    return load_dataset("digits", "train").first(n)


def one_pixel() -> Dataset:
    images, labels = torch.tensor([51, 102, 204, 255], dtype=torch.uint8), torch.tensor([0, 1, 1, 0])
    return Dataset("pixel", "train", images.reshape(4, 1, 1, 1), labels, 2, (0.0,), (1.0,))


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- arithmetic -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers_fine_tuning() -> None:
    assert dataclasses.asdict(PAPER_FINETUNE) == {
        "epochs": 300,
        "lr": 0.01,
        "schedule": "step",
        "step_epochs": 100,
        "gamma": 0.1,
        "batch_size": 64,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": False,
        "label_smoothing": 0.0,
    }
    assert dataclasses.replace(PAPER_FINETUNE, lr=0.1) == PAPER_BASELINE


@pytest.mark.parametrize(("epoch", "lr"), [(0, 0.01), (99, 0.01), (100, 0.001), (199, 0.001), (200, 1e-4), (299, 1e-4)])
def test_the_papers_learning_rate_falls_tenfold_every_100_epochs(epoch: int, lr: float) -> None:
    for step in (0, 702):  # the first and the last of 703 steps
        assert PAPER_FINETUNE.lr_at(epoch * 703 + step, 703) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 4), (5, 7), (12, 21)])
def test_schedules_equal_torchs(epochs: int, steps: int) -> None:
    def torchs(scheduler: type, every: int, **options: Any) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
        schedule, rates = scheduler(optimizer, **options), []
        for step in range(epochs * steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if step % every == every - 1 and step < epochs * steps - 1:
                schedule.step()
        return rates

    cycle = Recipe(epochs=epochs, lr=0.2, schedule="one-cycle")
    expected = torchs(torch.optim.lr_scheduler.OneCycleLR, 1, max_lr=0.2, total_steps=epochs * steps)
    assert [cycle.lr_at(i, steps) for i in range(epochs * steps)] == pytest.approx(expected, rel=1e-9)
    step = Recipe(epochs=epochs, lr=0.2, step_epochs=2, gamma=0.3)
    expected = torchs(torch.optim.lr_scheduler.StepLR, steps, step_size=2, gamma=0.3)
    assert [step.lr_at(i, steps) for i in range(epochs * steps)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_full_batch_training_equals_sgd_written_out(nesterov: bool, smoothing: float) -> None:
    """Softmax of a linear model by hand: gradient = (p - target) x, momentum v <- 0.9 v + g, three steps."""
    data = one_pixel()
    x, target = data.pixels().flatten(1).double(), F.one_hot(data.labels, 2).double() * (1 - smoothing) + smoothing / 2
    w, v, losses = Linear().weight.detach().double(), torch.zeros(2, 1, dtype=torch.float64), []
    for lr in (0.5, 0.5, 0.05):
        p = torch.softmax(x @ w.T, 1)
        losses.append(-(target * p.log()).sum(1).mean().item())
        g = (p - target).T @ x / 4 + 0.01 * w
        v = 0.9 * v + g
        w = w - lr * (g + 0.9 * v if nesterov else v)
    net = Linear()
    log = train(
        net,
        data,
        Recipe(epochs=3, lr=0.5, step_epochs=2, batch_size=4, weight_decay=0.01, nesterov=nesterov, label_smoothing=smoothing),
    )
    assert net.weight.flatten().tolist() == pytest.approx(w.flatten().tolist(), rel=1e-5)
    assert [row["train_loss"] for row in log.rows] == pytest.approx(losses, rel=1e-5)
    assert [row["lr"] for row in log.rows] == pytest.approx([0.5, 0.5, 0.05])


def test_loss_and_accuracy_are_means_over_images_also_when_the_last_batch_is_small() -> None:
    data = one_pixel()
    frozen = Recipe(epochs=1, lr=1e-30, batch_size=3)  # the weights stay where they are: batches of 3 and 1
    row = train(Linear(), data, frozen).last
    logits = Linear()(data.pixels())
    assert row["train_loss"] == pytest.approx(F.cross_entropy(logits, data.labels).item(), rel=1e-6)
    assert row["train_accuracy"] == 0.5  # the first logit is the larger for every image, and two of four are of class 0


def test_a_small_network_learns_the_digits() -> None:
    data, test = load_dataset("digits", "train+val"), load_dataset("digits", "test")
    net = tiny(width=16)
    log = train(net, data, Recipe(epochs=5, lr=0.1, schedule="one-cycle"))
    assert log.rows[0]["train_loss"] > 0.4 > 0.25 > log.last["train_loss"]
    net.eval()
    with torch.no_grad():
        assert (net(test.pixels()).argmax(1) == test.labels).float().mean() > 0.94


# --- randomness -----------------------------------------------------------------------------------------------------


def test_the_seed_alone_decides_the_weights_and_the_global_generator_is_left_alone() -> None:
    nets = [tiny() for _ in range(3)]
    before = torch.get_rng_state()
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        train(net, some_digits(), FAST, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(nets[0], nets[1]) and not same_weights(nets[0], nets[2])


def test_every_epoch_has_an_order_and_crops_of_its_own() -> None:
    class Spy(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(x.clone())
            return super().forward(x)

    seen: list[Tensor] = []
    data = dataclasses.replace(some_digits(16), labels=torch.arange(16) % 10)
    train(tiny(Spy), data, FAST)  # one batch an epoch
    assert len(seen) == 3
    for later in seen[1:]:
        in_order = [int((later[i] - seen[0]).flatten(1).abs().sum(1).argmin()) for i in range(16)]
        assert in_order != list(range(16)), "shuffled anew"
        assert sorted(x.sum().item() for x in later) != sorted(x.sum().item() for x in seen[0]), "cropped anew"


def test_the_last_epochs_net_is_kept_whatever_evaluate_says() -> None:
    plain, watched = tiny(), tiny()
    train(plain, some_digits(), FAST)
    scores = iter((0.9, 0.3, 0.1))
    log = train(watched, some_digits(), FAST, evaluate=lambda net: {"clean": next(scores), "fgsm": torch.tensor(0.5)})
    assert same_weights(plain, watched)
    assert [row["clean"] for row in log.rows] == [0.9, 0.3, 0.1] and log.last["epoch"] == 3
    assert log.best("clean") is log.rows[0] and log.best("fgsm") is log.rows[0] and log.best("epoch") is log.rows[2]


# --- masks, callbacks, what is left behind --------------------------------------------------------------------------


def test_momentum_does_not_revive_masked_weights() -> None:
    """The control, the same weights zeroed before training but no `apply_masks`, shows that they would come back."""
    seen: list[float] = []

    class Watch(Callback):
        def after_step(self, net: nn.Module) -> None:
            seen.append(net.conv2.weight[::2].abs().max().item())

    masked, free = tiny(MaskedTiny), tiny()
    with torch.no_grad():
        free.conv2.weight[::2] = 0
    log = train(masked, some_digits(), FAST, callbacks=[Watch()])
    assert len(seen) == 18 and set(seen) == {0.0}, "exactly zero after every one of the 3 x 6 steps"
    assert (masked.conv2.weight[1::2] != tiny().conv2.weight[1::2]).all() and log.last["train_loss"] < 2
    train(free, some_digits(), FAST)
    assert (free.conv2.weight[::2] != 0).all()


def test_masked_weights_are_zero_when_evaluated_even_after_a_callback_touched_them() -> None:
    class Revive(Callback):
        def after_epoch(self, net: nn.Module, epoch: int) -> None:
            nn.init.ones_(net.conv2.weight)

    log = train(
        tiny(MaskedTiny),
        some_digits(),
        FAST,
        callbacks=[Revive()],
        evaluate=lambda net: {"masked": net.conv2.weight[::2].abs().max(), "kept": net.conv2.weight[1::2].min()},
    )
    assert [(row["masked"], row["kept"]) for row in log.rows] == [(0, 1)] * 3


def test_callbacks_are_called_in_order() -> None:
    calls: list[str] = []

    class Record(Callback):
        def before_training(self, net: nn.Module) -> None:
            calls.append("before")

        def sgd(self, optimizer: torch.optim.SGD) -> None:
            calls.append(f"decay {optimizer.param_groups[0]['weight_decay']}")

        def figures(self) -> dict[str, float]:
            return {"calls": len(calls)}

        def loss_term(self, net: nn.Module) -> None:
            calls.append("loss")

        def after_step(self, net: nn.Module) -> None:
            calls.append("step")

        def after_epoch(self, net: nn.Module, epoch: int) -> None:
            calls.append(f"epoch {epoch}")

        def finish(self, net: nn.Module) -> None:
            calls.append("finish")

    def evaluate(net: nn.Module) -> dict[str, float]:
        calls.append("evaluate")
        return {}

    log = train(Linear(), one_pixel(), Recipe(epochs=2, batch_size=2), callbacks=[Record()], evaluate=evaluate)
    one = ["loss", "step"] * 2
    assert calls == ["before", "decay 0.0005", *one, "epoch 1", "evaluate", *one, "epoch 2", "evaluate", "finish"]
    assert [row["calls"] for row in log.rows] == [7, 13]


def test_a_loss_term_adds_its_gradient_and_the_logged_loss_stays_the_cross_entropy() -> None:
    class L1(Callback):
        def loss_term(self, net: nn.Module) -> Tensor:
            return 0.25 * net.weight.abs().sum()

    plain, sparse = Linear(), Linear()
    recipe = Recipe(epochs=1, lr=0.1, batch_size=4)
    losses = [
        train(net, one_pixel(), recipe, callbacks=callbacks).last["train_loss"]
        for net, callbacks in ((plain, []), (sparse, [L1()]))
    ]
    moved = (sparse.weight - plain.weight).flatten().tolist()
    assert moved == pytest.approx([-0.1 * 0.25, +0.1 * 0.25], rel=1e-5)  # minus lr times 0.25 sign(w)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_mode_memory_format_and_gradients_are_as_before_also_after_an_error(mode: bool, channels_last: bool) -> None:
    def fails(net: nn.Module) -> dict[str, float]:
        assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        raise KeyboardInterrupt

    net = tiny().train(mode)
    train(net, some_digits(), FAST, channels_last=channels_last)
    with pytest.raises(KeyboardInterrupt):
        train(net, some_digits(), FAST, channels_last=channels_last, evaluate=fails)
    assert net.training is mode and net.dropout.training is mode
    assert net.conv2.weight.is_contiguous() and all(p.grad is None for p in net.parameters())


def test_frozen_parameters_stay() -> None:
    net = tiny()
    net.conv1.weight.requires_grad_(False)
    train(net, some_digits(), FAST)
    assert torch.equal(net.conv1.weight, tiny().conv1.weight) and not torch.equal(net.fc.weight, tiny().fc.weight)


def test_a_progress_bar_is_drawn_when_asked_for_and_not_into_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    train(Linear(), one_pixel(), Recipe(epochs=2))
    assert capsys.readouterr().err == "", "stderr is no terminal here"
    train(Linear(), one_pixel(), Recipe(epochs=2), progress=True)
    assert "epoch 2/2" in capsys.readouterr().err


# --- the log --------------------------------------------------------------------------------------------------------


def test_a_log_becomes_a_frame_and_a_file(tmp_path: Path) -> None:
    log = train(Linear(), one_pixel(), Recipe(epochs=2), seed=4, evaluate=lambda net: {"clean": 0.5})
    frame = log.to_frame()
    assert frame.columns.tolist() == ["epoch", "lr", "train_loss", "train_accuracy", "seconds", "clean"]
    assert frame["epoch"].tolist() == [1, 2] and (frame["seconds"] > 0).all()
    path = log.save(tmp_path / "new" / "log.json")
    assert (
        json.loads(path.read_text())
        == log.to_json()
        == {"recipe": dataclasses.asdict(Recipe(epochs=2)), "seed": 4, "dataset": "pixel/train", "rows": log.rows}
    )
    assert [p.name for p in path.parent.iterdir()] == ["log.json"]


def test_an_unknown_metric_lists_the_known_ones() -> None:
    log = TrainingLog(FAST, 0, "digits/train", [{"epoch": 1, "clean": 0.5}])
    with pytest.raises(BadInput, match="no metric 'fgsm'; known: epoch, clean"):
        log.best("fgsm")


# --- resuming -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Average(Callback):
    """A callback with a setting and a memory: a running mean of the classifier's weights, drawn to it by the loss."""

    decay: float = 0.5

    def before_training(self, net: nn.Module) -> None:
        self.mean = net.fc.weight.detach().clone()

    def loss_term(self, net: nn.Module) -> Tensor:
        return 0.1 * (net.fc.weight - self.mean).square().sum()

    def after_step(self, net: nn.Module) -> None:
        self.mean.lerp_(net.fc.weight.detach(), self.decay)

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.mean = state["mean"]


def train_digits(
    net: Tiny, checkpoint: Path | None = None, *, stop_in_epoch: int | None = None, kill: bool = False
) -> TrainingLog:
    """The training of the tests below; it can be stopped, or have its process killed, at the end of an epoch."""
    done = [0]

    def evaluate(net: nn.Module) -> dict[str, float]:
        done[0] += 1
        if done[0] == stop_in_epoch:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        return {"norm": net.fc.weight.norm()}

    return train(net, some_digits(), FAST, seed=3, checkpoint=checkpoint, evaluate=evaluate, callbacks=[Average()])


def without_seconds(log: TrainingLog) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in log.rows]


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[Tiny, TrainingLog]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    net = tiny(MaskedTiny)
    log = train_digits(net)
    torch.set_num_threads(threads)
    return net, log


def test_a_killed_process_is_resumed_to_the_same_bits(tmp_path: Path, uninterrupted: tuple[Tiny, TrainingLog]) -> None:
    checkpoint = tmp_path / "training.safetensors"
    code = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1); import test_training as t; "
        "t.train_digits(t.tiny(t.MaskedTiny), Path(sys.argv[1]), stop_in_epoch=2, kill=True)"
    )
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    killed = subprocess.run([sys.executable, "-c", code, str(checkpoint)], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = f"{checkpoint.name}.{os.uname().nodename}-{2**22 + 1}-0.partial"  # above the highest number of a process
    checkpoint.with_name(left).write_bytes(b"what a kill in the middle of writing leaves")
    net = tiny(MaskedTiny)
    log = train_digits(net, checkpoint)
    assert same_weights(net, uninterrupted[0])
    assert without_seconds(log) == without_seconds(uninterrupted[1])
    assert [path.name for path in tmp_path.iterdir()] == ["training.safetensors"]


@pytest.mark.parametrize("stop_in_epoch", [1, 2, 3])
def test_an_interrupted_training_is_resumed_to_the_same_bits(
    tmp_path: Path, stop_in_epoch: int, uninterrupted: tuple[Tiny, TrainingLog]
) -> None:
    net = tiny(MaskedTiny)
    with pytest.raises(KeyboardInterrupt):
        train_digits(net, tmp_path / "c", stop_in_epoch=stop_in_epoch)
    assert not same_weights(net, uninterrupted[0]) or stop_in_epoch == 3
    log = train_digits(net if stop_in_epoch > 1 else tiny(MaskedTiny), tmp_path / "c")
    assert same_weights(net if stop_in_epoch > 1 else uninterrupted[0], uninterrupted[0])
    assert without_seconds(log) == without_seconds(uninterrupted[1])


def test_a_finished_training_is_read_from_its_checkpoint_not_repeated(tmp_path: Path) -> None:
    first, again = tiny(), tiny()
    done = train_digits(first, tmp_path / "c")
    log = train_digits(again, tmp_path / "c", stop_in_epoch=1)  # it would stop if it trained
    assert same_weights(first, again) and log == done


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    train(tiny(MaskedTiny), some_digits(), FAST, checkpoint=path, callbacks=[Average()])
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recipe": dataclasses.replace(FAST, lr=0.01)}, r"another recipe \(lr 0.05 there, 0.01 here\)"),
        ({"recipe": dataclasses.replace(FAST, epochs=4)}, r"another recipe \(epochs 3 there, 4 here\)"),
        ({"seed": 1}, r"another seed \(0 there, 1 here\)"),
        ({"train_set": some_digits(95)}, r"another dataset \(sha256"),
        ({"train_set": dataclasses.replace(some_digits(), flip=True)}, r"another dataset \(flip False there, True here\)"),
        ({"net": tiny(MaskedTiny, width=4)}, "another architecture"),
        ({"net": tiny(MaskedTiny, dropout=0.2)}, "another architecture"),
        ({"callbacks": [Average(decay=0.25)]}, r"another callbacks \('Average\(decay=0.5\)' there"),
        ({"callbacks": []}, "another callbacks"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(checkpoint: Path, changes: dict[str, Any], says: str) -> None:
    given = {"net": tiny(MaskedTiny), "train_set": some_digits(), "recipe": FAST, "callbacks": [Average()], **changes}
    before, content = {k: v.clone() for k, v in given["net"].state_dict().items()}, checkpoint.read_bytes()
    with pytest.raises(BadInput, match=says) as caught:
        train(given.pop("net"), given.pop("train_set"), given.pop("recipe"), checkpoint=checkpoint, **given)
    assert str(checkpoint) in str(caught.value) and "\n" not in str(caught.value)
    assert checkpoint.read_bytes() == content
    if "net" in changes:
        assert all(torch.equal(v, before[k]) for k, v in changes["net"].state_dict().items())


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    class Plan:
        def __init__(self, kept: list[int]):
            self.kept = kept

        def to_json(self) -> dict[str, list[int]]:
            return {"conv2": self.kept}

    nets = tiny(), tiny()
    for net, kept in zip(nets, ([0, 1], [0, 2]), strict=True):
        net.plan = Plan(kept)  # type: ignore[assignment]
    train(nets[0], some_digits(), FAST, checkpoint=tmp_path / "c")
    with pytest.raises(BadInput, match=r"belongs to a training with another plan \(conv2 differs\)"):
        train(nets[1], some_digits(), FAST, checkpoint=tmp_path / "c")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path: Path, checkpoint: Path, keep: float) -> None:
    content = checkpoint.read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else keep])
    with pytest.raises(BadInput, match=r"cannot be read as a training checkpoint .*delete it") as caught:
        train(tiny(MaskedTiny), some_digits(), FAST, checkpoint=cut, callbacks=[Average()])
    assert str(cut) in str(caught.value)


def test_a_file_that_is_no_checkpoint_is_neither_read_nor_overwritten(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights, text = tmp_path / "model.safetensors", tmp_path / "notes.txt"
    save_file({"x": torch.zeros(2)}, weights)
    text.write_text("my notes, which are long enough to look like a header")
    for path in (weights, text):
        content = path.read_bytes()
        with pytest.raises(BadInput, match="training checkpoint"):
            train(tiny(), some_digits(), FAST, checkpoint=path)
        assert path.read_bytes() == content


def test_a_checkpoint_that_cannot_be_written_is_refused_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, says in ((tmp_path, "is a folder"), (tmp_path / "file" / "c", "is not a writable folder")):
        net = tiny()
        with pytest.raises(BadInput, match=says):
            train(net, some_digits(), FAST, checkpoint=path)
        assert same_weights(net, tiny())


def test_a_full_disk_leaves_the_older_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TrainingLog(FAST, 0, "digits/train", [{"epoch": 1}])
    path = log.save(tmp_path / "log.json")
    content = path.read_bytes()

    def full(self: Path, content: bytes) -> None:
        self.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadInput, match=r"log\.json: cannot be written .*No space left"):
        TrainingLog(FAST, 1, "digits/train").save(path)
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == ["log.json"]


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"schedule": "cosine"},
        {"step_epochs": 0},
        {"gamma": -1.0},
        {"batch_size": 0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1e-4},
        {"weight_decay": math.nan},
        {"label_smoothing": 1.0},
        {"nesterov": True, "momentum": 0.0},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=f"recipe: {list(field)[-1]} is .*; give "):
        Recipe(**field)


def with_nan(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        net.fc.weight[0, 0] = math.nan
    return net


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (lambda: nn.Flatten(), "Flatten has no parameters"),
        (lambda: tiny().requires_grad_(False), "no parameter that requires a gradient"),
        (lambda: with_nan(tiny()), "parameter fc.weight has NaN or infinite values"),
        (lambda: tiny(classes=9), r"Tiny returns \(1, 9\) for one image; dataset 'digits' has 10 classes"),
        (lambda: nn.Conv2d(3, 10, 3), r"Conv2d returns \(1, 10, 14, 14\)"),
        (lambda: nn.Conv2d(1, 10, 3), r"Conv2d does not take images of shape \(3, 16, 16\)"),
    ],
)
def test_a_net_that_does_not_fit_the_data_is_refused_before_training(net, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        train(net(), some_digits(), FAST)


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(BadInput, match="seed is"):
        train(tiny(), some_digits(), FAST, seed=seed)


def test_a_diverging_training_stops_with_a_clear_error_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Explode(Callback):
        def after_epoch(self, net: nn.Module, epoch: int) -> None:
            if epoch == 2:
                with_nan(net)

    net = tiny().eval()
    with pytest.raises(BadInput, match=r"the loss is nan by step 6 of epoch 3 at learning rate 0\.05; give a lower lr"):
        train(net, some_digits(), FAST, callbacks=[Explode()])
    assert not net.training
    with pytest.raises(BadInput, match="training diverged"):
        train(tiny(), some_digits(), Recipe(epochs=2, lr=1e30), checkpoint=tmp_path / "c")
    assert not any(tmp_path.iterdir())


# --- callbacks with an objective, weights or a schedule of their own ------------------------------------------------


class Swapped(Callback):
    """Train a weight of its own, held outside the network, by a loss that knows no labels."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.tensor([[1.0, -1.0]]))
        self.calls: list[str] = []

    def schedule(self, epochs: int, steps: int) -> None:
        self.calls.append(f"schedule {epochs} {steps}")

    def parameters(self, net: nn.Module) -> list[nn.Parameter]:
        self.calls.append("parameters")
        return [self.weight]

    def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append("objective")
        return net(x), 0.5 * (self.weight**2).sum()

    def lr_factor(self, step: int) -> float:
        return 0.5 if step else 1.0

    def after_backward(self, net: nn.Module) -> None:
        self.calls.append("backward")
        assert self.weight.grad is not None


def test_a_callback_may_bring_its_own_weights_objective_and_learning_rate() -> None:
    net, swapped = Linear(), Swapped()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    recipe = Recipe(epochs=2, lr=0.1, momentum=0.0, weight_decay=0.0, batch_size=4)
    log = train(net, one_pixel(), recipe, callbacks=[swapped])
    assert swapped.weight.tolist() == [pytest.approx([0.9 * 0.95, -0.9 * 0.95])]  # steps of 0.1 and 0.05 of the weight itself
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert swapped.calls == ["schedule 2 1", "parameters", *["objective", "backward"] * 2]
    assert [row["lr"] for row in log.rows] == [0.1, 0.05]


def test_a_callback_is_told_the_learning_rate_of_every_step_and_may_leave_the_loss_to_the_recipe() -> None:
    class Told(Callback):
        def learning_rate(self, at: Callable[[int], float]) -> None:
            self.rates = [at(step) for step in range(4)]

        def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, None]:
            return net(x), None

    recipe = Recipe(epochs=4, lr=0.1, step_epochs=2, batch_size=4, label_smoothing=0.1)
    told, halved, plain = Told(), Swapped(), Linear()
    halved.parameters = halved.objective = lambda *_: None  # type: ignore[assignment,method-assign]
    halved.after_backward = lambda net: None  # type: ignore[method-assign]
    net = Linear()
    log = train(net, one_pixel(), recipe, callbacks=[told, halved])
    assert told.rates == [row["lr"] for row in log.rows] == pytest.approx([0.1, 0.05, 0.005, 0.005])
    halved.calls = []
    expected = train(plain, one_pixel(), recipe, callbacks=[halved])
    assert [row["train_loss"] for row in log.rows] == [row["train_loss"] for row in expected.rows]


def test_two_objectives_or_two_sets_of_weights_are_refused() -> None:
    class OwnObjective(Callback):
        def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits = net(x)
            return logits, logits.sum()

    with pytest.raises(BadInput, match="two callbacks name the parameters"):
        train(Linear(), one_pixel(), FAST, callbacks=[Swapped(), Swapped()])
    with pytest.raises(BadInput, match="two callbacks have an objective"):
        train(Linear(), one_pixel(), FAST, callbacks=[OwnObjective(), OwnObjective()])


def test_each_module_comes_out_of_a_training_in_the_mode_it_came_in() -> None:
    frozen, warm = tiny(), tiny().eval()
    frozen.bn1.eval()
    warm.bn1.train()
    for net in (frozen, warm):
        train(net, some_digits(16), Recipe(epochs=1, lr=0.01, batch_size=16), progress=False)
    assert (frozen.training, frozen.bn1.training, frozen.bn2.training) == (True, False, True)
    assert (warm.training, warm.bn1.training, warm.bn2.training) == (False, True, False)


def stopped_after_one_epoch(net: nn.Module, checkpoint: Path) -> None:
    epochs = iter([{}])  # and then StopIteration
    with pytest.raises(StopIteration):
        train(net, some_digits(32), FAST, checkpoint=checkpoint, evaluate=lambda _: next(epochs), progress=False)


def test_a_checkpoint_of_other_trained_parameters_is_refused_both_ways(tmp_path: Path) -> None:
    frozen = tiny()
    frozen.bn1.weight.requires_grad_(False)  # each later momentum has another place, and some of them the same shape
    stopped_after_one_epoch(tiny(), tmp_path / "all")
    stopped_after_one_epoch(frozen, tmp_path / "some")
    for net, checkpoint in ((frozen, "all"), (tiny(), "some")):
        with pytest.raises(BadInput, match="belongs to a training with another frozen"):
            train(net, some_digits(32), FAST, checkpoint=tmp_path / checkpoint, progress=False)


def test_buffers_that_the_state_dict_leaves_out_are_resumed_too(tmp_path: Path) -> None:
    class Warming(Tiny):
        """Its logits grow with the steps that it was trained."""

        def __init__(self) -> None:
            super().__init__(dropout=0)
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen += 1
            return super().forward(x) * (1 + self.seen)

    whole, resumed = tiny(Warming), tiny(Warming)
    train(whole, some_digits(32), FAST, progress=False)
    stopped_after_one_epoch(tiny(Warming), tmp_path / "c")
    train(resumed, some_digits(32), FAST, checkpoint=tmp_path / "c", progress=False)
    assert resumed.seen == whole.seen == 6 and same_weights(whole, resumed)


def test_extra_state_is_refused_before_the_first_epoch(tmp_path: Path) -> None:
    class Extra(Tiny):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    net = tiny(Extra)
    with pytest.raises(BadInput, match="_extra_state is no tensor but extra state"):
        train(net, some_digits(32), FAST, checkpoint=tmp_path / "c", progress=False)
    assert torch.equal(net.fc.weight, tiny().fc.weight) and not any(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["lr", "gamma", "momentum", "weight_decay", "label_smoothing"])
def test_a_recipe_of_text_is_one_line(field: str) -> None:
    with pytest.raises(BadInput, match=f"recipe: {field} is '0.1'; give a number"):
        Recipe(**{field: "0.1"})
