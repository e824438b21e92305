"""LRF: the order of removals and weights compensation by brute force, the 1x1 convolutions, widths in steps of eight."""

import itertools

import numpy as np
import pytest
import torch
from method_checks import largest_difference
from torch import nn

from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.pruning.cost import cost
from gkp.pruning.methods.lrf import BetweenPointwise, BetweenSpec, combination, narrow, removal_order, widths
from gkp.pruning.plan import Plan
from gkp.pruning.prune import prune
from gkp.pruning.twin import PrunedModel


def slow_order(rows, count):
    """One least-squares fit a filter, one compensation after the other."""
    alive, columns, order = list(range(len(rows))), np.eye(len(rows)), []
    for _ in range(count):
        best = None
        for i in alive:
            others = [j for j in alive if j != i]
            coefficients, *_ = np.linalg.lstsq(rows[others].T, rows[i], rcond=None)
            score = np.linalg.norm(rows[i] - coefficients @ rows[others]) * np.linalg.norm(columns[:, i])
            if best is None or score < best[0]:
                best = (score, i, others, coefficients)
        _, i, others, coefficients = best
        columns[:, others] += np.outer(columns[:, i], coefficients)
        alive.remove(i)
        order.append(i)
    return order, columns[:, sorted(alive)]


@pytest.mark.parametrize("seed", range(3))
def test_order_and_compensation_equal_one_fit_after_the_other(seed):
    rows = torch.randn(10, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order, columns = slow_order(rows.numpy(), 6)
    assert removal_order(rows, 6) == order
    kept = torch.tensor([i for i in range(10) if i not in order])
    np.testing.assert_allclose(combination(rows, kept).numpy(), columns, atol=1e-9)


def test_filters_and_inputs_that_are_sums_of_others_go_without_a_trace():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1)
    with torch.no_grad():
        conv.weight[:, 5] = conv.weight[:, 0] - 2 * conv.weight[:, 1]
        conv.weight[7] = 0.5 * conv.weight[2] + conv.weight[3]
    between = BetweenPointwise(conv, narrow(conv.weight, 5, 7))
    assert between.conv.weight.shape == (7, 5, 3, 3)
    assert largest_difference(conv, between, torch.rand(2, 6, 9, 9)) <= 1e-5


def test_where_nothing_goes_the_1x1_convolutions_are_identities():
    conv = nn.Conv2d(5, 4, 3)
    between = BetweenPointwise(conv, narrow(conv.weight, 5, 4))
    assert torch.equal(between.before.weight.squeeze(), torch.eye(5))
    assert torch.equal(between.after.weight.squeeze(), torch.eye(4))
    assert torch.equal(between.conv.weight, conv.weight)
    assert largest_difference(conv, between, torch.rand(2, 5, 8, 8)) <= 1e-6


def test_the_1x1_convolutions_are_counted():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False))
    pruned = PrunedModel(net, Plan({"0": BetweenSpec(torch.tensor([0, 2]), torch.tensor([0, 1, 3]))}))
    counted = cost(pruned, input_shape=(4, 8, 8))
    assert counted.macs == 64 * 4 * 2 + 16 * 2 * 3 * 9 + 16 * 3 * 4
    assert counted.params == 4 * 2 + 2 * 3 * 9 + 3 * 4


def test_widths_shrink_one_by_one_and_never_to_nothing():
    shapes = [(16, 16)] * 20
    totals = [sum(map(sum, widths(shapes, share))) for share in np.linspace(0, 1, 101)]
    assert totals[0] == 640 and totals[-1] == 40 and totals[50] == 320
    assert max(a - b for a, b in itertools.pairwise(totals)) <= 8  # of 640; all at once would be 40


def test_widths_between_the_1x1_convolutions_can_be_multiples_of_eight():
    net = build_model("resnet20")
    pruned = prune(net, "lrf", round_to=8, tolerance=0.03)
    assert all(isinstance(pruned.net.get_submodule(layer), BetweenPointwise) for layer in pruned.plan)
    counts = {len(kept) for spec in pruned.plan.values() for kept in (spec.kept_inputs, spec.kept_filters)}
    assert len(counts) > 2 and all(count % 8 == 0 for count in counts)
    assert cost(pruned).paper_macs == pytest.approx(cost(prune(net, "random-gkp")).paper_macs, rel=0.03)
    # 4.8, 7.2, 9.6 and 2.4 are to go: 0.6, 0.9, 1.2 and 0.3 steps, and 0.5, 0.118, 0.736 and 0.354 to round up
    assert widths([(16, 24), (32, 8)], 0.3, round_to=8) == [(8, 16), (24, 8)]
    with pytest.raises(BadInput, match="round_to must be 1 or more, not 0"):
        prune(net, "lrf", round_to=0)


def test_lrf_prunes_vgg16_and_carries_biases_over():
    net = build_model("vgg16_bn").eval()
    layers = ["features.3", "features.7", "features.10"]
    with torch.no_grad():
        for name in layers:
            net.get_submodule(name).bias.uniform_(-1, 1)
    pruned = prune(net, "lrf", layers=layers, rate=0.5)
    assert largest_difference(pruned, pruned.compact(), torch.rand(2, 3, 32, 32)) <= 1e-5
    assert torch.equal(pruned.net.features[7].after.bias, net.features[7].bias)
    assert pruned.net.features[7].conv.bias is None


def test_a_plan_of_lrf_survives_json_and_refuses_another_network():
    spec = BetweenSpec(torch.tensor([0, 2]), torch.tensor([1]))
    plan = Plan({"0": spec})
    assert plan.to_json() == {"0": {"kept_inputs_between": [0, 2], "kept_filters_between": [1]}}
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(BadInput, match="0 has 2 inputs, the plan keeps number 2"):
        PrunedModel(nn.Sequential(nn.Conv2d(2, 4, 3)), plan)
    with pytest.raises(BadInput, match="grouped convolution"):
        PrunedModel(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), plan)
    with pytest.raises(BadInput, match="kept_filters_between is missing"):
        Plan.from_json({"0": {"kept_inputs_between": [0]}})


def test_what_lrf_cannot_do_is_refused():
    with pytest.raises(BadInput, match="ratio must lie between 0 and 1"):
        prune(build_model("resnet20"), "lrf", ratio=1.0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
    with pytest.raises(BadInput, match="lrf prunes convolutions larger than 1x1; 1 are not"):
        prune(net, "lrf", layers=["1"])
