"""FGSM, PGD and what all attacks share: linear models (closed form), and everything that a user may pass by mistake."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from attack_nets import Counting, Linear, Plateau, W, conv_net, images, lengths, margin, own_labels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gkp
from gkp.attacks.gradient import fgsm, pgd
from gkp.attacks.network import MIN_ROWS, input_gradient, logits_and_gradient
from gkp.attacks.options import ATTACKS, parse_eps
from gkp.errors import BadInput
from gkp.networks.fingerprint import state_sha256

OWN = {  # attacks by gradients, with options that keep tests short
    "fgsm": {}, "pgd": {"steps": 4, "restarts": 2}, "apgd-ce": {"steps": 12}, "apgd-dlr": {"steps": 6, "restarts": 2},
    "apgd-t": {"steps": 6, "targets": 2},
    "cascade": {"attacks": ("fgsm", {"attack": "pgd", "steps": 4}, {"attack": "apgd-dlr", "steps": 6})},
}  # fmt: skip


# --- closed form ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("label", [0, 1])
def test_fgsm_lowers_the_margin_of_a_linear_model_by_eps_times_the_dual_norm_of_its_weights(norm, dual, label):
    model, x, y = Linear(), torch.full((1, 1, 2, 2), 0.5), torch.tensor([label])
    drop = margin(model, x, y) - margin(model, fgsm(model, x, y, eps=0.1, norm=norm), y)
    assert drop.item() == pytest.approx(0.1 * W.norm(p=dual).item(), rel=1e-5)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_reaches_the_same_optimum_of_a_linear_model_from_any_start(norm, dual, random_start):
    model, x, y = Linear(), torch.full((5, 1, 2, 2), 0.5), torch.tensor([0, 1, 0, 1, 1])
    found = pgd(model, x, y, eps=0.1, norm=norm, steps=40, step=0.02, random_start=random_start, drop_fallen=False)
    drop = margin(model, x, y) - margin(model, found, y)
    assert drop.tolist() == pytest.approx([0.1 * W.norm(p=dual).item()] * 5, rel=2e-4)


def test_pgd_uses_the_room_that_the_clip_box_leaves_and_no_more():
    x = torch.tensor([0.95, 0.02, 0.5, 0.01]).view(1, 1, 2, 2)  # label 0: every weight pulls its pixel up or down
    found = pgd(Linear(), x, torch.tensor([0]), eps=0.1, steps=10, drop_fallen=False, random_start=False)
    assert found.flatten().tolist() == pytest.approx([1.0, 0.0, 0.5, 0.11], abs=1e-6)


def test_pgd_without_random_start_walks_step_by_step():
    model, x, y = Linear(), torch.full((1, 1, 2, 2), 0.5), torch.tensor([1])
    found = pgd(model, x, y, eps=8 / 255, step=2 / 255, steps=3, random_start=False, drop_fallen=False)
    assert (x - found).flatten().tolist() == pytest.approx((6 / 255 * W.sign()).flatten().tolist(), abs=1e-6)


def test_the_default_step_crosses_the_ball_but_not_in_fewer_than_steps_over_two_and_a_half_moves():
    model, x, y = Linear(), torch.full((1, 1, 2, 2), 0.5), torch.tensor([1])
    one = pgd(model, x, y, eps=0.1, steps=1, random_start=False, drop_fallen=False)
    ten = pgd(model, x, y, eps=0.1, steps=10, step=None, random_start=False, drop_fallen=False)
    explicit = pgd(model, x, y, eps=0.1, steps=10, step=0.025, random_start=False, drop_fallen=False)
    assert torch.equal(ten, explicit) and lengths(one - x, "linf").item() == pytest.approx(0.1, abs=1e-6)


def test_the_input_gradient_of_a_linear_model_is_its_weights_times_the_missing_probability():
    model, x = Linear(), images(3, (1, 2, 2))
    p = torch.sigmoid(x.flatten(1) @ W[0])[:, None]
    gradient = input_gradient(model, x, torch.ones(3, dtype=torch.long)).flatten(1)
    torch.testing.assert_close(gradient, -(1 - p) * W)
    assert model.w.grad is None


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_an_image_without_gradient_stays_where_it_is(name, norm):
    options = {"random_start": False} if name == "pgd" else {}
    x = images(2, (1, 2, 2))
    found = ATTACKS[name](Linear(W * 0, b=1.0), x, torch.ones(2, dtype=torch.long), eps=0.1, norm=norm, **options)
    assert torch.equal(found, x)


def test_a_gradient_whose_squares_underflow_still_gives_an_l2_step_of_full_length():
    x = torch.full((1, 1, 2, 2), 0.5)
    found = fgsm(Linear(W * 1e-30), x, torch.tensor([1]), eps=0.1, norm="l2")
    assert lengths(found - x, "l2").item() == pytest.approx(0.1, rel=1e-5)


# --- inside the ball, inside the box ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    eps=st.floats(0, 1), norm=st.sampled_from(["linf", "l2"]), name=st.sampled_from([*OWN]),
    n=st.integers(1, 4), channels=st.integers(1, 3), side=st.integers(2, 7), seed=st.integers(0, 2**64 - 1),
    drop=st.booleans(), random_start=st.booleans(),
)  # fmt: skip
def test_perturbations_obey_eps_and_bounds(eps, norm, name, n, channels, side, seed, drop, random_start):
    net = conv_net(channels, seed=seed % 7)
    x = images(n, (channels, side, side), seed=seed % 2**31).mul(1.4).sub(0.2).clamp(0, 1)  # some pixels at the very ends
    y = torch.arange(n) % 5
    more = {"drop_fallen": drop, "random_start": random_start, "steps": 4} if name == "pgd" else OWN[name]
    found = gkp.attack(net, x, y, name, eps=eps, norm=norm, seed=seed, **more)
    assert found.shape == x.shape and found.dtype == x.dtype and bool(found.isfinite().all())
    assert lengths(found - x, norm).max() <= eps + 1e-6
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", OWN)
def test_eps_zero_gives_the_images_themselves(name, norm):
    net, x = conv_net(), images(5)
    assert torch.equal(
        gkp.attack(net, x, own_labels(net, x), name, eps=0, norm=norm, **(OWN[name] if norm == "linf" else {})), x
    )


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_other_bounds_are_kept_exactly(name):
    x = images(20, (1, 2, 2)).mul(5.1).sub(2.4)
    options = {"drop_fallen": False} if name == "pgd" else {}
    found = ATTACKS[name](Linear(), x, torch.arange(20) % 2, eps=0.5, bounds=(-2.4291, 2.7537), **options)
    assert [found.min(), found.max()] == torch.tensor([-2.4291, 2.7537]).tolist()  # reached, in float32, and not passed


# --- randomness -----------------------------------------------------------------------------------------------------


def starts(n: int, shape: tuple[int, int, int] = (3, 4, 4), **options) -> Tensor:
    """Where the random starts of grey images lie from their images: a network without gradient makes no move."""
    x = torch.full((n, *shape), 0.5)
    flat = Linear(torch.zeros(1, x[0].numel()), b=1.0)
    return pgd(flat, x, torch.ones(n, dtype=torch.long), steps=1, drop_fallen=False, **options) - x


def test_a_random_start_depends_on_seed_and_id_alone():
    alone = starts(30, eps=0.1, seed=3)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:11]
    assert torch.equal(starts(11, eps=0.1, seed=3, ids=order), alone[order])
    assert torch.equal(starts(30, eps=0.1, seed=3, batch_size=4), alone)
    everyone = torch.cat([alone, starts(30, eps=0.1, seed=4), starts(30, eps=0.1, seed=3, ids=torch.arange(30) + 2**40)])
    assert len(everyone.flatten(1).unique(dim=0)) == 90


def test_random_starts_fill_the_linf_ball_evenly():
    offsets = starts(400, eps=0.2) / 0.2  # 19,200 uniform numbers in [-1, 1]: variance 1/3
    assert offsets.abs().max() <= 1 + 1e-5
    assert offsets.mean().item() == pytest.approx(0, abs=4 * (1 / 3 / offsets.numel()) ** 0.5)
    assert offsets.var().item() == pytest.approx(1 / 3, rel=0.03)


def test_random_starts_fill_the_l2_ball_evenly():
    radii = lengths(starts(2000, (1, 2, 2), eps=0.2, norm="l2") / 0.2, "l2")
    assert radii.max() <= 1 + 1e-5
    for radius in (0.5, 0.8, 0.95):  # a share of radius ** 4 of a ball in 4 dimensions lies within
        share = radius**4
        assert (radii < radius).float().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", OWN)
def test_what_happens_to_an_image_does_not_depend_on_its_neighbours_or_the_batch_size(name, norm):
    net, x = conv_net(), images(30)
    y, ids = own_labels(net, x), torch.arange(30) + 1000
    options = {"seed": 5, "eps": 0.02 if norm == "linf" else 0.3, "norm": norm, **OWN[name]}
    together = gkp.attack(net, x, y, name, ids=ids, **options)
    for size in (1, 7):
        parts = zip(x.split(size), y.split(size), ids.split(size), strict=True)
        apart = [gkp.attack(net, *part, name, ids=who, **options) for *part, who in parts]
        assert torch.equal(torch.cat(apart), together)
        assert torch.equal(gkp.attack(net, x, y, name, ids=ids, batch_size=size, **options), together)
    still_right = own_labels(net, together) == y
    assert 0 < still_right.sum() < 30  # the comparison saw images that fell and images that did not


# --- leaving the batch ----------------------------------------------------------------------------------------------


def test_a_fallen_image_leaves_the_batch_and_is_not_shown_to_the_network_again():
    weak, strong = torch.full((20, 1, 2, 2), 0.5), torch.full((20, 1, 2, 2), 0.5)
    weak[:, :, 0, 0], strong[:, :, 0, 0] = 0.54, 0.9  # margins 0.02 and 0.2; one step of 0.01 takes 0.04
    model = Counting(Linear())
    pgd(model, torch.cat([weak, strong]), torch.ones(40, dtype=torch.long), eps=0.04, step=0.01, steps=4, random_start=False)
    assert model.seen == [40, 40, 40, 20, 20]  # beforehand; at the images; after step 1, where 20 are found; 2; 3


def test_a_fallen_image_sits_out_the_next_restart():
    weak, strong = torch.full((20, 1, 2, 2), 0.5), torch.full((20, 1, 2, 2), 0.5)
    weak[:, :, 0, 0], strong[:, :, 0, 0] = 0.51, 0.9  # margins 0.005 and 0.2; eps takes 0.16
    model = Counting(Linear())
    pgd(model, torch.cat([weak, strong]), torch.ones(40, dtype=torch.long), eps=0.04, steps=4, restarts=2)
    assert model.seen[:2] == [40, 40] and model.seen[-6:] == [40, 20, 20, 20, 20, 20]  # 40: who fell in the first ascent?


def test_an_image_misclassified_beforehand_comes_back_unchanged():
    x = images(40, (1, 2, 2))
    y = (Linear()(x).argmax(1) + torch.arange(40) % 2) % 2  # every second label is wrong
    found = pgd(Linear(), x, y, eps=0.1)
    assert torch.equal(found[1::2], x[1::2])
    assert not torch.isclose(found[::2], x[::2]).flatten(1).all(1).any()


def test_a_fallen_image_comes_back_as_it_was_found():
    x = torch.full((1, 1, 2, 2), 0.5)
    x[:, :, 0, 0] = 0.54
    first = fgsm(Linear(), x, torch.tensor([1]), eps=0.01)  # margin 0.02 - 0.04: fallen after one step
    found = pgd(Linear(), x, torch.tensor([1]), eps=0.04, step=0.01, steps=4, random_start=False)
    torch.testing.assert_close(found, first)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_dropping_fallen_images_finds_at_least_as_many_as_walking_on(norm):
    net, x = conv_net().eval(), images(60)
    y, eps = own_labels(net, x), 0.03 if norm == "linf" else 0.4
    fallen = [own_labels(net, pgd(net, x, y, eps=eps, norm=norm, drop_fallen=drop)) != y for drop in (True, False)]
    assert 0 < fallen[1].sum() < 60
    assert not (fallen[1] & ~fallen[0]).any()


def test_restarts_find_what_one_start_misses():
    model, x, y = Plateau(0.5, 10.0), torch.full((64, 1, 1, 1), 0.5), torch.ones(64, dtype=torch.long)
    fallen = [own_labels(model, pgd(model, x, y, eps=0.1, restarts=r)) != y for r in (1, 12)]
    assert 16 < fallen[0].sum() < 48  # a start on the plateau has no gradient: half of them
    assert fallen[1].all() and (fallen[1] | ~fallen[0]).all()


@pytest.mark.parametrize("drop_fallen", [True, False])
def test_of_an_image_that_never_falls_the_iterate_of_highest_loss_comes_back(drop_fallen):
    model, x, y = Plateau(0.5, 2.0), torch.full((32, 1, 1, 1), 0.5), torch.ones(32, dtype=torch.long)
    found = pgd(model, x, y, eps=0.1, restarts=12, drop_fallen=drop_fallen)
    assert found.flatten().tolist() == pytest.approx([0.6] * 32, abs=1e-6)  # the deepest point of the ball, margin 0.3


# --- the network is left alone --------------------------------------------------------------------------------------


def global_randomness() -> tuple:
    legacy = np.random.get_state()  # noqa: NPY002 - the one that must not be used is the one to look at
    return torch.get_rng_state().numpy().tobytes(), legacy[1].tobytes(), legacy[2], random.getstate()


@pytest.mark.parametrize("name", OWN)
def test_an_attack_works_in_eval_mode_and_leaves_everything_as_it_was(name):
    net, x, y = conv_net().train(), images(20), torch.arange(20) % 5
    net[1].eval()  # a mixture, as when BatchNorm is frozen for fine-tuning
    net[0].weight.grad = torch.full_like(net[0].weight, 7.0)
    net[4].weight.requires_grad_(False)
    modes, state, generators = [m.training for m in net.modules()], state_sha256(net), global_randomness()
    found = gkp.attack(net, x, y, name, eps="2/255", **OWN[name])
    assert torch.equal(
        gkp.attack(net.eval(), x, y, name, eps=2 / 255, seed=0, **OWN[name]), found
    )  # dropout would have differed
    for module, training in zip(net.modules(), modes, strict=True):
        module.training = training
    found = gkp.attack(net, x, y, name, eps="2/255", **OWN[name])
    assert [m.training for m in net.modules()] == modes and state_sha256(net) == state
    assert global_randomness() == generators
    assert torch.equal(net[0].weight.grad, torch.full_like(net[0].weight, 7.0)) and net[8].weight.grad is None
    assert net[0].weight.requires_grad and not net[4].weight.requires_grad and not found.requires_grad


def test_the_mode_is_restored_after_a_failure_too():
    net = conv_net().train()
    with pytest.raises(BadInput):
        gkp.attack(net, images(3), torch.tensor([0, 1, 99]), "fgsm", eps=0.1)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_an_attack_works_where_gradients_are_switched_off(context):
    net, x, y = conv_net(), images(4), torch.arange(4)
    expected = gkp.attack(net, x, y, "pgd", eps=0.1, steps=3)
    with context():
        assert torch.equal(gkp.attack(net, x.clone(), y.clone(), "pgd", eps=0.1, steps=3), expected)


def test_the_images_given_are_not_written_to():
    net, x, y = conv_net(), images(MIN_ROWS + 3), torch.arange(MIN_ROWS + 3) % 5
    before = x.clone()
    for name, options in OWN.items():
        gkp.attack(net, x, y, name, eps=0.1, **options)
    assert torch.equal(x, before)


# --- bad input ------------------------------------------------------------------------------------------------------

X, Y = images(4), torch.arange(4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "pdg"}, "unknown attack 'pdg'; known: fgsm, pgd"),
        ({"x": (X * 255).to(torch.uint8)}, "images are torch.uint8; give a float tensor"),
        ({"x": X.numpy()}, "images are ndarray"),
        ({"x": X[0]}, r"images have the shape \(3, 8, 8\); give \(N, C, H, W\)"),
        ({"x": X[:0], "y": Y[:0]}, "at least one image"),
        ({"x": X * 255}, "images must lie in .0, 1., they run from .* pixels / 255"),
        ({"x": X - 0.5}, "images must lie in .0, 1."),
        ({"x": X.clone().index_fill_(0, torch.tensor(2), float("nan"))}, "NaN among them"),
        ({"x": X.double()}, "does not take torch.float64 images"),
        ({"x": X[:, :1]}, r"does not take torch.float32 images of shape \(1, 8, 8\)"),
        ({"y": Y.float()}, "labels are torch.float32"),
        ({"y": Y[:3]}, r"labels are torch.int64 \(3,\); give an int64 tensor of shape \(4,\)"),
        ({"y": Y.numpy()}, "labels are ndarray"),
        ({"y": Y + 2}, "labels run from 2 to 5, but the network has 5 logits: give 0..4"),
        ({"y": Y - 1}, "labels run from -1 to 2"),
        ({"eps": -0.1}, "eps -0.1 is negative"),
        ({"eps": 8}, 'eps 8 is above 1, .* write "8/255"'),
        ({"eps": "8"}, "eps '8' is above 1, .* write \"8/255\""),
        ({"eps": "8/0"}, "eps '8/0' is not a number"),
        ({"eps": "eight"}, "eps 'eight' is not a number; write pixel units as 8 / 255"),
        ({"eps": float("nan")}, "not a finite number"),
        ({"eps": None}, "eps None is not a finite number"),
        ({"eps": True}, "eps True is not a finite number"),
        ({"norm": "linfinity"}, "unknown norm 'linfinity'; known: linf, l2"),
        ({"iterations": 3}, "pgd has no option 'iterations'; its options: step, steps, restarts"),
        ({"name": "fgsm", "steps": 3}, "fgsm has no option 'steps'; its options: norm, ids, bounds"),
        ({"steps": 0}, "steps of pgd must be a whole number of 1 or more, not 0"),
        ({"steps": 2.5}, "steps of pgd must be a whole number"),
        ({"step": 0.0}, "step of pgd must be a number above 0"),
        ({"restarts": 0}, "restarts of pgd must be"),
        ({"restarts": 2, "random_start": False}, "2 restarts of pgd without random_start repeat one ascent"),
        ({"batch_size": 0}, "batch_size of pgd must be"),
        ({"seed": -1}, "seed must be an integer"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"ids": torch.arange(3)}, "ids are torch.int64 .3,.; give 4 integers"),
        ({"ids": torch.arange(4) - 1}, "ids are torch.int64 .4,.; give 4 integers >= 0"),
        ({"model": lambda x: x}, "the model is a function; give a torch.nn.Module"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line_that_says_what_and_how_to_mend_it(changed, message):
    call = {"model": conv_net(), "x": X, "y": Y, "name": "pgd", "eps": 0.1, **changed}
    with pytest.raises(BadInput, match=message) as caught:
        gkp.attack(**call)
    assert "\n" not in str(caught.value)


class Altered(nn.Module):
    """A linear network whose logits are passed through `change`."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), change
        nn.init.constant_(self.net[1].weight, 0.01)
        self.net[1].bias.data = torch.eye(5)[0]  # class 0 for every image

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x))


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits * float("nan"), "logits with NaN or Inf"),
        (lambda logits: logits.detach(), "the logits carry no gradient"),
        (lambda logits: (logits - logits).pow(0.5), "the gradient of the images has NaN or Inf"),
        (lambda logits: logits.sum(1), r"gives \(16,\) for a batch of images"),
        (lambda logits: [logits], "gives list for a batch of images"),
    ],
)
def test_a_network_that_cannot_be_attacked_is_refused(name, change, message):
    with pytest.raises(BadInput, match=message):
        gkp.attack(Altered(change), X, Y * 0, name, eps=0.1)


def test_a_network_that_ignores_its_images_is_refused():
    net = nn.Module()
    net.logits = nn.Parameter(torch.tensor([1.0, 0.0]))
    net.forward = lambda x: net.logits.expand(len(x), 2)
    with pytest.raises(BadInput, match="do not depend on the images"):
        gkp.attack(net, X, Y * 0, "fgsm", eps=0.1)


def test_an_unknown_loss_is_refused():
    with pytest.raises(BadInput, match="unknown loss 'margin'; known: ce, dlr"):
        logits_and_gradient(conv_net().eval(), X, Y, loss="margin")


@pytest.mark.parametrize(
    ("given", "number"),
    [("8/255", 8 / 255), (" 0.5 / 255", 0.5 / 255), ("0.03", 0.03), ("1e-2", 0.01), (1, 1.0), (np.float32(0.5), 0.5)],
)
def test_a_radius_may_be_a_number_or_a_fraction_in_a_string(given, number):
    assert parse_eps(given) == number


def test_an_l2_radius_may_exceed_one():
    assert parse_eps(2.5, norm="l2") == 2.5
