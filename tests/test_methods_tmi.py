"""TMI-GKP: the trace of weights, the three clusterings, the vote, greedy selection with several nearest kept kernels."""

import itertools
import math

import numpy as np
import pytest
import torch
from method_checks import largest_difference
from safetensors.torch import save_file
from torch import nn

from gkp.data.sources import load_dataset
from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.pruning.cost import cost
from gkp.pruning.methods import tmi_gkp
from gkp.pruning.methods.tmi_gkp import TMIGKP, clusterings
from gkp.pruning.methods.tmi_gkp.clusterings import CLUSTERINGS, assign_equally, cluster, equal_k_means
from gkp.pruning.methods.tmi_gkp.trace import Trace, WeightTrace, snapshot_epochs
from gkp.pruning.methods.tmi_gkp.vote import intervals, vote, winner
from gkp.pruning.prune import prune
from gkp.pruning.sr_gkp.selection import Balance, greedy
from gkp.training.callback import Callback
from gkp.training.loop import train
from gkp.training.recipe import Recipe

RECIPE = Recipe(epochs=4, lr=0.05, batch_size=16)


def tiny_net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        convs = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU()]
        return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def few_digits():
    return load_dataset("digits", "train").first(64)


@pytest.fixture(scope="module")
def traced(few_digits):
    """A trained tiny net, its trace, and full copies of its weights after each epoch."""

    class Copies(Callback):
        def __init__(self):
            self.epochs = []

        def after_epoch(self, net, epoch):
            self.epochs.append(net[2].weight.detach().clone())

    net, trace, copies = tiny_net(), WeightTrace(epochs=(2, 3)), Copies()
    train(net, few_digits, RECIPE, callbacks=[trace, copies])
    return net, trace.trace, copies.epochs


# ---- the trace ----


def test_the_trace_holds_per_filter_sums_of_how_far_magnitudes_still_moved(traced):
    net, trace, copies = traced
    assert trace.epochs == (2, 3) and set(trace.changes) == {"0", "2"}
    final = net[2].weight.detach()
    sums = torch.stack([(final.abs() - copies[epoch - 1].abs()).abs().sum(dim=(1, 2, 3)) for epoch in (2, 3)])
    assert sums.min() > 0 and not torch.equal(sums[0], sums[1])
    in_16_bits = [copies[epoch - 1].abs().half().float() for epoch in (2, 3)]
    exact = torch.stack([(final.abs() - snapshot).abs().sum(dim=(1, 2, 3)) for snapshot in in_16_bits])
    torch.testing.assert_close(trace.of("2", net[2]), exact, rtol=1e-5, atol=0)
    assert bool(((exact - sums).abs() <= 2**-11 * copies[2].abs().sum(dim=(1, 2, 3))).all())


class Killed(Exception):
    pass


class KilledAfter(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def after_epoch(self, net, epoch):
        if epoch == self.epoch:
            raise Killed


def test_a_killed_training_resumes_with_its_snapshots(traced, few_digits, tmp_path):
    _, whole, _ = traced
    checkpoint = tmp_path / "training"
    with pytest.raises(Killed):  # after the checkpoint of epoch 2, which holds the first snapshot
        train(tiny_net(), few_digits, RECIPE, checkpoint=checkpoint, callbacks=[WeightTrace(epochs=(2, 3)), KilledAfter(3)])
    net, trace = tiny_net(seed=1), WeightTrace(epochs=(2, 3))
    train(net, few_digits, RECIPE, checkpoint=checkpoint, callbacks=[trace, KilledAfter(9)])
    assert trace.trace.epochs == whole.epochs and trace.trace.weights == whole.weights
    assert all(torch.equal(trace.trace.changes[name], changes) for name, changes in whole.changes.items())


def test_a_checkpoint_with_other_snapshots_is_not_continued(few_digits, tmp_path):
    once = Recipe(epochs=1, batch_size=64)
    train(tiny_net(), few_digits, once, checkpoint=tmp_path / "training", callbacks=[WeightTrace(epochs=(1,))])
    with pytest.raises(BadInput, match="another callbacks"):
        train(tiny_net(), few_digits, once, checkpoint=tmp_path / "training", callbacks=[WeightTrace(epochs=(1, 2))])


def test_the_file_of_a_trace_is_small_and_comes_back_as_it_was(traced, tmp_path):
    net, trace, _ = traced
    path = trace.save(tmp_path / "deeper" / "net.trace")
    assert [file.name for file in path.parent.iterdir()] == ["net.trace"]
    assert path.stat().st_size < 1500 < sum(p.numel() for p in net.parameters()) * 4
    again = Trace.load(path)
    assert again.epochs == trace.epochs and again.weights == trace.weights
    assert all(torch.equal(again.changes[name], changes) for name, changes in trace.changes.items())


def test_a_file_that_is_no_trace_is_refused(traced, tmp_path):
    path = traced[1].save(tmp_path / "net.trace")
    with pytest.raises(BadInput, match=r"no such file with a weight trace; train the network with .*WeightTrace"):
        Trace.load(tmp_path / "none")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadInput, match="truncated or not a weight trace"):
        Trace.load(path)
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(BadInput, match="is not a weight trace"):
        Trace.load(path)


def test_a_trace_of_other_weights_is_refused(traced):
    net, trace, _ = traced
    with pytest.raises(BadInput, match="the trace is of other weights than 2 has now"):
        prune(tiny_net(seed=5), "tmi-gkp", trace=trace, rate=0.5)
    with pytest.raises(BadInput, match="the trace has no layer 9; it has 0, 2"):
        trace.of("9", net[2])


def test_a_training_without_any_wanted_epoch_says_so(few_digits):
    trace = WeightTrace()
    with pytest.raises(BadInput, match="ready when the training has ended"):
        _ = trace.trace
    train(tiny_net(), few_digits, Recipe(epochs=1), callbacks=[trace])
    with pytest.raises(BadInput, match="no epoch of 35 to 70 was reached"):
        trace.save("unused")
    with pytest.raises(BadInput, match="no convolution called 7; there are 0, 2"):
        train(tiny_net(), few_digits, Recipe(epochs=1), callbacks=[WeightTrace(layers=("7",))])


def test_the_papers_layers_are_traced_unless_others_are_asked_for():
    net, trace = build_model("resnet20"), WeightTrace(epochs=(1,))
    trace.after_epoch(net, 1)
    trace.finish(net)
    assert len(trace.trace.changes) == 18 and "conv1" not in trace.trace.changes
    one = WeightTrace(epochs=(1,), layers=("conv1",))
    one.after_epoch(net, 1)
    one.finish(net)
    assert list(one.trace.changes) == ["conv1"]


def test_the_snapshots_of_another_length_are_the_papers_share_of_it():
    assert snapshot_epochs(300) == tuple(range(35, 71))
    assert snapshot_epochs(100) == tuple(range(12, 24))
    assert snapshot_epochs(12) == (2,)
    assert snapshot_epochs(1) == (1,)


# ---- the vote ----


def test_intervals_between_clusters_by_hand():
    changes = torch.tensor([5.0, 1.0, 2.0, 1.0, 0.0, 0.0])
    assert intervals(changes, torch.tensor([0, 0, 1, 1, 2, 2])) == (3.0, 0.0)  # sums 6, 3, 0
    assert intervals(changes, torch.tensor([0, 1, 1, 2, 2, 0])) == (2.0, 0.0)  # sums 5, 3, 1
    assert intervals(changes, torch.tensor([0, 1, 0, 1, 2, 2])) == (3.5, 2.25 - 0.0)  # sums 7, 2, 0: steps 5 and 2
    assert intervals(changes, torch.zeros(6, dtype=torch.int64)) == (0.0, 0.0)


def test_the_clustering_of_least_even_steps_wins_a_snapshot():
    changes = torch.tensor([5.0, 1.0, 2.0, 1.0, 0.0, 0.0])
    uneven = torch.tensor([0, 1, 0, 1, 2, 2])  # mean 3.5, variance 2.25: 0.5 x 3 + 3
    wide = torch.tensor([0, 0, 1, 1, 2, 2])  # mean 3, variance 0: 0.5 x 2 + 1.5
    narrow = torch.tensor([0, 1, 1, 2, 2, 0])  # mean 2, variance 0: 0.5 x 1 + 1.5
    assert winner(changes, [uneven, wide, narrow]) == 2
    assert winner(changes, [wide, uneven]) == 0
    assert winner(changes, [wide, wide]) == 0  # the first of equals


def snapshots_won_by(*names):
    """Changes and two candidates, of which `a` wins where pairs 01 and 23 are level, `b` where 02 and 13 are."""
    level = {"a": [3.0, 0.0, 1.5, 1.5], "b": [3.0, 1.5, 0.0, 1.5]}
    candidates = {"a": torch.tensor([0, 0, 1, 1]), "b": torch.tensor([0, 1, 0, 1])}
    return torch.tensor([level[name] for name in names]), candidates


@pytest.mark.parametrize(("won", "elected"), [("aab", "a"), ("abb", "b"), ("abba", "b"), ("baab", "a"), ("abab", "a")])
def test_most_snapshots_win_then_the_longest_run_then_the_first(won, elected):
    assert vote(*snapshots_won_by(*won)) == elected


# ---- the clusterings ----


def test_equal_assignment_takes_the_least_total_where_the_nearest_would_crowd():
    points = np.array([[0.0], [1.0], [2.0], [10.0]])
    assert assign_equally(points, np.array([[0.0], [9.0]])).tolist() == [0, 0, 1, 1]


def test_equal_k_means_finds_planted_clusters():
    rng = np.random.default_rng(0)
    centres = 10 * np.eye(4)
    points = np.concatenate([centre + rng.normal(size=(3, 4)) for centre in centres])
    labels = equal_k_means(points, 4).reshape(4, 3)
    assert all(len(set(row)) == 1 for row in labels) and len(set(labels[:, 0])) == 4


def planted(groups, size, seed=0):
    """Filters around `groups` orthogonal directions, shuffled, and which direction each is of."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randperm(groups * size, generator=generator) % groups
    centres = 2 * torch.eye(groups)[truth]
    filters = torch.cat([centres, torch.zeros(len(truth), 18 - groups)], dim=1)
    filters += 0.05 * torch.randn(filters.shape, generator=generator)
    return filters.view(-1, 2, 3, 3), truth


@pytest.mark.parametrize(("name", "size"), [("kpca", 4), ("spectral", 4), ("dbscan", 8)])
def test_every_clustering_finds_planted_groups(name, size, monkeypatch):
    monkeypatch.setattr(clusterings, "NEIGHBOURS", size - 1)
    weight, truth = planted(4, size)
    labels = cluster(name, weight, 4)
    assert labels.bincount().tolist() == [size] * 4
    pairs = set(zip(labels.tolist(), truth.tolist(), strict=True))
    assert len(pairs) == 4  # one label for each direction


@pytest.mark.parametrize("name", list(CLUSTERINGS))
def test_clusters_are_equal_and_the_same_for_the_same_seed(name):
    weight = torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    labels = cluster(name, weight, 8, seed=3)
    assert labels.bincount().tolist() == [2] * 8
    assert torch.equal(cluster(name, weight, 8, seed=3), labels)


def test_nothing_is_clustered_where_there_is_nothing_to_choose():
    weight = torch.randn(4, 2, 3, 3)
    assert cluster("dbscan", weight, 1).tolist() == [0, 0, 0, 0]
    assert cluster("dbscan", weight, 4).tolist() == [0, 1, 2, 3]
    with pytest.raises(BadInput, match="4 filters do not divide into 3 equal groups"):
        cluster("kpca", weight, 3)


def test_a_filter_of_zeros_does_not_stop_a_clustering():
    weight = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    assert cluster("spectral", weight, 4).bincount().tolist() == [2] * 4
    assert cluster("kpca", weight, 4).bincount().tolist() == [2] * 4


# ---- selection ----


def slow_greedy(kernels, keep, beta, nearest):
    """TMI-GKP's search as its description has it, one start after another."""
    x = kernels.double().numpy()
    s = 1 - np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    best = None
    for start in range(len(s)):
        kept = [start]
        while len(kept) < keep:
            others = [j for j in range(len(s)) if j not in kept]
            kept.append(min(others, key=lambda j, kept=kept: sum(s[b, j] for b in kept)))
        gone = [p for p in range(len(s)) if p not in kept]
        weight = math.comb(keep, 2) / (len(gone) * nearest) if beta == "paper" else beta
        outer = sum(sum(sorted((s[b, p] for b in kept), reverse=True)[:nearest]) for p in gone)
        total = sum(s[a, b] for a, b in itertools.combinations(kept, 2)) - weight * outer
        if best is None or total < best[0]:
            best = (total, sorted(kept))
    return best[1]


@pytest.mark.parametrize("beta", ["paper", 2.0])
@pytest.mark.parametrize(("channels", "keep", "nearest"), [(16, 9, 1), (16, 9, 2), (12, 5, 3), (32, 18, 3), (6, 2, 4)])
def test_greedy_with_several_nearest_equals_the_slow_one(channels, keep, nearest, beta):
    kernels = torch.randn(4, channels, 6, generator=torch.Generator().manual_seed(channels + nearest))
    kept = greedy(kernels, keep, beta=beta, nearest=nearest)
    assert kept.tolist() == [slow_greedy(group, keep, beta, nearest) for group in kernels]


def test_with_no_nearest_only_distances_among_the_kept_count():
    kernels = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(greedy(kernels, 4, nearest=0), greedy(kernels, 4, beta=0.0))
    with pytest.raises(BadInput, match="nearest must be 0"):
        Balance(nearest=-1)


# ---- the method ----


def test_without_a_trace_the_error_says_how_to_get_one():
    with pytest.raises(BadInput, match=r'tmi-gkp needs the trace of a training; train .*WeightTrace\(\).* grouping="kpca"'):
        prune(build_model("resnet20"), "tmi-gkp")
    with pytest.raises(BadInput, match=r'grouping must be "vote", .* or "random", not .votes.'):
        prune(build_model("resnet20"), "tmi-gkp", grouping="votes")


def test_with_a_trace_each_layer_gets_the_clustering_its_snapshots_elect(traced, tmp_path):
    net, trace, _ = traced
    pruned = prune(net, "tmi-gkp", trace=trace, rate=0.5, groups=4)
    candidates = {name: cluster(name, net[2].weight, 4) for name in CLUSTERINGS}
    elected = candidates[vote(trace.changes["2"], candidates)]
    assert torch.equal(pruned.plan["2"].group_of_filter, elected)
    assert largest_difference(pruned, pruned.compact(), torch.rand(2, 3, 16, 16)) <= 1e-5
    from_file = prune(net, "tmi-gkp", trace=trace.save(tmp_path / "net.trace"), rate=0.5, groups=4)
    assert from_file.plan == pruned.plan


def test_a_stand_in_keeps_the_budget_to_the_digit():
    net = build_model("resnet20")
    pruned = prune(net, "tmi-gkp", grouping="kpca")
    assert cost(pruned) == cost(prune(net, "l2-gkp"))
    assert prune(net, "tmi-gkp", grouping="kpca").plan == pruned.plan


def test_random_groups_follow_the_seed():
    net = build_model("resnet20")
    layers = ["layer1.0.conv1", "layer1.0.conv2"]
    plans = [prune(net, "tmi-gkp", grouping="random", seed=seed, layers=layers).plan for seed in (0, 0, 1)]
    assert plans[0] == plans[1] and plans[0] != plans[2]
    assert not torch.equal(*(plans[0][name].group_of_filter for name in layers))
    assert plans[0][layers[0]].group_of_filter.bincount().tolist() == [2] * 8


@pytest.mark.parametrize(("name", "beta"), [("resnet20", "paper"), ("resnet32", 1), ("resnet56", 2), ("resnet110", "paper")])
def test_beta_is_the_authors_for_the_network_unless_given(name, beta, monkeypatch):
    net, asked = build_model(name), []

    def listen(kernels, keep, **options):
        asked.append((keep, options))
        return torch.arange(keep).repeat(len(kernels), 1)

    monkeypatch.setattr(tmi_gkp, "greedy", listen)
    convs = {"layer2.1.conv1": net.layer2[1].conv1}  # keeps 18 of 32: compared with int(0.2 x 18) = 3 nearest
    for given in (None, 0.5):
        TMIGKP(grouping="random", beta=given).plan(net, convs)
    assert asked == [(18, {"beta": beta, "nearest": 3}), (18, {"beta": 0.5, "nearest": 3})]


def test_beta_matters():
    kernels = torch.randn(8, 16, 18, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(greedy(kernels, 9, beta=0.0), greedy(kernels, 9, beta=20.0))  # beta matters


def test_layers_of_vgg16_are_pruned_as_any_other():
    net = build_model("vgg16_bn").eval()
    pruned = prune(net, "tmi-gkp", grouping="spectral", layers=["features.3", "features.7"])
    assert pruned.plan["features.7"].kept.shape == (8, 36)
    assert largest_difference(pruned, pruned.compact(), torch.rand(2, 3, 32, 32)) <= 1e-5
