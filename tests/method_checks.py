"""What every pruning method has to pass: its twin equals its compact form, keeps the budget, trains, and survives the disk."""

import torch
from torch import nn

from gkp.budget import grouped_kernel_macs
from gkp.checkpoints import load_model, save_model
from gkp.cost import cost


def largest_difference(a, b, x):
    """max |difference| of the outputs in eval mode."""
    with torch.no_grad():
        return (a.eval()(x) - b.eval()(x)).abs().max().item()


def assert_within_budget(net, pruned, rate=7 / 16):
    """paper_macs within 1 % of what grouped kernel pruning at this rate leaves of the paper's layers."""
    layers = [name for name, conv in net.named_modules() if isinstance(conv, nn.Conv2d) and net.prunable(name, conv)]
    goal = grouped_kernel_macs(net, layers, rate)
    assert abs(cost(pruned).paper_macs - goal) <= 0.01 * goal


def assert_usable(pruned, folder):
    """Twin equals compact, before and after a step of training, and both come back from the disk as they were."""
    x, y = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    with torch.no_grad():
        scale = max(1, pruned.eval()(x).abs().max().item())  # an untrained network's logits may be large
    assert largest_difference(pruned, pruned.compact(), x) <= 1e-5 * scale
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.01, momentum=0.9)
    before = [p.detach().clone() for p in pruned.parameters()]
    pruned.train()
    nn.functional.cross_entropy(pruned(x), y).backward()
    optimizer.step()
    assert all(p.grad is not None for p in pruned.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(pruned.parameters(), before, strict=True))
    small = pruned.compact()
    assert largest_difference(pruned, small, x) <= 1e-5 * scale
    for name, net in (("masked", pruned), ("compact", small)):
        loaded = load_model(save_model(net, folder / name))
        assert largest_difference(net, loaded, x) == 0
        assert loaded.plan == pruned.plan
