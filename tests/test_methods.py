"""The one-shot methods: every one on ResNet-20 from plan to disk, budgets that are asked for, what is refused, the registry.

The criteria by hand: test_methods_by_hand.py. Budgets of the other networks: test_methods_networks.py.
"""

import copy
import inspect
from dataclasses import dataclass

import pytest
import torch
from method_checks import CHEAP, assert_usable, largest_difference, pictures
from torch import nn
from torch.nn import functional as F

from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.pruning.budget import grouped_kernel_macs
from gkp.pruning.cost import cost
from gkp.pruning.methods.chip import independence
from gkp.pruning.methods.controls import scratch
from gkp.pruning.methods.filter_method import FilterMethod
from gkp.pruning.methods.image_method import feature_maps
from gkp.pruning.prune import prune
from gkp.pruning.registry import make_method, methods, register

ONE_SHOT = tuple(name for name, info in methods().items() if info.procedure == "one-shot")
DATA_DRIVEN = ("hrank", "chip", "taylor-fo")
FEW = {name: {"n_batches": 2, "batch_size": 8} for name in DATA_DRIVEN}


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


@pytest.mark.parametrize("method", ONE_SHOT)
def test_every_method_prunes_resnet20_to_one_budget_from_its_seed_alone_and_can_be_trained_and_saved(method, tmp_path):
    net = build_model("resnet20", seed=3).eval()
    before = copy.deepcopy(net.state_dict())
    options = {**CHEAP.get(method, {}), **FEW.get(method, {}), "data": pictures()}
    pruned = prune(net, method, **options)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    with torch.random.fork_rng():
        torch.manual_seed(99)  # the global generator has no say
        again = prune(net, method, **options)
    assert again.plan == pruned.plan
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), pruned.parameters(), strict=True))
    layers = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and net.prunable(name, m)]
    assert abs(cost(pruned).paper_macs / grouped_kernel_macs(net, layers, 7 / 16) - 1) <= 0.01
    small = pruned.compact()
    assert sum(p.numel() for p in small.parameters()) == cost(pruned).params < cost(net).params
    assert_usable(pruned, tmp_path)


def test_filter_methods_prune_vgg_down_to_its_classifier():
    net = build_model("vgg16_bn").eval()
    pruned = prune(net, "l2")
    small = pruned.compact()
    assert small.classifier.in_features == len(pruned.plan["features.40"].kept_filters) < 512
    assert largest_difference(pruned, small, torch.rand(2, 3, 32, 32)) <= 1e-5


def test_filters_that_write_into_the_residual_stream_are_left_out_with_the_reason():
    pruned = prune(build_model("resnet20"), "l2")
    assert set(pruned.plan) == {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)}
    assert pruned.left_out["layer1.0.conv2"].startswith("writes into the same residual stream")


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
    with pytest.raises(BadInput, match=r"returns \(1, 10\) for one image; dataset 'pictures' has 100 classes"):
        prune(net, "hrank", data=pictures(100, classes=100))
    with pytest.raises(BadInput, match=r"Vgg16Bn does not take images of shape \(3, 16, 16\)"):
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

    with pytest.raises(BadInput, match=r"Nonsense.scores must return 16 finite scores for layer1.0.conv1, got"):
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


def test_every_method_of_the_competition_is_listed_with_all_that_is_to_be_known_of_it():
    the_paper_s = {"l1norm-a", "l1norm-b", "sfp", "fpgm", "hrank", "cc", "lrf", "tmi-gkp", "sr-gkp", "sfp-smooth"}
    controls = {"random", "random-gkp", "l2-gkp", "least-smooth-gkp", "greedy-gkp", "scratch"}
    later = {"chip", "taylor-fo", "slimming", "depgraph"}
    known = methods()
    assert the_paper_s | controls | later <= set(known)
    for info in known.values():
        assert info.reference and info.family in ("filter", "channel", "grouped kernel", "residual block")
        known_needs = {"weights", "data", "gradients", "training", "training snapshots", "initialisation", "unlabelled images"}
        assert set(info.needs) <= known_needs
    assert known["tmi-gkp"].needs == ("weights", "training snapshots") and known["cc"].needs[-1] == "gradients"
