"""`gkp.compile`: the engine computes what torch computes, logits and input gradients, for every form of a network."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import noise

import gkp
from gkp.artifact.experiments.kinds import EvaluateCell, TrainCell
from gkp.data.dataset import Dataset
from gkp.engine import cache, layout
from gkp.engine import compile as face
from gkp.errors import BadInput, ModelWarning
from gkp.networks.build import build_model
from gkp.networks.classifier import PAPER_MEAN, PAPER_STD
from gkp.pruning.blocks import BlockSpec
from gkp.pruning.filters import FilterSpec
from gkp.pruning.grouped import GroupedSpec
from gkp.pruning.methods.cc.spec import LowRankSpec
from gkp.pruning.methods.lrf import BetweenSpec
from gkp.pruning.plan import Plan
from gkp.pruning.twin import PrunedModel

pytest.importorskip("numba", reason='needs pip install "gkp[fast]"')


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """`net` in eval mode with BatchNorms that are far from doing nothing, yet keep activations of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3)):
                tensor.data = low + (high - low) * torch.rand(tensor.shape, generator=generator)
    with torch.no_grad():
        net.train()(torch.rand(16, 3, 32, 32, generator=generator))
    return net.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return lively(build_model("resnet20"))


def images(n: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(n + height * width))


def apart(net: nn.Module, x: Tensor, fast: nn.Module | None = None) -> float:
    """The largest difference of logits between a network and the engine."""
    with torch.no_grad():
        found, expected = (fast or gkp.compile(net))(x), net(x)
    assert found.shape == expected.shape and found.dtype == torch.float32
    return (found - expected).abs().max().item()


def gradient_errors(net: nn.Module, x: Tensor) -> Tensor:
    """(N,) relative error of each image's gradient of the logits' squared norm, against float64."""
    exact = copy.deepcopy(net).double()
    one, two = x.clone().requires_grad_(), x.double().requires_grad_()
    (found,) = torch.autograd.grad(gkp.compile(net)(one).square().sum(), one)
    (expected,) = torch.autograd.grad(exact(two).square().sum(), two)
    return (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1).clamp_min(1e-12)


# --- every form of a network ----------------------------------------------------------------------------------------


def grouped(net: nn.Module) -> Plan:
    return gkp.prune(net, "sr-gkp", rate=7 / 16).plan


def overlapping(net: nn.Module) -> Plan:
    """Groups that keep the same inputs, one that nobody keeps, groups of other sizes."""
    kept = torch.tensor([[0, 1, 2], [0, 1, 2], [3, 5, 6], [8, 9, 15]])
    return Plan({f"layer1.{i}.conv1": GroupedSpec(torch.arange(16) % 4, kept) for i in range(3)}, (3, 32, 32))


def filters(net: nn.Module) -> Plan:
    widths = {"layer1.0.conv1": 1, "layer1.1.conv1": 5, "layer2.0.conv1": 7, "layer2.1.conv1": 19, "layer3.2.conv1": 33}
    return Plan({name: FilterSpec(torch.arange(1, 1 + width)) for name, width in widths.items()}, (3, 32, 32))


def low_rank(net: nn.Module) -> Plan:
    specs = {"layer1.0.conv1": LowRankSpec(torch.arange(3, 12), 5), "layer2.0.conv1": LowRankSpec(torch.arange(0, 16, 3), 7)}
    return Plan({**specs, "layer3.0.conv2": LowRankSpec(torch.arange(50), None)}, (3, 32, 32))


def between(net: nn.Module) -> Plan:
    specs = {"layer1.1.conv2": BetweenSpec(torch.arange(9), torch.arange(2, 13))}
    return Plan({**specs, "layer3.0.conv1": BetweenSpec(torch.arange(30), torch.arange(41))}, (3, 32, 32))


def blocks(net: nn.Module) -> Plan:
    return Plan({name: BlockSpec() for name in ("layer1.0", "layer2.0", "layer3.1")}, (3, 32, 32))


FORMS = (grouped, overlapping, filters, low_rank, between, blocks)


@pytest.mark.parametrize("form", FORMS)
def test_masked_and_compact_networks_give_the_logits_of_the_masked_twin(resnet, form):
    twin = PrunedModel(resnet, form(resnet)).eval()
    fast = gkp.compile(small := twin.compact())
    assert not fast.fallbacks and not gkp.compile(twin).fallbacks, fast.fallbacks
    for n in (1, 9):
        assert apart(twin, images(n)) <= 1e-5
        assert apart(twin, images(n), fast) <= 1e-5
    assert gradient_errors(twin, images(5)).median() < 1e-5
    assert gradient_errors(small, images(5)).median() < 1e-5


@pytest.mark.parametrize("name", ["resnet20", "resnet20 centre", "resnet20 projection", "vgg16_bn"])
def test_dense_networks_give_the_same_logits_and_gradients(name):
    architecture, _, shortcut = name.partition(" ")
    net = lively(build_model(architecture, shortcut=shortcut or "append"))
    assert not gkp.compile(net).fallbacks
    assert apart(net, images(3)) <= 1e-4
    assert gradient_errors(net, images(3)).median() < 1e-5


class FewPixels(nn.Module):
    """Grouped kernels on maps of few pixels, whose filters share vectors: groups keep the same channels, and a residual."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 40, 3, padding=1)
        self.grouped, self.last = nn.Conv2d(60, 104, 3, stride, padding=1, groups=2), nn.Conv2d(104, 104, 1)
        self.norm = nn.BatchNorm2d(104)
        self.register_buffer("kept", torch.cat([torch.arange(30), torch.arange(10, 40)]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.first(x)).index_select(1, self.kept)))
        return F.relu(self.norm(self.last(x)) + x)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (4, 4), (5, 3), (3, 8)])
def test_maps_of_few_pixels_are_those_of_torch(height, width, stride):
    net = FewPixels(stride).eval()
    fast = gkp.compile(net)
    assert not fast.fallbacks
    fast(images(1, height, width))
    assert any((part.segment.inference.steps[:, layout.OP] == layout.NARROW).any() for part in fast._plan((3, height, width)))
    assert gradient_errors(net, images(6, height, width) - 0.5).median() < 1e-5
    x = images(19, height, width) - 0.5
    assert apart(net, x, fast) <= 2e-6
    assert torch.equal(torch.cat([fast(image) for image in x.split(1)]), gkp.compile(net, threads=2)(x))


@pytest.mark.parametrize("n", [2, 7, 8, 15, 16, 17, 130])
def test_any_number_of_images(resnet, n):
    assert apart(resnet, images(n)) <= 1e-5


def test_no_images_give_no_logits(resnet):
    assert gkp.compile(resnet)(images(0)).shape == (0, 10)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 64), (12, 17), (16, 33), (31, 15), (40, 48), (64, 8), (64, 64)])
def test_any_size_of_images(resnet, height, width):
    small = gkp.prune(resnet, "sr-gkp", rate=10 / 16).eval().compact()
    assert apart(small, images(2, height, width)) <= 1e-5
    assert gradient_errors(small, images(3, height, width)).median() < 1e-5


def test_one_compiled_network_takes_images_of_many_sizes_in_turn(resnet):
    fast = gkp.compile(resnet)
    for side in (8, 12, 16, 20, 24, 28, 32, 36, 40, 8, 32):
        assert apart(resnet, images(1, side, side), fast) <= 1e-5


class OneLayer(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(3, 5, 1), (1, 1, 1), (6, 4, 2), (7, 7, 7), (4, 24, 4)])
def test_a_single_convolution_is_that_of_torch(inputs, outputs, groups, kernel, stride):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=groups != 2)
    net = OneLayer(conv, nn.ReLU()).eval()
    for height, width in ((1, 1), (5, 4), (6, 16), (7, 35)):
        x = images(3, height, width, inputs) - 0.5
        assert apart(net, x) <= 2e-6
        assert gradient_errors(net, x).median() < 1e-5


def test_pools_flattening_and_linear_layers_are_those_of_torch():
    conv = nn.Conv2d(3, 5, 3, padding=1)
    net = OneLayer(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(5 * 3 * 4, 4)).eval()
    assert not gkp.compile(net).fallbacks
    assert apart(net, images(9, 7, 9)) <= 1e-6
    assert gradient_errors(net, images(9, 7, 9)).median() < 1e-6
    flat = OneLayer(conv, nn.ReLU(), nn.Flatten(), nn.Linear(5 * 7 * 9, 4)).eval()
    assert not gkp.compile(flat).fallbacks
    assert apart(flat, images(9, 7, 9)) <= 1e-6
    assert gradient_errors(flat, images(9, 7, 9)).median() < 1e-6
    pooled = OneLayer(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).eval()
    assert not gkp.compile(pooled).fallbacks
    assert apart(pooled, images(9, 7, 9)) <= 1e-6


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0), (5, 2, 2)])
def test_maximum_pools_are_those_of_torch(window, stride, padding):
    net = OneLayer(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(window, stride, padding)).eval()
    assert not gkp.compile(net).fallbacks
    for height, width in ((5, 5), (7, 18), (16, 33)):
        assert apart(net, images(3, height, width) - 0.5) <= 1e-6
        assert gradient_errors(net, images(5, height, width) - 0.5).median() < 1e-6


@pytest.mark.parametrize(("block", "side"), [("BasicBlock", 64), ("Bottleneck", 32)])
def test_the_stem_and_the_blocks_of_imagenet_resnets_run_in_the_engine(block, side):
    from torchvision.models import resnet

    torch.manual_seed(0)
    whole = resnet.ResNet(getattr(resnet, block), [1, 1, 1, 1])
    stem, pool = (whole.conv1, whole.bn1, whole.relu, whole.maxpool), whole.avgpool
    width = 128 * getattr(resnet, block).expansion
    net = lively(OneLayer(*stem, whole.layer1, whole.layer2, pool, nn.Flatten(), nn.Linear(width, 7)))
    for form in (net, gkp.prune(net, "l2", rate=1 / 2).eval().compact()):
        fast = gkp.compile(form)
        assert not fast.fallbacks, fast.fallbacks
        assert apart(form, images(3, side, side), fast) <= 1e-4
    assert gradient_errors(net, images(3, side, side)).median() < 1e-5


# --- what an image's result depends on ------------------------------------------------------------------------------


def test_memory_layout_does_not_matter(resnet):
    fast, x = gkp.compile(resnet), images(4)
    expected = fast(x)
    wide = torch.rand(4, 3, 32, 64)
    wide[..., ::2] = x
    for same in (
        x.contiguous(memory_format=torch.channels_last),
        wide[..., ::2],
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert not same.is_contiguous()
        assert torch.equal(fast(same), expected)


def test_threads_and_neighbours_do_not_change_a_byte(resnet):
    small, x = gkp.prune(resnet, "sr-gkp").eval().compact(), images(37)
    x.requires_grad_()
    logits = gkp.compile(small, threads=1)(x)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    for threads in (2, 3):
        again = gkp.compile(small, threads=threads)(x)
        assert torch.equal(again, logits)
        assert torch.equal(torch.autograd.grad(again.square().sum(), x)[0], gradient)
    alone = torch.cat([gkp.compile(small)(image) for image in x.detach().split(1)])
    assert torch.equal(alone, logits)


def test_nan_in_an_image_gives_nan_for_it_alone(resnet):
    fast, x = gkp.compile(resnet), images(18)
    expected = fast(x)
    x[7, 1, 30, 2] = float("nan")
    found = fast(x)
    assert found[7].isnan().all()
    others = torch.arange(18) != 7
    assert torch.equal(found[others], expected[others])
    assert torch.equal(fast(images(18)), expected)  # nothing of it stays in memory
    pooled = OneLayer(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2)).eval()
    small = images(1, 8, 8)
    small[0, 0, 2, 3] = float("nan")
    assert torch.equal(gkp.compile(pooled)(small).isnan(), pooled(small).isnan())


def test_weights_are_a_copy(resnet):
    net, x = copy.deepcopy(resnet), images(2)
    fast = gkp.compile(net)
    expected = fast(x)
    with torch.no_grad():
        net.conv1.weight.zero_()
    assert torch.equal(fast(x), expected)
    assert net.conv1.weight.requires_grad and not fast(x).requires_grad


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))])
def test_a_copy_computes_the_same(resnet, duplicate):
    fast = gkp.compile(resnet, threads=1)
    again = duplicate(fast)
    assert torch.equal(again(images(3)), fast(images(3))) and again.threads == 1


def test_a_compiled_network_can_be_attacked_counted_and_benchmarked(resnet):
    fast, x = gkp.compile(resnet), images(6)
    y = fast(x).argmax(1)
    found = gkp.attack(fast, x, y, "pgd", eps=2 / 255, steps=3)
    assert (found - x).abs().max() <= 2 / 255 + 1e-6
    loss = [F.cross_entropy(resnet(images), y).item() for images in (x, found)]
    assert loss[1] > loss[0]
    assert gkp.cost(fast) == gkp.cost(resnet)
    assert gkp.latency(fast, seconds=0.01).median > 0
    with torch.no_grad():
        normalised = (x - resnet.mean) / resnet.std
        assert (fast.from_normalised(normalised) - resnet(x)).abs().max() < 1e-5
    assert torch.equal(fast.mean, resnet.mean) and fast.num_classes == 10


def test_an_evaluation_by_the_engine_has_the_outcomes_of_torch_and_says_so(resnet, tmp_path):
    small = gkp.prune(resnet, "sr-gkp").eval().compact()
    pixels = torch.randint(256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = small(pixels / 255).argmax(1)
    data = Dataset("noise", "test", pixels, labels, 10, PAPER_MEAN, PAPER_STD)
    for options in ({"attacks": "fgsm,pgd", "eps": "0.5/255"}, {"protocol": "paper"}):
        theirs = gkp.benchmark(small, data, progress=False, **options)
        ours = gkp.benchmark(small, data, engine="fast", progress=False, **options)
        assert (theirs.right != ours.right).sum() <= 2  # at a tie
        assert theirs.engine == "torch" and "engine" not in theirs.versions
        assert ours.engine == "fast" and "numba" in ours.versions and ours.model_sha256 == theirs.model_sha256
        assert type(ours).load(ours.save(tmp_path / options.get("protocol", "pixel"))).engine == "fast"
        with pytest.raises(BadInput, match="engine"):
            ours.merge(theirs)
        again = gkp.benchmark(gkp.compile(small), data, progress=False, **options)
        assert again.engine == "fast" and again.model_sha256 == ours.model_sha256
        assert np.array_equal(again.right, ours.right)


def test_an_engine_that_is_not_there_or_would_not_run_is_refused_before_an_evaluation(resnet, monkeypatch):
    with pytest.raises(BadInput, match="unknown engine 'quick'; known: torch, fast"):
        gkp.benchmark(resnet, noise(4, side=32), engine="quick")
    with pytest.raises(BadInput, match=r"cannot run this network \(torch\.fx cannot trace it"):
        gkp.benchmark(Branches(), noise(4), engine="fast")
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(BadInput, match=r'numba not installed.*pip install "gkp\[fast\]"'):
        gkp.benchmark(resnet, noise(4, side=32), engine="fast")


def test_the_engine_is_a_field_of_an_evaluation_cell_that_changes_no_known_id():
    net = TrainCell(model="resnet20")
    plain, fast = EvaluateCell(net=net), EvaluateCell(net=net, engine="fast")
    assert plain.id == EvaluateCell(net=net, engine="torch").id
    assert fast.hash != plain.hash and fast.label.endswith("-fast") and fast.part == "pixel-fast"
    with pytest.raises(BadInput, match="unknown engine 'quick'"):
        EvaluateCell(net=net, engine="quick")


# --- fallbacks ------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Layers that the engine knows around some that it does not, and a value that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.AvgPool2d(2)
        self.b, self.act = nn.Conv2d(8, 8, 5, padding=4, dilation=2), nn.GELU()
        self.c, self.norm, self.fc = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.a(x)))
        x = F.relu(self.norm(self.c(x))) + torch.sigmoid(self.c(self.act(self.b(x))))
        return self.fc(x.mean((2, 3)).view(x.size(0), -1))


def test_layers_that_the_engine_does_not_know_run_as_stock_modules_and_are_listed():
    net = Odd().eval()
    fast = gkp.compile(net)
    assert {"pool", "b", "act", "sigmoid", "mean", "fc"} <= set(fast.fallbacks)
    assert "dilation (2, 2)" in fast.fallbacks["b"] and fast.fallbacks["act"] == "the engine does not know GELU"
    assert "a" not in fast.fallbacks and "norm" not in fast.fallbacks
    for n in (1, 20):
        assert apart(net, images(n, 16, 16), fast) <= 1e-6
    assert gradient_errors(net, images(4, 16, 16)).median() < 1e-6


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


class InPlace(nn.Module):
    """The ReLU changes what the sum reads afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.relu(y) + y).mean((2, 3))


class Repeats(nn.Module):
    """A selection that reads a channel twice, and one behind which nothing is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).index_select(1, torch.tensor([0, 0, 3])).mean((2, 3))


@pytest.mark.parametrize("kind", [Branches, InPlace])
def test_a_network_that_cannot_be_taken_apart_runs_as_it_is(kind):
    net = kind().eval()
    fast = gkp.compile(net)
    assert list(fast.fallbacks) == ["network"]
    assert torch.equal(fast(images(3, 8, 8)), net(images(3, 8, 8)))


def test_channels_that_are_selected_twice_are_there_twice():
    assert apart(Repeats().eval(), images(3, 8, 8)) <= 1e-6


def test_a_layer_with_hooks_keeps_them(resnet):
    net = copy.deepcopy(resnet)
    net.layer2[0].conv1.register_forward_hook(lambda module, inputs, output: 2 * output)
    fast = gkp.compile(net)
    assert "hooks" in fast.fallbacks["layer2.0.conv1"]
    assert apart(net, images(2), fast) <= 1e-5 < apart(resnet, images(2), fast)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_what_the_engine_does_not_compute_is_refused_in_one_line(resnet):
    refused = {
        "training mode": copy.deepcopy(resnet).train(),
        "float16": copy.deepcopy(resnet).half(),
        "float64": copy.deepcopy(resnet).double(),
        "on meta": copy.deepcopy(resnet).to("meta"),
        "not a int": 3,
    }
    for reason, net in refused.items():
        with pytest.raises(BadInput, match=reason) as error:
            gkp.compile(net)
        assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match="threads must be 1 or more, not 0"):
        gkp.compile(resnet, threads=0)


def test_images_that_do_not_fit_are_refused_in_one_line(resnet):
    fast = gkp.compile(resnet)
    for x in (images(2).double(), images(2).half(), images(2).to("meta"), images(2)[0], np.zeros((2, 3, 32, 32), np.float32)):
        with pytest.raises(BadInput, match=r"takes float32 images \(N, C, H, W\) on the CPU, not"):
            fast(x)
    for channels in (1, 2, 4):
        with pytest.raises(BadInput, match=r"does not take images of shape \(" + str(channels)):
            fast(images(2, channels=channels))
    with pytest.raises(BadInput, match="nothing is left of the images after pooling"):
        gkp.compile(lively(build_model("vgg16_bn")))(images(1, 16, 16))


def test_a_compiled_network_is_not_trained_moved_or_pruned(resnet, tmp_path):
    fast = gkp.compile(resnet)
    for change in (fast.train, fast.half, lambda: fast.to("meta"), lambda: fast.load_state_dict({})):
        with pytest.raises(BadInput, match="compiled network"):
            change()
    with pytest.raises(BadInput):
        gkp.prune(fast, "sr-gkp")
    again = gkp.load_model(gkp.save_model(fast, tmp_path / "model"))  # what is saved is the network
    assert torch.equal(again.eval()(images(2)), resnet(images(2)))
    assert fast.eval().cpu() is fast and not fast.training
    assert torch.equal(gkp.compile(fast)(images(2)), fast(images(2)))


def test_without_numba_it_is_the_stock_network_and_says_so_once(resnet, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(face, "_warned", set())
    with pytest.warns(ModelWarning, match=r'pip install "gkp\[fast\]"'):
        fast = gkp.compile(resnet)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gkp.compile(resnet)
    assert not fast.training and "numba is not installed" in fast.fallbacks["network"]
    assert torch.equal(fast(images(3)), resnet(images(3)))
    x = images(3).requires_grad_()
    assert torch.autograd.grad(fast(x).sum(), x)[0].abs().sum() > 0


# --- compiled kernels on disk ---------------------------------------------------------------------------------------

# A process that compiles a small function in place of the kernels, as `gkp.compile` would.
PROCESS = """
import sys
from importlib import util
spec = util.spec_from_file_location("stand_in", sys.argv[1])
sys.modules["stand_in"] = stand_in = util.module_from_spec(spec)
spec.loader.exec_module(stand_in)
import gkp.engine.steps
gkp.engine.steps.run = stand_in.run
from gkp.engine import cache, layout
import numpy as np
out = np.zeros(1, np.int64)
cache.kernel()(out.ctypes.data, *[0] * 12)
print(out[0])
"""
STAND_IN = """
from gkp.engine.emitter import put
import numpy as np
def run(a, b, c, d, e, f, g, h, i, j, k, l, m):
    put(a, np.float32(1.0))
"""


def start(folder: Path, **variables: str) -> subprocess.Popen[str]:
    (source := folder / "stand_in.py").write_text(STAND_IN) if not (folder / "stand_in.py").exists() else None
    source = folder / "stand_in.py"
    settings = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    command = [sys.executable, "-c", PROCESS, str(source)]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    """What a process that ended well wrote to stderr; its kernel did its work."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.strip() == str(np.array([1.0, 0.0], np.float32).view(np.int64)[0])
    return err


COMPILING = "gkp: compiling the engine's kernels for this processor, once ... done\n"


def test_kernels_are_compiled_once_and_two_processes_do_not_disturb_each_other(tmp_path):
    assert {said(process) for process in [start(tmp_path), start(tmp_path)]} <= {COMPILING, ""}
    assert said(start(tmp_path)) == ""
    assert said(start(tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")) == COMPILING  # another processor


def test_damaged_kernels_are_compiled_again(tmp_path):
    said(start(tmp_path))
    for file in (tmp_path / "cache").rglob("*.nbc"):
        file.write_bytes(file.read_bytes()[:100])
    assert said(start(tmp_path)) == COMPILING
    assert said(start(tmp_path)) == ""


def test_kernels_in_a_folder_that_cannot_be_written_are_used(tmp_path, monkeypatch):
    said(start(tmp_path))
    (folder,) = (tmp_path / "cache" / "gkp" / "kernels").iterdir()
    monkeypatch.setattr(cache, "_writable", lambda folder: False)
    with cache._readable(folder) as copied:
        assert copied != folder
        assert sorted(p.name for p in copied.rglob("*.nb?")) == sorted(p.name for p in folder.rglob("*.nb?"))


def test_without_a_folder_to_write_to_every_process_compiles(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        assert said(start(tmp_path)) == COMPILING


def test_the_kernels_depend_on_processor_versions_and_sources(monkeypatch, tmp_path):
    import numba

    before = cache.kernel_folder()
    assert cache.kernel_folder() == before
    monkeypatch.setattr(numba, "__version__", "0.0")
    assert cache.kernel_folder() != before
    monkeypatch.undo()
    monkeypatch.setattr(cache, "_SOURCES", (*cache._SOURCES, "graph.py"))
    assert cache.kernel_folder() != before


def test_the_library_loads_the_compiler_only_when_a_network_is_run():
    code = "import gkp, sys; gkp.compile; gkp.prune; gkp.cost; print('numba' in sys.modules, 'llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
