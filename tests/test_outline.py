"""Passes that compute nothing: the shapes, counts and couplings they give are those of real passes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.networks.copies import skeleton_of
from gkp.pruning.budget import Counter
from gkp.pruning.cost import cost, count
from gkp.pruning.outline import is_as_built, outline, stubbed
from gkp.pruning.plan import Plan
from gkp.pruning.prune import prune
from gkp.pruning.tracing import trace

SHAPE = (3, 32, 32)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 3)},
        {"kernel_size": 3, "dilation": (2, 3), "groups": 2},
        {"kernel_size": 5, "padding": "same", "dilation": 2},
        {"kernel_size": 4, "padding": "valid", "stride": 3},
        {"kernel_size": 1, "stride": 2, "bias": False},
    ],
)
def test_a_stub_gives_the_shape_of_the_convolution(settings: dict):
    net = build_model("resnet20")
    conv = nn.Conv2d(6, 8, **settings)
    images = torch.rand(2, 6, 17, 14)
    expected = conv(images).shape
    net.conv1 = conv
    assert stubbed(net).conv1(images).shape == expected
    with pytest.raises(RuntimeError, match="of 6 inputs was given 5"):
        conv(images[:, :5])
    with pytest.raises(RuntimeError, match="smaller than a kernel"):
        conv.kernel_size, conv.padding = (40, 40), (0, 0)
        conv(images)


def macs_by_torch(net: nn.Module, shape=SHAPE) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.rand(1, *shape))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "vgg16_bn"])
@pytest.mark.parametrize("method", ["l1norm-a", "fpgm-one-shot", "sr-gkp", "l2-gkp"])
def test_what_is_counted_without_computing_is_what_a_real_pass_multiplies(name: str, method: str):
    net = build_model(name)
    pruned = prune(net, method)
    assert cost(net).macs == macs_by_torch(net)
    assert cost(pruned).macs == macs_by_torch(pruned.compact()) == Counter(net)(pruned.plan).macs
    assert Counter(net)(pruned.plan) == cost(pruned)


def test_an_outline_has_no_numbers_and_leaves_the_network_alone():
    net = build_model("resnet20").train()
    before = {name: (id(module), module.training) for name, module in net.named_modules()}
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = outline(net)
    assert all(p.is_meta for p in found.parameters()) and not found.training
    plan = prune(net, "l1norm-b").plan
    small = skeleton_of(found)
    plan.compact_in_place(small)
    count(small, SHAPE)
    assert [p.shape for p in found.parameters()] == [p.shape for p in net.parameters()]  # cut in the copy alone
    assert before == {name: (id(module), module.training) for name, module in net.named_modules()}
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert not any("forward" in vars(module) for net in (net, found) for module in net.modules())


def with_hook(net: nn.Module) -> nn.Module:
    net.layer1[0].bn1.register_forward_hook(lambda module, inputs, output: output.flip(1))
    return net


def with_forward(net: nn.Module) -> nn.Module:
    net.layer1[0].bn1.forward = lambda x: x.flip(1)
    return net


def twice(net: nn.Module) -> nn.Module:
    net.layer1[1] = net.layer1[0]
    return net


def without(net: nn.Module) -> nn.Module:
    del net.layer1[1]
    return net


def with_other_stride(net: nn.Module) -> nn.Module:
    net.conv1.stride = (2, 2)
    return net


def with_other_pads(net: nn.Module) -> nn.Module:
    net.layer2[0].shortcut.padding = (8, 8)
    return net


def with_norm(net: nn.Module) -> nn.Module:
    net.bn1 = nn.GroupNorm(4, 16)
    return net


CHANGES = [with_hook, with_forward, twice, without, with_other_stride, with_other_pads, with_norm]


def found_in(net: nn.Module) -> tuple:
    found = trace(net, SHAPE)
    return found.called, found.first, {k: v.tolist() for k, v in found.reads.items()}, found.reasons, found.streams().tolist()


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_is_not_taken_for_one_as_built(change):
    usual = trace(build_model("resnet20", seed=1), SHAPE)
    assert trace(build_model("resnet20", seed=2), SHAPE) is usual
    changed = change(build_model("resnet20"))
    assert trace(changed, SHAPE) is not usual
    assert is_as_built(changed) == (change not in (with_hook, with_forward, with_norm))
    if change is twice:  # by one module in two places, the same filters are added up again
        assert found_in(changed) != found_in(without(build_model("resnet20")))


@pytest.mark.parametrize("change", [with_hook, with_forward])
def test_what_was_found_of_the_network_as_built_does_not_serve_one_that_reorders_channels(change):
    prune(build_model("resnet20"), "l1norm-b", layers=["layer1.0.conv1"], budget=0.97)
    with pytest.raises(BadInput, match=r"layer1\.0\.conv1 is not pruned exactly"):
        prune(change(build_model("resnet20")), "l1norm-b", layers=["layer1.0.conv1"], budget=0.97)


def test_pruning_filters_does_not_load_the_compiler_of_torch():
    code = (
        "import sys, gkp; gkp.prune(gkp.load_model('resnet20'), 'l1norm-b'); "
        "print({'torch._dynamo', 'sympy', 'torch._inductor'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_an_empty_plan_counts_as_the_dense_network():
    net = build_model("resnet20")
    assert Counter(net)(Plan({})) == cost(net)
