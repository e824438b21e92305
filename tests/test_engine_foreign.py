"""`gkp.compile` on networks whose graph does not show all that they do: the same function and gradients, or torch runs them."""

from __future__ import annotations

import threading
from types import MethodType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

import gkp

pytest.importorskip("numba", reason='needs pip install "gkp[fast]"')


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Reversed(torch.autograd.Function):
    """The gradient with the other sign; forward returns its very input."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Net(nn.Module):
    """Two convolutions and a classifier; `between` is what happens to the maps between them, `out` to the logits."""

    def __init__(self, between=lambda self, z: z, out=lambda self, logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.Identity(), nn.ReLU()
        self.changing, self.last = nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.between, self.out = nn.Linear(8, 5), between, out

    def forward(self, x: Tensor) -> Tensor:
        z = self.between(self, self.relu(self.conv(x)))
        return self.out(self, self.fc(self.last(z).mean((2, 3))))


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(n))


def without_gradients(self, z):
    with torch.no_grad():
        part = self.last(z)
    return part + z


def in_another_type(self, z):
    with torch.autocast("cpu", torch.bfloat16):
        part = self.last(z)
    return part.float() + z


def alias(self, z):
    """The sum reads what the in-place ReLU changes under another name."""
    y = self.last(z)
    return self.last(y).detach() + self.changing(self.norm(y))


def by_keyword(self, z):
    y = self.last(z) - 0.1
    return F.relu(input=y, inplace=True) + y


def pooled(self, z):
    return z + self.last(F.adaptive_avg_pool2d(z, 1))  # as in GCNet


def attention(self, z):
    tokens = z.flatten(2)
    return ((tokens @ tokens.transpose(1, 2)) / 4).softmax(-1) @ tokens


def with_hook(register):
    def make():
        net = Net()
        register(net)
        return net

    return make


def own_forward(net):
    usual = net.forward
    net.forward = MethodType(lambda self, x: usual(x) / 3, net)


NETS = {
    "straight through": lambda: Net(lambda self, z: StraightThrough.apply(z)),
    "gradient reversal": lambda: Net(lambda self, z: Reversed.apply(z)),
    "no_grad": lambda: Net(without_gradients),
    "autocast": lambda: Net(in_another_type),
    "in place, alias": lambda: Net(alias),
    "in place, keyword": lambda: Net(by_keyword),
    "sum of other shapes": lambda: Net(pooled),
    "attention": lambda: Net(lambda self, z: attention(self, z).reshape_as(z)),
    "temperature": lambda: Net(out=lambda self, logits: logits / 2.5),
    "hook of the whole": with_hook(lambda net: net.register_forward_hook(lambda module, x, y: y / 2)),
    "pre-hook of the whole": with_hook(lambda net: net.register_forward_pre_hook(lambda module, x: ((x[0] - 0.5) / 0.2,))),
    "backward hook of a layer": with_hook(lambda net: net.relu.register_full_backward_hook(lambda m, i, o: (5 * i[0],))),
    "backward hook of the whole": with_hook(lambda net: net.register_full_backward_hook(lambda m, i, o: (5 * i[0],))),
    "forward of its own": with_hook(own_forward),
    "weight norm": with_hook(lambda net: nn.utils.weight_norm(net.conv)),
    "torch.nn.utils.prune": with_hook(lambda net: torch_prune.l1_unstructured(net.conv, "weight", 0.5)),
}


def answers(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits, and the gradients of the images."""
    x = images().requires_grad_()
    logits = net(x)
    return logits.detach(), torch.autograd.grad((logits * torch.linspace(-1, 2, 5)).sum(), x)[0]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", NETS)
def test_logits_and_gradients_are_those_of_torch(name):
    net = NETS[name]().eval()
    if "autocast" not in name:
        net(images())  # old weight_norm and prune keep the weight of the last pass
    for found, expected in zip(answers(gkp.compile(net)), answers(net), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_attack_on_a_straight_through_network_is_as_strong_compiled():
    net = NETS["straight through"]().eval()
    x = images(64)
    one, other = (gkp.attack(form, x, net(x).argmax(1), "fgsm", eps=0.1) for form in (net, gkp.compile(net)))
    assert (one != x).float().mean() > 0.99 and ((one - other).abs() > 1e-4).float().mean() < 0.01


def test_noise_is_drawn_anew_at_each_call_and_compiling_draws_none():
    net = Net(lambda self, z: F.conv2d(z, self.last.weight + 0.3 * torch.randn_like(self.last.weight), padding=1)).eval()
    before = torch.get_rng_state()
    fast = gkp.compile(net)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(fast(images()), fast(images()))


def test_functions_of_other_threads_go_on_while_a_network_is_compiled():
    stop, failed = threading.Event(), []

    def other():
        while not stop.is_set():
            try:
                StraightThrough.apply(torch.ones(2, requires_grad=True)).sum().backward()
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        for _ in range(5):
            gkp.compile(Net().eval())
    finally:
        stop.set()
        thread.join()
    assert not failed
    StraightThrough.apply(torch.ones(2, requires_grad=True)).sum().backward()


def test_compiling_within_no_grad_and_autocast_is_the_same():
    net = Net().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fast = gkp.compile(net)
    assert "network" not in fast.fallbacks


def test_a_network_that_runs_in_torch_for_some_images_says_so():
    net = Net(lambda self, z: self.spread(z.reshape(-1, 1, 8, 8)).reshape(-1, 64, 8, 8)).eval()
    net.spread, net.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(64, 8, 3, padding=1)
    net.eval()
    fast = gkp.compile(net)
    torch.testing.assert_close(fast(images()), net(images()))
    assert "(3, 8, 8)" in fast.fallbacks["network"]
