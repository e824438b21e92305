"""Convolutions that are not plain: kept as what they are, or left out with the reason; and what reads a compact one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.nn.utils import prune as torch_prune

import gkp
from gkp.errors import BadInput
from gkp.networks.copies import copy_of
from gkp.pruning.grouped import GroupedKernelConv2d, GroupedSpec
from gkp.pruning.spec import not_own, not_plain


class SameConv2d(nn.Conv2d):
    """Pads by itself, as TensorFlow does."""

    def forward(self, x):
        total = max((-(-x.shape[-1] // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - x.shape[-1], 0)
        x = F.pad(x, [total // 2, total - total // 2] * 2)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class GainConv2d(nn.Conv2d):
    """Has a gain and an offset for each filter."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)
        self.register_buffer("offset", torch.rand(self.out_channels))

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.gain, self.bias) + self.offset[:, None, None]


class StandardisedConv2d(nn.Conv2d):
    """Standardises its weight: a weight of zero counts for its mean and deviation."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / self.weight.std((1, 2, 3), keepdim=True), self.bias)


class MaskedCentre(nn.Conv2d):
    """Has a buffer of the shape of its weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("seen", torch.ones_like(self.weight))

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.seen, self.bias)


class Deformable(nn.Conv2d):
    """Reads offsets beside the images."""

    def forward(self, x, offset):
        return super().forward(x + offset)


EXACT = [nn.Conv2d, SameConv2d, GainConv2d]
INEXACT = [StandardisedConv2d, MaskedCentre]
REPARAMETRISED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": weight_norm,
    "old spectral_norm": spectral_norm,
    "utils.prune": lambda conv: torch_prune.l1_unstructured(conv, "weight", 0.3),
}


class Net(nn.Module):
    """Convolutions of the given kinds between ReLUs."""

    def __init__(self, kinds, wrap=None, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.convs = nn.Sequential(*(kind(8, 8, 3, **options) for kind in kinds))
        if wrap is not None:
            self.convs[0] = wrap(self.convs[0])
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        for conv in self.convs:
            x = conv(x).relu()
        return self.fc(x.mean((2, 3)))


def images():
    return torch.rand(2, 3, 17, 17)


def check_exact(pruned, net):
    """Twin and compact are one function, and the twin is the network where nothing goes."""
    x, small = images(), pruned.compact().eval()
    with torch.no_grad():
        torch.testing.assert_close(small(x), pruned.eval()(x), rtol=1e-4, atol=1e-5)
        whole = copy_of(net).eval()
        for name, spec in pruned.plan.items():
            if isinstance(spec, GroupedSpec):
                layer = whole.get_submodule(name)
                layer.weight.mul_(spec.mask(layer.in_channels))
        if all(isinstance(spec, GroupedSpec) for spec in pruned.plan.values()):
            torch.testing.assert_close(whole(x), pruned(x))


@given(
    kinds=st.lists(st.sampled_from([*EXACT, *INEXACT]), min_size=1, max_size=3).filter(lambda k: set(k) & set(EXACT)),
    method=st.sampled_from(["l2-gkp", "random-gkp"]),
    bias=st.booleans(),
    stride=st.sampled_from([1, 2]),
    mode=st.sampled_from(["zeros", "circular"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_a_subclass_keeps_its_type_where_that_is_exact_and_is_left_out_elsewhere(kinds, method, bias, stride, mode, seed):
    torch.manual_seed(seed)
    net = Net(kinds, bias=bias, stride=stride, padding=1, padding_mode=mode).eval()
    pruned = gkp.prune(net, method, rate=0.5, groups=4)
    assert set(pruned.plan) == {f"convs.{i}" for i, kind in enumerate(kinds) if kind in EXACT}
    for i, kind in enumerate(kinds):
        if kind in INEXACT:
            assert f"is a {kind.__name__}" in pruned.left_out[f"convs.{i}"]
        else:
            assert type(pruned.compact().convs[i].conv) is kind and isinstance(pruned.net.convs[i], kind)
            dense = pruned.compact().convs[i].dense()
            x = torch.rand(1, 8, 9, 9)
            assert type(dense) is kind
            torch.testing.assert_close(dense(x), pruned.net.convs[i](x))
    check_exact(pruned, net)


@pytest.mark.parametrize("kind", INEXACT)
def test_a_subclass_that_is_asked_for_and_not_exact_is_refused(kind):
    with pytest.raises(BadInput, match=rf"convs.0 is a {kind.__name__}"):
        gkp.prune(Net([kind, nn.Conv2d]).eval(), "l2-gkp", rate=0.5, layers=["convs.0"])


def test_a_convolution_of_several_inputs_is_left_out():
    class Offsets(Net):
        def forward(self, x):
            x = self.convs[1](self.stem(x).relu()).relu()
            return self.fc(self.convs[0](x, torch.ones(())).mean((2, 3)))

    net = Offsets([Deformable, nn.Conv2d]).eval()
    pruned = gkp.prune(net, "l2-gkp", rate=0.5)
    assert set(pruned.plan) == {"convs.1"} and "is a Deformable" in pruned.left_out["convs.0"]
    check_exact(pruned, net)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("method", ["l2-gkp", "l2", "random"])
@pytest.mark.parametrize("wrap", REPARAMETRISED.values(), ids=REPARAMETRISED)
def test_a_weight_that_is_computed_from_others_is_left_out_with_the_reason(wrap, method):
    torch.manual_seed(0)
    net = Net([nn.Conv2d] * 4, wrap).eval()
    net(images())
    options = {} if method == "l2-gkp" else {"budget": 0.8, "tolerance": 0.2}
    pruned = gkp.prune(net, method, rate=0.5, **options)
    assert "computes its weight from other tensors" in pruned.left_out["convs.0"] and len(pruned.plan) >= 2
    check_exact(pruned, net)
    with pytest.raises(BadInput, match=r"convs\.0.* computes its weight from other tensors"):
        gkp.prune(net, method, rate=0.5, layers=["convs.0"], **options)


@pytest.mark.parametrize("method", ["cc", "lrf"])
def test_methods_that_put_plain_convolutions_in_place_leave_subclasses_alone(method):
    torch.manual_seed(0)
    net = Net([SameConv2d, nn.Conv2d, nn.Conv2d, nn.Conv2d], padding=1).eval()
    options = {"data": gkp.load_dataset("digits", "train")} if method == "cc" else {}
    if method == "cc":
        net.fc = nn.Linear(8, 10)
    pruned = gkp.prune(net, method, budget=0.8, **options)
    assert "is a SameConv2d" in pruned.left_out["convs.0"] and "convs.0" not in pruned.plan
    check_exact(pruned, net)


def test_what_is_not_plain_is_said():
    assert not_plain(nn.Conv2d(3, 4, 3)) == "" == not_own(SameConv2d(3, 4, 3))
    assert "SameConv2d" in not_plain(SameConv2d(3, 4, 3))
    assert "first batch" in not_own(nn.LazyConv2d(4, 3))
    own = nn.Conv2d(3, 4, 3)
    own.forward = lambda x: x
    assert "forward pass" in not_own(own) == not_plain(own)


def test_hooks_stay_with_a_compact_convolution():
    torch.manual_seed(0)
    net = Net([nn.Conv2d, SameConv2d]).eval()
    for conv in net.convs:
        conv.register_forward_hook(lambda module, inputs, output: output + module.weight.sum())
        conv.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    pruned = gkp.prune(net, "l2-gkp", rate=0.5)
    assert len(pruned.plan) == 2
    check_exact(pruned, net)


ATTRIBUTES = (
    "weight", "bias", "stride", "padding", "dilation", "groups", "kernel_size", "in_channels", "out_channels", "padding_mode"
)  # fmt: skip


@given(
    kernel=st.sampled_from([1, 3, (3, 1)]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    mode=st.sampled_from(["zeros", "reflect"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_a_compact_convolution_answers_as_the_dense_one(kernel, stride, padding, dilation, bias, mode, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(8, 8, kernel, stride, padding, dilation, bias=bias, padding_mode=mode)
    pruned = gkp.prune(nn.Sequential(conv), "l2-gkp", rate=0.5, groups=4, layers=["0"])
    small, twin = pruned.compact()[0], pruned.net[0]
    assert isinstance(small, GroupedKernelConv2d)
    for name in ATTRIBUTES:
        one, other = getattr(small, name), getattr(twin, name)
        assert torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other, name
    x = torch.rand(1, 8, 11, 11)
    torch.testing.assert_close(small(x), conv._conv_forward(x, small.weight, small.bias))
    small.weight.square().sum().backward()  # of the small weight
    torch.testing.assert_close(small.conv.weight.grad, 2 * small.conv.weight.detach())


def test_a_forward_pass_that_computes_with_the_weight_of_a_pruned_layer_is_the_same_in_both_forms():
    class Reads(Net):
        def forward(self, x):
            x = self.stem(x).relu()
            for conv in self.convs:
                read = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
                x = (conv(x) + read).relu()
            return self.fc(x.mean((2, 3)))

    torch.manual_seed(0)
    net = Reads([nn.Conv2d, nn.Conv2d]).eval()
    pruned = gkp.prune(net, "l2-gkp", rate=0.5)
    assert len(pruned.plan) == 2
    check_exact(pruned, net)
    pruned(images()).square().sum().backward()
    for name, spec in pruned.plan.items():
        weight = pruned.net.get_submodule(name).weight
        assert (weight.grad[~spec.mask(8).expand_as(weight)] == 0).all()


class Tied(nn.Module):
    """One weight in two layers, or one layer called twice."""

    def __init__(self, whole_layer):
        super().__init__()
        self.stem, self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.b = self.a if whole_layer else nn.Conv2d(8, 8, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.fc(self.b(self.a(self.stem(x)).relu()).mean((2, 3)))


@given(whole_layer=st.booleans(), method=st.sampled_from(["l2-gkp", "random-gkp"]), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_tied_weights_are_pruned_saved_and_loaded(tmp_path_factory, whole_layer, method, seed):
    torch.manual_seed(seed)
    net, x = Tied(whole_layer).eval(), images()
    pruned = gkp.prune(net, method, rate=0.5)
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(pruned(x), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert pruned.net.a.weight is pruned.net.b.weight
    small = pruned.compact()
    torch.testing.assert_close(small(x), pruned(x), rtol=1e-4, atol=1e-5)
    for one in (net, pruned, small):
        folder = gkp.save_model(one, tmp_path_factory.mktemp("tied"))
        torch.testing.assert_close(gkp.load_model(folder, into=Tied(whole_layer))(x), one(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["l2-gkp", "l2"])
@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1"])
def test_compact_networks_script(arch, method):
    import torchvision

    torch.manual_seed(0)
    small = gkp.prune(torchvision.models.get_model(arch, num_classes=4).eval(), method, rate=0.5).compact().eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad(), pytest.warns(Warning, match="deprecated"):
        torch.testing.assert_close(torch.jit.script(small)(x), small(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet20", "resnet50"])
def test_our_networks_script_too(arch):
    small = gkp.prune(gkp.load_model(arch), "l2-gkp", rate=0.5).compact().eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad(), pytest.warns(Warning, match="deprecated"):
        torch.testing.assert_close(torch.jit.script(small)(x), small(x), rtol=1e-4, atol=1e-5)
