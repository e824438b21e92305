"""What people do to a twin beside training it, and networks that are another one in training: exact, or refused in one line."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_chain import METHODS, SHAPE, WIDTH, Net, X, Y
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.nn.utils import prune as torch_prune

import gkp
from gkp.errors import BadInput
from gkp.networks.copies import copy_of
from gkp.networks.wrappers import has_compiled
from gkp.pruning.coupling import Couplings
from gkp.pruning.masks import MaskedLayer
from gkp.pruning.methods.cc import mean_gradients


def twin_of(method, net=None):
    return gkp.prune(net or Net(), method, rate=0.5, input_shape=SHAPE, **METHODS[method])


def removed(pruned):
    for layer in pruned.net.modules():
        if isinstance(layer, MaskedLayer):
            for name, gone in layer.gone.items():
                yield layer._parameters[name], gone.expand_as(layer._parameters[name])


def check_twin(pruned):
    """Removed weights are zero and have no gradient, and the compact network is the same function in both modes."""
    for parameter, gone in removed(pruned):
        assert (parameter[gone] == 0).all()
        assert parameter.grad is None or (parameter.grad[gone] == 0).all()
    for training in (False, True):
        small = pruned.compact().train(training)
        torch.testing.assert_close(small(X), copy_of(pruned).train(training)(X), rtol=1e-4, atol=1e-5)


def far_from_start(net):
    return sum((p - 1).square().sum() for p in net.parameters())


def not_orthogonal(net):
    rows = [p.flatten(1) for p in net.parameters() if p.ndim == 4]
    return sum((row @ row.T - torch.eye(len(row))).square().sum() for row in rows)


def unlike_their_mean(net):
    return sum((p - p.mean()).abs().sum() for p in net.parameters())


COPIES = {
    "itself": lambda net: net,
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "float64 and back": lambda net: net.double().float(),
    "frozen and thawed": lambda net: copy.deepcopy(net.requires_grad_(False)).requires_grad_(True),
    "loaded": lambda net: (net.load_state_dict(copy.deepcopy(net.state_dict())), net)[1],
}


@given(
    method=st.sampled_from([*METHODS]),
    penalty=st.sampled_from([far_from_start, not_orthogonal, unlike_their_mean]),
    made=st.sampled_from([*COPIES]),
)
@settings(max_examples=15, deadline=None)
def test_a_penalty_on_weights_does_not_bring_removed_ones_back(method, penalty, made):
    pruned = COPIES[made](twin_of(method)).train()
    optimizer = torch.optim.SGD(pruned.parameters(), lr=1e-3, momentum=0.9)
    before = pruned.net.a.weight.clone()
    for _ in range(2):
        optimizer.zero_grad()
        (F.cross_entropy(pruned(X), Y) + penalty(pruned)).backward()
        optimizer.step()
    assert (pruned.net.a.weight != before).any()
    check_twin(pruned)
    for parameter, gone in removed(pruned):
        (grad,) = torch.autograd.grad(parameter.sum() + (parameter - 1).square().sum(), parameter)
        assert (grad[gone] == 0).all()


def test_a_frozen_twin_stays_frozen_and_what_is_unmasked_has_no_hooks():
    net = Net()
    net.a.weight.requires_grad_(False)
    pruned = twin_of("l2-gkp", net)
    assert [p.requires_grad for p in pruned.parameters()] == [p.requires_grad for p in net.parameters()]
    small = pruned.compact()
    assert not any(p._backward_hooks for p in small.parameters())
    assert len(pruned.net.b.weight._backward_hooks) == 1 == len(copy.deepcopy(pruned).net.b.weight._backward_hooks)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal])
def test_a_parametrisation_on_a_mask_is_refused(wrap):
    pruned = twin_of("l2-gkp")
    wrap(pruned.net.b)
    with pytest.raises(BadInput, match="a masked Conv2d takes no parametrisation; give it to the network before pruning"):
        pruned(X)


UNDONE = {
    "weight_norm": (weight_norm, nn.utils.remove_weight_norm),
    "spectral_norm": (spectral_norm, nn.utils.remove_spectral_norm),
    "utils.prune": (
        lambda conv: torch_prune.l1_unstructured(conv, "weight", 0.3),
        lambda conv: torch_prune.remove(conv, "weight"),
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("put, remove", UNDONE.values(), ids=UNDONE)
def test_a_weight_computed_from_others_after_pruning_is_masked_and_made_small_once_that_is_undone(put, remove):
    pruned = twin_of("l2-gkp").eval()
    put(pruned.net.b)
    conv, maps = pruned.net.b, torch.rand(2, WIDTH, 7, 7)
    with torch.no_grad():
        out = conv(maps)
    torch.testing.assert_close(out, F.conv2d(maps, conv.weight * pruned.plan["b"].mask(WIDTH), conv.bias))
    with pytest.raises(BadInput, match=r"^b was reparametrised after pruning; undo that"):
        pruned.compact()
    remove(pruned.net.b)
    torch.testing.assert_close(pruned.compact()(X), pruned(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", [lambda net: net, lambda net: net.net, lambda net: nn.Sequential(net)])
def test_a_twin_is_not_scripted_and_stays_what_it_is(part):
    pruned = twin_of("l2-gkp").eval()
    with pytest.raises(BadInput, match="script the compact network"), pytest.warns(Warning, match="deprecated"):
        torch.jit.script(part(pruned))
    assert isinstance(pruned.net.a, MaskedLayer)
    check_twin(pruned)


class Heads(Net):
    """Has a part that takes part in training only."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        flat = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * WIDTH, 4))
        self.aux = flat if kind == "linear" else nn.Conv2d(WIDTH, 4, 1)

    def features(self, x):
        x = self.norm(self.a(self.stem(x).relu())).relu()
        if self.training and self.kind == "softmax":
            x = x.softmax(1) * WIDTH
        if self.training and self.kind == "noise":
            x = F.dropout2d(F.dropout(x, 0.3), 0.3) + 0.1 * torch.randn_like(x)
            F.dropout(x.flatten(1), 0.5, inplace=True)
        self.seen = x
        return self.b(x).relu()

    def forward(self, x):
        logits = super().forward(x)
        return (logits, self.aux(self.seen)) if self.training and self.kind in ("linear", "conv") else logits


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_auxiliary_heads_that_read_pruned_filters_are_cut_with_them(kind):
    pruned = twin_of("l2", Heads(kind).eval())
    assert "a" in pruned.plan and "aux" not in pruned.plan
    assert kind == "linear" or pruned.left_out["aux"] == "takes no part in the forward pass"
    for training in (False, True):
        torch.testing.assert_close(pruned.compact().train(training)(X), copy_of(pruned).train(training)(X))


def test_channels_that_meet_in_training_only_are_left_out_and_noise_leaves_nothing_out():
    mixed, noisy = Heads("softmax").eval(), Heads("noise").eval()
    assert "softmax" in Couplings(mixed, (3, 11, 11)).reason("a") and not Couplings(noisy, (3, 11, 11)).reason("a")
    check_twin(twin_of("l2", mixed))
    assert "a" in twin_of("l2", noisy).plan


def test_a_network_that_takes_no_such_images_in_training_is_pruned_by_what_it_is_in_eval_mode():
    class Picky(Net):
        def forward(self, x, labels=None):
            if self.training and labels is None:
                raise ValueError("labels, please")
            return super().forward(x)

    pruned = twin_of("l2", Picky().eval())
    assert {"stem", "a"} <= set(pruned.plan)
    torch.testing.assert_close(pruned.compact().train()(X, Y), copy_of(pruned).train()(X, Y), rtol=1e-4, atol=1e-5)


def test_a_forward_pass_that_asks_what_type_a_layer_is_has_that_layer_left_out():
    class Asks(Net):
        def forward(self, x):
            return super().forward(x if type(self.b) is nn.Conv2d else 2 * x)

    net = Asks().eval()
    pruned = twin_of("l2-gkp", net)
    assert set(pruned.plan) == {"a"} and "masked and" in pruned.left_out["b"]
    with torch.no_grad():
        net.a.weight.mul_(pruned.plan["a"].mask(WIDTH))
    torch.testing.assert_close(pruned(X), net(X))


@pytest.mark.parametrize("method", METHODS)
def test_compiled_parts_are_pruned_as_what_is_inside(method, tmp_path):
    net = Net().eval()
    whole = nn.Sequential(nn.Identity(), torch.compile(net, backend="eager"))
    net.b = torch.compile(net.b, backend="eager")
    pruned = twin_of(method, whole)
    assert {"1.a", "1.b"} <= set(pruned.plan) and has_compiled(whole) and not has_compiled(pruned)
    check_twin(pruned)
    assert gkp.cost(pruned, input_shape=(3, 11, 11)) == gkp.cost(pruned.compact(), input_shape=(3, 11, 11))
    for one in (pruned, pruned.compact()):
        again = gkp.load_model(gkp.save_model(one, tmp_path / type(one).__name__), into=whole)
        torch.testing.assert_close(again(X), one.eval()(X))


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("method", METHODS)
def test_scripted_parts_are_left_as_they_are(method):
    net = Net().eval()
    net.a = torch.jit.script(net.a)
    pruned = twin_of(method, net)
    assert set(pruned.plan) == {"b"}
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    F.cross_entropy(pruned.train()(X), Y).backward()
    optimizer.step()
    check_twin(pruned)
    for whole in (torch.jit.script(Net()), torch.jit.trace(Net().eval(), X)):
        with pytest.raises(BadInput, match=r"no layers? to prune"):
            twin_of(method, whole)


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("lazy", [lambda: nn.LazyConv2d(WIDTH, 3), lambda: nn.LazyBatchNorm2d()])
def test_a_network_without_shapes_yet_is_refused(lazy):
    net = nn.Sequential(nn.Conv2d(3, WIDTH, 3), lazy(), nn.Conv2d(WIDTH, WIDTH, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for ask in (twin_of_l2, gkp.cost):
        with pytest.raises(BadInput, match=r"^1.weight has no shape before a first batch has passed through Sequential"):
            ask(net)


def twin_of_l2(net):
    return twin_of("l2-gkp", net)


def test_a_linear_layer_without_a_batch_is_followed():
    class Hyper(Net):
        def __init__(self):
            super().__init__()
            self.weights = nn.Linear(WIDTH, WIDTH * WIDTH)

        def features(self, x):
            x = self.norm(self.a(self.stem(x).relu())).relu()
            return self.b(F.conv2d(x, self.weights(x.mean((0, 2, 3))).view(WIDTH, WIDTH, 1, 1))).relu()

    pruned = twin_of("l2", Hyper().eval())
    assert "stem" in pruned.plan and "a" in pruned.left_out
    check_twin(pruned)


def test_a_weight_of_two_names_is_cut_under_both(tmp_path):
    net = Net().eval()
    net.a.same = net.a.weight
    small = twin_of("l2", net).compact()
    assert small.a.same.shape == small.a.weight.shape and len(small.a.weight) < WIDTH
    torch.testing.assert_close(gkp.load_model(gkp.save_model(small, tmp_path / "net"), into=net)(X), small(X))


def test_layers_that_no_image_reaches_have_a_gradient_of_zero():
    class Either(Net):
        def features(self, x):
            return (self.a if x.mean() > 2 else self.b)(self.stem(x))

    data = gkp.load_dataset("digits", "train").subset(torch.arange(8))
    net = Either().eval()
    net.fc = nn.Linear(WIDTH, 10)
    found = mean_gradients(net, {"a": net.a, "b": net.b}, data)
    assert not found["a"].any() and found["b"].any()


@pytest.mark.parametrize("returns", [dict, list])
def test_methods_that_look_at_images_refuse_what_gives_no_logits(returns):
    class Other(Net):
        def forward(self, x):
            return {"logits": super().forward(x)} if returns is dict else [super().forward(x)]

    with pytest.raises(BadInput, match=f"Other returns a {returns.__name__} for one image"):
        gkp.prune(Other().eval(), "hrank", budget=0.7, data=gkp.load_dataset("digits", "train"))


def test_methods_that_take_gradients_refuse_logits_without_one():
    class Still(Net):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    net = Still().eval()
    net.fc = nn.Linear(WIDTH, 10)
    for method in ("cc", "taylor-fo"):
        with pytest.raises(BadInput, match=f"{method} takes gradients, and the logits of this Still have none"):
            gkp.prune(net, method, budget=0.7, data=gkp.load_dataset("digits", "train"))


HELD = {
    "list": lambda conv: [[conv]],
    "dictionary": lambda conv: {"convs": (conv, None)},
}


@pytest.mark.parametrize("method", [*METHODS, "lrf"])
@pytest.mark.parametrize("hold", HELD.values(), ids=HELD)
def test_a_layer_that_is_held_in_a_container_too_is_pruned_there(method, hold):
    class Holds(Net):
        def __init__(self):
            super().__init__()
            self.held = hold(self.b)

        def features(self, x):
            conv = self.held["convs"][0] if isinstance(self.held, dict) else self.held[0][0]
            return conv(self.norm(self.a(self.stem(x).relu())).relu()).relu()

    options = METHODS.get(method, {"tolerance": 0.9})
    pruned = gkp.prune(Holds().eval(), method, rate=0.5, input_shape=(3, 11, 11), **options)
    assert "b" in pruned.plan
    check_twin(pruned)
    small = pruned.compact()
    small.b = nn.Conv2d(WIDTH, WIDTH, 3)  # nobody calls it by that name
    torch.testing.assert_close(small.eval()(X), pruned.eval()(X), rtol=1e-4, atol=1e-5)
    assert gkp.cost(pruned.compact(), input_shape=(3, 11, 11)).macs < gkp.cost(Holds(), input_shape=(3, 11, 11)).macs


@pytest.mark.parametrize("method", [*METHODS, "lrf"])
def test_a_network_whose_attribute_is_called_as_that_of_a_compact_one(method):
    class Planned(Net):
        @property
        def plan(self):
            return 2.0

        def forward(self, x):
            return self.plan * super().forward(x)

    options = METHODS.get(method, {"tolerance": 0.9})
    pruned = gkp.prune(Planned().eval(), method, rate=0.5, input_shape=(3, 11, 11), **options)
    check_twin(pruned)
    assert pruned.compact().plan == 2.0 and gkp.pruning.plan_of(pruned.compact()) == pruned.plan


@pytest.mark.parametrize("what", ["resnet20", None, lambda x: x])
def test_what_is_no_network_is_refused(what):
    with pytest.raises(BadInput, match=r"a network is a torch.nn.Module, not a"):
        gkp.prune(what)


class Counts(Net):
    """Keeps the number of calls and a running mean of each channel, also in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("running", torch.zeros(1, WIDTH, 1, 1))

    def features(self, x):
        x = self.b(self.norm(self.a(self.stem(x).relu())).relu())
        self.calls += 1
        self.running.lerp_(x.detach().mean((0, 2, 3), keepdim=True), 0.1)
        return (x - self.running).relu() * self.calls


@pytest.mark.parametrize("method", METHODS)
def test_networks_that_change_with_each_call_are_compared_call_by_call(method):
    pruned = twin_of(method, Counts().eval())
    assert {"l2-gkp": {"a", "b"}, "l2": {"stem", "a"}}[method] == set(pruned.plan) and pruned.calls == 0
    check_twin(pruned)


def test_weights_without_numbers_are_refused():
    with pytest.raises(BadInput, match="has weights on the meta device, without numbers; load a checkpoint first"):
        twin_of("l2-gkp", Net().to("meta"))
