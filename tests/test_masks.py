"""Masks are part of the function: removed weights count for nothing and get no gradient, whatever a training loop does."""

import copy
import io
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.checkpoint import checkpoint

import gkp
from gkp.pruning.filters import FilterSpec
from gkp.pruning.grouped import GroupedSpec
from gkp.pruning.masks import MaskedLayer, layer_type, unmasked
from gkp.pruning.plan import Plan
from gkp.pruning.twin import PrunedModel


class Net(nn.Module):
    """Two residual-free blocks of convolution, BatchNorm and ReLU, and a classifier."""

    def __init__(self, width=8, kernel=3, *, bias=False, checkpointed=False):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.a = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=bias)
        self.norm = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, bias=bias)
        self.fc = nn.Linear(width, 4)
        self.checkpointed = checkpointed

    def body(self, x):
        return self.b(self.norm(self.a(x)).relu())

    def forward(self, x):
        x = self.stem(x).relu()
        x = checkpoint(self.body, x, use_reentrant=False) if self.checkpointed else self.body(x)
        return self.fc(x.relu().mean((2, 3)))


def batch(n=6):
    return torch.rand(n, 3, 9, 9), torch.arange(n) % 4


def drawn_plan(net, seed, kinds=("grouped", "filters")):
    """A plan of random grouped kernels in one convolution and random filters in the other, or one of the two."""
    generator = torch.Generator().manual_seed(seed)
    width = net.a.out_channels
    specs = {}
    if "filters" in kinds:
        specs["a"] = FilterSpec(torch.randperm(width, generator=generator)[: width - 3].sort().values)
    else:
        specs["a"] = grouped(width, generator)
    if kinds == ("grouped",):
        specs["b"] = grouped(width, generator)
    return Plan(specs, (3, 9, 9))


def grouped(width, generator):
    groups = torch.arange(width) % 2
    kept = torch.stack([torch.randperm(width, generator=generator)[:3].sort().values for _ in range(2)])
    return GroupedSpec(groups[torch.randperm(width, generator=generator)], kept)


def twin_of(seed=0, kinds=("grouped",), **options):
    torch.manual_seed(seed)
    net = Net(**options)
    return PrunedModel(net, drawn_plan(net, seed, kinds))


def removed(pruned):
    """Each masked parameter with its mask, spread over it."""
    for layer in pruned.net.modules():
        if isinstance(layer, MaskedLayer):
            for name, gone in layer.gone.items():
                parameter = layer._parameters[name]
                yield parameter, gone.expand_as(parameter)


def check_plan_holds(pruned):
    """The twin is its compact network, removed weights are zero, and so are their gradients."""
    x = batch()[0]
    for parameter, gone in removed(pruned):
        assert gone.any() and (parameter[gone] == 0).all()
        assert parameter.grad is None or (parameter.grad[gone] == 0).all()
    small = pruned.compact().eval()
    with torch.no_grad():
        torch.testing.assert_close(small(x), copy.deepcopy(pruned).eval()(x), rtol=1e-4, atol=1e-5)


def plain(net, x, y, _):
    return F.cross_entropy(net(x), y)


def two_forwards(net, x, y, _):
    clean, moved = net(x), net(x + 0.1)
    return F.cross_entropy(clean, y) + 6 * F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="batchmean")


def frozen_norms(net, x, y, _):
    net.eval()
    return F.cross_entropy(net(x), y)


def mode_changes_before_backward(net, x, y, _):
    loss = F.cross_entropy(net(x), y) + 1e-2 * sum(p.square().sum() for p in net.parameters())
    net.eval()
    net(x)
    net.train()
    return loss


def half_precision(net, x, y, _):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.cross_entropy(net(x), y)


def sharpness_aware(net, x, y, optimizer):
    F.cross_entropy(net(x), y).backward()
    with torch.no_grad():
        steps = [(p, 0.05 * p.grad / (p.grad.norm() + 1e-12)) for p in net.parameters()]
        for p, step in steps:
            p.add_(step)
    optimizer.zero_grad()
    loss = F.cross_entropy(net(x), y)
    with torch.no_grad():
        for p, step in steps:
            p.sub_(step)
    return loss


def through_layers_alone(net, x, y, _):
    return F.cross_entropy(net.net(x), y)


LOOPS = [plain, two_forwards, frozen_norms, mode_changes_before_backward, half_precision, through_layers_alone]


@given(
    loop=st.sampled_from(LOOPS),
    seed=st.integers(0, 99),
    kinds=st.sampled_from([("grouped",), ("filters",)]),
    width=st.sampled_from([6, 8, 12]),
    kernel=st.sampled_from([1, 3]),
    bias=st.booleans(),
    checkpointed=st.booleans(),
    make=st.sampled_from([torch.optim.SGD, torch.optim.AdamW]),
)
@settings(max_examples=30, deadline=None)
def test_a_loop_that_knows_nothing_of_masks_keeps_the_plan(loop, seed, kinds, width, kernel, bias, checkpointed, make):
    pruned = twin_of(seed, kinds, width=width, kernel=kernel, bias=bias, checkpointed=checkpointed)
    momentum = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(pruned.parameters(), lr=0.05, weight_decay=1e-3, **momentum)
    x, y = batch()
    before = copy.deepcopy(pruned.state_dict())
    for _ in range(3):
        pruned.train()
        optimizer.zero_grad()
        loop(pruned, x, y, optimizer).backward()
        optimizer.step()
        check_plan_holds(pruned)
    assert any(not torch.equal(value, before[name]) for name, value in pruned.state_dict().items())


def test_sharpness_aware_minimisation_keeps_the_plan_when_norms_are_frozen():
    pruned = twin_of(1)
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        loss = sharpness_aware(pruned.eval(), *batch(), optimizer)
        assert loss.isfinite()
        optimizer.step()
        check_plan_holds(pruned)


@pytest.mark.parametrize("kinds", [("grouped",), ("filters",)])
def test_gradients_of_twin_and_compact_have_one_norm(kinds):
    pruned = twin_of(2, kinds).eval()
    norms = []
    x, y = batch()
    for net in (pruned, pruned.compact()):
        F.cross_entropy(net(x), y).backward()
        norms.append(nn.utils.clip_grad_norm_(net.parameters(), 1.0).item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@given(seed=st.integers(0, 99), kinds=st.sampled_from([("grouped",), ("filters",)]), values=st.floats(-3, 3))
@settings(max_examples=10, deadline=None)
def test_whatever_is_written_into_removed_weights_the_function_is_the_same(seed, kinds, values):
    pruned, x = twin_of(seed, kinds), batch()[0]
    for training in (True, False):
        pruned.train(training)
        expected = copy.deepcopy(pruned)(x)
        with torch.no_grad():
            for parameter, gone in removed(pruned):
                parameter.masked_fill_(gone, values)
        assert torch.equal(copy.deepcopy(pruned)(x), expected)
        small = pruned.compact()
        torch.testing.assert_close(small.train(training)(x), expected, rtol=1e-4, atol=1e-5)
    pruned.apply_masks()
    check_plan_holds(pruned)


@pytest.mark.parametrize("training", [True, False])
def test_a_dense_state_loaded_into_the_twin_leaves_the_plan_and_the_tensors_that_were_given(training):
    torch.manual_seed(0)
    net = Net()
    pruned, other = PrunedModel(net, drawn_plan(net, 0)), Net()
    state = {name: value.clone() for name, value in other.state_dict().items()}
    pruned.train(training).net.load_state_dict(state)
    check_plan_holds(pruned)
    pruned.net.load_state_dict(state, assign=True)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in state.items())
    x = batch()[0]
    assert torch.equal(pruned.eval()(x), PrunedModel(other, pruned.plan).eval()(x))


def test_names_of_states_are_those_of_the_dense_network():
    net = Net()
    pruned = PrunedModel(net, drawn_plan(net, 0))
    assert [f"net.{name}" for name in net.state_dict()] == list(pruned.state_dict())
    assert [f"net.{name}" for name, _ in net.named_buffers()] == [name for name, _ in pruned.named_buffers()]


@pytest.mark.parametrize("buffers", [True, False])
def test_averages_of_twins_are_twins(buffers):
    pruned = twin_of(3, ("filters",)).train()
    average = AveragedModel(pruned, use_buffers=buffers, avg_fn=get_ema_avg_fn(0.5))
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        plain(pruned, *batch(), None).backward()
        optimizer.step()
        average.update_parameters(pruned)
    check_plan_holds(average.module)


def test_parameters_from_outside_are_masked_too():
    pruned, (x, y) = twin_of(4).eval(), batch()
    given_ = {name: (p.detach() + 0.1).requires_grad_() for name, p in pruned.named_parameters()}
    logits = functional_call(pruned, given_, (x,))
    moved = copy.deepcopy(pruned)
    with torch.no_grad():
        for name, p in moved.named_parameters():
            p.copy_(given_[name])
    assert torch.equal(logits, moved(x))
    F.cross_entropy(logits, y).backward()
    (_, gone), *_ = removed(pruned)
    assert (given_["net.a.weight"].grad[gone] == 0).all() and (given_["net.a.weight"].grad[~gone] != 0).any()

    def loss(parameters, image, label):
        return F.cross_entropy(functional_call(pruned, parameters, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))({name: p.detach() for name, p in given_.items()}, x, y)
    assert (each["net.a.weight"][:, gone] == 0).all() and (each["net.a.weight"][:, ~gone] != 0).any()


def test_copies_pickles_and_other_types_are_the_same_function():
    pruned, x = twin_of(5, ("filters",)).eval(), batch()[0]
    expected = pruned(x)
    file = io.BytesIO()
    torch.save(pruned, file)
    file.seek(0)
    for again in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), torch.load(file, weights_only=False)):
        assert torch.equal(again(x), expected)
        with torch.no_grad():
            for parameter, gone in removed(again):
                parameter.masked_fill_(gone, 1.0)
        assert torch.equal(again(x), expected) and isinstance(again.net.a, nn.Conv2d)
    double = copy.deepcopy(pruned).double()
    torch.testing.assert_close(double(x.double()).float(), expected)
    torch.testing.assert_close(double.half().float()(x), expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(pruned.to(memory_format=torch.channels_last)(x), copy.deepcopy(pruned)(x))
    empty = copy.deepcopy(pruned).to("meta").to_empty(device="cpu")
    empty.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(empty(x), expected)


def test_twins_compile_export_and_trace():
    pruned, x = twin_of(6).eval(), batch()[0]
    expected = pruned(x)
    compiled = torch.compile(pruned, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)
    compiled.train()
    plain(compiled, *batch(), None).backward()
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(compiled.eval()(x), pruned(x))
    for parameter, gone in removed(pruned):
        assert (parameter.grad[gone] == 0).all() and (parameter.grad[~gone] != 0).any()
    expected = pruned(x)
    torch.testing.assert_close(torch.export.export(pruned, (x,)).module()(x), expected)
    torch.testing.assert_close(fx.symbolic_trace(pruned)(x), expected)
    with pytest.warns(Warning, match="deprecated"):
        torch.testing.assert_close(torch.jit.trace(pruned, x)(x), expected)


def test_replicas_of_data_parallel_read_their_own_tensors():
    pruned, x = twin_of(7).eval(), batch()[0]
    layer = pruned.net.a
    replica = layer._replicate_for_data_parallel()
    tensor = (layer.weight.detach() + 1).requires_grad_()
    replica.weight = tensor  # a plain tensor, as torch.nn.parallel.replicate sets it
    replica.bias = None
    images = torch.rand(2, 8, 5, 5)
    expected = F.conv2d(images, tensor * layer.keep["weight"], padding=1)
    assert torch.equal(replica(images), expected)
    assert torch.equal(nn.DataParallel(pruned)(x), pruned(x))


def test_threads_that_share_a_twin_do_not_disturb_each_other():
    pruned, x = twin_of(8).eval(), batch(2)[0]
    with torch.no_grad():
        for parameter, gone in removed(pruned):
            parameter.masked_fill_(gone, 1.0)
    expected, found = pruned(x), []

    def ask():
        for _ in range(20):
            found.append(torch.equal(pruned(x), expected))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and all(found)


def test_outside_a_forward_pass_layers_have_their_parameters():
    pruned = twin_of(9, ("filters",))
    for name, p in pruned.named_parameters():
        layer, _, last = name.rpartition(".")
        assert getattr(pruned.get_submodule(layer), last) is p is pruned.get_parameter(name)
    layer = pruned.net.a
    before = layer.weight.clone()
    layer.reset_parameters()
    assert (layer.weight != before).any()
    layer.weight = nn.Parameter(torch.ones_like(before))
    assert pruned(batch()[0]).isfinite().all()
    assert repr(layer).startswith("Conv2d(8, 8") and type(layer).__name__ == "Conv2d" and layer_type(layer) is nn.Conv2d


def test_unmasked_copies_and_compact_networks_have_ordinary_layers():
    pruned, x = twin_of(10, ("filters",)).eval(), batch()[0]
    with torch.no_grad():
        for parameter, gone in removed(pruned):
            parameter.masked_fill_(gone, 1.0)
    ordinary = unmasked(pruned)
    assert torch.equal(ordinary(x), pruned(x)) and unmasked(ordinary) is ordinary
    for net in (ordinary, pruned.compact()):
        assert not any(isinstance(module, MaskedLayer) for module in net.modules())
    assert any(isinstance(module, MaskedLayer) for module in pruned.modules())


def test_modules_keep_their_modes():
    torch.manual_seed(0)
    net = Net().train()
    net.norm.eval()
    pruned = PrunedModel(net, drawn_plan(net, 0, ("grouped",)))
    assert pruned.training and pruned.net.a.training and not pruned.net.norm.training
    small = pruned.compact()
    assert small.training and small.a.training and small.a.conv.training and not small.norm.training


def test_a_read_weight_in_the_forward_pass_is_masked():
    class Reads(Net):
        def body(self, x):
            return F.conv2d(self.norm(self.a(x)).relu(), self.b.weight) + 0 * self.b(x)

    torch.manual_seed(0)
    net = Reads()
    pruned = PrunedModel(net, drawn_plan(net, 0, ("grouped",))).eval()
    plain(pruned, *batch(), None).backward()
    check_plan_holds(pruned)


def test_the_engine_and_the_file_have_what_the_twin_computes(tmp_path):
    pruned, x = gkp.prune(gkp.load_model("resnet20"), "l2-gkp", rate=0.5).eval(), torch.rand(2, 3, 32, 32)
    expected = pruned(x)
    with torch.no_grad():
        for parameter, gone in removed(pruned):
            parameter.masked_fill_(gone, 1.0)
    fast = gkp.compile(pruned)
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
    assert fast.compiled_from.plan == pruned.plan
    again = gkp.load_model(gkp.save_model(pruned, tmp_path / "twin"))
    assert torch.equal(again(x), expected)
