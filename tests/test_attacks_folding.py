"""BatchNorm folded for attacks: where it can be, the function stays; where it cannot, the network does."""

from __future__ import annotations

import threading

import pytest
import torch
from attack_nets import conv_net, images, own_labels
from method_checks import lived_in
from opaque_nets import NETS as OPAQUE
from opaque_nets import Net, answers
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import gkp
from gkp.attacks.network import logits_and_gradient, logits_of
from gkp.data.dataset import Dataset
from gkp.evaluation.folding import folded
from gkp.networks.build import build_model
from gkp.networks.fingerprint import state_sha256
from gkp.pruning.grouped import GroupedKernelConv2d, GroupedSpec


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def residual() -> nn.Module:
    return lived_in(build_model("resnet20"))


NETS = {
    "plain": conv_net,
    "residual": residual,
    "vgg": lambda: lived_in(build_model("vgg16_bn")),
    "masked twin": lambda: gkp.prune(residual(), "l2-gkp"),
    "grouped compact": lambda: gkp.prune(residual(), "l2-gkp").compact(),
    "filters compact": lambda: gkp.prune(residual(), "l2").compact(),
}


@pytest.mark.parametrize("name", NETS)
def test_every_batchnorm_is_folded_and_the_network_computes_the_same(name):
    net, x = NETS[name]().double().eval(), images(8, (3, 32, 32)).double()  # float64: no ReLU is near enough to its kink
    fast, y = folded(net, x), own_labels(net, x)
    assert norms(net) > 0 and norms(fast) == 0 and not any(module.training for module in fast.modules())
    assert not any(isinstance(module, GroupedKernelConv2d) for module in fast.modules())
    fresh = images(8, (3, 32, 32), seed=7).double()
    for found, expected in zip(logits_and_gradient(fast, fresh, y), logits_and_gradient(net, fresh, y), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_network_is_left_as_it_was():
    net = residual().train()
    net.layer1.eval()
    modes, state = [module.training for module in net.modules()], state_sha256(net)
    fast = folded(net, images(4, (3, 32, 32)))
    assert fast is not net and norms(net) == 19
    assert [module.training for module in net.modules()] == modes and state_sha256(net) == state


def test_attacks_on_a_folded_network_fell_the_network_itself():
    net, x = residual().eval(), images(30, (3, 32, 32))
    y = own_labels(net, x)
    for name in ("pgd", "apgd-ce"):
        through, direct = (gkp.attack(m, x, y, name, eps=0.004, steps=5) for m in (folded(net, x), net))
        down = [own_labels(net, found) != y for found in (through, direct)]
        assert 0 < down[1].sum() < 30 and (down[0] != down[1]).sum() <= 1


class Odd(nn.Module):
    """conv -> BatchNorm in ways that must not be folded."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.conv, self.norm = way, nn.Conv2d(3, 3, 3, padding=1), lived_in(nn.BatchNorm2d(3))
        if way == "no statistics":
            self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        if way == "hook":
            self.conv.register_forward_hook(lambda module, given, out: out * 2)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "norm first":
            out = self.conv(self.norm(x))
        elif self.way == "both read":
            out = self.conv(x)
            out = self.norm(out) + out
        elif self.way == "conv twice":
            out = self.norm(self.conv(x)) + self.conv(x + 1)
        elif self.way == "norm twice":
            out = self.norm(self.conv(x)) + self.norm(x)
        elif self.way == "looks at numbers":
            out = self.norm(self.conv(x)) if x.mean() > 0 else x
        else:
            out = self.norm(self.conv(x))
        return self.head(out.mean((2, 3)))


WAYS = ("norm first", "both read", "conv twice", "norm twice", "looks at numbers", "no statistics", "hook")


@pytest.mark.parametrize("way", WAYS)
def test_where_folding_would_change_the_function_or_cannot_be_established_the_network_itself_comes_back(way):
    net = Odd(way).eval()
    assert folded(net, images(20)) is net
    assert folded(fine := Odd("plain").eval(), images(20)) is not fine


def test_a_network_without_batchnorm_comes_back_itself():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    assert folded(net, images(2)) is net


def test_grouped_kernels_without_a_batchnorm_are_made_dense():
    conv, x = nn.Conv2d(16, 16, 3, bias=True), images(20, (16, 8, 8))
    groups, kept = torch.arange(16) % 4, torch.stack([torch.arange(k, k + 5) for k in (0, 3, 7, 11)])
    net = nn.Sequential(GroupedSpec(groups, kept).compact(conv), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    fast = folded(net, x)
    assert fast is not net and isinstance(net[0], GroupedKernelConv2d)
    assert [type(module) for module in fast.children()] == [nn.Conv2d, nn.AdaptiveAvgPool2d, nn.Flatten]
    torch.testing.assert_close(logits_of(fast, x), logits_of(net, x))


def test_a_few_images_are_enough_to_compare_on():
    net = conv_net().eval()
    x = images(1)
    torch.testing.assert_close(logits_of(folded(net, x), x), logits_of(net, x))


class Locked(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.net, self.lock = conv_net(), threading.Lock()

    def forward(self, x):
        return self.net(x)


class Remembering(nn.Module):
    """Keeps the last activation, with its graph."""

    def __init__(self):
        super().__init__()
        self.net, self.last = conv_net(), None

    def forward(self, x):
        self.last = self.net[0](x)
        return self.net[1:](self.last)


def with_first_layer(change):
    net = conv_net()
    change(net[0])
    return net


UNFOLDABLE = {
    "lock": Locked,
    "activation": Remembering,
    "weight norm": lambda: with_first_layer(parametrizations.weight_norm),
    "spectral norm": lambda: with_first_layer(parametrizations.spectral_norm),
    "old spectral norm": lambda: with_first_layer(nn.utils.spectral_norm),
    "torch.nn.utils.prune": lambda: with_first_layer(lambda conv: torch_prune.l1_unstructured(conv, "weight", 0.3)),
}


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_networks_that_cannot_be_copied_or_folded_are_attacked_as_they_are(name):
    net = UNFOLDABLE[name]()
    x = images(20)
    if name == "activation":
        net.train()(x)  # now it holds a tensor with a graph, which cannot be copied
    net.eval()
    assert folded(net, x) is net
    data = Dataset("mine", "test", (x * 255).round().to(torch.uint8), own_labels(net, x), 5, (0.5,) * 3, (0.25,) * 3)
    found = gkp.benchmark(net, data, attacks="pgd", eps="8/255", progress=False)
    assert found.accuracy()["clean"] == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", OPAQUE)
def test_a_folded_network_has_the_gradients_of_the_network_whatever_a_graph_does_not_show(name):
    net = OPAQUE[name]().eval()
    for found, expected in zip(answers(folded(net, images(16, (3, 8, 8)))), answers(net), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_steps_of_a_straight_through_network_are_not_lost_in_an_evaluation():
    net, x = OPAQUE["straight through"]().eval(), images(64, (3, 8, 8))
    assert folded(Net().eval(), x) is not net and folded(net, x) is net  # folding would leave no gradient


@pytest.mark.parametrize("layer", ["conv", "first"])
def test_a_layer_with_a_backward_hook_is_not_folded(layer):
    net = Net().eval()
    getattr(net, layer).register_full_backward_hook(lambda module, inputs, outputs: (5 * inputs[0],))
    fast = folded(net, images(16, (3, 8, 8)))
    for found, expected in zip(answers(fast), answers(net), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
