"""Whatever a network does with its channels, the compact network computes what the masked one does, or layers are left out."""

import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gkp.errors import BadInput
from gkp.pruning.coupling import Couplings, Cut
from gkp.pruning.exact import difference, sound_layers
from gkp.pruning.filters import FilterSpec
from gkp.pruning.plan import Plan
from gkp.pruning.prune import prune
from gkp.pruning.twin import PrunedModel

WIDTH = 16


def attend(x):
    """Attention whose tokens are channels."""
    flat = x.flatten(2)
    return (torch.softmax(flat @ flat.transpose(1, 2) / 8, -1) @ flat).view(x.shape)


def shuffle(x):
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)


# Blocks by what becomes of the filters before them: those that pass, and those in which channels meet.
FOLLOWED = {
    "relu": F.relu,
    "gate": lambda x: x * torch.sigmoid(x),
    "in place": lambda x: F.relu_(x * 1.5),
    "pool": lambda x: F.max_pool2d(F.avg_pool2d(x, 3, 1, 1), 3, 1, 1),
    "batchnorm": lambda: nn.BatchNorm2d(WIDTH),
    "depthwise": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
    "gate of its mean": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "softmax over pixels": lambda x: x.flatten(2).softmax(-1).view(x.shape) * 64,
    "channels last": lambda x: F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "upsampled": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")[:, :, ::2, 1::2],
    "doubled": lambda x: torch.cat([x, x], 1).unflatten(1, (2, -1)).mean(1),
}
MIXED = {
    "local response": nn.LocalResponseNorm(3, alpha=0.5),
    "softmax over channels": lambda x: x.softmax(1) * 4,
    "root mean square": lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 0.1),
    "attention": attend,
    "layer norm": lambda: nn.GroupNorm(1, WIDTH),
    "groups": lambda: nn.GroupNorm(4, WIDTH),
    "grouped": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=4),
    "prelu": lambda: nn.PReLU(WIDTH),
    "scale": lambda: Scale(),
    "shuffle": shuffle,
    "swapped": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "sliced": lambda x: torch.cat([x[:, : WIDTH // 2], x[:, WIDTH // 2 :] * 2], 1),
    "split": lambda x: torch.cat([torch.relu(part) for part in x.split(WIDTH // 4, 1)], 1),
    "rolled": lambda x: x.roll(3, 1),
    "gathered": lambda x: x[:, list(range(WIDTH))[::-1]],
    "half written": lambda x: half_written(x),
    "channel mean": lambda x: x - x.mean(1, keepdim=True),
    "in pairs": lambda x: x.unflatten(1, (-1, 2)).amax(2).repeat_interleave(2, 1),
    "sorted": lambda x: x.sort(1).values,
}


def half_written(x):
    x = x.clone()
    x[:, : WIDTH // 2] += x[:, WIDTH // 2 :]
    return x


class Scale(nn.Module):
    """A weight for each channel, as in layer scale."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 2, WIDTH).view(-1, 1, 1))

    def forward(self, x):
        return x * self.gamma


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def block(name):
    made = {**FOLLOWED, **MIXED}[name]
    if isinstance(made, nn.Module):
        return made
    if getattr(made, "__code__", None) and made.__code__.co_argcount == 0:
        return made()
    return Call(made)


class Joined(nn.Module):
    """Features concatenated behind constants, behind the image, or added to those of another layer."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.before, self.beside = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.after = nn.Conv2d(WIDTH + {"constant": 2, "image": 3, "added": 0, "both": WIDTH}[how], WIDTH, 3, padding=1)

    def forward(self, x, image):
        y = F.relu(self.before(x))
        if self.how == "constant":
            y = torch.cat([y.new_ones(len(y), 2, *y.shape[2:]), y], 1)
        elif self.how == "image":
            y = torch.cat([image, y], 1)
        elif self.how == "added":
            y = y + self.beside(x)
        else:
            y = torch.cat([self.beside(x), y], 1)
        return self.after(y)


class Random(nn.Module):
    """A stem, blocks with convolutions between them, perhaps a joint, and a head on pixels or on their mean."""

    def __init__(self, names, joint, flat):
        super().__init__()
        torch.manual_seed(len(names))
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(block(name) for name in names)
        self.convs = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in names)
        self.joint = Joined(joint) if joint else None
        self.flat, self.fc = flat, nn.Linear(WIDTH * (64 if flat else 1), 5)

    def forward(self, image):
        x = self.stem(image)
        for one, conv in zip(self.blocks, self.convs, strict=True):
            x = conv(one(x))
        x = F.relu(x if self.joint is None else self.joint(x, image))
        return self.fc(x.flatten(1) if self.flat else x.mean((2, 3)))


def assert_one_function(pruned, shape=(3, 8, 8)):
    pruned.eval()
    with torch.no_grad():
        for p in pruned.parameters():
            p.add_(0.1 * torch.randn_like(p))
        small, x = pruned.compact().eval(), torch.rand(3, *shape)
        expected, found = pruned(x), small(x)
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([*FOLLOWED, *MIXED]), min_size=1, max_size=3),
    st.sampled_from([None, "constant", "image", "added", "both"]),
    st.booleans(),
)
def test_masked_and_compact_are_one_function_or_the_layers_are_left_out(names, joint, flat):
    net = Random(names, joint, flat).eval()
    try:
        pruned = prune(net, "l2", rate=0.5, input_shape=(3, 8, 8), tolerance=0.9)
    except BadInput as refused:
        assert len(str(refused).splitlines()) == 1  # a network may have nothing to prune exactly
        return
    assert set(pruned.plan) | set(pruned.left_out) == {n for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    assert_one_function(pruned)


@pytest.mark.parametrize("name", FOLLOWED)
def test_filters_are_followed_through_what_does_not_mix_channels(name):
    net = Random([name], None, True)
    assert Couplings(net, (3, 8, 8)).reason("stem") == "" if name != "depthwise" else True
    plan = Plan({"stem": FilterSpec(torch.tensor([1, 2, 5, 11])), "convs.0": FilterSpec(torch.arange(3, 16))}, (3, 8, 8))
    assert_one_function(PrunedModel(net, plan))


@pytest.mark.parametrize("name", MIXED)
def test_filters_that_meet_other_channels_are_left_out_with_the_reason(name):
    couplings = Couplings(Random([name], None, False), (3, 8, 8))
    assert couplings.reason("stem")
    assert couplings.reason("convs.0") == ""


def test_the_reason_names_the_operation_or_the_layer():
    reason = {name: Couplings(Random([name], None, False), (3, 8, 8)).reason("stem") for name in MIXED}
    assert reason["softmax over channels"] == "is read by blocks.0, a Call, which cannot be cut exactly"
    assert reason["groups"] == "is read by blocks.0, a GroupNorm, which cannot be cut exactly"
    assert reason["grouped"] == "is read by the grouped convolution blocks.0"
    assert reason["split"].startswith("is cut into parts or reordered by")


def test_features_behind_constants_or_the_image_are_followed():
    for joint in ("constant", "image", "both"):
        net = Random(["relu"], joint, False)
        couplings = Couplings(net, (3, 8, 8))
        offset = {"constant": 2, "image": 3, "both": WIDTH}[joint]
        cuts = {one.layer: one.channels.tolist() for one in couplings.cuts({"joint.before": torch.tensor([0, 4])})}
        assert cuts == {"joint.before": [0, 4], "joint.after": [offset, offset + 4]}


class Hidden(nn.Module):
    """Two networks in one: the compact one takes another path, which no graph shows."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.c(self.b(self.a(x).relu()).relu())
        x = x / self.b.weight.shape[0] ** 2 * 256
        return self.fc(x.relu().mean((2, 3)))


def test_what_no_graph_shows_is_found_on_images_and_left_out_with_the_reason():
    pruned = prune(Hidden(), "l2", rate=0.5, tolerance=0.5)
    assert "b" not in pruned.plan and "masked and compact differ by" in pruned.left_out["b"]
    assert_one_function(pruned, (3, 32, 32))
    with pytest.raises(BadInput, match=r"filters of b cannot go: it is not pruned exactly: masked and compact differ"):
        prune(Hidden(), "l2", rate=0.5, tolerance=0.5, layers=["b"])


class Reads(nn.Module):
    """Computes with the weight of a layer by itself: grouped kernels cannot go from that one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 5)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return (
            self.fc(self.c(x).mean((2, 3))) + self.b.get_parameter("weight").sum() if hasattr(self.b, "weight") else self.fc(x)
        )


def test_grouped_kernel_pruning_is_checked_too_and_builds_no_graph(monkeypatch):
    monkeypatch.setattr(Couplings, "__init__", lambda *_: pytest.fail("grouped kernel pruning needs no couplings"))
    for net in (Hidden(), Reads()):
        pruned = prune(net, "l2-gkp", rate=0.5)
        assert_one_function(pruned, (3, 32, 32))


def test_networks_of_unknown_input_are_compared_layer_by_layer():
    pruned = prune(Hidden(), "l2-gkp", rate=0.5)
    assert difference(pruned, None) == difference(pruned, (3, 32, 32)) == ""
    with torch.no_grad():
        pruned.plan["c"].kept[0] = pruned.plan["c"].kept[1]  # the compact layer is now made by another plan
    assert "differ" in difference(pruned, None) and "differ" in difference(pruned, (3, 32, 32))


def test_a_search_beyond_its_time_leaves_out_what_was_not_tried():
    net = Random(["relu", "relu"], None, False)
    plan = {name: FilterSpec(torch.arange(8)) for name in ("stem", "convs.0")}

    def slow(names):
        time.sleep(0.2)
        raise RuntimeError("this layer is broken")

    sound, faulty = sound_layers(plan, slow, (3, 8, 8), seconds=0.1)
    assert sound == [] and all("time limit of 0.1 seconds" in reason for reason in faulty.values())
    sound, faulty = sound_layers(plan, lambda names: PrunedModel(net, Plan({n: plan[n] for n in names})), (3, 8, 8))
    assert sound == ["stem", "convs.0"] and faulty == {}


def test_the_check_leaves_the_global_generators_and_the_network_as_they_were():
    pruned = prune(Hidden(), "l2-gkp", rate=0.5).train()
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert difference(pruned, (3, 32, 32)) == ""
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert pruned.training and all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items())


def test_a_scale_of_zero_hides_nothing():
    layers = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net = nn.Sequential(*layers, nn.Linear(16, 4)).eval()
    nn.init.zeros_(net[2].weight)
    pruned = PrunedModel(net, Plan({"0": FilterSpec(torch.arange(8))}, (3, 8, 8)))
    assert difference(pruned, (3, 8, 8)) == ""
    wrong = Cut("1", "in", torch.arange(8))  # the columns of the filters that stay
    pruned._cuts = [wrong if one.layer == "1" else one for one in pruned._cuts]
    assert "differ" in difference(pruned, (3, 8, 8))
