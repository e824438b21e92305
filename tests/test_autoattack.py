"""AutoAttack through pyautoattack: what it finds, and that nothing around it is left changed."""

from __future__ import annotations

import logging
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gkp
from gkp.attacks.autoattack import autoattack, build, fenced, remembered
from gkp.attacks.network import logits_of
from gkp.errors import BadInput, ModelWarning

CHEAP = {"version": "custom", "attacks_to_run": ["apgd-ce"]}


def small_net(classes: int = 10, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, classes)
        return nn.Sequential(*layers).eval()


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def labelled(net: nn.Module, n: int = 12) -> tuple[Tensor, Tensor]:
    x = images(n)
    return x, logits_of(net, x).argmax(1)


def test_it_finds_what_pyautoattack_itself_finds():
    from pyautoattack import AutoAttack

    net = small_net()
    x, y = labelled(net)
    with fenced():
        attack = AutoAttack(net, norm="Linf", eps=0.02, seed=5, version="custom", attacks=["apgd-ce"])
        reference, _ = attack.run_standard_evaluation(x.clone(), y.clone(), batch_size=12)
    ours = autoattack(net, x, y, eps=0.02, seed=5, batch_size=12, **CHEAP)
    assert torch.equal(ours, reference)
    assert 0 < int((logits_of(net, ours).argmax(1) != y).sum()) < len(x)


@pytest.mark.parametrize("norm, eps", [("linf", 0.02), ("l2", 0.2)])
def test_images_stay_within_eps_and_those_that_never_fall_or_were_wrong_come_back_as_they_were(norm: str, eps: float):
    net = small_net()
    x, y = labelled(net)
    y[0] = (y[0] + 1) % 10
    found = gkp.attack(net, x, y, "autoattack", eps=eps, norm=norm, **CHEAP)
    right = logits_of(net, found).argmax(1) == y
    assert torch.equal(found[0], x[0]) and torch.equal(found[right], x[right]) and found.min() >= 0 and found.max() <= 1
    distance = (found - x).flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)
    assert (distance <= eps + 1e-6).all() and (distance > 0).any()


def test_the_same_seed_and_batch_size_give_the_same_bytes_and_another_batch_size_other_ones():
    net = small_net()
    x, y = labelled(net)
    first, again, other = (autoattack(net, x, y, eps=0.2, batch_size=size, **CHEAP) for size in (5, 5, 12))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)  # the documented exception; should it ever end, the documentation must follow


class Counting(nn.Module):
    """`small_net`, which counts its passes and is killed when it has made `life` of them."""

    def __init__(self, life: int = 10**9):
        super().__init__()
        self.net, self.passes, self.life = small_net(), 0, life

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes > self.life:
            raise KeyboardInterrupt
        return self.net(x)


TWO = {"seed": 3, "batch_size": 5, "version": "custom", "attacks_to_run": ["apgd-ce", "apgd-dlr"]}


def test_an_attack_that_is_killed_goes_on_after_the_last_batch_that_a_part_has_finished():
    whole, memory = Counting().eval(), {}
    x, y = labelled(whole.net)
    expected = autoattack(whole, x, y, eps=0.015, **TWO)
    assert 0 < int((logits_of(whole.net, expected).argmax(1) == y).sum()) < len(x)  # the second part has something to do
    kept, passes = [], []
    for life in (whole.passes // 50, whole.passes // 2, whole.passes - 5):
        with remembered(memory := {}), pytest.raises(KeyboardInterrupt):
            autoattack(Counting(life).eval(), x, y, eps=0.015, **TWO)
        again = Counting().eval()
        kept.append(len(memory))
        with remembered(memory):
            assert torch.equal(autoattack(again, x, y, eps=0.015, **TWO), expected)
        passes.append(again.passes)
    assert kept[0] == 0 and passes[0] == whole.passes
    assert kept[0] < kept[1] < kept[2] and passes[0] > passes[1] > passes[2]
    assert len(memory) > kept[2]  # what the second run added


@pytest.mark.parametrize("other", [{"eps": 0.03}, {"seed": 4}, {"norm": "l2"}, {"attacks_to_run": ["apgd-dlr"]}])
def test_what_was_remembered_serves_only_the_very_same_attack(other: dict):
    net = small_net()
    x, y = labelled(net, 6)
    how = {"eps": 0.015, **TWO, "attacks_to_run": ["apgd-ce"]}
    with remembered(memory := {}):
        first = autoattack(net, x, y, **how)
        assert torch.equal(autoattack(net, x, y, **{**how, **other}), autoattack(small_net(), x, y, **{**how, **other}))
        assert torch.equal(autoattack(net, x, y, **how), first)
    before = dict(memory)
    autoattack(net, x, y, **{**how, "eps": 0.02})  # outside, nothing is kept
    assert memory.keys() == before.keys()


def test_generators_tracing_modes_logger_counts_and_the_network_are_as_before(capfd: pytest.CaptureFixture, tmp_path: Path):
    from pyautoattack import checks

    net = small_net().train()
    x, y = images(8), torch.arange(8)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    logger = logging.getLogger("auto-attack")

    def surroundings() -> tuple:
        states = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        return states, list(logger.handlers), logger.propagate, logger.level, dict(checks.funcs), net.training

    def trace(*_: object) -> None:
        return None

    before, tracing, files = surroundings(), sys.gettrace(), sorted(tmp_path.iterdir())
    try:
        sys.settrace(trace)
        gkp.attack(net, x, y, "autoattack", eps=0.2, seed=1, **CHEAP)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(tracing)
    assert surroundings() == before
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())  # BatchNorm's statistics, too
    assert all(parameter.grad is None for parameter in net.parameters())
    assert capfd.readouterr() == ("", "") and sorted(tmp_path.iterdir()) == files


def test_everything_is_as_before_even_when_the_network_fails_half_way():
    from pyautoattack import checks

    class Failing(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 12:
                raise ZeroDivisionError
            return x.flatten(1)[:, :10]

    state, counts, x = torch.get_rng_state(), dict(checks.funcs), images(4)
    with pytest.raises(BadInput, match=r"the network does not take .*: ZeroDivisionError"):
        autoattack(Failing(), x, x.flatten(1)[:, :10].argmax(1), eps=0.01, **CHEAP)
    assert torch.equal(torch.get_rng_state(), state) and checks.funcs == counts
    assert not logging.getLogger("auto-attack").handlers


def test_what_pyautoattack_would_log_is_warned_of_once():
    class Probabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).softmax(1)

    net = Probabilities().eval()
    x, y = labelled(net)
    with pytest.warns(ModelWarning, match="AutoAttack: it seems that the output is a probability distribution") as caught:
        autoattack(net, x, y, eps=0.2, batch_size=4, **CHEAP)
    assert len({str(warning.message) for warning in caught}) == len(caught)


def test_a_network_that_takes_a_gradient_inside_is_flagged_and_the_next_network_is_not():
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.net(z).sum(), z)
            return self.net(x + 1e-9 * gradient)

    plain = small_net()
    x, y = labelled(plain)
    with pytest.warns(ModelWarning, match="dynamic defense"):
        autoattack(Inner().eval(), x, y, eps=0.2, **CHEAP)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autoattack(plain, x, y, eps=0.2, **CHEAP)


def test_fewer_than_ten_classes_are_attacked_towards_all_others_and_fewer_than_four_refused():
    net = small_net(classes=5)
    x, y = labelled(net, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autoattack(net, x, y, eps=0.2, version="custom", attacks_to_run=["apgd-t"])
    assert build(net, 5, eps=0.1, norm="linf", seed=0).apgd_targeted.n_target_classes == 4
    three = small_net(classes=3)
    x, y = labelled(three, 4)
    with pytest.raises(gkp.BadInput, match="needs 4 classes, the network has 3"):
        gkp.attack(three, x, y, "autoattack", eps=0.1)
    autoattack(three, x, y, eps=0.2, **CHEAP)


def test_the_standard_version_has_robustbenchs_attacks_and_settings():
    attack = build(small_net(), 10, eps=8 / 255, norm="l2", seed=3)
    assert attack.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"] and attack.norm == "L2" and attack.seed == 3
    assert (attack.apgd.n_restarts, attack.apgd_targeted.n_target_classes, attack.square.n_queries) == (1, 9, 5000)


def test_it_runs_in_inference_mode_and_an_eps_of_zero_gives_the_images_themselves():
    net = small_net()
    x, y = labelled(net)
    with torch.inference_mode():
        inside = autoattack(net, x, y, eps=0.2, **CHEAP)
    assert torch.equal(inside, autoattack(net, x, y, eps=0.2, **CHEAP))
    assert torch.equal(autoattack(net, x, y, eps=0.0), x)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"version": "plus"}, "unknown version 'plus'"),
        ({"attacks_to_run": ["square"]}, 'version="custom"'),
        ({"version": "custom"}, "needs attacks_to_run"),
        ({"version": "custom", "attacks_to_run": "square"}, "needs attacks_to_run"),
        ({"version": "custom", "attacks_to_run": ["pgd"]}, "no part 'pgd'"),
        ({"batch_size": 0}, "batch_size of autoattack"),
        ({"bounds": (-1.0, 1.0)}, r"\[0, 1\]"),
        ({"norm": "l1"}, "unknown norm"),
    ],
)
def test_options_out_of_range_are_refused_with_a_hint(options: dict, words: str):
    with pytest.raises(gkp.BadInput, match=words):
        gkp.attack(small_net(), images(2), torch.tensor([0, 1]), "autoattack", eps=0.1, **options)


def test_float64_is_refused():
    with pytest.raises(gkp.BadInput, match="float32"):
        gkp.attack(small_net().double(), images(2).double(), torch.tensor([0, 1]), "autoattack", eps=0.1)
