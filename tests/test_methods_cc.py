"""CC: sensitivities by hand and by brute force, rates of layers, low-rank convolutions, the budget."""

import itertools
import math

import numpy as np
import pytest
import torch
from method_checks import largest_difference
from torch import nn

from gkp.data.sources import load_dataset
from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.pruning.methods.cc import mean_gradients
from gkp.pruning.methods.cc.rates import exponential, savings
from gkp.pruning.methods.cc.sensitivity import Removal, redundancy_curve, saved_share
from gkp.pruning.methods.cc.spec import LowRankConv2d, LowRankSpec
from gkp.pruning.plan import Plan
from gkp.pruning.prune import prune
from gkp.pruning.twin import PrunedModel


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "train")


def test_of_four_channels_the_ones_without_a_gradient_go_first():
    generator = torch.Generator().manual_seed(0)
    weight, gradient = torch.randn(2, 6, 4, 3, 3, generator=generator)
    gradient[:, 2] = 0
    spec = Removal(weight, gradient).spec_saving(0.2)
    assert spec == LowRankSpec(torch.tensor([0, 1, 3]), None)


def rank_one_parts(matrix):
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return [s[r] * torch.outer(u[:, r], vt[r]) for r in range(len(s))]


def brute_force_costs(removal):
    """sum (G dW)^2 now, plus gamma times its mean over every single loss that may come next."""
    shape, w, g = removal.shape, removal.weight, removal.importance.sqrt()
    alive, ranks = removal._alive.tolist(), removal._ranks

    def cost(weight):
        return float((g * (weight - w)).square().sum())

    def without_channel(weight, channel):
        weight = weight.clone()
        weight[:, channel] = 0
        return weight

    def losses(weight, channels, count):
        """Every weight that is one channel or one of its first `count` ranks short."""
        yield from (without_channel(weight, channel) for channel in channels)
        yield from (weight - part.view(shape) for part in rank_one_parts(weight.flatten(1))[:count])

    everything = []
    for at, after in enumerate(losses(removal._now, alive, ranks)):
        is_rank = at >= len(alive)
        channels = alive if is_rank else [c for c in alive if c != alive[at]]
        later = [cost(weight) for weight in losses(after, channels, ranks - is_rank)]
        assert len(later) == len(alive) + ranks - 1
        everything.append(cost(after) + removal.gamma * sum(later) / len(later))
    return everything


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_costs_of_all_units_equal_brute_force_over_what_may_follow(steps):
    generator = torch.Generator().manual_seed(steps)
    weight, gradient = torch.randn(2, 4, 5, 3, 3, generator=generator)
    removal = Removal(weight, gradient)
    for _ in range(steps):
        assert removal._extend()
    if steps == 5:
        assert {unit.is_rank for unit in removal.units} == {True, False}
    left, right = removal_factors(removal)
    costs, units = removal._costs(left, right)
    assert len(units) == len(removal._alive) + removal._ranks
    np.testing.assert_allclose(costs.numpy(), brute_force_costs(removal), rtol=1e-4)


def removal_factors(removal):
    u, s, vt = torch.linalg.svd(removal._now.flatten(1), full_matrices=False)
    return u[:, : removal._ranks], (s[:, None] * vt)[: removal._ranks]


def test_units_go_until_one_channel_of_rank_one_is_left():
    weight, gradient = torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    removal = Removal(weight, gradient)
    spec = removal.spec_saving(1.0)
    assert len(spec.kept_inputs) == 1 and spec.rank == 1
    assert len(removal.units) == 2 + 3
    assert len({unit.index for unit in removal.units if not unit.is_rank}) == 2


def test_more_to_save_never_keeps_more():
    weight, gradient = torch.randn(2, 8, 8, 3, 3, generator=torch.Generator().manual_seed(2))
    removal = Removal(weight, gradient)

    def saved(spec):
        ranks = spec.rank or 8
        return saved_share(removal.shape, len(spec.kept_inputs), ranks, spec.rank is not None)

    wanted = np.linspace(0.05, 0.9, 18)
    reached = [saved(removal.spec_saving(share)) for share in wanted]
    assert all(got >= share for got, share in zip(reached, wanted, strict=True))
    kept = [set(removal.spec_saving(share).kept_inputs.tolist()) for share in wanted]
    assert all(later <= earlier for earlier, later in itertools.pairwise(kept))


def test_what_is_saved_by_hand():
    assert saved_share((8, 4, 9), 3, 8, False) == pytest.approx(1 / 4)
    assert saved_share((8, 4, 9), 4, 2, True) == pytest.approx(1 - (2 * (36 + 8)) / 288)
    assert saved_share((8, 4, 9), 4, 8, True) < 0  # two convolutions of full rank cost more than one


def test_the_redundancy_curve_ends_at_everything_and_counts_only_savings():
    weight, gradient = torch.randn(2, 6, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    saved, metric = redundancy_curve(weight, gradient)
    assert saved[-1] == 1 and metric[-1] == 1
    assert bool((saved > 0).all()) and bool((saved.diff() >= 0).all())
    assert float(metric.min()) >= 0


def test_an_exponential_is_recovered_from_its_points():
    x = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    a, b = exponential(x, 0.02 * torch.exp(3.5 * x))
    assert (a, b) == pytest.approx((0.02, 3.5), rel=1e-6)


def test_layers_save_so_that_the_last_mac_costs_all_the_same():
    fits, macs = [(0.01, 4.0), (0.03, 3.0), (0.002, 6.0)], [100.0, 300.0, 50.0]
    saved = savings(fits, macs, 150.0)
    assert saved.sum() == pytest.approx(150)
    prices = [a * b * math.exp(b * s / m) for (a, b), s, m in zip(fits, saved, macs, strict=True)]
    assert prices == pytest.approx([prices[0]] * 3)
    assert savings([(0.01, 4.0)] * 2, [100.0, 100.0], 60.0) == pytest.approx([30, 30])


def test_no_layer_saves_less_than_nothing_or_more_than_95_percent():
    assert savings([(0.5, 4.0), (0.001, 4.0)], [100.0, 100.0], 40.0) == pytest.approx([0, 40])
    assert savings([(0.5, 4.0), (0.001, 4.0)], [100.0, 100.0], 999.0) == pytest.approx([95, 95])


@pytest.mark.parametrize("rank", [None, 1, 3, 6])
def test_a_low_rank_convolution_computes_the_best_approximation_of_its_weight(rank):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 6, 3, stride=2, padding=1)
    small = LowRankConv2d(conv, LowRankSpec(torch.tensor([0, 2, 3]), rank))
    with torch.no_grad():
        conv.weight[:, [1, 4]] = 0
        u, s, vt = torch.linalg.svd(conv.weight.flatten(1), full_matrices=False)
        s[6 if rank is None else rank :] = 0
        conv.weight.copy_((u @ torch.diag(s) @ vt).view_as(conv.weight))
    assert largest_difference(conv, small, torch.rand(2, 5, 9, 9)) <= 1e-5
    assert sum(p.numel() for p in small.parameters()) == (27 * 6 if rank is None else rank * (27 + 6)) + 6


def test_the_gradient_is_the_mean_of_the_batches_and_leaves_the_network_alone(digits):
    net = build_model("resnet20").train().requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    data = digits.first(6)
    found = mean_gradients(net, {"layer1.0.conv1": net.layer1[0].conv1}, data, batch_size=4)["layer1.0.conv1"]
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    weight = net.eval().layer1[0].conv1.weight.requires_grad_(True)
    x, y = next(data.batches(6))
    losses = [nn.functional.cross_entropy(net(x[half]), y[half]) for half in (slice(0, 4), slice(4, 6))]
    expected = sum(torch.autograd.grad(loss, weight)[0] for loss in losses) / 2
    torch.testing.assert_close(found.float(), expected)


def test_cc_leaves_inputs_and_ranks_out_at_once_in_steps_of_eight_if_asked(digits):
    net = build_model("resnet20")
    plan = prune(net, "cc", data=digits, n_batches=1, batch_size=4, step=0.2, round_to=8, tolerance=0.1).plan
    assert any(spec.rank is not None for spec in plan.values())
    assert any(len(spec.kept_inputs) < net.get_submodule(layer).in_channels for layer, spec in plan.items())
    assert all(len(spec.kept_inputs) % 8 == 0 and (spec.rank or 8) % 8 == 0 for spec in plan.values())


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_what_comes_back_to_fill_a_step_of_eight_is_what_went_last(share):
    weight, gradient = torch.randn(2, 32, 24, 3, 3, generator=torch.Generator().manual_seed(3))
    removal = Removal(weight, gradient)
    spec = removal.spec_saving(share, round_to=8)
    rank = spec.rank or 32
    assert len(spec.kept_inputs) % 8 == 0 and rank % 8 == 0
    assert saved_share(removal.shape, len(spec.kept_inputs), rank, spec.rank is not None) >= share
    order = [unit.index for unit in removal.units if not unit.is_rank]
    assert set(range(24)) - set(spec.kept_inputs.tolist()) == set(order[: 24 - len(spec.kept_inputs)])


def test_the_same_seed_gives_the_same_plan_and_another_seed_other_images(digits):
    net = build_model("resnet20")
    layers = ["layer1.0.conv1", "layer2.0.conv1"]
    options = {"data": digits, "n_batches": 1, "batch_size": 8, "layers": layers, "tolerance": 0.02}
    plan = prune(net, "cc", seed=1, **options).plan
    assert prune(net, "cc", seed=1, **options).plan == plan
    assert prune(net, "cc", seed=2, **options).plan != plan


def test_cc_prunes_layers_of_vgg16_wider_than_64_filters(digits):
    net = build_model("vgg16_bn").eval()
    data = load_dataset("digits", "train").first(4)
    small = nn.Sequential(net.features[:9], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    pruned = prune(small, "cc", data=data, layers=["0.3", "0.7"], input_shape=(3, 16, 16))
    assert set(pruned.plan) <= {"0.3", "0.7"} and pruned.plan
    assert largest_difference(pruned, pruned.compact(), torch.rand(2, 3, 16, 16)) <= 1e-5


def test_a_plan_of_cc_survives_json_and_refuses_another_network():
    plan = Plan({"0": LowRankSpec(torch.tensor([0, 2]), 3), "1": LowRankSpec(torch.tensor([1]))})
    assert plan.to_json() == {"0": {"kept_inputs": [0, 2], "rank": 3}, "1": {"kept_inputs": [1], "rank": None}}
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(BadInput, match="not a plan of CC: rank is"):
        Plan.from_json({"0": {"kept_inputs": [0], "rank": "3"}})
    one = Plan({"0": LowRankSpec(torch.tensor([0, 2]), 9)})
    with pytest.raises(BadInput, match="0 has 2 inputs, the plan keeps number 2"):
        PrunedModel(nn.Sequential(nn.Conv2d(2, 4, 3)), one)
    with pytest.raises(BadInput, match="gives 0 rank 9, which must lie between 1 and 4"):
        PrunedModel(nn.Sequential(nn.Conv2d(3, 4, 3)), one)
    with pytest.raises(BadInput, match="grouped convolution"):
        PrunedModel(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), one)


def test_cc_without_images_or_with_no_batch_is_refused(digits):
    with pytest.raises(BadInput, match="cc looks at images; give data="):
        prune(build_model("resnet20"), "cc")
    with pytest.raises(BadInput, match="n_batches and batch_size of 1 or more"):
        prune(build_model("resnet20"), "cc", data=digits, n_batches=0)
    with pytest.raises(BadInput, match=r"step must lie in \(0, 1\]"):
        prune(build_model("resnet20"), "cc", data=digits, step=0)
