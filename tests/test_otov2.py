"""OTOv2: its arithmetic by hand, the order of its updates, groups that are zero and stay so, and budgets."""

import copy
from dataclasses import replace

import pytest
import torch
from method_checks import assert_same_function, assert_usable, largest_difference, lived_in, pictures
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from gkp.artifact.experiments.kinds import PruneCell, TrainCell
from gkp.checkpoints import save_model
from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.networks.classifier import convolutions
from gkp.pruning.cost import cost
from gkp.pruning.methods.controls import reinitialised
from gkp.pruning.methods.nppm.predictor import Predictor
from gkp.pruning.methods.otov2.groups import Groups, group_sets, kept_plan
from gkp.pruning.methods.otov2.halfspace import cosine, leaves, pull, redundancy
from gkp.pruning.methods.otov2.search import Search
from gkp.pruning.prune import layers_for, train_pruned
from gkp.pruning.registry import make_method, methods
from gkp.pruning.twin import PrunedModel
from gkp.training.loop import train
from gkp.training.recipe import Recipe

INFO = methods()["otov2"]
RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16)
GOAL = 23_391_498  # paper_macs at 7/16 of ResNet-20
STREAM = {"shortcut": "projection"}


def small(width=6, norm=True, behind=nn.ReLU):
    """Two convolutions with everything that a group has, and a classifier."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width) if norm else nn.Identity(),
        behind(),
        nn.Conv2d(width, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.0)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return net


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def stepped(method, *, x=(3.0, 4.0), g=(1.0, 0.0), lr=0.1, weight_decay=0.0, steps=1):
    """The first of two groups, which holds nothing but `x`, after steps with this gradient and much momentum."""
    net = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net[0].weight.data.copy_(torch.tensor([x, (1.0, 1.0)])[:, :, None, None])
    search = make_method("otov2", budget=0.7, tolerance=0.5, input_shape=(2, 4, 4), **method).callback({"0": net[0]})
    search.schedule(1, 100)
    search.learning_rate(lambda step: lr)
    search.before_training(net)
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    search.sgd(sgd)
    search._begin = search._done = 0
    search._choose(torch.tensor([True, False]))
    search._done, search._begin = 1, 0
    for _ in range(steps):
        net[0].weight.grad = torch.tensor([g, (1.0, 1.0)])[:, :, None, None]
        search.after_backward(net)
        sgd.step()
        search.after_step(net)
    return net[0].weight.detach()[0].flatten().tolist()


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_a_step_of_a_redundant_group_also_goes_to_zero():
    fixed = {"sparsity": 0.5, "eps": 0.1}
    assert stepped(fixed) == pytest.approx([2.87, 3.96])  # (3, 4) - 0.1 ((1, 0) + 0.5 (0.6, 0.8))
    assert stepped(fixed, weight_decay=0.1) == pytest.approx([2.84, 3.92])
    twice = numbers(2.87, 3.96)
    twice -= 0.1 * (numbers(1, 0) + 0.5 * twice / twice.norm())
    assert stepped(fixed, steps=2) == pytest.approx(twice.tolist())  # without momentum


def test_a_step_that_leaves_the_half_space_ends_at_zero():
    seven, square = numbers(7.0), numbers(25.0)  # x = (3, 4), x' = (1, 1)
    assert leaves(seven, square, 0.3).item() and not leaves(seven, square, 0.25).item()
    assert not leaves(numbers(0.0), square, 0.0).item() and leaves(numbers(-0.1), square, 0.0).item()
    # x' = (3, 4) - (2, 0.2) - lambda (0.6, 0.8) = (0.4, 3) with lambda 1: x'.x = 13.2
    for eps, expected in ((0.5, [0.4, 3.0]), (0.53, [0.0, 0.0])):
        assert stepped({"sparsity": 1.0, "eps": eps}, g=(2.0, 0.2), lr=1.0) == pytest.approx(expected)
    assert stepped({"sparsity": 1.0, "eps": 0.53}, g=(2.0, 0.2), lr=1.0, steps=3) == [0.0, 0.0]


def test_lambda_is_what_the_release_makes_of_its_bounds():
    dots = (numbers(25.0), numbers(-3.0), numbers(1.0))  # x = (3, 4), g = (-1, 0): bounds 0.6 and 1.6667
    assert pull(*dots, sparsity=1e-3, amplify=2, hat=10).item() == pytest.approx(0.01)  # the clip comes first
    assert pull(*dots, sparsity=1e-3, amplify=2, hat=2000).item() == pytest.approx(1.2)
    assert pull(*dots, sparsity=1e-3, amplify=4, hat=1e4).item() == pytest.approx(1.13333, abs=1e-5)
    assert pull(*dots, sparsity=1.5, amplify=1, hat=10).item() == pytest.approx(1.5)
    assert pull(*dots, sparsity=2.0, amplify=1, hat=10).item() == pytest.approx(1.13333, abs=1e-5)
    inwards = (numbers(25.0), numbers(3.0), numbers(1.0))
    assert pull(*inwards, sparsity=1e-3, amplify=4, hat=1e4).item() == 1e-3
    zero = (numbers(0.0), numbers(0.0), numbers(1.0))
    assert pull(*zero, sparsity=1e-3, amplify=4, hat=1e4).item() == 1e-3


def test_the_score_ranks_what_descent_takes_to_zero_first():
    x, g = numbers([3, 4], [0.3, 0.4]), numbers([3, 4], [-3, -4])
    xx, xg, gg = (x * x).sum(1), (x * g).sum(1), (g * g).sum(1)
    scores = redundancy(cosine(xx, xg, gg), xx.sqrt(), numbers(2, 2))
    assert scores.tolist() == pytest.approx([0.4033, 0.1440], abs=5e-5)
    slipped = redundancy(-cosine(xx, xg, gg), xx.sqrt(), numbers(2, 2))
    assert slipped[0] < slipped[1]


def test_lambda_follows_from_the_path_and_the_learning_rates_of_the_projection():
    search = make_method("otov2", path=1.5, warm_up=0.1, deadline=0.4).callback({})
    search.schedule(2, 10)
    search.learning_rate(lambda step: 0.1 * step)
    assert (search._begin, search._end) == (2, 8)
    assert search.sparsity == pytest.approx(1.5 / (0.2 + 0.3 + 0.4 + 0.5 + 0.6 + 0.7))
    given = make_method("otov2", sparsity=1e-3).callback({})
    given.schedule(1, 1)
    given.learning_rate(lambda step: 0.1)
    assert (given.sparsity, given._begin, given._end) == (1e-3, 0, 1)


# --- groups -----------------------------------------------------------------------------------------------------------


def sets_of(net, **options):
    return group_sets(net, layers_for(INFO, net, None)[0], **{"streams": True, "input_shape": None, **options})


def test_a_group_is_a_filter_with_bias_scale_and_shift_and_not_what_reads_it():
    net = small()
    (one, two) = sets_of(net)
    assert list(one.parts) == ["0.weight", "0.bias", "1.weight", "1.bias"] and list(two.parts) == [
        "3.weight",
        "4.weight",
        "4.bias",
    ]
    groups = Groups.of(net, [one, two])
    assert groups.count == 14 and groups.sizes().tolist() == [27 + 1 + 2.0] * 6 + [54 + 2.0] * 8
    xx = groups.dots(groups.read()[0], groups.read()[0])[0]
    by_hand = net[0].weight[2].square().sum() + net[0].bias[2] ** 2 + net[1].weight[2] ** 2 + net[1].bias[2] ** 2
    assert xx[2].item() == pytest.approx(by_hand.item())


def test_streams_with_projections_share_groups_and_padded_ones_are_held():
    inner = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert [one.name for one in sets_of(build_model("resnet20"))] == inner
    assert [one.name for one in sets_of(build_model("resnet20", shortcut="centre"))] == inner
    wide = build_model("resnet20", **STREAM)
    assert [one.name for one in sets_of(wide, streams=False)] == inner
    sets = {one.name: one for one in sets_of(wide)}
    assert set(sets) - set(inner) == {"conv1", "layer2.0.conv2", "layer3.0.conv2"}
    last = sets["layer3.0.conv2"]
    assert list(last.writers) == ["layer3.0.conv2", *sorted(set(last.writers) - {"layer3.0.conv2"})]
    assert set(last.writers) == {"layer3.0.conv2", "layer3.0.shortcut.conv", "layer3.1.conv2", "layer3.2.conv2"}
    assert {name.removesuffix(".weight") for name in last.parts if name.endswith("weight")} == {
        *last.writers, "layer3.0.shortcut.bn", "layer3.0.bn2", "layer3.1.bn2", "layer3.2.bn2",
    }  # fmt: skip
    vgg = sets_of(build_model("vgg16_bn"))
    assert [one.width for one in vgg] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6


def test_a_depthwise_convolution_belongs_to_the_group_that_it_reads():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.Conv2d(6, 10, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    (one,) = sets_of(net)
    assert list(one.writers) == ["0"]
    assert set(one.parts) == {"0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize("make", [lambda: build_model("resnet20", **STREAM), lambda: small(), lambda: resnet18(num_classes=10)])
def test_a_channel_of_a_zero_group_is_zero_and_its_removal_changes_no_logit(make):
    net = lived_in(make()).eval()
    sets = sets_of(net)
    generator = torch.Generator().manual_seed(0)
    kept = {one.name: torch.rand(one.width, generator=generator) < 0.6 for one in sets}
    Groups.of(net, sets).only(~torch.cat([*kept.values()])).clear()
    pruned, x = PrunedModel(net, kept_plan(net, sets, kept)), torch.rand(3, 3, 32, 32)
    assert_same_function(pruned, x)
    assert largest_difference(copy.deepcopy(net).double(), pruned.compact().double(), x.double()) < 1e-10
    if len(sets) == 2:
        maps = net[:3](x).abs().amax(dim=(0, 2, 3))
        assert torch.equal(maps == 0, ~kept["0"])


@pytest.mark.parametrize("make", [lambda: small(behind=nn.Sigmoid), lambda: Shifted()])
def test_groups_that_are_not_zero_invariant_are_refused(make):
    with pytest.raises(BadInput, match=r"^0 has channels that are not zero where .*; leave it out with layers=") as refused:
        train_pruned(make(), "otov2", pictures(16, 8), RECIPE, budget=0.6, progress=False)
    assert "\n" not in str(refused.value)


class Shifted(nn.Sequential):
    """A BatchNorm without scale and shift makes something of a zero."""

    def __init__(self):
        super().__init__(*small())
        self[1] = nn.BatchNorm2d(6, affine=False)


# --- the order of updates ---------------------------------------------------------------------------------------------


def vectors(net, i):
    """The parameters of each group of `small`: of the first convolution, or of the second."""
    layers = (net[0].weight, net[0].bias, net[1].weight, net[1].bias) if i == 0 else (net[3].weight, net[4].weight, net[4].bias)
    return [[p[f] for p in layers] for f in range(len(layers[0]))]


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def by_hand(net, batches, search, *, lr, momentum, weight_decay, begin, end, score_batches):
    """The released algorithm, group by group: the network after it, and the redundant groups as (layer, filter)."""
    net = copy.deepcopy(net).train()
    sgd = torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=weight_decay)
    groups = [(i, f) for i in (0, 1) for f in range(len(vectors(net, i)))]
    total, redundant, gone = torch.zeros(len(groups)), [], set()
    for step, (x, y) in enumerate(batches):
        sgd.zero_grad()
        F.cross_entropy(net(x), y).backward()
        grads = copy.deepcopy(net)
        for p, q in zip(grads.parameters(), net.parameters(), strict=True):
            p.data = q.grad + weight_decay * q.data
        pairs = {(i, f): (flat(vectors(net, i)[f]), flat(vectors(grads, i)[f])) for i, f in groups}
        if begin - score_batches < step <= begin:
            cosines = torch.stack([F.cosine_similarity(a, b, dim=0) for a, b in pairs.values()])
            small_ones = torch.stack([1 / (a.norm() / len(a) + 1e-6) for a, _ in pairs.values()])
            total += 0.5 * cosines / cosines.norm() + 0.5 * small_ones / small_ones.norm()
        if step == begin:
            ranking = [groups[i] for i in total.argsort(descending=True)]
            spared = {next(g for g in reversed(ranking) if g[0] == i) for i in (0, 1)}
            redundant = [g for g in ranking if g not in spared][: int(search.redundant.sum())]
        trials = {}
        if begin <= step < end:
            for i, f in redundant:
                a, b = pairs[i, f]
                if (i, f) in gone:
                    continue
                given, norm, inner = search.sparsity, a.norm(), a @ b
                if inner < 0:
                    low, high = -inner / norm, -(b @ b) * norm / inner
                    given = min(max(2 * low, given), 10 * given)
                    given = (low + high) / 2 if given >= high else given
                trial = a - lr * (b + given * a / norm)
                if trial @ a < 0.8 * (a @ a):
                    gone.add((i, f))
                trials[i, f] = trial
        sgd.step()
        for i, f in redundant:
            new = trials.get((i, f))
            with torch.no_grad():
                zero = (i, f) in gone or step + 1 >= end
                parts = vectors(net, i)[f]
                values = torch.zeros(sum(p.numel() for p in parts)) if zero else new
                for p, value in zip(parts, values.split([p.numel() for p in parts]), strict=True):
                    p.copy_(value.view(p.shape))
    return net, redundant, gone


@pytest.mark.parametrize("score_batches", [1, 3])
def test_every_step_is_that_of_the_released_algorithm_in_its_order(score_batches, monkeypatch):
    net, seen = small(width=10), []
    data = replace(pictures(80, 8), pad=0)
    recipe = Recipe(epochs=2, lr=0.05, batch_size=16, weight_decay=0.01)
    options = {"score_batches": score_batches, "warm_up": 0.35, "deadline": 0.8, "path": 0.4, "eps": 0.8}
    search = make_method("otov2", budget=0.5, tolerance=0.1, **options).callback(layers_for(INFO, net, None)[0])
    monkeypatch.setattr(Search, "objective", lambda self, net, x, y: seen.append((x.clone(), y.clone())))
    trained = copy.deepcopy(net)
    log = train(trained, data, recipe, callbacks=[search], progress=False, channels_last=False)
    assert len(seen) == 10 and (search._begin, search._end) == (3, 8)
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "begin": 3, "end": 8}
    expected, redundant, gone = by_hand(net, seen, search, score_batches=score_batches, **settings)
    numbers_of = {i + 10 * layer for layer, i in redundant}
    assert set(search.redundant.nonzero().flatten().tolist()) == numbers_of and len(numbers_of) >= 6
    assert 0 < len(gone) < len(redundant), "the test has no meaning unless some were zero by themselves and some not"
    for ours, theirs in zip(trained.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-6)
    assert log.last["projected_groups"] == len(redundant) - len(gone)
    assert log.last["zero_groups"] == log.last["redundant_groups"] == len(redundant) and log.rows[0]["zero_groups"] < len(gone)
    zero = {layer * 10 + f for layer in (0, 1) for f, parts in enumerate(vectors(trained, layer)) if not flat(parts).any()}
    assert zero == numbers_of  # after two more steps with momentum and weight decay


def test_the_same_ranking_decides_at_every_budget():
    net, gone = small(width=24), []
    data = replace(pictures(32, 8), pad=0)
    for budget in (0.8, 0.5, 0.3):
        search = make_method("otov2", budget=budget, tolerance=0.1).callback(layers_for(INFO, net, None)[0])
        train(copy.deepcopy(net), data, RECIPE, callbacks=[search], progress=False)
        gone.append(set(search.redundant.nonzero().flatten().tolist()))
    assert gone[0] < gone[1] < gone[2] and len(gone[0]) > 1


def test_a_layer_keeps_one_group():
    net = small()
    search = make_method("otov2", budget=0.18).callback(layers_for(INFO, net, None)[0])
    search.schedule(1, 1)
    search.before_training(net)
    search._scores = numbers(0.9, 0.8, 0.7, 0.6, 0.5, 0.95, *[0.1] * 7, 0.2)
    search._choose(search._most_redundant())
    kept = {name: spec.kept_filters.tolist() for name, spec in search.plan(net).items()}
    assert kept == {"0": [4], "3": [*range(7)]}  # the second layer's most redundant one goes in the place of the first's last


# --- whole networks ---------------------------------------------------------------------------------------------------


def test_the_trained_network_with_its_zero_groups_is_the_compact_one():
    net = build_model("resnet20")
    search = make_method("otov2", budget=GOAL).callback(layers_for(INFO, net, None)[0])
    train(net, pictures(64, 8), RECIPE, callbacks=[search], progress=False)
    x, net = torch.rand(4, 3, 32, 32), net.eval()
    pruned = PrunedModel(net, search.plan(net))
    assert largest_difference(pruned.compact(), net, x) <= 1e-5 * max(1, net(x).abs().max().item())
    assert largest_difference(pruned.compact().double(), copy.deepcopy(net).double(), x.double()) < 1e-9
    assert all(
        torch.equal(a, b) for a, b in zip(net.layer1[0].bn1.parameters(), pruned.net.layer1[0].bn1.parameters(), strict=True)
    )
    assert cost(pruned).paper_macs == pytest.approx(GOAL, rel=0.01)


@pytest.mark.parametrize("method", ["otov2", "otov2-scratch"])
def test_streams_narrow_where_shortcuts_are_projections(method, tmp_path):
    net = build_model("resnet20", **STREAM)
    pruned, _ = train_pruned(net, method, pictures(32, 8), RECIPE, progress=False, budget=0.4)
    assert cost(pruned).paper_macs == pytest.approx(0.4 * cost(net).paper_macs, rel=0.01) and pruned.off_budget is None
    assert_usable(pruned, tmp_path)
    widths = {name: conv.out_channels for name, conv in convolutions(pruned.compact()).items()}
    for stage, first in ((1, "conv1"), (2, "layer2.0.shortcut.conv"), (3, "layer3.0.shortcut.conv")):
        assert len({widths[first], *(widths[f"layer{stage}.{i}.conv2"] for i in range(3))}) == 1
    assert pruned.compact().fc.in_features == widths["layer3.2.conv2"] < 64 and not pruned.left_out


def test_from_scratch_the_given_weights_have_no_say_and_after_training_they_have():
    def bytes_of(method, net, seed=0):
        return train_pruned(net, method, pictures(32, 8), RECIPE, seed=seed, progress=False)[0].state_dict()

    one, other = build_model("resnet20", seed=1), build_model("resnet20", seed=2)
    for method, alike in (("otov2-scratch", True), ("otov2", False)):
        pairs = zip(bytes_of(method, one).values(), bytes_of(method, other).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is alike
    fresh = make_method("otov2-scratch", seed=1).network(other)
    assert all(torch.equal(*pair) for pair in zip(fresh.parameters(), one.parameters(), strict=True))
    foreign = make_method("otov2-scratch", seed=7).network(small())
    assert not torch.equal(foreign[0].weight, small()[0].weight) and foreign[1].weight.eq(1).all()


@pytest.mark.parametrize("when", [(0.6, 1.0), (0.0, 1.0), (0.0, 0.3)])  # killed before the choice, while they move, after
def test_the_same_seed_gives_the_same_bytes_also_after_a_kill(when, tmp_path):
    def search(seed=0, **options):
        options |= {"warm_up": when[0], "deadline": when[1], "progress": False, "seed": seed}
        return train_pruned(build_model("resnet20"), "otov2", pictures(48, 8), RECIPE, **options)

    def killed(_):
        raise KeyboardInterrupt

    calls = []
    with pytest.raises(KeyboardInterrupt):
        search(checkpoint=tmp_path / "half", evaluate=lambda net: calls.append(1) or (killed(net) if len(calls) == 2 else {}))
    runs = {"whole": search(), "resumed": search(checkpoint=tmp_path / "half"), "other": search(seed=1)}
    whole, resumed, other = (
        (save_model(net.compact(), tmp_path / name) / "model.safetensors").read_bytes() for name, (net, _) in runs.items()
    )
    assert whole == resumed != other
    figures = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in runs[name][1].rows] for name in ("whole", "resumed")
    ]
    assert figures[0] == figures[1] and (figures[0][0]["redundant_groups"] > 0) is (when[0] == 0.0)
    with pytest.raises(BadInput, match="belongs to a training with another callbacks"):
        search(checkpoint=tmp_path / "half", path=4.0)


class Scaled(nn.Module):
    """A convolution with a scale of its own, which nothing draws anew."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 8, 3), nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x):
        return self.conv(x) * self.scale


def test_what_cannot_be_drawn_anew_is_refused_by_name():
    with pytest.raises(BadInput, match=r"0\.scale cannot be drawn anew: give its Scaled a method reset_parameters"):
        reinitialised(nn.Sequential(Scaled(), nn.Flatten()), 0)
    net = build_model("resnet20")
    net.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 10))
    with pytest.raises(BadInput, match="this CifarResNet has other layers than resnet20 has"):
        reinitialised(net, 0)


def test_drawing_anew_leaves_the_generators_of_cards_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    reinitialised(nn.Sequential(nn.Conv2d(3, 8, 3)), 3), build_model("resnet20"), Predictor([4, 4])
    train(build_model("resnet20"), pictures(8, 8), RECIPE, progress=False)
    assert not seeded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.01}, r"otov2 keeps 1 channels of every width, which is [\d,]+ paper MACs or more, .*; ask for [\d,]+ or"),
        (
            {"budget": 60e6},
            "the budget must lie below the 40,938,122 paper MACs of the network that otov2 prunes, not 60,000,000",
        ),
        ({"budget": 0.5, "tolerance": 1e-9}, r"the nearest that otov2 comes to [\d,]+ paper MACs is [\d,]+; ask for that, or"),
        ({"path": -1.0}, "path of otov2 must be 0 or more, not -1.0"),
        ({"hat": 0.5}, "hat of otov2 must be 1 or more, not 0.5"),
        ({"eps": 1.5}, r"eps of otov2 must lie in \[0, 1\], not 1.5"),
        ({"score_batches": 0}, "score_batches of otov2 must be 1 or more, not 0"),
        ({"warm_up": 0.7}, "otov2 needs 0 <= warm_up < deadline <= 1, parts of the training, not 0.7 and 0.6"),
        ({"layers": ["conv1"]}, "whole filters of conv1 cannot go"),
        ({"round_to": 8}, "otov2 has no option round_to"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_with_the_nearest_that_can(options, message, tmp_path):
    with pytest.raises(BadInput, match=message) as refused:
        train_pruned(
            build_model("resnet20"), "otov2", pictures(16, 8), RECIPE, progress=False, checkpoint=tmp_path / "c", **options
        )
    assert "\n" not in str(refused.value) and not any(tmp_path.iterdir())


def test_the_registry_says_what_is_adapted_and_a_cell_takes_the_options():
    for name, end in (("otov2", "starts from the trained network"), ("otov2-scratch", "starts from new weights")):
        info = methods()[name]
        assert (info.family, info.procedure) == ("filter", "while training") and info.fidelity.startswith("adapted: ")
        assert info.fidelity.endswith(end) and "option A" in info.fidelity and "no fine-tuning of its own" in info.fidelity
    cell = PruneCell(net=TrainCell(), method="otov2", epochs=6, soft_epochs=6, options={"path": 2.0})
    assert make_method(cell.method, **dict(cell.options)).path == 2.0 and cell.finetuned == 0
