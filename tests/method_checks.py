"""What every pruning method has to pass: its twin equals its compact form, trains, and survives the disk; and small inputs."""

import copy

import torch
from torch import nn

from gkp.checkpoints import load_model, save_model
from gkp.data.dataset import Dataset

CHEAP = {  # options that make a method quick where only its budget or its mechanics matter
    "cc": {"n_batches": 1, "batch_size": 4, "step": 0.1},
    "chip": {"n_batches": 1, "batch_size": 1},
    "hrank": {"n_batches": 1, "batch_size": 1},
    "nppm": {"steps": 2, "batch_size": 8, "base": -0.2},  # its gates begin where the budget is
    "taylor-fo": {"n_batches": 1, "batch_size": 2},
    "tmi-gkp": {"grouping": "random"},
}


def pictures(n=48, side=16, seed=0, classes=10):
    """Random images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    return Dataset("pictures", "train", images, torch.arange(n) % classes, classes, (0.5,) * 3, (0.25,) * 3)


def lived_in(net: nn.Module) -> nn.Module:
    """`net` with BatchNorms as after training: every statistic and parameter its own."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0)):
                tensor.copy_(torch.empty_like(tensor).uniform_(low, high, generator=generator))
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.2, 0.2)):
                tensor.data = torch.empty_like(tensor).uniform_(low, high, generator=generator)
    return net


def images_of_ranks():
    """Images whose channels have matrix rank 1, 2 and 4 as 4 x 4 matrices."""
    image = torch.zeros(3, 4, 4)
    image[0] = 255
    image[1, :2, :2] = image[1, 2:, 2:] = 255
    image[2] = 255 * torch.eye(4)
    images = image.to(torch.uint8).repeat(6, 1, 1, 1)
    return Dataset("ranks", "train", images, torch.arange(6) % 2, 2, (0.5,) * 3, (0.25,) * 3)


def conv_of(filters):
    """A 1x1 convolution without bias whose filters these are, `(C_out, C_in)`."""
    weight = torch.tensor(filters)
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    conv.weight.data.copy_(weight[:, :, None, None])
    return conv


def reading_net(conv):
    """`conv`, a ReLU, the mean over positions and two logits, `(2, C_out)` first come first: 1, 2, 3, ... and its negative."""
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(conv.out_channels, 2, bias=False))
    ramp = torch.arange(1.0, conv.out_channels + 1)
    net[4].weight.data.copy_(torch.stack([ramp, -ramp]))
    return net


def largest_difference(a, b, x):
    """max |difference| of the outputs in eval mode."""
    with torch.no_grad():
        return (a.eval()(x) - b.eval()(x)).abs().max().item()


def assert_same_function(pruned, x):
    """Twin and compact agree within 1e-5: in double precision as it stands, in single relative to logits above 1.

    An untrained network's logits may be in the hundreds, and rounding goes with their size.
    """
    with torch.no_grad():
        scale = max(1, pruned.eval()(x).abs().max().item())
    assert largest_difference(pruned, pruned.compact(), x) <= 1e-5 * scale
    exact = copy.deepcopy(pruned).double()
    assert largest_difference(exact, exact.compact(), x.double()) <= 1e-5


def assert_usable(pruned, folder):
    """Twin equals compact, before and after a step of training, and both come back from the disk as they were."""
    x, y = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    assert_same_function(pruned, x)
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.01, momentum=0.9)
    before = [p.detach().clone() for p in pruned.parameters()]
    pruned.train()
    nn.functional.cross_entropy(pruned(x), y).backward()
    optimizer.step()
    assert all(p.grad is not None for p in pruned.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(pruned.parameters(), before, strict=True))
    assert_same_function(pruned, x)
    for name, net in (("masked", pruned.eval()), ("compact", pruned.compact())):
        loaded = load_model(save_model(net, folder / name))
        assert largest_difference(net, loaded, x) == 0
        assert loaded.plan == pruned.plan
