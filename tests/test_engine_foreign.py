"""`gkp.compile` on networks whose graph does not show all that they do: the same function and gradients, or torch runs them."""

from __future__ import annotations

import threading

import pytest
import torch
from opaque_nets import NETS, Net, StraightThrough, answers, images
from torch import nn
from torch.nn import functional as F

import gkp

pytest.importorskip("numba", reason='needs pip install "gkp[fast]"')


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
