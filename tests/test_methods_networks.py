"""Every method on every network of the paper's CIFAR-10 tables: the same MACs within 1 %, told from plans alone.

ResNet-20 is in test_methods.py, down to fine-tuning and saving. What a network costs at given widths is counted once.
"""

from functools import cache
from types import SimpleNamespace

import pytest
from method_checks import CHEAP, pictures

from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.pruning import budget
from gkp.pruning.budget import Counter, grouped_kernel_macs
from gkp.pruning.filters import FilterSpec
from gkp.pruning.plan import Plan
from gkp.pruning.prune import layers_for
from gkp.pruning.registry import make_method, methods

NETWORKS = ("resnet32", "resnet56", "resnet110", "vgg16_bn")
RATE = 7 / 16
SLOW_ON_VGG = ("cc", "lrf")  # minutes and seconds: there a few layers have to do
FAMILIES = {name: info.family for name, info in methods().items() if hasattr(info.cls, "plan")}  # the others train first


class Remembering(Counter):
    """A counter that knows what it counted."""

    def __init__(self, net):
        super().__init__(net)
        self.known = {}

    def __call__(self, plan):
        widths = {name: len(spec.kept_filters) for name, spec in plan.items() if isinstance(spec, FilterSpec)}
        key = str(widths) if len(widths) == len(plan) else str(plan.to_json())
        if key not in self.known:
            self.known[key] = super().__call__(plan)
        return self.known[key]


@cache
def network(name):
    net = build_model(name).eval()
    layers = {family: layers_for(methods()[of], net, None)[0] for family, of in (("filter", "l2"), ("channel", "lrf"))}
    return SimpleNamespace(net=net, counter=Remembering(net), layers=layers)


def few(convs):
    """The first layer of each width up to 256: layers that are cheap to prune."""
    by_width = {conv.out_channels: name for name, conv in reversed(convs.items()) if conv.out_channels <= 256}
    return {name: convs[name] for name in by_width.values()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", [name for name, family in FAMILIES.items() if family in ("filter", "channel")])
def test_every_method_keeps_the_budget_of_every_network(method, name, monkeypatch):
    known = network(name)
    monkeypatch.setattr(budget, "Counter", lambda *_: known.counter)
    every, convs = known.layers["channel"], known.layers[FAMILIES[method]]
    if method in SLOW_ON_VGG and name == "vgg16_bn":
        every = convs = few(convs)
    goal = grouped_kernel_macs(known.net, every, RATE)
    data = {"data": pictures(4, 32 if name == "vgg16_bn" else 16)} if "data" in methods()[method].needs else {}
    planner = make_method(method, rate=RATE, budget=goal, **data, **CHEAP.get(method, {}))
    if (method, name) == ("l1norm-b", "vgg16_bn"):
        with pytest.raises(BadInput, match=r"not Vgg16Bn; use l1norm-a"):
            planner.plan(known.net, convs)
        return
    plan = planner.plan(known.net, convs)
    assert set(plan) <= set(convs)
    assert abs(known.counter(plan).paper_macs - goal) <= 0.01 * goal


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", [name for name, family in FAMILIES.items() if family == "grouped kernel"])
def test_every_grouped_kernel_method_keeps_it_to_the_digit(method, name):
    known = network(name)
    convs = few(known.layers["channel"])  # every layer by itself costs what the rate says
    plan = make_method(method, rate=RATE, **CHEAP.get(method, {})).plan(known.net, convs)
    assert set(plan) == set(convs) and isinstance(plan, Plan)
    assert known.counter(plan).paper_macs == grouped_kernel_macs(known.net, convs, RATE)
