"""Plans, numbers and networks that a user hands over: what pruning makes of them, or the line that refuses them."""

import copy
import functools
import json
import math
from collections import deque, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import gkp
from gkp.errors import BadInput
from gkp.pruning import registry
from gkp.pruning.budget import grouped_kernel_macs
from gkp.pruning.coupling import Couplings
from gkp.pruning.filters import FilterSpec
from gkp.pruning.grouped import GroupedSpec
from gkp.pruning.overlap import overlap
from gkp.pruning.plan import Plan, plan_of
from gkp.pruning.registry import register
from gkp.pruning.sr_gkp.ablations import LeastSmoothGKP
from gkp.pruning.sr_gkp.selection import Balance, smooth_beam_greedy
from gkp.pruning.sr_gkp.selection_compiled import expected_seconds
from gkp.pruning.twin import PrunedModel, masked_twin


def two_convs(width=8, outputs=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, outputs, 3), nn.Flatten(), nn.Linear(outputs * 16, 2)
    )


IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
GROUPED = Plan({"2": GroupedSpec(torch.arange(8) % 2, torch.tensor([[0, 1], [2, 5]]))})


def outputs(net):
    with torch.no_grad():
        return net.eval()(IMAGES)


def test_a_compact_network_that_is_given_the_state_of_another_plan_has_that_plan(tmp_path):
    other = Plan({"2": GroupedSpec(torch.arange(8) // 4, torch.tensor([[3, 4], [6, 7]]))})
    net = two_convs()
    one, theirs = GROUPED.compact(net), other.compact(net)
    assert plan_of(one) is GROUPED
    before = GROUPED.to_json()
    one.load_state_dict(theirs.state_dict())
    assert GROUPED.to_json() == before  # the plan that it was made by stays what it was
    assert torch.equal(outputs(one), outputs(theirs)) and plan_of(one) == other
    assert torch.allclose(outputs(masked_twin(one)), outputs(one), atol=1e-6)
    assert plan_of(gkp.load_model(gkp.save_model(one, tmp_path / "net"), into=two_convs())) == other


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_of_a_convolution_stays_frozen_in_small_and_the_other_learns(frozen):
    net = two_convs()
    getattr(net[2], frozen).requires_grad_(False)
    small = GROUPED.compact(net)
    for conv in (small[2].conv, masked_twin(small).net[2]):
        assert {name: p.requires_grad for name, p in conv.named_parameters()} == {
            "weight": frozen != "weight",
            "bias": frozen != "bias",
        }


@pytest.mark.parametrize("pruned", [lambda: PrunedModel(two_convs(), GROUPED), lambda: GROUPED.compact(two_convs())])
def test_a_plan_is_not_applied_to_what_is_pruned_already(pruned):
    for apply in (lambda net: PrunedModel(net, GROUPED), GROUPED.compact):
        with pytest.raises(BadInput, match="is pruned already; give the plan the dense network"):
            apply(pruned())


def test_a_plan_for_all_of_a_network_is_refused_for_that_cannot_be_exchanged():
    with pytest.raises(BadInput, match=r"prunes all of a Conv2d, .*put it into torch.nn.Sequential"):
        PrunedModel(nn.Conv2d(8, 8, 3), Plan({"": GROUPED["2"]}))


@pytest.mark.parametrize("kind", [list, lambda values: torch.tensor(values, dtype=torch.int32), torch.tensor])
def test_whole_numbers_of_any_kind_make_a_spec(kind):
    made = Plan({"2": GroupedSpec(kind([0, 1] * 4), kind([[0, 1], [2, 5]]))})
    assert made == GROUPED and made["2"].kept.dtype == torch.int64
    assert torch.equal(outputs(made.compact(net := two_convs())), outputs(GROUPED.compact(net)))
    assert FilterSpec(kind([0, 2])) == FilterSpec(torch.tensor([0, 2]))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: FilterSpec(torch.tensor([True, False])),  # a mask
        lambda: FilterSpec(torch.tensor([0.0, 1.0])),
        lambda: FilterSpec(torch.tensor(3)),
        lambda: GroupedSpec(torch.arange(8) % 2, torch.tensor([0, 1])),
        lambda: GroupedSpec(torch.arange(8.0), torch.tensor([[0, 1]])),
        lambda: Plan.from_json([1]),
        lambda: Plan.from_json(None),
    ],
)
def test_other_specs_and_plans_are_refused_in_one_line(wrong):
    with pytest.raises(BadInput, match=r"^not a .*plan.*\d dimension|^not a plan but a .*; give") as refused:
        wrong()
    assert "\n" not in str(refused.value)


def test_plans_are_read_and_compared_whatever_the_default_device():
    with torch.device("meta"):
        plan = Plan.from_json(GROUPED.to_json())
        assert overlap(plan, GROUPED).share == 1
    assert plan["2"].kept.device.type == "cpu"


Pair = namedtuple("Pair", "layer")


class Holding(nn.Module):
    """A network that calls its second convolution by another way than its attribute."""

    def __init__(self, hold):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.held = hold(self.second)

    def forward(self, x):
        call = self.held[0] if isinstance(self.held, Pair | deque) else self.held
        return self.third(call(self.first(x))).mean((2, 3))


@pytest.mark.parametrize("hold", [Pair, functools.partial, lambda layer: deque([layer])])
def test_a_layer_that_is_held_where_it_cannot_be_exchanged_is_left_out_with_the_reason(hold):
    pruned = gkp.prune(Holding(hold), "l2-gkp", rate=0.5, input_shape=(3, 8, 8))
    assert list(pruned.plan) == ["third"] and "holds second in an object of its own" in pruned.left_out["second"]


def test_hooks_that_a_compact_layer_gets_are_its_own():
    layer = two_convs()[2]
    small = GROUPED["2"].compact(layer)
    small.register_forward_hook(lambda module, inputs, output: output + 1)
    assert not layer._forward_hooks and len(small._forward_hooks) == 1


class Masking(nn.Module):
    """Multiplies features by whether they are above zero, or rounds them, and moves what is no floating point on the way."""

    def __init__(self, whole):
        super().__init__()
        self.conv, self.fc, self.whole = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 2), whole

    def forward(self, x):
        x = self.conv(x)
        if self.whole:
            return self.fc((4 * x).int().flatten(1) / 4)
        return self.fc(x.flatten(1) * (x > 0).flatten(1))


@pytest.mark.parametrize("whole", [True, False])
def test_filters_are_followed_through_numbers_that_are_whole_or_true_and_false(whole):
    couplings = Couplings(Masking(whole), (3, 8, 8))
    assert couplings.reason("conv") == ""
    [reader] = [one for one, _ in couplings.followers("conv") if one.layer == "fc"]
    assert reader.channels.tolist() == list(range(8 * 36))


def test_values_looked_up_by_features_are_not_taken_for_moved():
    class LookUp(Masking):
        def forward(self, x):
            x = self.conv(x)
            return self.fc(torch.linspace(0, 1, 9)[(4 * x.sigmoid()).long().cpu()].flatten(1))

    net = LookUp(whole=True)
    assert Couplings(net, (3, 8, 8)).reason("conv") == "is read by the operation index, which may mix channels"


@pytest.mark.parametrize("what", ["resnet20", None])
def test_what_is_no_network_has_no_cost_no_latency_and_no_twin(what):
    for ask in (gkp.cost, gkp.latency, GROUPED.compact, lambda net: PrunedModel(net, GROUPED)):
        with pytest.raises(BadInput, match=r"a network is a torch.nn.Module, not a"):
            ask(what)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"batch_size": 2.5}, {"threads": 0}, {"threads": "2"}, {"seconds": -1}, {"seconds": math.nan}]
)
def test_latency_is_measured_for_numbers_that_make_sense(wrong):
    with pytest.raises(BadInput, match=f"^{next(iter(wrong))} is .*; give a "):
        gkp.latency(two_convs(), input_shape=(3, 8, 8), **wrong)


@pytest.mark.parametrize("shape", [5, "abc", ("a",), (3, -1, 8), (3, 8, 0)])
def test_the_shape_of_images_to_export_is_checked(shape, tmp_path):
    pytest.importorskip("onnx", reason='needs pip install "gkp[onnx]"')
    with pytest.raises(BadInput, match=r"^input_shape is .*; give \(C, H, W\)"):
        gkp.export(two_convs(), tmp_path / "net.onnx", input_shape=shape)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_seeds_that_no_generator_takes_are_refused(seed):
    with pytest.raises(BadInput, match=r"seed must be an integer in 0..2\*\*32-1"):
        gkp.prune(two_convs(), "random-gkp", rate=0.5, seed=seed)


def test_layers_of_one_input_are_not_given_a_rate_that_they_cannot_have():
    narrow = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1))
    with pytest.raises(BadInput, match="nothing can go from a layer of one input; leave it out with layers="):
        gkp.prune(narrow[:2], "l2-gkp", rate=0.5)
    with pytest.raises(BadInput, match=r"e\.g\. all but those of 8, and use a multiple of 1/8, e\.g\. 0\.25$"):
        gkp.prune(narrow, "l2-gkp", rate=0.3)
    assert list(gkp.prune(narrow, "l2-gkp", rate=0.25).plan) == ["2"]


@pytest.mark.parametrize("beta", [math.inf, -math.inf, math.nan])
def test_a_beta_without_end_is_refused(beta):
    with pytest.raises(BadInput, match=r'beta must be "released", "paper" or a finite number'):
        Balance(beta=beta)


@pytest.mark.parametrize("every", [0, 40, 10**12])
def test_beams_that_would_outgrow_memory_are_refused_before_they_grow(every):
    assert expected_seconds(1, 64, 36, 2, Balance(check_every=every)) < 1e30
    with pytest.raises(BadInput, match=r"grows more than 524,288 branches of 64 grouped kernels between two checks"):
        smooth_beam_greedy(torch.rand(1, 64, 9), torch.rand(1, 64), 36, balance=Balance(check_every=every))
    kernels, rough = torch.rand(1, 8, 9, generator=torch.Generator().manual_seed(1)), torch.rand(1, 8)
    never = smooth_beam_greedy(kernels, rough, 4, balance=Balance(check_every=0))
    assert torch.equal(smooth_beam_greedy(kernels, rough, 4, balance=Balance(check_every=every)), never)


def test_a_network_lies_in_memory_as_it_likes_and_is_pruned_the_same():
    generator = torch.Generator().manual_seed(34)
    kernel = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    turned = torch.stack([torch.rot90(one, k) for one in (kernel, kernel.T) for k in range(4)])  # all equally smooth
    conv = nn.Conv2d(16, 16, 3, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(turned[torch.randint(8, (16, 16), generator=generator)])
    other = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    method = LeastSmoothGKP(rate=0.5, groups=2)
    assert method.plan(None, {"0": conv}) == method.plan(None, {"0": other})


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize(
    ("added", "macs"),
    [(lambda: nn.ConvTranspose2d(64, 64, 1), 64 * 64 * 64), (Attention, 4 * 64 * 64 * 64 + 2 * 64 * 64 * 64)],
)
def test_what_is_put_into_a_network_of_ours_is_counted_too(added, macs):
    net = gkp.load_model("resnet20")
    before = gkp.cost(net).macs
    net.layer3.append(added())
    assert gkp.cost(net).macs == before + macs


def test_products_of_sparse_matrices_are_named_as_left_out():
    class Sparse(nn.Module):
        def forward(self, x):
            return torch.sparse.mm(torch.eye(8).to_sparse(), x[0, 0])

    assert gkp.cost(Sparse(), input_shape=(3, 8, 8)).left_out


def test_a_part_of_the_state_of_the_dense_network_is_loaded_into_the_twin_too():
    net, pruned = two_convs(), PrunedModel(two_convs(), GROUPED)
    part = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("4")}
    found = pruned.load_state_dict(part, strict=False)
    assert sorted(found.missing_keys) == ["net.4.bias", "net.4.weight"] and not found.unexpected_keys
    assert torch.equal(pruned.net[0].weight, net[0].weight)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"family": "filters"}, "family of odd must be one of grouped kernel, filter, channel, residual block, not 'filters'"),
        ({"needs": ("weigths",)}, r"needs of odd must be a tuple of some of weights, data, .*, not \('weigths',\)"),
        ({"needs": "weights"}, "needs of odd must be a tuple of"),
        ({}, "Odd is no dataclass; put @dataclass"),
    ],
)
def test_words_that_no_method_has_are_refused_where_one_is_registered(wrong, says):
    words = {"reference": "this test", "family": "filter", "needs": ("weights",), "fidelity": "faithful"}
    with pytest.raises(BadInput, match=says):
        register("odd", **words | wrong)(type("Odd", (), {}))
    assert "odd" not in gkp.methods()


def test_options_that_are_made_for_each_method_and_those_without_a_default_are_listed(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", {})

    @register("odd", reference="this test", family="filter", needs=(), fidelity="faithful")
    @dataclass(frozen=True)
    class Odd:
        wanted: int
        layers: list = field(default_factory=lambda: ["conv"])

    assert json.loads(json.dumps(gkp.methods()["odd"].to_json()))["options"] == {"wanted": None, "layers": ["conv"]}


@pytest.mark.parametrize("rate", [0.0, 1.0, math.nan, "0.5", True])
def test_a_rate_is_checked_wherever_one_is_given(rate):
    with pytest.raises(BadInput, match=r"^rate must lie between 0 and 1, not"):
        grouped_kernel_macs(two_convs(), ["2"], rate, input_shape=(3, 8, 8))
