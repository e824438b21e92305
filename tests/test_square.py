"""Square: closed forms, what an outcome depends on, and agreement with pyautoattack's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gkp
from gkp.attacks.network import logits_of
from gkp.attacks.square import _bump, _hill, _Search, _sides, _squares, square


class Brightness(nn.Module):
    """Logits (b, -b), b the mean of the image less `threshold`: class 0 is bright."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.mean((1, 2, 3)) - self.threshold
        return torch.stack([brightness, -brightness], 1)


class Counting(nn.Module):
    """A network that keeps how many images each pass had."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.sizes = net, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.net(x)


def small_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10)).eval()


def images(n: int, seed: int = 0, size: int = 16) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def length(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1)


def test_linf_darkens_an_image_until_every_pixel_is_eps_lower_and_no_further():
    x, y = torch.full((2, 1, 8, 8), 0.5), torch.tensor([0, 0])
    found = square(Brightness(0.1), x, y, eps=0.1, queries=1000)  # 900 of them repaint one pixel of 64
    assert torch.allclose(found, x - 0.1, atol=1e-6)  # the one minimum of this margin, which the search reaches


def test_l2_goes_as_far_as_eps_and_lowers_the_margin_of_a_linear_model():
    x, y = torch.full((4, 3, 16, 16), 0.5), torch.zeros(4, dtype=torch.long)
    found = square(Brightness(0.0), x, y, eps=0.5, norm="l2", queries=400)
    assert torch.allclose(length(found - x), torch.full((4,), 0.5), atol=1e-5)
    best = 0.5 / math.sqrt(3 * 16 * 16)  # the mean falls most when every pixel falls alike
    fall = (x - found).mean((1, 2, 3))
    assert (fall > 0.2 * best).all() and (fall <= best + 1e-6).all()


@pytest.mark.parametrize("norm, eps", [("linf", 0.03), ("l2", 0.7)])
def test_images_stay_within_eps_and_within_the_bounds(norm: str, eps: float):
    net, x = small_net(), torch.cat([images(6), torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)])
    y = logits_of(net, x).argmax(1)
    found = square(net, x, y, eps=eps, norm=norm, queries=60)
    assert found.min() >= 0 and found.max() <= 1 and found.isfinite().all()
    distance = (found - x).abs().flatten(1).amax(1) if norm == "linf" else length(found - x)
    assert (distance <= eps + 1e-6).all() and (distance > 0).all()


@pytest.mark.parametrize("norm, eps, queries", [("linf", 0.01, 270), ("l2", 0.2, 60)])  # 270: two blocks of random numbers
def test_what_happens_to_an_image_depends_on_nothing_but_image_id_and_seed(norm: str, eps: float, queries: int):
    net, x = small_net(), images(24)
    y = logits_of(net, x).argmax(1)
    ids = torch.arange(100, 124)
    run = {"eps": eps, "norm": norm, "queries": queries, "seed": 3}
    whole = square(net, x, y, ids=ids, **run)
    fallen = logits_of(net, whole).argmax(1) != y
    assert 0 < int(fallen.sum()) < 24  # otherwise the test shows little
    assert torch.equal(square(net, x, y, ids=ids, batch_size=5, **run), whole)
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert torch.equal(square(net, x[shuffled], y[shuffled], ids=ids[shuffled], batch_size=7, **run), whole[shuffled])
    alone = square(net, x[5:6], y[5:6], ids=ids[5:6], **run)
    assert torch.equal(alone, whole[5:6])
    assert not torch.equal(square(net, x, y, ids=ids + 1, **run), whole)
    assert not torch.equal(square(net, x, y, ids=ids, **{**run, "seed": 4}), whole)


def test_the_global_generators_are_not_touched():
    net, x = small_net(), images(4)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    square(net, x, logits_of(net, x).argmax(1), eps=0.01, queries=5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_an_image_that_is_misclassified_beforehand_comes_back_as_it_was():
    net, x = small_net(), images(8)
    y = logits_of(net, x).argmax(1)
    y[:3] = (y[:3] + 1) % 10
    found = square(net, x, y, eps=0.05, queries=20)
    assert torch.equal(found[:3], x[:3]) and (found[3:] != x[3:]).flatten(1).any(1).all()


def test_no_image_is_asked_about_once_it_has_fallen_and_the_batch_is_refilled():
    net, x = small_net(), images(64)
    y, counting = logits_of(net, x).argmax(1), Counting(net)
    square(counting, x, y, eps=0.02, queries=40, batch_size=16)
    after_clean = counting.sizes[4:]
    assert set(after_clean) == {16}  # full at all times but for the copies that top up the last ones
    assert len(after_clean) < 4 * 40  # what four batches would take, had no image fallen


def test_a_network_that_never_falls_gets_exactly_as_many_queries_as_agreed():
    net = Counting(Brightness(-10.0))
    square(net, images(20), torch.zeros(20, dtype=torch.long), eps=0.1, queries=13)
    assert net.sizes == [20] * 14  # and one pass without attack


def test_an_eps_of_zero_gives_the_images_themselves():
    net, x = small_net(), images(3)
    assert torch.equal(square(net, x, logits_of(net, x).argmax(1), eps=0.0), x)


def test_the_window_shrinks_on_the_papers_schedule_stretched_to_the_queries():
    sides = _sides(torch.zeros(1, 3, 32, 32), "linf", 10_000, 0.8).tolist()
    areas = [0.8 / 2**k * 32 * 32 for k in range(10)]
    at = [5, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert [sides[query] for query in at] == [max(1, round(math.sqrt(area))) for area in areas]
    assert [sides[query] for query in (10, 50, 200, 8000)] == [sides[query - 5] for query in (10, 50, 200, 8000)]
    assert _sides(torch.zeros(1, 3, 32, 32), "linf", 100, 0.8).tolist() == sides[::100]
    assert all(side % 2 and side >= 3 for side in _sides(torch.zeros(1, 3, 32, 32), "l2", 500, 0.8).tolist())


def test_the_bump_is_a_hill_above_a_hole_of_unit_length():
    for side in (3, 5, 9):
        bump = _bump(side)
        assert bump.shape == (side, side) and bump.norm().item() == pytest.approx(1)
        assert (bump[: side // 2] > 0).all() and (bump[side // 2 :] < 0).all()
    hill = _hill(3, 3)
    middle, rim = 1 + 1 / 4, 1 / 4  # both squares, or only the one of radius 1
    expected = torch.full((3, 3), rim)
    expected[1, 1] = middle
    assert torch.allclose(hill, expected / expected.norm())


def test_windows_reach_every_pixel_of_the_image():
    search = _Search("linf", 0.1, (0.0, 1.0), 0, 256, torch.empty(0))
    x, u = torch.full((256, 3, 8, 8), 0.5), search.uniform(0, 2, 0, (256, 5))
    changed = _squares(search, x, x, u, torch.full((256,), 3)) != x
    assert changed.any(1).any(0).all() and (changed.sum((2, 3)) == 9).all()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"queries": 0}, "queries of square"),
        ({"queries": 2.5}, "queries of square"),
        ({"p": 0}, "p of square"),
        ({"p": 1.5}, "p of square"),
        ({"batch_size": 0}, "batch_size of square"),
        ({"norm": "l1"}, "unknown norm"),
    ],
)
def test_options_out_of_range_are_refused_with_a_hint(options: dict, words: str):
    with pytest.raises(gkp.BadInput, match=words):
        gkp.attack(small_net(), images(2), torch.tensor([0, 1]), "square", eps=0.1, **options)


def test_l2_refuses_images_too_small_for_its_tiles():
    with pytest.raises(gkp.BadInput, match="too small"):
        square(Brightness(0.0), torch.full((1, 3, 4, 4), 0.5), torch.tensor([0]), eps=0.1, norm="l2")


@pytest.mark.parametrize("eps, queries", [(1 / 255, 150), (8 / 255, 500)])
def test_square_is_at_most_one_image_of_64_weaker_than_pyautoattacks(cifar10_root, public_weights, eps: float, queries: int):
    from pyautoattack.square import SquareAttack

    pytest.importorskip("numba", reason='needs pip install "gkp[fast]"')
    net = gkp.compile(gkp.load_model("resnet20", weights="akamaster").eval())  # for both sides, in half the time
    test = gkp.load_dataset("cifar10", "test").first(64)
    x, y = test.pixels(), test.labels
    with torch.random.fork_rng():
        reference = SquareAttack(net, norm="Linf", n_queries=queries - 1, eps=eps, seed=0, device="cpu").perturb(x, y)
    ours = gkp.attack(net, x, y, "square", eps=eps, queries=queries, seed=0)
    right = [int((logits_of(net, images).argmax(1) == y).sum()) for images in (ours, reference)]
    assert right[0] <= right[1] + 1
    assert (ours - x).abs().max() <= eps + 1e-6
