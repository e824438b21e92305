"""Whole filters: what is coupled to them goes along, masked equals compact, and what cannot go exactly is refused."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from gkp.checkpoints import load_model, save_model
from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.pruning.cost import cost
from gkp.pruning.coupling import Couplings
from gkp.pruning.filters import FilterSpec
from gkp.pruning.grouped import GroupedSpec
from gkp.pruning.plan import Plan, plan_of
from gkp.pruning.prune import prune
from gkp.pruning.spec import Spec, spec_kind
from gkp.pruning.twin import PrunedModel


def with_lived_in_norms(net, seed=0):
    """The network with BatchNorms as training leaves them: no scale 1, no shift 0."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -1, 1),
                (module.running_mean, -1, 1),
                (module.running_var, 0.5, 2),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return net.eval()


def largest_difference(a, b, x):
    with torch.no_grad():
        expected = a.eval()(x)
        return ((expected - b.eval()(x)).abs().max() / expected.abs().max().clamp(min=1)).item()


def any_filter_plan(net, share=0.4, seed=0):
    """A plan that takes `share` of every convolution whose filters can go, drawn by `seed`."""
    generator, couplings = torch.Generator().manual_seed(seed), Couplings(net)
    layers = {}
    for name, conv in net.named_modules():
        if isinstance(conv, nn.Conv2d) and not couplings.reason(name):
            keep = max(1, round((1 - share) * conv.out_channels))
            layers[name] = FilterSpec(torch.randperm(conv.out_channels, generator=generator)[:keep].sort().values)
    return Plan(layers)


def few_momentum_steps(net, x):
    """Training by a loop that knows nothing of masks."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    net.train()
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), torch.arange(len(x)) % 10).backward()
        optimizer.step()


class Concatenation(nn.Module):
    """Two branches concatenated, sigmoid(0) = 1/2 instead of ReLU, biases, and a linear layer on all positions."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.both = nn.Conv2d(14, 5, 3)
        self.fc = nn.Linear(5 * 30 * 30, 10)

    def forward(self, x):
        both = torch.sigmoid(torch.cat([self.left(x), self.right(x)], dim=1))
        return self.fc(torch.sigmoid(self.both(both)).flatten(1))


NETS = {
    "resnet20": (lambda: build_model("resnet20"), 9, 32),
    "resnet20 of akamaster": (lambda: build_model("resnet20", shortcut="centre"), 9, 32),
    "vgg16_bn": (lambda: build_model("vgg16_bn"), 13, 32),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 8, 64),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), 20, 64),
    "concatenation": (Concatenation, 3, 32),
}


@pytest.mark.parametrize("kind", NETS)
def test_masked_equals_compact_for_whole_filters_also_after_training(kind):
    make, layers, side = NETS[kind]
    torch.manual_seed(0)
    net = with_lived_in_norms(make())
    plan = any_filter_plan(net)
    assert len(plan) == layers
    pruned, x = PrunedModel(net, plan), torch.rand(3, 3, side, side)
    assert largest_difference(pruned, pruned.compact(), x) <= 1e-5
    few_momentum_steps(pruned, x)
    small = pruned.compact()
    assert largest_difference(pruned, small, x) <= 1e-5
    assert sum(p.numel() for p in small.parameters()) < 0.85 * sum(p.numel() for p in net.parameters())
    assert plan_of(small) == plan


def two_layers():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.LazyLinear(2))


def test_what_is_zero_in_the_twin_by_hand():
    net = two_layers()
    net(torch.zeros(1, 3, 32, 32))
    for p in net.parameters():
        p.data.fill_(1.0)
    pruned = PrunedModel(net, Plan({"0": FilterSpec(torch.tensor([0, 3]))}))
    first, norm, second, linear = (pruned.net[i] for i in (0, 1, 3, 5))
    gone = [1.0, 0.0, 0.0, 1.0]
    assert first.weight[:, 0, 0, 0].tolist() == first.bias.tolist() == gone
    assert norm.weight.tolist() == norm.bias.tolist() == gone
    assert second.weight[0, :, 0, 0].tolist() == gone and second.bias.tolist() == [1.0, 1.0]
    assert linear.weight.min() == 1
    small = pruned.compact()
    assert small[0].weight.shape == (2, 3, 3, 3) and small[1].running_var.shape == (2,)
    assert small[3].weight.shape == (2, 2, 3, 3)
    assert not any(isinstance(m, nn.Conv2d) and m.weight.requires_grad is False for m in small.modules())


def test_a_channel_of_a_removed_filter_is_zero_all_the_way_while_training():
    net = with_lived_in_norms(build_model("resnet20"))
    pruned = PrunedModel(net, any_filter_plan(net))
    seen = []
    pruned.net.layer2[1].bn1.register_forward_hook(lambda _, __, output: seen.append(output.abs().amax(dim=(0, 2, 3))))
    few_momentum_steps(pruned, torch.rand(4, 3, 32, 32))
    gone = pruned.plan["layer2.1.conv1"].removed_filters(net.layer2[1].conv1)
    assert len(seen) == 2 and all(step[gone].max() == 0 for step in seen)


class Oddities(nn.Module):
    """Layers whose filters cannot go whole, each for its own reason."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.before_grouped, self.grouped = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=2)
        self.before_norm, self.norm = nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8)
        self.logits, self.idle = nn.Conv2d(8, 10, 1), nn.Conv2d(3, 8, 1)

    def forward(self, x):
        x = self.stem(x)
        x = self.grouped(self.before_grouped(x + self.branch(x)))
        return self.logits(self.norm(self.before_norm(x))).mean(dim=(2, 3))


def test_why_filters_cannot_go_whole():
    couplings = Couplings(Oddities())
    reasons = {name: couplings.reason(name) for name, m in Oddities().named_modules() if isinstance(m, nn.Conv2d)}
    assert reasons == {
        "stem": "writes into the same residual stream as branch",
        "branch": "writes into the same residual stream as stem",
        "before_grouped": "is read by the grouped convolution grouped",
        "grouped": "is a grouped convolution (groups=2)",
        "before_norm": "is read by norm, a GroupNorm, which cannot be cut exactly",
        "logits": "is read by no other layer",
        "idle": "takes no part in the forward pass",
    }


def test_filters_of_a_residual_stream_are_refused_with_the_reason():
    net = build_model("resnet20")
    with pytest.raises(BadInput, match=r"filters of layer1.0.conv2 cannot go: it writes into the same residual stream as "):
        PrunedModel(net, Plan({"layer1.0.conv2": FilterSpec(torch.arange(8))}))
    with pytest.raises(BadInput, match=r"filters of conv1 cannot go.*leave it out with layers="):
        prune(net, "l2", layers=["conv1"])


def stream(stage, blocks=3):
    """The convolutions that write into the residual stream of a stage of a CIFAR ResNet with projections."""
    first = "conv1" if stage == 1 else f"layer{stage}.0.shortcut.conv"
    return [first, *(f"layer{stage}.{block}.conv2" for block in range(blocks))]


def stream_plan(**kept):
    """A plan that keeps these filters of the stages' streams, stage1=..., and 5 in layer2.1."""
    layers = {name: FilterSpec(filters) for stage, filters in kept.items() for name in stream(int(stage[-1]))}
    return Plan(layers | {"layer2.1.conv1": FilterSpec(torch.arange(5))})


def test_a_residual_stream_narrows_when_all_that_write_into_it_lose_the_same_filters(tmp_path):
    net = with_lived_in_norms(build_model("resnet20", shortcut="projection"))
    plan = stream_plan(stage1=torch.arange(0, 16, 2), stage2=torch.arange(3, 32))
    pruned, x = PrunedModel(net, plan), torch.rand(3, 3, 32, 32)
    assert largest_difference(pruned, pruned.compact(), x) <= 1e-5
    few_momentum_steps(pruned, x)
    small = pruned.compact().eval()
    assert largest_difference(pruned, small, x) <= 1e-5
    assert small.conv1.weight.shape[:2] == (8, 3) and small.layer1[0].conv1.weight.shape[:2] == (16, 8)
    assert small.layer2[0].shortcut.conv.weight.shape[:2] == (29, 8) and small.layer2[0].shortcut.bn.running_var.shape == (29,)
    assert small.layer2[1].conv2.weight.shape[:2] == (29, 5) and small.layer3[0].shortcut.conv.weight.shape[:2] == (64, 29)
    for name, saved in (("masked", pruned.eval()), ("compact", small)):
        loaded = load_model(save_model(saved, tmp_path / name))
        assert largest_difference(saved, loaded, x) == 0 and plan_of(loaded) == plan


def test_the_channels_of_a_narrower_stream_cost_what_they_should():
    net = build_model("resnet20", shortcut="projection")
    plan = Plan({name: FilterSpec(torch.arange(15)) for name in stream(1)})
    # a channel of stage 1: the filter of the stem, 3 conv1 that read it, 3 conv2 and 4 BatchNorms that write it; two readers
    filters, norms = 1024 * 9 * (3 + 3 * 16 + 3 * 16), 4 * 2 * 1024
    readers = 256 * (32 * 9 + 32)
    assert cost(net).paper_macs - cost(PrunedModel(net, plan)).paper_macs == filters + norms + readers


@pytest.mark.parametrize(
    ("shortcut", "change", "message"),
    [
        ("projection", {"layer1.2.conv2": None}, "residual stream as layer1.2.conv2 and loses other filters"),
        ("projection", {"layer1.2.conv2": torch.arange(1, 9)}, "residual stream as layer1.2.conv2 and loses other filters"),
        ("append", {}, "residual stream as layer1.0.conv2, which is padded with channels of its own"),
    ],
)
def test_a_stream_that_would_not_narrow_as_one_is_refused(shortcut, change, message):
    net = build_model("resnet20", shortcut=shortcut)
    kept = {name: torch.arange(8) for name in stream(1)} | change
    with pytest.raises(BadInput, match=f"filters of conv1 cannot go: it writes into the same {message}"):
        PrunedModel(net, Plan({name: FilterSpec(filters) for name, filters in kept.items() if filters is not None}))


def test_cutting_the_inputs_of_a_layer_that_is_pruned_in_another_way_is_refused():
    grouped = GroupedSpec(torch.arange(16) % 8, torch.arange(9).repeat(8, 1))
    plan = Plan({"layer1.0.conv1": FilterSpec(torch.arange(8)), "layer1.0.conv2": grouped})
    with pytest.raises(BadInput, match=r"cuts channels of layer1.0.conv2, which it prunes in another way"):
        PrunedModel(build_model("resnet20"), plan)
    beside = Plan({"layer1.0.conv1": FilterSpec(torch.arange(8)), "layer1.1.conv2": grouped})
    pruned = PrunedModel(build_model("resnet20"), beside)
    assert largest_difference(pruned, pruned.compact(), torch.rand(2, 3, 32, 32)) <= 1e-5


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "keeps no filter"),
        ([0, 16], "has 16 filters, the plan keeps number 16"),
        ([3, 2], "do not ascend"),
    ],
)
def test_a_filter_plan_that_does_not_fit_is_refused(kept, message):
    with pytest.raises(BadInput, match=f"layer1.0.conv1 .*{message}"):
        PrunedModel(build_model("resnet20"), Plan({"layer1.0.conv1": FilterSpec(torch.tensor(kept, dtype=torch.int64))}))


def test_a_filter_plan_survives_json_and_nonsense_does_not():
    plan = any_filter_plan(build_model("resnet20"))
    fields = plan.to_json()
    assert list(fields["layer1.0.conv1"]) == ["kept_filters"]
    assert Plan.from_json(fields) == plan and Plan.from_json(fields) != any_filter_plan(build_model("resnet20"), seed=1)
    for bad in ({"kept_filters": [0.5]}, {"kept_filters": [[1]]}, {"kept_filters": "all"}):
        with pytest.raises(BadInput, match="not a filter plan"):
            Plan.from_json({"conv": bad})
    for bad in ({"kept_filtres": [0]}, [0, 1], None):
        with pytest.raises(BadInput, match=r"no known kind of spec for conv; (?=.*kept_filters)(?=.*group_of_filter)"):
            Plan.from_json({"conv": bad})
    with pytest.raises(BadInput, match="kept is missing"):
        Plan.from_json({"conv": {"group_of_filter": [0]}})


@pytest.mark.parametrize("form", ["masked", "compact"])
def test_whole_filter_plans_survive_the_disk(form, tmp_path):
    net = with_lived_in_norms(build_model("resnet20"))
    pruned = PrunedModel(net, any_filter_plan(net))
    saved = pruned if form == "masked" else pruned.compact().eval()
    save_model(saved, tmp_path)
    loaded = load_model(tmp_path)
    assert largest_difference(saved, loaded, torch.rand(2, 3, 32, 32)) == 0
    assert plan_of(loaded) == pruned.plan and cost(loaded) == cost(pruned)
    with pytest.raises(BadInput, match="pruned already"):
        prune(loaded, "l2")


class OddSize(nn.Module):
    """Takes images of 40 x 40 and no others."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Linear(4 * 36 * 36, 10)

    def forward(self, x):
        return self.fc(self.b(self.a(x).relu()).relu().flatten(1))


def test_a_network_that_takes_no_usual_image_size_wants_to_be_told_and_remembers(tmp_path):
    with pytest.raises(
        BadInput, match=r"no usual image size passes through OddSize \(3x32x32: mat1 and mat2 .*\); give input_shape="
    ):
        prune(OddSize(), "l2", rate=0.5)
    pruned = prune(OddSize(), "l2", rate=0.5, input_shape=(3, 40, 40), tolerance=0.05)
    save_model(pruned.compact(), tmp_path)
    loaded = load_model(tmp_path, into=OddSize())
    assert largest_difference(pruned, loaded, torch.rand(2, 3, 40, 40)) <= 1e-5


def test_the_cost_of_a_masked_twin_is_that_of_its_compact_network():
    net = build_model("vgg16_bn")
    pruned = PrunedModel(net, any_filter_plan(net))
    assert cost(pruned) == cost(pruned.compact()) and cost(pruned).macs < 0.5 * cost(net).macs
    assert pruned.net.features[0].weight.device.type == "cpu"


@spec_kind("test_rank")
@dataclass(frozen=True, eq=False)
class LowRank(Spec):
    """A kind of spec that restructures: k x k convolution to `rank` filters, then 1x1; values may be brought along."""

    restructures = True
    rank: int
    factor: Tensor | None = None

    def twin(self, conv: nn.Conv2d) -> nn.Module:
        first = copy.deepcopy(conv)
        first.weight = nn.Parameter(conv.weight.detach()[: self.rank].clone())
        first.out_channels = self.rank
        second = nn.Conv2d(self.rank, conv.out_channels, 1, bias=False)
        if self.factor is not None:
            second.weight.data.copy_(self.factor)
        return nn.Sequential(first, second)

    def to_json(self) -> dict[str, Any]:
        return {"test_rank": self.rank}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "LowRank":
        return cls(fields["test_rank"])


@pytest.mark.parametrize("form", ["masked", "compact"])
def test_a_new_kind_of_spec_may_restructure_a_layer(form, tmp_path):
    factor = torch.randn(16, 5, 1, 1)
    pruned = PrunedModel(build_model("resnet20").eval(), Plan({"layer1.0.conv2": LowRank(5, factor)}))
    assert torch.equal(pruned.net.layer1[0].conv2[1].weight, factor)
    few_momentum_steps(pruned, torch.rand(4, 3, 32, 32))
    saved = pruned if form == "masked" else pruned.compact()
    save_model(saved, tmp_path)
    loaded = load_model(tmp_path)
    assert largest_difference(pruned, loaded, torch.rand(2, 3, 32, 32)) == 0
    assert loaded.plan.to_json() == {"layer1.0.conv2": {"test_rank": 5}}
    assert cost(build_model("resnet20")).macs - cost(pruned).macs == 32 * 32 * (9 * 16 * 16 - 5 * 16 * 9 - 16 * 5)
