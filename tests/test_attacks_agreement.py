"""Agreement with independent implementations: foolbox for FGSM and PGD, pyautoattack for Auto-PGD.

Cost: most of a minute on one core, for the thousand images that foolbox walks with in full.
"""

from __future__ import annotations

import pytest
import torch
from attack_nets import conv_net, lengths, own_labels, right
from torch import Tensor, nn

import gkp
from gkp.checkpoints import load_model


@pytest.fixture(scope="module", params=["small network", "akamaster ResNet-20"])
def judged(request) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, foolbox's 20 real CIFAR-10 images and labels (for the small network: what it predicts)."""
    import foolbox

    akamaster = request.param != "small network"
    if akamaster:
        request.getfixturevalue("public_weights")
    net = (load_model("resnet20", weights="akamaster") if akamaster else conv_net()).eval()
    x, y = foolbox.utils.samples(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), dataset="cifar10", batchsize=20)
    return net, x, y if akamaster else own_labels(net, x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_agrees_with_foolbox_image_by_image(judged, norm):
    import foolbox

    net, x, y = judged
    theirs = foolbox.attacks.LinfFastGradientAttack() if norm == "linf" else foolbox.attacks.L2FastGradientAttack()
    for eps in (0.5 / 255, 2 / 255, 8 / 255) if norm == "linf" else (0.1, 0.5, 1.0):
        expected = theirs(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=eps)[1]
        found = gkp.attack(net, x, y, "fgsm", eps=eps, norm=norm)
        assert (found - expected).abs().gt(1e-5).float().mean() < 1e-3  # a sign of a gradient of 1e-9 may differ
        assert abs(right(net, found, y) - right(net, expected, y)) <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_agrees_with_foolbox(judged, norm, random_start):
    import foolbox

    net, x, y = judged
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    survivors = []
    for eps in (1 / 255, 4 / 255) if norm == "linf" else (0.1, 1.0):
        attack = kind(abs_stepsize=eps / 4, steps=10, random_start=random_start)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            expected = attack(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=eps)[1]
        survivors.append(right(net, expected, y))
        found = gkp.attack(net, x, y, "pgd", eps=eps, norm=norm, steps=10, random_start=random_start, drop_fallen=random_start)
        assert abs(right(net, found, y) - survivors[-1]) <= 1
    assert survivors[0] > survivors[-1]  # the radii tell something apart


# --- 1,000 real images ----------------------------------------------------------------------------------------------

BATCH = 50  # its activations stay in the cache: a tenth faster than 200 on both sides


@pytest.fixture(scope="module")
def thousand(cifar10_root, public_weights) -> tuple[nn.Module, Tensor, Tensor]:
    """The akamaster ResNet-20, in our engine for both sides, and what it gets right of the first 1,000 test images.

    An image that is misclassified beforehand counts against both sides alike.
    """
    test = gkp.load_dataset("cifar10", "test").first(1000)
    x, y = test.pixels(), test.labels
    pytest.importorskip("numba", reason='needs pip install "gkp[fast]"')
    net = gkp.compile(
        load_model("resnet20", weights="akamaster").eval()
    )  # gradients in two thirds of the time, of images alone
    known = torch.cat([own_labels(net, part) for part in x.split(BATCH)]) == y
    assert 900 < known.sum() < 940
    return net, x[known], y[known]


def robust(net: nn.Module, x: Tensor, y: Tensor) -> int:
    return sum(right(net, *part) for part in zip(x.split(BATCH), y.split(BATCH), strict=True))


def foolbox_finds(net: nn.Module, attack, x: Tensor, y: Tensor, eps: float) -> Tensor:
    import foolbox

    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    return torch.cat([attack(model, *part, epsilons=eps)[1] for part in zip(x.split(BATCH), y.split(BATCH), strict=True)])


def test_fgsm_has_foolboxs_robust_accuracy_on_a_thousand_images_within_two_of_them(thousand):
    import foolbox

    net, x, y = thousand
    for eps in (1 / 255, 8 / 255):
        found = gkp.attack(net, x, y, "fgsm", eps=eps, batch_size=BATCH)
        expected = foolbox_finds(net, foolbox.attacks.LinfFastGradientAttack(), x, y, eps)
        assert abs(robust(net, found, y) - robust(net, expected, y)) <= 2
        assert lengths(found - x, "linf").max() <= eps + 1e-6


@pytest.mark.timeout(1200)  # where other work shares the cores
def test_pgd_20_has_foolboxs_robust_accuracy_on_a_thousand_images_within_two_of_them(thousand):
    import foolbox

    net, x, y = thousand
    eps = 1 / 255
    found = gkp.attack(net, x, y, "pgd", eps=eps, steps=20, random_start=False, batch_size=BATCH)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=2.5 * eps / 20, steps=20, random_start=False)
    standing = [robust(net, images, y) for images in (found, foolbox_finds(net, attack, x, y, eps))]
    assert abs(standing[0] - standing[1]) <= 2 and 50 < standing[1] < 500
    assert lengths(found - x, "linf").max() <= eps + 1e-6


# --- Auto-PGD -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255])
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t"])
def test_auto_pgd_is_at_most_one_image_of_64_weaker_than_pyautoattacks(thousand, name, eps):
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    net, x, y = thousand[0], thousand[1][:64], thousand[2][:64]
    steps, targets = (40, {}) if name == "apgd-ce" else (20, {"targets": 3})
    theirs = APGDAttack if name == "apgd-ce" else APGDAttack_targeted
    more = {"loss": "ce"} if name == "apgd-ce" else {"n_target_classes": 3}
    with torch.random.fork_rng():
        expected = theirs(net, n_iter=steps, norm="Linf", eps=eps, seed=0, device="cpu", **more).perturb(x, y)
    found = gkp.attack(net, x, y, name, eps=eps, steps=steps, **targets)
    assert right(net, found, y) <= right(net, expected, y) + 1
    assert lengths(found - x, "linf").max() <= eps + 1e-6
