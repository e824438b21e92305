"""Networks that nobody here has written: of other types, sizes and habits."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import gkp
from gkp.errors import BadInput
from gkp.networks.copies import copy_of
from gkp.pruning.cost import cost
from gkp.pruning.grouped import GroupedSpec
from gkp.pruning.layers import choose_layers
from gkp.pruning.probe import find_input_shape, undisturbed
from gkp.pruning.prune import prune


class Habits(nn.Module):
    """Three convolutions with habits: asserted sizes, plain tensors, kept activations, late or several stems, numbers."""

    def __init__(self, habits=(), side=40, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.habits, self.side, self.kept = set(habits), side, []
        if "late stem" not in self.habits:
            self.stem = nn.Conv2d(channels, 16, 3, 2)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.last, self.norm, self.fc = nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
        if "late stem" in self.habits:
            self.stem = nn.Conv2d(channels, 16, 3, 2)
        if "two stems" in self.habits:
            self.other = nn.Conv2d(channels, 16, 1, 2)
        self.mean, self.scales = torch.full((channels, 1, 1), 0.5), {"std": [torch.full((channels, 1, 1), 0.25)]}

    def forward(self, x):
        if "asserted" in self.habits:
            assert x.shape[-1] == self.side, f"images of {self.side} pixels, please\nand no others"
        if "plain tensors" in self.habits:
            x = ((x - self.mean) / self.scales["std"][0]).to(x.dtype)
        y = self.stem(x)
        if "two stems" in self.habits:
            y = y + F.interpolate(self.other(x), y.shape[-2:])
        y = self.body(y.relu()).relu()
        if "numbers" in self.habits and float(x.detach().sum()) != float(x.detach().sum()):
            raise ValueError("images are NaN")
        if "keeps" in self.habits:
            self.kept.append({"features": y})
            self.kept = self.kept[-1:]
        return self.fc(self.norm(self.last(y)).relu().mean((2, 3)))


HABITS = ["asserted", "plain tensors", "keeps", "late stem", "two stems", "numbers"]


@settings(max_examples=8, deadline=None)
@given(
    st.sets(st.sampled_from(HABITS)),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from(["l2-gkp", "l2"]),
    st.sampled_from([None, 64]),
    st.booleans(),
)
def test_whatever_its_habits_a_network_is_pruned_exactly(habits, dtype, method, side, inference):
    net = Habits(habits, side=64).to(dtype)
    net.train()(torch.rand(2, 3, 64, 64).to(dtype)).sum().backward()
    options = {"tolerance": 0.9} if method == "l2" else {}
    with torch.inference_mode(inference):
        pruned = prune(net, method, rate=0.5, input_shape=side and (3, side, side), **options)
    assert "body" in pruned.plan and net.training
    assert pruned.left_out.get("stem") == "is the image layer" or method == "l2"
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    pruned.double().eval()
    with torch.no_grad():
        assert torch.allclose(pruned(x), pruned.compact().eval()(x), rtol=1e-6, atol=1e-6)
    assert cost(pruned, input_shape=(3, 64, 64)).macs < cost(net, input_shape=(3, 64, 64)).macs
    F.cross_entropy(pruned.train()(x), torch.tensor([0, 1])).backward()


def test_pruning_leaves_the_activations_that_a_network_keeps():
    net = Habits(["keeps", "plain tensors"])
    net(torch.rand(1, 3, 40, 40))
    kept = net.kept[0]["features"]
    copied = copy_of(net)
    assert torch.equal(copied.kept[0]["features"], kept) and not copied.kept[0]["features"].requires_grad
    prune(net, "l2", rate=0.5, tolerance=0.9)
    cost(net)
    assert net.kept[0]["features"] is kept and kept.grad_fn is not None


@pytest.mark.parametrize(("side", "channels"), [(224, 3), (32, 1), (48, 12), (512, 3)])
def test_usual_sizes_and_numbers_of_channels_are_tried(side, channels):
    assert find_input_shape(Habits(["asserted", "late stem"], side, channels)) == (channels, side, side)


def test_a_size_that_is_not_usual_is_asked_for_in_one_line():
    with pytest.raises(
        BadInput, match=r"passes through Habits \(3x32x32: images of 41 pixels, please\); give input_shape=\(C, H, W\), or"
    ):
        prune(Habits(["asserted"], side=41), "l2")
    with pytest.raises(
        BadInput, match=r"^images of shape \(3, 40, 40\) do not pass through Habits: images of 41 pixels, please"
    ):
        prune(Habits(["asserted"], side=41), "l2", input_shape=(3, 40, 40))
    assert "body" in prune(Habits(["asserted"], side=41), "l2-gkp", rate=0.5).plan  # its rate is a budget in itself
    with pytest.raises(BadInput, match="41 pixels"):
        cost(Habits(["asserted"], side=41))


def test_every_layer_that_sees_the_image_first_is_an_image_layer():
    chosen, left_out = choose_layers(Habits(["late stem", "two stems"]), None, 8)
    assert list(chosen) == ["body", "last"]
    assert left_out == {"stem": "is the image layer", "other": "is the image layer"}
    idle = Habits()
    idle.aside = nn.Conv2d(16, 16, 3)
    assert choose_layers(idle, None, 8)[1]["aside"] == "takes no part in the forward pass"


def test_a_network_made_in_inference_mode_becomes_trainable():
    with torch.inference_mode():
        net = Habits()
        pruned = prune(net, "l2-gkp", rate=0.5)
        small = pruned.compact()
    for one in (pruned, small):
        F.cross_entropy(one.train()(torch.rand(2, 3, 40, 40)), torch.tensor([0, 1])).backward()
        assert all(p.grad is not None for name, p in one.named_parameters() if "body" in name)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([12, 18, 20, 24, 40, 48, 64, 72]), min_size=1, max_size=3), st.floats(0.05, 0.95))
def test_the_rate_that_a_refusal_names_is_accepted(widths, rate):
    layers = [nn.Conv2d(a, b, 1) for a, b in zip([3, *widths], [*widths, 16], strict=True)]
    net = nn.Sequential(*layers)
    try:
        prune(net, "l2-gkp", rate=rate)
    except BadInput as refused:
        named = float(re.search(r"e\.g\. ([0-9.]+)", str(refused))[1])
        assert abs(named - rate) < 1 / min(16, math.gcd(*widths))
        assert prune(net, "l2-gkp", rate=named).plan


def test_layers_that_no_common_rate_fits_are_left_out_or_named():
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 9, 1), nn.Conv2d(9, 16, 1))
    pruned = prune(net, "l2-gkp", rate=0.5, groups=1)
    assert list(pruned.plan) == ["1"] and pruned.left_out["2"] == "has 9 inputs, of which rate 0.5 leaves no whole number"
    with pytest.raises(BadInput, match="no rate fits layers of 9, 16 inputs at once; leave some out with layers="):
        prune(net, "l2-gkp", rate=0.5, groups=1, layers=["1", "2"])


def test_a_dead_layer_is_pruned_by_every_one_shot_method_that_looks_at_weights():
    for method, info in gkp.methods().items():
        if info.procedure == "one-shot" and not {"data", "trace"} & set(info.needs) and method not in ("l1norm-b", "tmi-gkp"):
            net = Habits()
            nn.init.zeros_(net.body.weight)
            nn.init.zeros_(net.body.bias)
            options = {"tolerance": 0.9} if "tolerance" in info.options else {}
            assert prune(net, method, rate=0.5, **options).plan, method


class Counted(nn.Module):
    """One layer after another of those that the test names, on 8 x 8 images of 4 channels; each returns such images."""

    def __init__(self, names):
        super().__init__()
        self.layers = nn.ModuleDict({name: LAYERS[name][0]() for name in names if LAYERS[name][0] is not None})
        self.names, self.weight = names, nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x):
        for name in self.names:
            layer = dict(self.layers.items()).get(name)
            x = LAYERS[name][1](self, layer, x)
        return x.mean((2, 3))


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def pixels(x):
    return x.transpose(1, 2).unflatten(2, (8, 8))


LAYERS = {  # how it is made, how it is called, its multiplications
    "conv2d": (lambda: nn.Conv2d(4, 4, 3, padding=1), lambda net, layer, x: layer(x), 64 * 9 * 16),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 2, 2), lambda net, layer, x: layer(x)[..., ::2, ::2], 64 * 4 * 16),
    "functional": (None, lambda net, _, x: F.conv2d(x, net.weight, padding=1), 64 * 9 * 16),
    "conv1d": (lambda: nn.Conv1d(4, 4, 3, padding=1), lambda net, layer, x: layer(x.flatten(2)).view_as(x), 64 * 3 * 16),
    "conv3d": (lambda: nn.Conv3d(4, 4, 3, padding=1), lambda net, layer, x: layer(x[:, :, None])[:, :, 0], 64 * 27 * 16),
    "sequence": (lambda: nn.Linear(4, 4), lambda net, layer, x: pixels(layer(tokens(x))), 64 * 16),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        lambda net, layer, x: pixels(layer(tokens(x), tokens(x), tokens(x), need_weights=False)[0]),
        64 * 16 * 4 + 2 * 64 * 64 * 4,
    ),
    "dot product": (
        None,
        lambda net, _, x: pixels(F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x))),
        2 * 64 * 64 * 4,
    ),
    "einsum": (None, lambda net, _, x: torch.einsum("nchw,dc->ndhw", x, net.weight[:, :, 0, 0]), 64 * 16),
}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([*LAYERS]), min_size=1, max_size=4, unique=True))
def test_multiplications_are_counted_whatever_operation_makes_them(names):
    found = cost(Counted(names), input_shape=(4, 8, 8))
    assert found.macs == sum(LAYERS[name][2] for name in names) and found.left_out == ()


def test_a_count_says_what_it_leaves_out():
    class Spectral(nn.Module):
        def forward(self, x):
            return torch.fft.rfft2(x).abs().mean((2, 3))

    assert cost(nn.Sequential(nn.Conv2d(3, 4, 1), Spectral()), input_shape=(3, 8, 8)).left_out == ("aten._fft_r2c",)


@pytest.mark.parametrize(
    "function", [torch.linalg.inv, torch.linalg.eigvalsh, torch.linalg.svdvals, torch.linalg.matrix_exp, torch.linalg.cholesky]
)
def test_linear_algebra_that_is_not_counted_is_named(function):
    class Algebra(nn.Module):
        def forward(self, x):
            return function(x @ x.mT + 8 * torch.eye(8))

    found = cost(Algebra(), input_shape=(3, 8, 8))
    assert found.macs == 3 * 8**3 and len(found.left_out) >= 1


def test_what_is_asked_of_a_network_draws_nothing_from_the_global_generators():
    class Noisy(Habits):
        def forward(self, x):
            return super().forward(x + 0.01 * torch.randn_like(x))

    net = Noisy()
    before = torch.get_rng_state()
    with undisturbed():
        torch.rand(5)
    assert cost(net, input_shape=find_input_shape(net)).macs > 0
    assert torch.equal(torch.get_rng_state(), before)


# --- layers and images of unusual habits ----------------------------------------------------------------------------


class MaxNorm(nn.Conv2d):
    """A convolution that bounds its filters in each forward pass, as in EEGNet."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 100.0)
        return super().forward(x)


class Clamped(nn.Conv2d):
    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(-100.0, 100.0)
        return super().forward(x)


@pytest.mark.parametrize(("method", "options"), [("l2-gkp", {"groups": 4}), ("l2", {"tolerance": 0.2})])
@pytest.mark.parametrize("kind", [MaxNorm, Clamped])
def test_a_layer_that_writes_its_own_weight_is_left_out_with_the_reason(kind, method, options):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), kind(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    pruned = prune(net, method, rate=0.5, input_shape=(3, 16, 16), **options)
    assert "2" not in pruned.plan and "4" in pruned.plan
    assert "its forward pass writes into 2.weight" in pruned.left_out["2"]


class OneByOne(nn.Module):
    """Its last convolution sees one image at a time, without a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.body, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 5)

    def forward(self, x):
        z = torch.stack([self.body(one) for one in self.first(x).relu()])
        return self.fc(z.mean((2, 3)))


@pytest.mark.parametrize("groups", [2, 8])
def test_a_compact_layer_takes_one_image_without_a_batch(groups):
    pruned = prune(OneByOne(), "l2-gkp", rate=0.5, groups=groups, layers=["body"], input_shape=(3, 16, 16))
    x = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(pruned.compact()(x), pruned(x))


def test_a_twin_inside_another_network_is_counted_as_small():
    pruned = prune(Habits(), "l2-gkp", groups=4, rate=0.5, input_shape=(3, 40, 40))
    inside = nn.Sequential(nn.Identity(), pruned)
    whole, small = (cost(net, input_shape=(3, 40, 40)) for net in (inside, pruned))
    assert (whole.macs, whole.params) == (small.macs, small.params)
    assert inside[1] is pruned


class Noted(nn.Linear):
    def get_extra_state(self):
        return {"note": 1}

    def set_extra_state(self, state):
        pass


def test_a_network_with_extra_state_is_refused_by_name(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), Noted(8 * 36, 5))
    with pytest.raises(BadInput, match=r"2\._extra_state is no tensor"):
        gkp.save_model(net, tmp_path / "net")
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("group", [-1, 2, 2**40])
def test_a_plan_with_filters_of_no_group_is_refused(group):
    groups = torch.tensor([group, 0, 1, 1])
    with pytest.raises(BadInput, match="2 filter groups by this plan, and filters of others"):
        GroupedSpec(groups, torch.tensor([[0], [1]])).check("conv", nn.Conv2d(2, 4, 3))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_networks_that_keep_tensors_of_the_last_pass_are_pruned_from_a_twin_and_exported(tmp_path):
    pytest.importorskip("onnx", reason='needs pip install "gkp[onnx]"')
    net = Habits({"keeps"})
    pruned = prune(net, "l2-gkp", groups=4, rate=0.5, input_shape=(3, 40, 40))
    pruned(torch.rand(2, 3, 40, 40)).sum().backward()  # now it keeps an activation with its graph
    assert prune(pruned.net, "l2-gkp", groups=4, rate=0.5, input_shape=(3, 40, 40)).plan
    normed = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    normed(torch.rand(2, 3, 8, 8))
    assert gkp.export(normed.eval(), tmp_path / "net.onnx", input_shape=(3, 8, 8)).is_file()
