"""Networks whose graph by torch.fx does not show all that they do, and their answers."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune


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
    """Two convolutions, one with BatchNorm, and a classifier; `between` changes the maps between them, `out` the logits."""

    def __init__(self, between=lambda self, z: z, out=lambda self, logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.first, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Identity(), nn.ReLU()
        self.changing, self.last = nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.between, self.out = nn.Linear(8, 5), between, out

    def forward(self, x: Tensor) -> Tensor:
        z = self.between(self, self.relu(self.first(self.conv(x))))
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
