"""Any signature, any attribute, any wrapper: a twin takes what its network takes, and is known inside what wraps it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

import gkp
from gkp.errors import BadInput
from gkp.networks.fingerprint import state_sha256
from gkp.networks.wrappers import unwrapped
from gkp.pruning.cost import macs_of_layers
from gkp.pruning.plan import plan_of
from gkp.pruning.twin import PrunedModel, masked_twin

WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "AveragedModel": AveragedModel,
}


class Many(nn.Module):
    """A network of several inputs, some by keyword, that returns a tensor, a pair or a dictionary."""

    scale = 2.0

    def __init__(self, returns):
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.returns = returns
        self.config = {"hidden": 8}

    def features(self, pixel_values):
        return self.conv(self.stem(pixel_values).relu()).mean((2, 3))

    def forward(self, pixel_values, shift=None, *more, labels=None, **options):
        logits = self.fc(self.features(pixel_values)) * options.get("scale", 1)
        logits = logits if shift is None else logits + shift
        logits = logits + sum(more)
        if self.returns == "tensor":
            return logits
        loss = logits.square().sum() if labels is None else nn.functional.cross_entropy(logits, labels)
        return (loss, logits) if self.returns == "pair" else {"loss": loss, "logits": logits}


def logits_in(found):
    return found if isinstance(found, torch.Tensor) else found[1] if isinstance(found, tuple) else found["logits"]


@given(
    returns=st.sampled_from(["tensor", "pair", "dict"]),
    by_name=st.booleans(),
    shift=st.booleans(),
    more=st.integers(0, 2),
    labels=st.booleans(),
    scale=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_twin_takes_and_returns_what_its_network_does(returns, by_name, shift, more, labels, scale):
    torch.manual_seed(0)
    pruned = gkp.prune(Many(returns).eval(), "l2-gkp", rate=0.5)
    x = torch.rand(2, 3, 9, 9)
    options = {"labels": torch.tensor([0, 1])} if labels else {}
    options |= {"scale": 3.0} if scale else {}
    if by_name:
        arguments = ()
        options |= {"pixel_values": x} | ({"shift": torch.ones(4)} if shift else {})
    else:
        arguments = (x, torch.ones(4) if shift else None, *([torch.ones(4)] * more))
    one, other = pruned(*arguments, **options), pruned.compact()(*arguments, **options)
    assert type(one) is type(other)
    torch.testing.assert_close(logits_in(one), logits_in(other))


def test_attributes_of_the_network_are_those_of_the_twin_read_and_written():
    torch.manual_seed(0)
    pruned, x = gkp.prune(Many("tensor").eval(), "l2-gkp", rate=0.5), torch.rand(2, 3, 9, 9)
    assert pruned.config is pruned.net.config and pruned.scale == 2.0 and pruned.conv is pruned.net.conv
    assert torch.equal(pruned.features(x), pruned.net.features(x))
    pruned.fc = nn.Linear(8, 7)  # a new head, as for another task
    assert pruned(x).shape == (2, 7) and pruned.compact()(x).shape == (2, 7)
    pruned.note = "mine"
    assert pruned.note == "mine" and not hasattr(pruned.net, "note")
    with pytest.raises(AttributeError, match="nothing_like_that"):
        pruned.nothing_like_that  # noqa: B018


@pytest.fixture(scope="module")
def twin():
    return gkp.prune(gkp.load_model("resnet20"), "l2-gkp", rate=0.5).eval()


@pytest.mark.parametrize(
    "inner, outer",
    [(a, b) for a in WRAPPERS for b in WRAPPERS if (a, b) != ("compiled", "compiled")],  # no module any more
)
@pytest.mark.parametrize("form", ["dense", "masked", "compact"])
def test_a_wrapped_network_is_what_is_inside(twin, form, inner, outer, tmp_path):
    net = {"dense": gkp.load_model("resnet20"), "masked": twin, "compact": twin.compact()}[form]
    wrapped = WRAPPERS[outer](WRAPPERS[inner](net))
    inside = unwrapped(wrapped)
    assert type(inside) is type(net) and gkp.cost(wrapped) == gkp.cost(net) and plan_of(wrapped) == plan_of(net)
    assert macs_of_layers(wrapped) == macs_of_layers(net) and state_sha256(wrapped) == state_sha256(net)
    again, x = gkp.load_model(gkp.save_model(wrapped, tmp_path / "saved")), torch.rand(2, 3, 32, 32)
    assert torch.equal(again(x), inside(x)) and isinstance(again, PrunedModel) == (form == "masked")
    assert (masked_twin(wrapped) is wrapped) == (form != "compact")


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_network_is_pruned_as_what_is_inside_and_a_twin_is_not_pruned_again(twin, wrap):
    net = gkp.load_model("resnet20")
    assert gkp.prune(wrap(net), "l2-gkp", rate=0.5).plan == gkp.prune(net, "l2-gkp", rate=0.5).plan
    with pytest.raises(BadInput, match="pruned already"):
        gkp.prune(wrap(twin), "l2-gkp", rate=0.5)


def test_a_distributed_twin_is_known_and_trained_by_its_plan(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        pruned = gkp.prune(gkp.load_model("resnet20"), "l2-gkp", rate=0.5).train()
        wrapped = nn.parallel.DistributedDataParallel(pruned)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(wrapped(torch.rand(4, 3, 32, 32)), torch.arange(4)).backward()
            optimizer.step()
        name = next(iter(pruned.plan))
        weight = pruned.net.get_submodule(name).weight
        gone = ~pruned.plan[name].mask(16).expand_as(weight)
        assert (weight[gone] == 0).all() and (weight.grad[gone] == 0).all() and (weight.grad[~gone] != 0).any()
        assert unwrapped(wrapped) is pruned and gkp.cost(wrapped) == gkp.cost(pruned)
    finally:
        torch.distributed.destroy_process_group()


def test_a_network_that_does_something_of_its_own_is_no_wrapper():
    class Twice(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return 2 * self.module(x)

    net = Twice(nn.Linear(2, 2))
    assert unwrapped(net) is net and unwrapped(nn.DataParallel(net)) is net
