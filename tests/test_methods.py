"""The one-shot methods: each criterion on four filters by hand, and every method on whole networks under one budget."""

import copy
import inspect
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gkp.budget import grouped_kernel_macs
from gkp.checkpoints import load_model, save_model
from gkp.cost import cost
from gkp.datasets import Dataset
from gkp.errors import BadInput
from gkp.methods import FilterMethod, make_method, methods, prune, register, scratch
from gkp.methods._images import feature_maps
from gkp.methods.chip import independence
from gkp.methods.fpgm import distance_to_others
from gkp.methods.taylor_fo import gate_gradients
from gkp.models import build_model
from gkp.plans import plan_of

WEIGHTS_ONLY = ("random", "l1norm-a", "l1norm-b", "l2", "fpgm-one-shot", "depgraph-one-shot")
DATA_DRIVEN = ("hrank", "chip", "taylor-fo")
FILTER = WEIGHTS_ONLY + DATA_DRIVEN
GROUPED = ("random-gkp", "l2-gkp", "greedy-gkp", "least-smooth-gkp", "sr-gkp")


def pictures(n=48, side=16, seed=0, classes=10):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    return Dataset("pictures", "train", images, torch.arange(n) % classes, classes, (0.5,) * 3, (0.25,) * 3)


FEW = {name: {"n_batches": 2, "batch_size": 8} for name in DATA_DRIVEN}


def conv_of(filters):
    """A 1x1 convolution without bias whose filters these are, `(C_out, C_in)`."""
    weight = torch.tensor(filters)
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    conv.weight.data.copy_(weight[:, :, None, None])
    return conv


def scores_of(method, conv, net=None, **options):
    return make_method(method, **options).scores(net or nn.Sequential(conv), {"0": conv})["0"].tolist()


# --- by hand --------------------------------------------------------------------------------------------------------


def test_l1_and_l2_disagree_about_these_four_filters():
    conv = conv_of([[3.0, 0.0], [2.0, 2.0], [-4.0, 0.0], [1.0, -1.0]])
    assert scores_of("l1norm-a", conv) == [3, 4, 4, 2]
    assert scores_of("l2", conv) == pytest.approx([3, 8**0.5, 4, 2**0.5])


def test_fpgm_sums_the_distances_between_the_filters_themselves():
    conv = conv_of([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0], [-3.0, -4.0]])
    rows = [5 + 4 + 5, 5 + 3 + 10, 4 + 3 + 73**0.5, 5 + 10 + 73**0.5]
    assert scores_of("fpgm-one-shot", conv) == pytest.approx(rows)
    powers = conv.weight.detach().abs().pow(2).flatten(1)  # what another library measures distances between
    assert torch.cdist(powers, powers).sum(1).argsort().tolist() != distance_to_others(conv.weight).argsort().tolist()


def test_random_scores_come_from_the_seed_alone():
    conv = conv_of([[1.0]] * 4)
    assert scores_of("random", conv, seed=1) == scores_of("random", conv, seed=1) != scores_of("random", conv, seed=2)


def three_ranks():
    """Images whose channels have matrix rank 1, 2 and 4 as 4 x 4 matrices."""
    image = torch.zeros(3, 4, 4)
    image[0] = 255
    image[1, :2, :2] = image[1, 2:, 2:] = 255
    image[2] = 255 * torch.eye(4)
    images = image.to(torch.uint8).repeat(6, 1, 1, 1)
    return Dataset("ranks", "train", images, torch.arange(6) % 2, 2, (0.5,) * 3, (0.25,) * 3)


def reading_net(conv):
    """`conv`, a ReLU, the mean over positions and two logits, `(2, C_out)` first come first: 1, 2, 3, ... and its negative."""
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(conv.out_channels, 2, bias=False))
    ramp = torch.arange(1.0, conv.out_channels + 1)
    net[4].weight.data.copy_(torch.stack([ramp, -ramp]))
    return net


def test_hrank_is_the_mean_rank_of_the_maps_after_the_relu():
    conv = conv_of([[0.0, 0.0, 1.0], [2.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, -1.0]])
    scores = scores_of("hrank", conv, reading_net(conv), data=three_ranks(), n_batches=2, batch_size=3, input_shape=(3, 4, 4))
    assert scores == [4, 1, 2, 0]


def test_chip_is_how_much_the_nuclear_norm_falls_without_the_row():
    maps = torch.zeros(1, 4, 2, 2)
    maps[0, 0, 0, 0] = maps[0, 1, 0, 0] = 1  # two equal rows of norm 1: one singular value sqrt(2), without either 1
    maps[0, 2, 1, 1] = 2  # an independent row of norm 2
    assert independence(maps)[0].tolist() == pytest.approx([2**0.5 - 1, 2**0.5 - 1, 2, 0], abs=1e-9)


@pytest.mark.parametrize("side", [4, 2])
def test_independence_agrees_with_the_singular_values(side):
    maps = torch.rand(2, 5, side, side, generator=torch.Generator().manual_seed(0))
    rows = maps.double().flatten(2)
    for image in range(2):
        for channel in range(5):
            without = rows[image].clone()
            without[channel] = 0
            fall = torch.linalg.matrix_norm(rows[image], "nuc") - torch.linalg.matrix_norm(without, "nuc")
            assert independence(maps)[image, channel].item() == pytest.approx(fall.item(), abs=1e-6)


def test_taylor_is_the_squared_derivative_by_the_gate_averaged_over_batches():
    conv = conv_of([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    net, data = reading_net(conv), three_ranks()
    means = torch.tensor([1.0, 0.5, 0.25, 0.0])  # of the maps: equal for all images
    ramp = torch.arange(1.0, 5)
    first = torch.sigmoid(2 * (ramp * means).sum())  # probability of class 0; the labels are half 0, half 1
    slope = (first - 0.5) * 2 * ramp * means
    found = gate_gradients(net, {"0": conv}, data.pixels(), data.labels)["0"]
    assert torch.allclose(found, slope, atol=1e-6)
    scores = scores_of("taylor-fo", conv, net, data=data, n_batches=1, batch_size=6, input_shape=(3, 4, 4))
    assert scores == pytest.approx((slope**2).tolist(), rel=1e-4)


def test_feature_maps_are_those_after_batchnorm_and_relu():
    net, x = build_model("resnet20").eval(), torch.rand(2, 3, 16, 16)
    block = net.layer1[0]
    block.bn1.bias.data.uniform_(-1, 1)
    with torch.no_grad():
        z = F.relu(net.bn1(net.conv1((x - net.mean) / net.std)))
        expected = F.relu(block.bn1(block.conv1(z)))
    maps = feature_maps(net, {"layer1.0.conv1": block.conv1}, x)["layer1.0.conv1"]
    assert torch.allclose(maps, expected, atol=1e-6) and not block.bn1._forward_hooks


def test_random_gkp_deals_equal_groups_and_draws_by_seed():
    net = build_model("resnet20")
    plans = [prune(net, "random-gkp", seed=seed).plan for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    spec = plans[0]["layer2.1.conv2"]
    assert spec.group_of_filter.bincount().tolist() == [4] * 8 and spec.kept.shape == (8, 18)
    assert len({tuple(row) for row in spec.kept.tolist()}) == 8


# --- on whole networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FILTER + GROUPED)
def test_every_method_under_one_budget_on_resnet20(method, tmp_path):
    net = build_model("resnet20", seed=3).eval()
    before = copy.deepcopy(net.state_dict())
    options = FEW.get(method, {})
    pruned = prune(net, method, data=pictures(), **options)
    if method in (*DATA_DRIVEN, "random", "random-gkp"):  # nothing else draws or adds up in an order
        assert prune(net, method, data=pictures(), **options).plan == pruned.plan
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    convs = [name for name in pruned.net.state_dict() if name.startswith("layer") and "conv" in name]
    budget = grouped_kernel_macs(net, [name.removesuffix(".weight") for name in convs], 7 / 16)
    assert cost(pruned).paper_macs == pytest.approx(budget, rel=0.01)

    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pruned.train()
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        F.cross_entropy(pruned(x), torch.arange(4)).backward()
        optimizer.step()
    small = pruned.compact().eval()
    with torch.no_grad():
        logits = small(x)
        assert (pruned.eval()(x) - logits).abs().max() <= 1e-5 * logits.abs().max().clamp(min=1)
    assert sum(p.numel() for p in small.parameters()) == cost(pruned).params < cost(net).params
    save_model(small, tmp_path)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))
    assert plan_of(loaded) == pruned.plan


@pytest.mark.parametrize("method", FILTER)
def test_every_filter_method_meets_the_budget_of_resnet56(method):
    net = build_model("resnet56")
    pruned = prune(net, method, data=pictures(16), **FEW.get(method, {}))
    assert cost(pruned).paper_macs == pytest.approx(71_854_794, rel=0.01)
    assert set(pruned.plan) == {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(9)}
    assert pruned.left_out["layer1.0.conv2"].startswith("writes into the same residual stream")


@pytest.mark.parametrize("method", [m for m in FILTER if m != "l1norm-b"])
def test_filter_methods_prune_vgg_down_to_its_classifier(method):
    net = build_model("vgg16_bn").eval()
    pruned = prune(net, method, data=pictures(8, 32), **({"n_batches": 1, "batch_size": 2} if method in DATA_DRIVEN else {}))
    assert cost(pruned).paper_macs == pytest.approx(178_184_000, rel=0.01)
    small = pruned.compact()
    assert small.classifier.in_features == len(pruned.plan["features.40"].kept_filters) < 512
    with torch.no_grad():
        x = torch.rand(2, 3, 32, 32)
        assert (pruned(x) - small(x)).abs().max() <= 1e-5


def test_l1norm_b_has_no_rates_for_other_networks():
    with pytest.raises(BadInput, match=r"not Vgg16Bn; use l1norm-a"):
        prune(build_model("vgg16_bn"), "l1norm-b")


def test_a_budget_may_be_given_as_macs_or_as_a_fraction():
    net = build_model("resnet20")
    dense = cost(net).paper_macs
    assert cost(prune(net, "l2", budget=0.75)).paper_macs == pytest.approx(0.75 * dense, rel=0.01)
    assert cost(prune(net, "l2", budget=30_000_000)).paper_macs == pytest.approx(30_000_000, rel=0.01)
    with pytest.raises(BadInput, match="sr-gkp has no option budget"):
        prune(net, "sr-gkp", budget=0.75)


def test_the_budget_of_chosen_layers_is_what_grouped_kernel_pruning_of_them_leaves():
    net = build_model("resnet20")
    only = ["layer3.1.conv1", "layer3.2.conv1"]
    pruned = prune(net, "l2", rate=0.5, layers=only)
    assert set(pruned.plan) == set(only)
    assert cost(pruned).paper_macs == pytest.approx(grouped_kernel_macs(net, only, 0.5), rel=0.01)


def test_methods_that_look_at_images_say_so_when_there_are_none_or_wrong_ones():
    net = build_model("resnet20")
    for method in DATA_DRIVEN:
        with pytest.raises(BadInput, match=rf"{method} looks at images; give data="):
            prune(net, method)
    with pytest.raises(BadInput, match=r"pictures has 100 classes, the network 10"):
        prune(net, "hrank", data=pictures(100, classes=100))
    with pytest.raises(BadInput, match=r"images of pictures, \(3, 16, 16\), do not pass through Vgg16Bn"):
        prune(build_model("vgg16_bn"), "hrank", data=pictures())
    with pytest.raises(BadInput, match="n_batches and batch_size of 1 or more"):
        prune(net, "hrank", data=pictures(), n_batches=0)


def test_images_are_drawn_by_the_seed_and_the_network_is_left_in_its_mode():
    net = build_model("resnet20")
    convs = {"layer1.0.conv1": net.layer1[0].conv1}
    for method in ("hrank", "taylor-fo"):
        drawn = [make_method(method, data=pictures(), seed=seed, **FEW[method]).scores(net, convs) for seed in (0, 0, 5)]
        scores = [each["layer1.0.conv1"].tolist() for each in drawn]
        assert scores[0] == scores[1] != scores[2]
    assert net.training and all(p.grad is None for p in net.parameters())
    assert net.bn1.num_batches_tracked == 0


# --- the registry ---------------------------------------------------------------------------------------------------


def test_a_new_criterion_takes_few_lines_and_is_a_full_member():
    @register("test-l4", reference="none", family="filter", needs=("weights",), fidelity="faithful")
    @dataclass(frozen=True)
    class L4(FilterMethod):
        def scores(self, net, convs):
            return {name: conv.weight.detach().pow(4).sum(dim=(1, 2, 3)) for name, conv in convs.items()}

    pruned = prune(build_model("resnet20"), "test-l4")
    assert cost(pruned).paper_macs == pytest.approx(23_391_498, rel=0.01)
    kept = pruned.plan["layer1.0.conv1"].kept_filters
    norms = build_model("resnet20").layer1[0].conv1.weight.detach().pow(4).sum(dim=(1, 2, 3))
    assert norms[kept].min() > norms[[i for i in range(16) if i not in kept.tolist()]].max()
    assert len(inspect.getsource(L4).splitlines()) <= 20


def test_a_method_that_returns_the_unpruned_network_is_refused():
    @register("test-cheat", reference="none", family="filter", needs=(), fidelity="faithful")
    @dataclass(frozen=True)
    class Cheat:
        def plan(self, net, convs):
            return prune(net, "l2", budget=0.99).plan

    with pytest.raises(BadInput, match=r"test-cheat keeps 40,\d+,\d+ paper MACs, 7\d.\d% more than the budget"):
        prune(build_model("resnet20"), "test-cheat")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    @register("test-nan", reference="none", family="filter", needs=(), fidelity="faithful")
    @dataclass(frozen=True)
    class Nonsense(FilterMethod):
        def scores(self, net, convs):
            return {name: torch.full((conv.out_channels,), bad) for name, conv in convs.items()}

    with pytest.raises(BadInput, match=r"Nonsense owes layer1.0.conv1 16 finite scores"):
        prune(build_model("resnet20"), "test-nan")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"procedure": "magic"}, "procedure of x must be one of"), ({"fidelity": "roughly"}, "fidelity of x must be")],
)
def test_a_registration_that_does_not_say_what_it_is_is_refused(wrong, message):
    fields = {"reference": "none", "family": "filter", "needs": (), "fidelity": "faithful"}
    with pytest.raises(BadInput, match=message):
        register("x", **{**fields, **wrong})


def test_scratch_is_the_same_shape_with_new_weights():
    for net in (build_model("resnet20"), nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))):
        pruned = prune(net, "l2", layers=["layer1.0.conv1"] if hasattr(net, "layer1") else ["0"])
        fresh, again, other = (scratch(pruned, seed=seed) for seed in (1, 1, 2))
        assert fresh.plan == pruned.plan and cost(fresh) == cost(pruned)
        weights = [next(p for p in twin.parameters() if p.ndim == 4) for twin in (pruned, fresh, again, other)]
        assert torch.equal(weights[1], weights[2])
        assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[3])
    scratch(prune(build_model("resnet20"), "sr-gkp"))


def test_every_method_of_the_paper_s_one_shot_competition_is_listed():
    assert set(FILTER + GROUPED) | {"sfp", "fpgm", "sfp-smooth", "slimming", "depgraph"} <= set(methods())
