"""Auto-PGD: losses by hand, the step-size rule on made-up curves, linear models, and algorithm 1 transcribed image by image."""

from __future__ import annotations

import pytest
import torch
from attack_nets import Counting, Linear, Plateau, W, conv_net, images, lengths, margin, own_labels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gkp
from gkp.attacks.apgd import apgd_ce, apgd_dlr, apgd_t, checkpoints, watch
from gkp.attacks.balls import uniform_start
from gkp.attacks.network import dlr, logits_and_gradient, targeted_dlr
from gkp.attacks.options import ATTACKS
from gkp.errors import BadInput


class Classes(nn.Module):
    """Logits w_k . x + b_k."""

    def __init__(self, w: list[list[float]], b: list[float], scale: float = 1.0):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(w) * scale), torch.tensor(b) * scale

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.T + self.b


def grey(n: int, pixels: int = 4) -> Tensor:
    return torch.full((n, 1, 1, pixels), 0.5)


# --- losses ---------------------------------------------------------------------------------------------------------


def test_the_difference_of_logits_ratio_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0]]).expand(4, 4)
    # 1st - 3rd = 2.5; the label against the largest other
    assert dlr(logits, torch.arange(4)).tolist() == pytest.approx([-2 / 2.5, 2 / 2.5, 2.5 / 2.5, 4 / 2.5])


def test_the_targeted_ratio_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0]]).expand(3, 4)
    # 1st - (3rd + 4th) / 2 = 3.25; the label against the target
    found = targeted_dlr(logits, torch.tensor([0, 0, 2]), torch.tensor([1, 3, 0]))
    assert found.tolist() == pytest.approx([-2 / 3.25, -4 / 3.25, 2.5 / 3.25])


@settings(deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=4, max_size=8, unique=True), st.floats(0.01, 100), st.integers(-9, 9))
def test_the_ratios_do_not_depend_on_scale_or_shift_and_are_positive_exactly_when_misclassified(values, scale, shift):
    logits, y = torch.tensor([values], dtype=torch.float64), torch.tensor([1])
    runner_up = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    for loss in (dlr, lambda z, label: targeted_dlr(z, label, runner_up)):
        value = loss(logits, y)
        torch.testing.assert_close(loss(logits * scale + shift, y), value, rtol=1e-9, atol=1e-9)
        assert bool(value > 0) == bool(logits.argmax(1) != y)


def test_equal_logits_have_a_finite_ratio_and_gradient():
    _, gradient = logits_and_gradient(Classes([[0.0], [0.0], [0.0]], [1.0] * 3), grey(1, 1), torch.tensor([0]), loss="dlr")
    assert gradient.abs().max() == 0


# --- the step-size rule ---------------------------------------------------------------------------------------------


def test_the_checkpoints_are_the_papers():
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(20) == [0, 5, 9, 12, 14, 16, 18, 19, 20]  # the same shares of 20, rounded up
    assert checkpoints(1) == [0, 1]


def sizes(*curves: list[float], every: int = 4) -> list[list[float]]:
    """Step sizes, from 1, of images with these loss curves after each checkpoint, `every` steps apart."""
    n = len(curves)
    inf, zero = torch.full((n,), torch.inf), torch.zeros(n, dtype=torch.long)
    state = {"loss": inf, "highest": -inf, "rises": zero, "highest_then": -inf, "halved_then": zero == 0}
    state, seen = {**state, "size": torch.ones(n, 1, 1, 1)}, []
    for step, losses in enumerate(torch.tensor(curves).T):
        at = step % every == 0
        state, halved = watch(state, losses, torch.full((n,), (every if step else 0) if at else -1))
        assert at or not halved.any()
        if at and step:
            seen.append(state["size"].flatten().tolist())
    return [list(column) for column in zip(*seen, strict=True)]


def test_the_step_size_is_halved_where_the_loss_rises_in_fewer_than_three_of_four_steps():
    steady = [0.0, 1, 2, 3, 4, 5, 6, 7, 8]
    three = [0.0, 1, 2, 1, 3, 4, 5, 4, 6]  # exactly three rises between checkpoints is enough
    two = [0.0, 2, 1, 3, 2, 4, 5, 6, 7]  # two rises, then four from where the loss was highest, which was 3
    assert sizes(steady, three, two) == [[1, 1], [1, 1], [0.5, 0.5]]


def test_the_step_size_is_halved_where_nothing_has_improved_but_not_twice_in_a_row():
    #      start | a fall, three rises | the same, from 10 | four rises, none above 10 | two rises
    curve = [10.0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9.5, 9.7, 1, 2, 3, 1]
    assert sizes(curve) == [[0.5, 0.5, 0.25, 0.125]]


def test_rises_after_a_halving_count_from_the_highest_loss_to_which_the_image_went_back():
    back = [5.0, 4, 3, 2, 1, 4, 5.5, 6, 7]  # halved at 4, back at 5; 4 is no rise, the three after it are
    twice = [5.0, 4, 3, 2, 1, 2, 3, 6, 7]  # the first of these is no rise from 5 either, the second is one from 2: three
    never = [5.0, 4, 3, 2, 1, 4, 3, 6, 7]  # two: halved again
    assert sizes(back, twice, never) == [[0.5, 0.5], [0.5, 0.5], [0.5, 0.25]]


# --- algorithm 1 ----------------------------------------------------------------------------------------------------


def algorithm_1(net: nn.Module, x: Tensor, y: Tensor, now: Tensor, eps: float, norm: str, loss: str) -> Tensor:
    """Croce & Hein's algorithm 1 for one image and 100 steps, none left out: the point of highest loss."""

    def ask(z: Tensor) -> tuple[float, Tensor]:
        logits, gradient = logits_and_gradient(net, z, y, loss=loss)
        value = nn.functional.cross_entropy(logits, y) if loss == "ce" else dlr(logits, y)
        return value.item(), gradient.sign() if norm == "linf" else gradient / gradient.flatten().norm()

    def inside(z: Tensor) -> Tensor:
        far = (z - x).flatten().norm().item()
        return (x + ((z - x).clamp(-eps, eps) if norm == "linf" else (z - x) * min(1.0, eps / far))).clamp(0, 1)

    eta, value_rises, history = 2 * eps, 0, []
    f, g = ask(now)
    f_best, best, g_best, f_checked, halved = f, now, g, f, False
    before = now
    for k in range(100):
        z = inside(now + eta * g)
        before, now = now, z if k == 0 else inside(now + 0.75 * (z - now) + 0.25 * (now - before))
        f_before, (f, g) = f, ask(now)
        value_rises += f > f_before
        if f > f_best:
            f_best, best, g_best = f, now, g
        if (w := k + 1) in (22, 41, 57, 70, 80, 87, 93, 99):
            last = history[-1] if history else 0
            halved = value_rises < 0.75 * (w - last) or (not halved and f_best == f_checked)
            if halved:
                eta, now, f, g = eta / 2, best, f_best, g_best
            history, value_rises, f_checked = [*history, w], 0, f_best
    return best


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_every_image_walks_as_in_the_papers_algorithm(norm, loss):
    net, x = conv_net().double().eval(), images(3).double()
    y, eps = own_labels(net, x), 0.003 if norm == "linf" else 0.03
    found = ATTACKS[f"apgd-{loss}"](net, x, y, eps=eps, norm=norm, seed=3)
    assert torch.equal(own_labels(net, found), y)  # so small a ball that none leaves early
    for i in range(3):
        one, label = x[i : i + 1], y[i : i + 1]
        start = uniform_start(one, torch.tensor([i]), eps, norm, (0.0, 1.0), 3, 0)
        torch.testing.assert_close(found[i : i + 1], algorithm_1(net, one, label, start, eps, norm, loss), rtol=0, atol=1e-7)


# --- closed form ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_apgd_reaches_the_least_margin_of_a_linear_model(norm, dual):
    x, y = grey(5).view(5, 1, 2, 2), torch.tensor([1] * 5)
    found = apgd_ce(Linear(b=1.0), x, y, eps=0.1, norm=norm)
    assert margin(Linear(b=1.0), found, y).tolist() == pytest.approx([1 - 0.1 * W.norm(p=dual).item()] * 5, abs=2e-6)
    assert lengths(found - x, norm).max() <= 0.1 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_image_falls_to_apgd_exactly_when_its_margin_is_below_eps_times_the_dual_norm(norm):
    reach = 0.1 * W.norm(p=1 if norm == "linf" else 2).item()
    for attack in (apgd_ce, apgd_dlr, apgd_t):
        for share in (0.99, 1.01):
            # class 0 against class 1; the others keep out of the way
            b = [reach * share, 0.0, -5.0, -6.0]
            net = Classes([[0.0] * 4, W[0].tolist(), [0.0] * 4, [0.0] * 4], b)
            found = attack(net, grey(3), torch.zeros(3, dtype=torch.long), eps=0.1, norm=norm)
            assert (own_labels(net, found) == 1).tolist() == [share < 1] * 3


def test_the_ratio_falls_where_cross_entropy_has_no_gradient_left():
    # the margin is 0.5 on grey and falls by 2 eps, the start moves it by 0.05 or so; the probability is 1 in float32
    net = Classes([[0.01] * 100, [-0.01] * 100, [0.0] * 100], [0.0, 0.5, -1.0], scale=1e4)
    y = torch.zeros(2, dtype=torch.long)
    assert torch.equal(own_labels(net, apgd_ce(net, grey(2, 100), y, eps=0.3)), y)
    assert own_labels(net, apgd_dlr(net, grey(2, 100), y, eps=0.3)).tolist() == [1, 1]


def test_targets_are_the_likeliest_classes_after_the_true_one_in_that_order():
    # class 1 comes second and never moves; class 2 comes third and can be reached
    net, y = Classes([[0.0], [0.0], [8.0], [0.0], [0.0]], [1.0, 0.9, -4.0, -1.0, -2.0]), torch.zeros(2, dtype=torch.long)
    model = Counting(net)
    assert torch.equal(own_labels(net, apgd_t(model, grey(2, 1), y, eps=0.2, targets=1, steps=10)), y)
    assert len(model.seen) == 1 + 1 + 11  # clean logits, who stands, ten steps and a last look
    assert own_labels(net, apgd_t(net, grey(2, 1), y, eps=0.2, targets=2, steps=10)).tolist() == [2, 2]


def test_there_are_no_more_targets_than_other_classes():
    net, y = Classes([[0.0]] * 4, [1.0, 0.9, 0.0, -1.0]), torch.zeros(2, dtype=torch.long)
    net.w.data[1:] += 0.1
    model = Counting(net)
    apgd_t(model, grey(2, 1), y, eps=0.01, steps=2, restarts=2)
    assert len(model.seen) == 1 + 1 + 3 * 2 * (3 + 1)


# --- who leaves when ------------------------------------------------------------------------------------------------


def test_a_fallen_image_leaves_at_once_and_makes_room():
    weak, strong = grey(20).view(20, 1, 2, 2).clone(), grey(20).view(20, 1, 2, 2).clone()
    weak[:, :, 0, 0], strong[:, :, 0, 0] = 0.52, 0.9  # margins 0.01 and 0.2; eps takes 0.16
    model = Counting(Linear())
    apgd_ce(model, torch.cat([weak, strong]), torch.ones(40, dtype=torch.long), eps=0.04, steps=3, batch_size=20)
    # in two halves beforehand; the weak fall at their start or after one step of 2 eps, the strong come in and never fall
    assert (
        model.seen[:3] == [20, 20, 20] and set(model.seen[3:]) <= {16, 20} and sum(model.seen[2:]) < 20 * (1 + 1 + 4) + 16 * 4
    )


def test_restarts_find_what_one_start_misses():
    model, x, y = Plateau(0.5, 10.0), torch.full((64, 1, 1, 1), 0.5), torch.ones(64, dtype=torch.long)
    fallen = [own_labels(model, apgd_ce(model, x, y, eps=0.1, steps=10, restarts=r)) != y for r in (1, 12)]
    assert 16 < fallen[0].sum() < 48  # a start on the plateau has no gradient: half of them
    assert fallen[1].all()


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t"])
def test_an_image_misclassified_beforehand_comes_back_unchanged(name):
    net, x = conv_net().eval(), images(20)
    y = (own_labels(net, x) + torch.arange(20) % 2) % 5  # every second label is wrong
    found = ATTACKS[name](net, x, y, eps=0.05, steps=5)
    assert torch.equal(found[1::2], x[1::2])
    assert not torch.isclose(found[::2], x[::2]).flatten(1).all(1).any()


def test_no_images_give_no_images():
    for name in ("apgd-ce", "apgd-dlr", "apgd-t", "cascade"):
        assert ATTACKS[name](conv_net().eval(), images(0), torch.empty(0, dtype=torch.long), eps=0.1).shape == (0, 3, 8, 8)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("apgd-ce", {"steps": 0}, "steps of apgd-ce must be a whole number of 1 or more, not 0"),
        ("apgd-dlr", {"restarts": 1.5}, "restarts of apgd-dlr must be a whole number"),
        ("apgd-t", {"targets": 0}, "targets of apgd-t must be a whole number of 1 or more, not 0"),
        ("apgd-t", {"batch_size": True}, "batch_size of apgd-t must be"),
        ("apgd-ce", {"targets": 3}, "apgd-ce has no option 'targets'; its options: steps, restarts, norm"),
        ("apgd-ce", {"norm": "l1"}, "unknown norm 'l1'; known: linf, l2"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(BadInput, match=message):
        gkp.attack(conv_net(), images(2), torch.tensor([0, 1]), name, eps=0.1, **options)


@pytest.mark.parametrize(("name", "needed"), [("apgd-dlr", 3), ("apgd-t", 4)])
def test_too_few_classes_for_the_ratio_are_refused(name, needed):
    for classes in (needed - 1, needed):
        net = Classes([[float(k)] for k in range(classes)], [0.0] * classes)
        if classes == needed:
            gkp.attack(net, grey(2, 1), torch.tensor([0, classes - 1]), name, eps=0.1, steps=2)
        else:
            with pytest.raises(BadInput, match=rf"{name} needs {needed} classes, the network has {classes}; use .* apgd-ce"):
                gkp.attack(net, grey(2, 1), torch.tensor([0, classes - 1]), name, eps=0.1, steps=2)


def test_too_few_classes_for_the_ratio_as_a_loss_are_refused():
    with pytest.raises(BadInput, match="ratio needs 3 classes, the network has 2"):
        logits_and_gradient(Linear(), grey(2), torch.tensor([0, 1]), loss="dlr")
