"""Masked and compact are one function: for random shapes, after training, on other people's networks, on disk."""

import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.pruning.cost import cost
from gkp.pruning.filters import FilterSpec
from gkp.pruning.grouped import GroupedKernelConv2d, GroupedSpec, kept_count
from gkp.pruning.overlap import overlap
from gkp.pruning.plan import Plan, plan_of
from gkp.pruning.prune import prune
from gkp.pruning.registry import methods
from gkp.pruning.twin import PrunedModel, masked_twin


def largest_difference(a, b, x):
    with torch.no_grad():
        return (a.eval()(x) - b.eval()(x)).abs().max().item()


@given(
    groups=st.sampled_from([1, 2, 4, 8]),
    group_size=st.integers(1, 4),
    in_channels=st.sampled_from([8, 16, 24]),
    removed=st.integers(1, 7),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    mode=st.sampled_from(["zeros", "circular"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_masked_equals_compact_for_any_convolution(
    groups, group_size, in_channels, removed, kernel, stride, padding, dilation, bias, mode, seed
):
    torch.manual_seed(seed)
    conv = nn.Conv2d(in_channels, groups * group_size, kernel, stride, padding, dilation, bias=bias, padding_mode=mode)
    net = nn.Sequential(conv, nn.ReLU())
    pruned = prune(net, "l2-gkp", rate=removed / 8, groups=groups, layers=["0"])
    x = torch.randn(2, in_channels, 13, 13)
    assert largest_difference(pruned, pruned.compact(), x) <= 1e-5
    small = pruned.compact()
    assert small[0].conv.weight.numel() == conv.weight.numel() * (8 - removed) // 8
    again = masked_twin(small)
    assert isinstance(again, PrunedModel) and largest_difference(pruned, again, x) == 0
    assert again.state_dict().keys() == pruned.state_dict().keys() and plan_of(again) == plan_of(pruned)
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_mask_of_a_spec_by_hand():
    spec = GroupedSpec(torch.tensor([1, 0, 0, 1]), torch.tensor([[0, 2], [1, 2]]))
    assert spec.mask(3).squeeze().tolist() == [
        [False, True, True],
        [True, False, True],
        [True, False, True],
        [False, True, True],
    ]
    assert spec.permutation.tolist() == [1, 2, 0, 3]


def test_masked_equals_compact_on_resnet20_also_after_fine_tuning_with_momentum():
    pruned = prune(build_model("resnet20"), "sr-gkp")
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    x, y = torch.rand(16, 3, 32, 32), torch.randint(10, (16,))
    pruned.train()
    for _ in range(3):  # a loop that knows nothing of masks
        optimizer.zero_grad()
        nn.functional.cross_entropy(pruned(x), y).backward()
        optimizer.step()
    small = pruned.compact()
    assert largest_difference(pruned, small, x) <= 1e-5
    removed = ~pruned.plan["layer1.0.conv1"].mask(16).expand(-1, -1, 3, 3)
    assert pruned.net.layer1[0].conv1.weight[removed].abs().max() == 0
    assert sum(p.numel() for p in small.parameters()) == 152_794


@pytest.mark.parametrize("method", ["l1norm-b", "sr-gkp"])
def test_the_twin_is_had_again_from_a_compact_network_of_grouped_kernels_and_others_stay_as_they_are(method):
    pruned = prune(build_model("resnet20", shortcut="centre"), method)
    again = masked_twin(small := pruned.compact())
    if method == "l1norm-b":
        assert again is small
    else:
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in pruned.state_dict().items())
        assert again.architecture == pruned.architecture and cost(again) == cost(pruned) and plan_of(small) == pruned.plan
    assert masked_twin(pruned) is pruned and masked_twin(pruned.net) is pruned.net


def test_compact_modules_move_copy_and_round_trip_their_state():
    pruned = prune(build_model("resnet20"), "l2-gkp")
    small = pruned.compact()
    x = torch.rand(2, 3, 32, 32)
    assert largest_difference(small, copy.deepcopy(small), x) == 0
    double = copy.deepcopy(small).to(torch.float64)
    assert double.layer1[0].conv1.gather.dtype == torch.int64
    assert largest_difference(small.double(), double, x.double()) == 0
    other = pruned.plan.compact(build_model("resnet20", seed=1))
    other.load_state_dict(small.state_dict())
    assert largest_difference(small.float(), other, x) == 0
    assert plan_of(small) == pruned.plan


def test_pruning_leaves_the_original_network_alone():
    net = build_model("resnet20")
    before = copy.deepcopy(net.state_dict())
    prune(net, "sr-gkp").compact()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.resnet18(num_classes=10),
        lambda: build_model("vgg16_bn"),
    ],
    ids=["torchvision resnet18", "vgg16_bn"],
)
def test_networks_without_a_dependency_graph_prune_the_same_way(make):
    net = make().eval()
    pruned = prune(net, "l2-gkp", rate=0.5)
    small = pruned.compact()
    x = torch.rand(2, 3, 64, 64) if isinstance(net, torchvision.models.ResNet) else torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        scale = net(x).abs().max().item()
    assert largest_difference(pruned, small, x) <= 1e-5 * max(1, scale)
    assert all(isinstance(small.get_submodule(name), GroupedKernelConv2d) for name in pruned.plan)
    left = {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)} - set(pruned.plan)
    assert left == set(pruned.left_out) and len(left) == 1  # only the image layer


def test_sr_gkp_itself_prunes_a_torchvision_resnet18_stage():
    net = torchvision.models.resnet18(num_classes=10)
    pruned = prune(net, "sr-gkp", rate=0.5, layers=lambda name, conv: name.startswith("layer2"))
    assert set(pruned.plan) == {f"layer2.{n}" for n in ("0.conv1", "0.conv2", "0.downsample.0", "1.conv1", "1.conv2")}
    assert largest_difference(pruned, pruned.compact(), torch.rand(2, 3, 64, 64)) <= 1e-4
    assert pruned.left_out["conv1"] == "not asked for"


def test_layers_of_other_networks_that_cannot_be_pruned_are_left_out_with_the_reason():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3), nn.Conv2d(12, 16, 3, groups=4), nn.Conv2d(16, 16, 3))
    assert prune(net, "l2-gkp", rate=0.5).left_out == {
        "0": "is the image layer",
        "1": "has 12 filters, which do not divide by 8 groups",
        "2": "is a grouped convolution already (groups=4)",
    }


def test_a_plan_survives_json():
    plan = prune(build_model("resnet20"), "sr-gkp").plan
    fields = plan.to_json()
    assert list(fields["layer2.0.conv1"]) == ["group_of_filter", "kept"]
    assert len(fields["layer2.0.conv1"]["group_of_filter"]) == 32 and len(fields["layer2.0.conv1"]["kept"]) == 8
    assert Plan.from_json(fields) == plan


@pytest.mark.parametrize(
    ("in_channels", "rate", "kept"), [(16, 7 / 16, 9), (32, 0.4375, 18), (64, 0.625, 24), (128, 0.7, None)]
)
def test_how_many_kernels_stay(in_channels, rate, kept):
    if kept is None:
        with pytest.raises(BadInput, match=r"rate 0.7 leaves 38.4 of 128 grouped kernels in conv; use a multiple of 1/16"):
            kept_count(in_channels, rate, "conv")
    else:
        assert kept_count(in_channels, rate) == kept


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "sr-gpk"}, "unknown method 'sr-gpk'; known: .*sr-gkp"),
        ({"rate": 0}, "between 0 and 1"),
        ({"rate": 1.0}, "between 0 and 1"),
        ({"rate": 0.45}, "rate 0.45 leaves 8.8 of 16 grouped kernels in layer1.0.conv1; use a multiple of 1/16, e.g. 0.4375"),
        ({"groups": 7}, "layer1.0.conv1 has 16 filters, which do not divide by 7 groups"),
        ({"groups": 0}, "do not divide by 0 groups"),
        ({"layers": ["layer9.0.conv1"]}, "no convolution called layer9.0.conv1"),
        ({"layers": lambda name, conv: False}, "no layer to prune"),
        ({"layers": []}, "no layer to prune"),
        ({"gamma": 3}, "sr-gkp has no option gamma; it has rate, groups, alpha"),
    ],
)
def test_bad_requests_say_what_where_and_how_to_mend_it(wrong, message):
    with pytest.raises(BadInput, match=message):
        prune(build_model("resnet20"), **wrong)


def test_networks_with_nan_weights_or_already_pruned_are_refused():
    net = build_model("resnet20")
    pruned = prune(net, "l2-gkp")
    with pytest.raises(BadInput, match="pruned already"):
        prune(pruned, "l2-gkp")
    with pytest.raises(BadInput, match="pruned already"):
        prune(pruned.compact(), "l2-gkp", layers=lambda name, conv: conv.groups == 1 and conv.in_channels > 3)
    with torch.no_grad():
        net.layer1[0].conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(BadInput, match=r"layer1.0.conv1 has NaN or Inf"):
        prune(net, "l2-gkp")


def test_a_plan_for_another_network_is_refused():
    plan = prune(build_model("resnet20"), "l2-gkp").plan
    with pytest.raises(BadInput, match=r"layer1.0.conv1, which Sequential does not have"):
        PrunedModel(nn.Sequential(nn.Conv2d(3, 8, 3)), plan)
    wide = Plan({"0": GroupedSpec(torch.tensor([0, 1]), torch.tensor([[0, 4], [0, 1]]))})
    with pytest.raises(BadInput, match="has 3 input channels, the plan keeps number 4"):
        PrunedModel(nn.Sequential(nn.Conv2d(3, 2, 3)), wide)


def test_every_grouped_kernel_method_is_registered_with_a_fidelity():
    known = methods()
    assert {"sr-gkp", "greedy-gkp", "least-smooth-gkp", "l2-gkp"} <= set(known)
    assert all(info.fidelity == "faithful" or info.fidelity.startswith("adapted: ") for info in known.values())
    assert known["sr-gkp"].options["alpha"] == 0.9


def grouped(group_of_filter, kept):
    return GroupedSpec(torch.tensor(group_of_filter), torch.tensor(kept))


def test_the_overlap_of_two_plans_is_counted_filter_by_filter_whatever_the_names_of_the_groups():
    one = Plan({"a": grouped([0, 0, 1, 1], [[0, 1], [2, 3]]), "b": grouped([0, 1], [[0], [1]])})
    renamed = Plan({"a": grouped([1, 1, 0, 0], [[2, 3], [0, 1]]), "b": grouped([0, 1], [[0], [1]])})
    other = Plan({"a": grouped([0, 1, 0, 1], [[0, 1], [2, 5]]), "b": grouped([0, 1], [[0], [1]])})
    same = overlap(one, renamed)
    assert (same.filters, same.differing, same.share) == (6, 0, 1.0)
    found = overlap(one, other)  # of "a", filters 1, 2, 3 keep others and 2 + 0 + 0 + 1 of 8 kernels are common; all of "b"
    assert (found.filters, found.differing, found.share) == (6, 3, 5 / 10)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Plan({}), "same layers"),
        (Plan({"b": grouped([0, 1], [[0], [1]])}), "same layers"),
        (Plan({"a": FilterSpec(torch.tensor([0]))}), "not pruned by grouped kernels"),
        (Plan({"a": grouped([0, 1], [[0], [1]])}), "4 filters in one plan, 2 in the other"),
    ],
)
def test_plans_that_cannot_be_compared_are_refused(other, said):
    with pytest.raises(BadInput, match=said):
        overlap(Plan({"a": grouped([0, 0, 1, 1], [[0, 1], [2, 3]])}), other)
