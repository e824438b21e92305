"""What comes after pruning (optimisers with a past, new layers and heads, states, contexts): the plan holds, or it is said."""

import contextlib
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_chain import METHODS, SHAPE, WIDTH, Net, X, Y
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel

import gkp
from gkp.errors import BadInput, ModelWarning
from gkp.networks.copies import copy_of
from gkp.pruning.masks import MaskedLayer, unmasked
from gkp.pruning.plan import pruned_part


class Around(nn.Module):
    """A network around another, whose parameters are called net.something."""

    def __init__(self, inner):
        super().__init__()
        self.net = inner

    def forward(self, x):
        return self.net(2 * x - 1)


def twin_of(method, net=None, **options):
    return gkp.prune(net or Net().eval(), method, rate=0.5, input_shape=SHAPE, **METHODS[method], **options)


def removed(pruned):
    for layer in pruned.net.modules():
        if isinstance(layer, MaskedLayer):
            for name, gone in layer.gone.items():
                yield layer._parameters[name], gone.expand_as(layer._parameters[name])


def step(net, optimizer, penalty=0.0):
    optimizer.zero_grad()
    (F.cross_entropy(net(X), Y) + penalty * sum((p - 1).square().sum() for p in net.parameters())).backward()
    optimizer.step()


def check_twin(pruned):
    """Removed weights are zero and without gradient; the compact network is the same function."""
    for parameter, gone in removed(pruned):
        assert not parameter[gone].any() and (parameter.grad is None or not parameter.grad[gone].any())
    torch.testing.assert_close(pruned.compact().eval()(X), copy_of(pruned).eval()(X), rtol=1e-4, atol=1e-5)


class Noisy(torch.optim.Optimizer):
    """Adds to every weight, whatever its gradient."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(0.01 * torch.randn_like(parameter))


OPTIMISERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "noise": Noisy,
}


@given(method=st.sampled_from([*METHODS]), make=st.sampled_from([*OPTIMISERS]), copied=st.booleans())
@settings(max_examples=8, deadline=None)
def test_what_an_optimiser_brings_from_the_dense_network_does_not_revive_removed_weights(method, make, copied):
    net = Net().train()
    first = OPTIMISERS[make](net.parameters())
    for _ in range(2):
        step(net, first)
    pruned = twin_of(method, net).train()
    pruned = copy.deepcopy(pruned) if copied else pruned
    optimizer = OPTIMISERS[make](pruned.parameters())
    optimizer.load_state_dict(first.state_dict())
    for _ in range(2):
        step(pruned, optimizer)
        check_twin(pruned)
    sizes = [sum(p.square().sum() for p in one.parameters()) for one in (pruned, pruned.compact())]
    torch.testing.assert_close(*sizes)  # a penalty on weights is the same for both


def test_the_optimisers_of_other_networks_are_left_alone():
    twin_of("l2-gkp")
    other = Net()
    before = [p.clone() for p in other.parameters()]
    torch.manual_seed(3)
    Noisy(other.parameters()).step()
    torch.manual_seed(3)
    for was, now in zip(before, other.parameters(), strict=True):
        torch.testing.assert_close(now, was + 0.01 * torch.randn_like(was))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("assign", [True, False])
def test_a_new_parameter_in_a_masked_layer_is_masked_like_the_old_one(method, assign):
    pruned = twin_of(method)
    if assign:
        pruned.net.load_state_dict(Net(seed=1).state_dict(), assign=True)
    else:
        pruned.net.b.weight = nn.Parameter(torch.ones(WIDTH, WIDTH, 3, 3))
    step(pruned, torch.optim.SGD(pruned.parameters(), lr=0.01), penalty=0.1)
    check_twin(pruned)
    with pytest.raises(BadInput, match=r"weight of a masked Conv2d cannot have the shape \(9, 9, 3, 3\)"):
        pruned.net.a.weight = nn.Parameter(torch.ones(WIDTH + 1, WIDTH + 1, 3, 3))


@pytest.mark.parametrize("setting", ["set_swap_module_params_on_conversion", "set_overwrite_module_params_on_conversion"])
def test_a_twin_of_another_type_is_masked_however_torch_exchanges_its_parameters(setting):
    pruned = twin_of("l2-gkp").train()
    getattr(torch.__future__, setting)(True)
    try:
        pruned.double().float()
    finally:
        getattr(torch.__future__, setting)(False)
    step(pruned, torch.optim.SGD(pruned.parameters(), lr=0.01), penalty=0.1)
    check_twin(pruned)


def new_head(net):
    net.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(WIDTH, 4))


def new_layer(net):
    net.a = nn.Conv2d(WIDTH, WIDTH, 3)


def new_norm(net):
    net.norm = nn.BatchNorm2d(WIDTH)


FITTING = {"head": new_head, "layer": new_layer, "norm": new_norm}


@given(method=st.sampled_from([*METHODS]), what=st.lists(st.sampled_from([*FITTING]), min_size=1, unique=True))
@settings(max_examples=8, deadline=None)
def test_layers_put_in_the_place_of_masked_ones_are_masked_by_the_same_plan(method, what):
    pruned = twin_of(method)
    for one in what:
        FITTING[one](pruned.net)
    torch.testing.assert_close(copy_of(pruned).compact().eval()(X), copy_of(pruned).eval()(X), rtol=1e-4, atol=1e-5)
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        step(pruned.train(), optimizer, penalty=1e-3)
        check_twin(pruned)
    assert isinstance(pruned.net.a, MaskedLayer)


@pytest.mark.parametrize("method", METHODS)
def test_a_twin_converted_to_synchronised_norms_keeps_its_plan(method):
    pruned = twin_of(method).train()
    for _ in range(2):
        step(pruned, torch.optim.SGD(pruned.parameters(), lr=0.05))
    expected = pruned.eval()(X)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(pruned).eval()
    torch.testing.assert_close(converted(X), expected)
    assert isinstance(converted.net.norm, nn.SyncBatchNorm) and isinstance(converted.net.norm, MaskedLayer) == (method == "l2")
    torch.testing.assert_close(converted.compact()(X), expected, rtol=1e-4, atol=1e-5)


class Lora(nn.Module):
    """A convolution and a small one beside it."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.down, self.up = conv, nn.Conv2d(WIDTH, 2, 3, bias=False), nn.Conv2d(2, WIDTH, 1, bias=False)

    def forward(self, x):
        return self.conv(x) + self.up(self.down(x))


UNFITTING = {
    ("l2-gkp", "b", "replaced"): Lora,
    ("l2", "a", "replaced"): Lora,
    ("l2", "norm", "replaced"): lambda norm: nn.GroupNorm(2, WIDTH),
    ("l2", "fc", "replaced"): lambda fc: nn.Identity(),
}


@pytest.mark.parametrize(("method", "name", "how"), UNFITTING)
def test_layers_that_the_plan_does_not_fit_are_said_and_the_twin_has_no_compact_form_until_they_are_back(
    method, name, how, tmp_path
):
    pruned = twin_of(method).eval()
    expected, old = pruned(X), getattr(pruned.net, name)
    setattr(pruned.net, name, UNFITTING[method, name, how](old))
    line = rf"^{name} was {how} after pruning \(now \w+\), and the plan no longer fits: .*change the network before pruning"
    with pytest.warns(ModelWarning, match=line):
        pruned(X)
    pruned(X)  # said once: warnings are errors here
    for ask in (pruned.compact, pruned.apply_masks, lambda: gkp.save_model(pruned, tmp_path / "net")):
        with pytest.raises(BadInput, match=line):
            ask()
    assert not (tmp_path / "net").exists()
    setattr(pruned.net, name, old)
    assert torch.equal(pruned(X), expected)
    check_twin(pruned)


def test_a_network_put_around_the_one_in_the_twin_is_refused_and_one_around_the_twin_is_not():
    pruned = twin_of("l2-gkp").eval()
    outside = Around(pruned)
    assert outside(X).shape == (6, 4)
    pruned.net = Around(pruned.net)
    with pytest.raises(BadInput, match=r"^a was taken out after pruning, and the plan no longer fits"):
        pruned.compact()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [lambda seed: Net(seed), lambda seed: Around(Net(seed))], ids=["plain", "called net"])
@pytest.mark.parametrize(
    "wrap", [lambda net: net, lambda net: nn.Sequential(net), AveragedModel], ids=["", "inside", "average"]
)
def test_a_state_of_the_dense_network_is_taken_by_the_twin_and_the_other_way_round(method, make, wrap):
    pruned, other = twin_of(method, make(0).eval()), make(1).eval()
    prefix = {"Sequential": "0.", "AveragedModel": "module."}.get(type(wrap(nn.Identity())).__name__, "")
    whole = wrap(pruned)
    state = {prefix + name: tensor for name, tensor in other.state_dict().items()}
    state |= {"n_averaged": torch.tensor(1)} if isinstance(whole, AveragedModel) else {}
    whole.load_state_dict(state)
    inside = whole.module if isinstance(whole, AveragedModel) else whole[0] if prefix else whole
    check_twin(inside)
    dense = make(2).eval()
    dense.load_state_dict(inside.net.state_dict())
    torch.testing.assert_close(dense(X), inside(X))
    for (_, now), (name, given_) in zip(inside.net.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(now[now != 0], given_[now != 0]), name
    inside.load_state_dict(inside.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        pruned.load_state_dict({})


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "meta in inference_mode": lambda: two(torch.inference_mode(), torch.device("meta")),
}


@contextlib.contextmanager
def two(one, other):
    with one, other:
        yield


@pytest.mark.parametrize("method", [*METHODS, "sr-gkp"])
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_pruning_is_the_same_in_every_context(method, context):
    net, options = Net().eval(), METHODS.get(method, METHODS["l2-gkp"])
    expected = gkp.prune(net, method, rate=0.5, input_shape=SHAPE, **options)
    with context():
        pruned = gkp.prune(net, method, rate=0.5, input_shape=SHAPE, **options)
        small = pruned.compact()
        costs = gkp.cost(pruned, input_shape=SHAPE), gkp.cost(small, input_shape=SHAPE)
    assert pruned.plan == expected.plan and costs[0] == costs[1] == gkp.cost(expected, input_shape=SHAPE)
    torch.testing.assert_close(small(X), expected(X), rtol=1e-4, atol=1e-5)
    for one in (pruned, small):
        step(one.train(), torch.optim.SGD(one.parameters(), lr=0.01))
    check_twin(pruned)


def test_new_tensors_are_of_the_type_of_the_network_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        for method in METHODS:
            pruned = twin_of(method, Net().float().eval())
            assert {p.dtype for one in (pruned, pruned.compact()) for p in one.parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_a_pruned_network_inside_another_is_neither_pruned_nor_saved_without_a_word(method, tmp_path):
    pruned = twin_of(method).eval()
    assert pruned_part(pruned) == "" and pruned_part(Net()) is None
    for inside in (pruned, pruned.compact()):
        outer = Around(inside)
        assert pruned_part(outer) == "net"
        with pytest.raises(BadInput, match=r"^net is pruned already; prune the network it was made from"):
            twin_of(method, outer)
        with pytest.raises(BadInput, match=r"^Around holds a pruned network, net; save that"):
            gkp.save_model(outer, tmp_path / "net")
        assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("method", METHODS)
def test_the_network_in_a_twin_is_pruned_further(method):
    pruned = twin_of(method).eval()
    again = gkp.prune(pruned.net, method, rate=0.75, input_shape=SHAPE, **METHODS[method])
    check_twin(again)
    assert gkp.cost(again, input_shape=SHAPE).macs < gkp.cost(pruned, input_shape=SHAPE).macs
    check_twin(pruned)
    ordinary = unmasked(pruned)
    assert torch.equal(ordinary(X), pruned(X)) and not isinstance(ordinary.net.a, MaskedLayer)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_compiled_parts_are_saved_under_their_own_names_and_made_small(method, tmp_path):
    pruned = twin_of(method).eval()
    expected = pruned(X)
    for name, net in {"twin": pruned, "compact": pruned.compact(), "dense": Net().eval()}.items():
        inside = net.net if name == "twin" else net
        was = net(X)
        inside.b = torch.compile(inside.b, backend="eager")
        torch.testing.assert_close(net(X), was)
        again = gkp.load_model(gkp.save_model(net, tmp_path / name), into=Net())
        torch.testing.assert_close(again(X), was)
    torch.testing.assert_close(pruned.compact()(X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_could_not_be_loaded_is_not_saved(method, tmp_path):
    small = twin_of(method).compact()
    parametrizations.weight_norm(small.b.conv if method == "l2-gkp" else small.b)
    with pytest.raises(BadInput, match=r"^b computes its weight from other tensors .*undo that .* before saving"):
        gkp.save_model(small, tmp_path / "net")
    ours = gkp.load_model("resnet20")
    pruned = gkp.prune(ours, method, rate=0.5)
    pruned.fc = nn.Linear(64, 7)
    ours.fc, small = nn.Linear(64, 7), pruned.compact()
    for net in (ours, pruned, small):
        with pytest.raises(BadInput, match=r"^fc.weight has the shape \(7.* no resnet20 with 10 classes any more.*num_classes"):
            gkp.save_model(net, tmp_path / "net")
    assert not (tmp_path / "net").exists()
    good = gkp.prune(gkp.load_model("resnet20", num_classes=7), method, rate=0.5).eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(gkp.load_model(gkp.save_model(good, tmp_path / "net"))(x), good(x))


@pytest.mark.parametrize("method", METHODS)
def test_a_bias_that_is_computed_from_others_has_its_layer_left_out(method):
    class Positive(nn.Module):
        def forward(self, bias):
            return bias.abs()

    net = Net().eval()
    parametrize.register_parametrization(net.b, "bias", Positive())
    pruned = twin_of(method, net)
    assert "computes its bias from other tensors" in pruned.left_out["b"] and "b" not in pruned.plan
    check_twin(pruned)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_two_types_is_pruned_and_compared_in_both(method, dtype):
    class Mixed(Net):
        def forward(self, x):
            return self.fc(self.features(x.to(dtype)).float().mean((2, 3)))

    net = Mixed().to(dtype).eval()
    net.fc.float()
    pruned = twin_of(method, net)
    assert "a" in pruned.plan and pruned(X).dtype == torch.float32
    torch.testing.assert_close(pruned.compact()(X), pruned(X), rtol=0.1, atol=0.02)
