"""A cascade is the worst case over its attacks, each asked only about what the ones before left standing."""

from __future__ import annotations

import pytest
import torch
from attack_nets import Counting, Linear, conv_net, images, lengths, own_labels

import gkp
from gkp.attacks.cascade import cascade
from gkp.attacks.gradient import fgsm, pgd
from gkp.attacks.options import ATTACKS
from gkp.errors import BadInput
from gkp.evaluation.outcomes import AttackSpec

PARTS = ("fgsm", {"attack": "pgd", "steps": 5}, {"attack": "apgd-dlr", "steps": 10})


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.12)])
def test_a_cascade_fells_exactly_the_images_that_one_of_its_attacks_fells(norm, eps):
    net, x = conv_net().eval(), images(60)
    y, shared = own_labels(net, x), {"eps": eps, "norm": norm, "seed": 4, "ids": torch.arange(60) + 9}
    down = [own_labels(net, ATTACKS["fgsm"](net, x, y, **shared)) != y]
    for part in PARTS[1:]:
        options = dict(part)
        down.append(own_labels(net, ATTACKS[options.pop("attack")](net, x, y, **shared, **options)) != y)
    found = cascade(net, x, y, attacks=PARTS, batch_size=16, **shared)
    assert torch.equal(own_labels(net, found) != y, torch.stack(down).any(0))
    assert 0 < down[0].sum() < torch.stack(down).any(0).sum() < 60  # each kind of image was there
    assert lengths(found - x, norm).max() <= eps + 1e-6


def test_the_first_success_comes_back_and_the_next_attack_sees_only_what_stands():
    weak, strong = torch.full((20, 1, 2, 2), 0.5), torch.full((30, 1, 2, 2), 0.5)
    weak[:, :, 0, 0], strong[:, :, 0, 0] = 0.54, 0.9  # margins 0.02 and 0.2; eps takes 0.16
    x, y, model = torch.cat([weak, strong]), torch.ones(50, dtype=torch.long), Counting(Linear())
    found = cascade(model, x, y, eps=0.04, attacks=["fgsm", {"attack": "pgd", "steps": 3, "random_start": False}])
    assert torch.equal(found[:20], fgsm(Linear(), weak, y[:20], eps=0.04))
    # beforehand, fgsm and what it led to; then pgd: beforehand, three steps; and what they led to
    assert model.seen == [50, 50, 50, 30, 30, 30, 30, 30]


def test_an_image_that_no_attack_fells_comes_back_as_the_attack_of_highest_loss_left_it():
    x = torch.full((20, 1, 2, 2), 0.5)
    x[:, :, 0, 0] = 0.9
    short = {"attack": "pgd", "step": 0.01, "steps": 1, "random_start": False}
    found = cascade(Linear(), x, torch.ones(20, dtype=torch.long), eps=0.04, attacks=["fgsm", short])
    assert torch.equal(found, fgsm(Linear(), x, torch.ones(20, dtype=torch.long), eps=0.04))


def test_images_misclassified_beforehand_come_back_unchanged_and_are_shown_to_no_attack():
    x, model = images(40, (1, 2, 2)), Counting(Linear())
    y = 1 - own_labels(Linear(), x)
    assert torch.equal(cascade(model, x, y, eps=0.1), x) and model.seen == [40]


def test_bounds_reach_every_attack():
    x = torch.full((20, 1, 2, 2), 2.0)
    x[:, :, 0, 0] = 2.1
    options = {"eps": 0.5, "bounds": (1.9, 2.2), "attacks": ["pgd"]}
    found = cascade(Linear(), x, torch.ones(20, dtype=torch.long), **options)
    assert torch.equal(found, pgd(Linear(), x, torch.ones(20, dtype=torch.long), eps=0.5, bounds=(1.9, 2.2)))
    assert found.min() >= 1.9 and found.max() <= 2.2


def test_a_cascade_of_one_attack_is_that_attack():
    net, x = conv_net().eval(), images(20)
    y = own_labels(net, x)
    expected = pgd(net, x, y, eps=0.02, seed=3, steps=4)
    assert torch.equal(cascade(net, x, y, eps=0.02, seed=3, attacks=[{"attack": "pgd", "steps": 4}]), expected)


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        (["fgsm", "cascade"], "a cascade cannot be in a cascade; give its attacks in one list"),
        (["fgsm", "pdg"], "unknown attack 'pdg'; known: fgsm, pgd"),
        ([{"attack": "pgd", "stepps": 3}], "pgd has no option 'stepps'; its options: step, steps, restarts, random_start"),
        ([{"attack": "pgd", "eps": 0.1}], "pgd has no option 'eps'"),
        ([{"attack": "pgd", "norm": "l2"}], "pgd has no option 'norm'"),
        ([{"attack": "pgd", "seed": 1}], "pgd has no option 'seed'"),
        ([{"name": "pgd"}], "an attack of a cascade is {'name': 'pgd'}; give names, or"),
        ([3], "an attack of a cascade is 3"),
        ("fgsm", "the attacks of a cascade are 'fgsm'; give names, or .* in a list of at least one"),
        ([], r"the attacks of a cascade are \[\]"),
        ({"attack": "pgd"}, "in a list of at least one"),
    ],
)
def test_what_is_no_cascade_is_refused_before_anything_is_attacked(attacks, message):
    with pytest.raises(BadInput, match=message):
        gkp.attack(conv_net(), images(2), torch.tensor([0, 1]), "cascade", eps=0.1, attacks=attacks)
    with pytest.raises(BadInput, match=message):
        AttackSpec("cascade", 0.1, options={"attacks": attacks})
