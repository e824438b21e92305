"""Each criterion on four filters, or four inputs, worked out by hand; the last test finds the method that has no example."""

import pytest
import torch
from method_checks import conv_of, images_of_ranks, reading_net
from torch import nn

from gkp.errors import BadInput
from gkp.pruning.methods.cc.sensitivity import channel_sensitivity, rank_sensitivity
from gkp.pruning.methods.chip import independence
from gkp.pruning.methods.dhp.hypernetwork import HyperConv, shrink
from gkp.pruning.methods.fpgm import distance_to_others
from gkp.pruning.methods.gal.fista import Fista
from gkp.pruning.methods.lrf import combination, removal_order
from gkp.pruning.methods.nppm.gates import combined, opening
from gkp.pruning.methods.otov2.halfspace import cosine, redundancy
from gkp.pruning.methods.rap_admm.splitting import Splitting
from gkp.pruning.methods.taylor_fo import gate_gradients
from gkp.pruning.methods.tmi_gkp.vote import intervals
from gkp.pruning.prune import prune
from gkp.pruning.registry import make_method, methods
from gkp.pruning.sr_gkp.grouping import grouped_kernels
from gkp.pruning.sr_gkp.selection import greedy

EXAMPLES: set[str] = set()


def by_hand(*names):
    """Marks a test as the hand-computed example of these methods."""
    EXAMPLES.update(names)
    return lambda test: test


def scores_of(method, conv, net=None, **options):
    return make_method(method, **options).scores(net or nn.Sequential(conv), {"0": conv})["0"].tolist()


@by_hand("gal")
def test_the_gates_of_gal_take_steps_of_fista():
    gates = Fista(torch.tensor([0.5, 0.5, -0.3]), sparsity=1.0)  # the L1 term of the second is in its gradient too, as released
    gates.step(torch.tensor([0.2, 1.2, 0.2]), lr=0.1)
    assert gates.value.tolist() == pytest.approx([0.38, 0.28, 0])  # .48 - .1, .38 - .1 and -.32 + .1, which is below 0
    factors = []
    for _ in range(4):
        moved = gates.value - gates.previous
        start = gates.value.clone()
        gates.sparsity = 0.0
        gates.step(torch.full((3,), -10.0), lr=0.1)  # one up, so that none is below 0
        factors.append(((gates.value - 1 - start) / moved)[0].item())
    assert factors == pytest.approx([0, 0.28175, 0.43404, 0.53106], abs=1e-5)
    assert gates.t == pytest.approx(3.29488, abs=1e-5)


@by_hand("dhp")
def test_the_weights_of_dhp_are_computed_from_latents_and_shrink_with_them():
    layer = HyperConv(2, 1, (1, 1), hidden=2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.bias0.fill_(0.1)
        layer.weight1.copy_(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
        layer.bias1.fill_(0.5)
        layer.weight2.copy_(torch.tensor([[[[1.0, -1.0]]], [[[2.0, 0.0]]]]))
        layer.bias2.fill_(0.25)
    z_in, z_out = torch.tensor([0.5, -1.0]), torch.tensor([2.0])
    # inputs 1.1 and -1.9; hidden (1.6, 2.7) and (-5.2, -7.1); weights 1.6 - 2.7 + .25 and -10.4 + .25
    assert layer(z_in, z_out).flatten().tolist() == pytest.approx([-0.85, -10.15])
    shrink(z_in, 0.6)
    assert z_in.tolist() == pytest.approx([0.0, -0.4])  # every entry by .6 towards 0, where it stops


@by_hand("rap-admm")
def test_the_dual_of_rap_admm_brings_back_a_filter_that_stays_far_from_zero():
    admm, weights = Splitting({"0": 1}), {"0": torch.tensor([[3.0, 0.0], [1.2, 1.6]])}  # norms 3 and 2
    admm.start(weights)
    kept = []
    for _ in range(3):
        admm.update(weights)
        kept.append(admm.z["0"].norm(dim=1).gt(0).tolist())
    assert kept == [[True, False], [False, True], [True, False]]  # norms of W + U: 3 and 2, 3 and 4, 6 and 2
    assert admm.u["0"].tolist() == [[0, 0], pytest.approx([1.2, 1.6])]


# --- filters: weights ------------------------------------------------------------------------------------------------


@by_hand("l1norm-a", "l1norm-b", "l2", "sfp")
def test_l1_and_l2_disagree_about_these_four_filters():
    conv = conv_of([[3.0, 0.0], [2.0, 2.0], [-4.0, 0.0], [1.0, -1.0]])
    assert scores_of("l1norm-a", conv) == scores_of("l1norm-b", conv) == [3, 4, 4, 2]
    assert scores_of("l2", conv) == scores_of("sfp", conv) == pytest.approx([3, 8**0.5, 4, 2**0.5])


@by_hand("fpgm", "fpgm-one-shot")
def test_fpgm_sums_the_distances_between_the_filters_themselves():
    conv = conv_of([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0], [-3.0, -4.0]])
    rows = [5 + 4 + 5, 5 + 3 + 10, 4 + 3 + 73**0.5, 5 + 10 + 73**0.5]
    assert scores_of("fpgm", conv) == scores_of("fpgm-one-shot", conv) == pytest.approx(rows)
    powers = conv.weight.detach().abs().pow(2).flatten(1)  # what another library measures distances between
    assert torch.cdist(powers, powers).sum(1).argsort().tolist() != distance_to_others(conv.weight).argsort().tolist()


@by_hand("random")
def test_random_scores_come_from_the_seed_alone():
    conv = conv_of([[1.0]] * 4)
    assert scores_of("random", conv, seed=1) == scores_of("random", conv, seed=1) != scores_of("random", conv, seed=2)
    assert scores_of("random", conv, seed=1) == torch.rand(4, generator=torch.Generator().manual_seed(1)).tolist()


@by_hand("sfp-smooth")
def test_the_smoothness_mix_up_weighs_the_rank_of_the_norm_against_that_of_smoothness():
    conv = nn.Conv2d(1, 4, 3, bias=False)
    weight = torch.zeros(4, 1, 3, 3)
    weight[0] = 1.0  # flat: norm 3, perfectly smooth
    weight[1, 0, 1, 1] = 2.0  # norm 2; eight neighbours, both ways: 16 x 4 = 64
    weight[2, 0, 0, 0] = 4.0  # norm 4; three neighbours: 6 x 16 = 96
    weight[3, 0, 0, 1] = 1.0  # norm 1; five neighbours: 10 x 1 = 10
    conv.weight.data.copy_(weight)
    # ranks from the smallest norm: 2, 1, 3, 0; from the roughest: 3, 1, 0, 2
    assert scores_of("sfp-smooth", conv, csb=1.0) == [2, 1, 3, 0]
    assert scores_of("sfp-smooth", conv, csb=0.0) == [3, 1, 0, 2]
    assert scores_of("sfp-smooth", conv, csb=0.75) == [2.25, 1, 2.25, 0.5]
    with pytest.raises(BadInput, match=r"csb must lie in \[0, 1\], not 1.5"):
        make_method("sfp-smooth", csb=1.5)


def coupled_net():
    """conv (4 filters of norm 1, 2, 3 and 4) -> BatchNorm -> ReLU -> conv with weights 2 -> logits, for 8 x 8 images."""
    first, reader = conv_of([[1.0, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0]]), nn.Conv2d(4, 10, 1)
    reader.weight.data.fill_(2.0)
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), reader, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@by_hand("depgraph", "depgraph-one-shot")
def test_depgraph_takes_the_mean_square_of_all_that_is_coupled_to_a_filter_over_the_largest():
    net = coupled_net()  # squares of the filter 1, 4, 9, 16; of its scale 1; of its ten readers 40
    means = [42 / 3, 45 / 3, 50 / 3, 57 / 3]
    for method in ("depgraph", "depgraph-one-shot"):
        assert scores_of(method, net[0], net) == pytest.approx([mean / 19 for mean in means])


@by_hand("slimming")
def test_slimming_takes_the_scales_of_the_batchnorm_without_their_sign():
    net = coupled_net()
    net[1].weight.data.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    assert scores_of("slimming", net[0], net) == [0.5, 2, 0, 1]


# --- filters: images -------------------------------------------------------------------------------------------------


@by_hand("hrank")
def test_hrank_is_the_mean_rank_of_the_maps_after_the_relu():
    conv = conv_of([[0.0, 0.0, 1.0], [2.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, -1.0]])
    options = {"data": images_of_ranks(), "n_batches": 2, "batch_size": 3, "input_shape": (3, 4, 4)}
    assert scores_of("hrank", conv, reading_net(conv), **options) == [4, 1, 2, 0]


@by_hand("chip")
def test_chip_is_how_much_the_nuclear_norm_falls_without_the_row():
    maps = torch.zeros(1, 4, 2, 2)
    maps[0, 0, 0, 0] = maps[0, 1, 0, 0] = 1  # two equal rows of norm 1: one singular value sqrt(2), without either 1
    maps[0, 2, 1, 1] = 2  # an independent row of norm 2
    expected = [2**0.5 - 1, 2**0.5 - 1, 2, 0]
    assert independence(maps)[0].tolist() == pytest.approx(expected, abs=1e-9)
    conv = conv_of([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    options = {"data": images_of_ranks(), "n_batches": 2, "batch_size": 3, "input_shape": (3, 4, 4)}
    # rows of ones (norm 4), twice, and the diagonal (norm 2), cosine 1/2: the nuclear norm of three such rows is the root of
    # sum of squares + 2 x the root of the sum of principal 2 x 2 minors; zero rows add nothing
    both = (36 + 2 * (2 * (16 * 4 - 16)) ** 0.5) ** 0.5
    one = (20 + 2 * (16 * 4 - 16) ** 0.5) ** 0.5
    assert scores_of("chip", conv, reading_net(conv), **options) == pytest.approx([both - one, both - one, both - 32**0.5, 0])


@by_hand("otov2", "otov2-scratch")
def test_otov2_finds_a_group_redundant_that_descent_shrinks_and_whose_values_are_small():
    # cosines 1, -1 and 0, over their norm sqrt(2); sizes over norms 2 / 5, 2 / 0.5 and 2 / 1, over sqrt(20.16)
    x, g = torch.tensor([[3.0, 4], [0.3, 0.4], [1, 0]]), torch.tensor([[3.0, 4], [-3, -4], [0, 2]])
    dots = ((one * other).sum(1) for one, other in ((x, x), (x, g), (g, g)))
    scores = redundancy(cosine(*dots), x.norm(dim=1), torch.full((3,), 2.0))
    assert scores.tolist() == pytest.approx([0.3981, 0.0919, 0.2227], abs=1e-4)


@by_hand("taylor-fo")
def test_taylor_is_the_squared_derivative_by_the_gate_averaged_over_batches():
    conv = conv_of([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    net, data = reading_net(conv), images_of_ranks()
    means = torch.tensor([1.0, 0.5, 0.25, 0.0])  # of the maps: equal for all images
    ramp = torch.arange(1.0, 5)
    first = torch.sigmoid(2 * (ramp * means).sum())  # probability of class 0; the labels are half 0, half 1
    slope = (first - 0.5) * 2 * ramp * means
    found = gate_gradients(net, {"0": conv}, data.pixels(), data.labels)["0"]
    assert torch.allclose(found, slope, atol=1e-6)
    scores = scores_of("taylor-fo", conv, net, data=data, n_batches=1, batch_size=6, input_shape=(3, 4, 4))
    assert scores == pytest.approx((slope**2).tolist(), rel=1e-4)


@by_hand("nppm")
def test_nppm_opens_gates_by_their_logits_and_follows_the_predictor_where_the_loss_is_indifferent():
    assert opening(torch.tensor([2.0, 0.0, -3.0])).tolist() == pytest.approx([0.99938, 0.63212, 0.04857], abs=1e-5)
    loss, cost, predicted = torch.tensor([2.0, 0.0]), torch.tensor([0.5, 0.5]), torch.tensor([3.0, 4.0])
    assert combined(loss, cost, predicted).tolist() == [2.5, 4.5]


# --- channels --------------------------------------------------------------------------------------------------------


@by_hand("cc")
def test_cc_adds_the_squares_of_gradient_times_change_over_a_channel_or_a_rank():
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    gradient = torch.tensor([[1.0, 0.0, 2.0, 1.0], [1.0, 1.0, 0.0, 0.5]])
    assert channel_sensitivity(weight, gradient).tolist() == [1 + 1, 0 + 1, 36 + 0, 16 + 0.25]
    ranks = torch.diag(torch.tensor([3.0, 1.0, 2.0, 0.5]))  # each rank is one entry, largest first: 3, 2, 1, 0.5
    slopes = torch.diag(torch.tensor([0.5, 4.0, 1.0, 2.0]))
    torch.testing.assert_close(rank_sensitivity(ranks, slopes), torch.tensor([2.25, 4.0, 16.0, 1.0]))


@by_hand("lrf")
def test_lrf_takes_the_filter_that_the_others_replace_best_and_adds_it_to_them():
    filters = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.6, 0.8, 0, 0.1], [0, 0, 2, 0]])  # 0.6 first + 0.8 second + rest
    # residuals 1 * sqrt(1 - .36 / .37), 1 * sqrt(1 - .64 / .65), .1 and 2; then columns sqrt(1.36), sqrt(1.64) and 1
    assert removal_order(filters, 1) == [2]
    assert removal_order(filters, 3) == [2, 0, 1]  # 1.166 against 1.281 and 2; then 1.281 against 2
    together = combination(filters.double(), torch.tensor([0, 1, 3]))
    expected = torch.tensor([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(together, expected)


# --- grouped kernels: filter f has a spike of f + 1 in the middle of its kernel for input f, else zeros ---------------


def four_spikes():
    """Smoothness 16, 64, 144 and 256: dealt to two groups in an S, the filters are in groups 0, 1, 1 and 0."""
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    conv.weight.data.zero_()
    conv.weight.data[range(4), range(4), 1, 1] = torch.arange(1.0, 5)
    return conv


def kept_by(method, **options):
    conv = four_spikes()
    spec = make_method(method, rate=0.5, groups=2, **options).plan(nn.Sequential(conv), {"0": conv})["0"]
    return spec.group_of_filter.tolist(), spec.kept.tolist()


@by_hand("l2-gkp", "least-smooth-gkp")
def test_norm_and_smoothness_keep_the_opposite_of_four_spikes():
    assert kept_by("l2-gkp") == ([0, 1, 1, 0], [[0, 3], [1, 2]])
    assert kept_by("least-smooth-gkp") == ([0, 1, 1, 0], [[1, 2], [0, 3]])


@by_hand("greedy-gkp", "sr-gkp", "scratch")
def test_distant_kernels_that_are_near_the_pruned_ones_stay():
    # group 0, kernels (1, 0), 0, 0 and (0, 4), beta C(2, 2) / 2 = 1/2, cost = similarity inside - beta x that of the two pruned
    # to their nearest kept: {0, 3} 1 - sqrt(17) - 0 = -3.12; {1, 3} 1 - 4 - (0 + 1) / 2 = -3.5, as {2, 3}, which comes later
    # group 1, kernels 0, (2, 0), (0, 3) and 0: {0, 2} 1 - 3 - (-1 + 1) / 2 = -2; {1, 2} 1 - sqrt(13) - (-1 - 1) / 2 = -1.61
    expected = ([0, 1, 1, 0], [[1, 3], [0, 2]])
    assert kept_by("greedy-gkp") == kept_by("sr-gkp", beta="paper") == kept_by("sr-gkp") == kept_by("scratch") == expected
    assert kept_by("greedy-gkp", beta=0.0)[1] == [[0, 3], [1, 2]]  # distance inside alone


@by_hand("tmi-gkp")
def test_tmi_gkp_compares_the_pruned_with_several_kept_and_counts_the_steps_between_clusters():
    conv = four_spikes()
    groups = grouped_kernels(conv.weight, torch.tensor([0, 1, 1, 0]))
    # two nearest of two kept are both: {0, 3} 1 - sqrt(17) - beta (0 + 0 - 3 - 3), beta 1 / (2 x 2), = -1.62;
    # {1, 3} 1 - 4 - beta (0 + 1 - sqrt(17) + 1 - 3) = -1.72, as {2, 3}
    assert greedy(groups, 2, nearest=2)[0].tolist() == [1, 3]
    changes = torch.tensor([5.0, 1.0, 2.0, 1.0])
    assert intervals(changes, torch.tensor([0, 0, 1, 1])) == (3.0, 0.0)  # sums 6 and 3
    assert intervals(changes, torch.tensor([0, 1, 2, 2])) == (2.0, 0.0)  # sums 5, 3 and 1
    assert intervals(changes, torch.tensor([0, 2, 1, 1])) == (2.0, 0.0)  # the labels' order does not matter
    assert intervals(changes, torch.tensor([0, 1, 2, 3])) == (pytest.approx(4 / 3), pytest.approx(14 / 9))  # 5, 2, 1, 1


@by_hand("random-gkp")
def test_random_gkp_deals_equal_groups_and_draws_for_each():
    groups, kept = kept_by("random-gkp", seed=3)
    assert sorted(groups) == [0, 0, 1, 1] and all(len(set(row)) == 2 and row == sorted(row) for row in kept)
    many = [kept_by("random-gkp", seed=seed) for seed in range(40)]
    assert len({str(row) for _, rows in many for row in rows}) == 6  # every pair of four inputs is drawn by somebody
    assert len({str(groups) for groups, _ in many}) == 6  # and every split into two equal groups


def test_scratch_has_the_shape_of_the_method_it_names_and_weights_of_its_own():
    net = nn.Sequential(four_spikes(), nn.Conv2d(4, 4, 3))
    options = {"rate": 0.5, "groups": 2, "layers": ["0"], "input_shape": (4, 8, 8)}
    fresh = prune(net, "scratch", of="l2-gkp", **options)
    assert fresh.plan == prune(net, "l2-gkp", **options).plan and not torch.equal(fresh.net[1].weight, net[1].weight)
    assert torch.equal(prune(net, "scratch", of="l2-gkp", **options).net[1].weight, fresh.net[1].weight)
    with pytest.raises(BadInput, match="shape of a grouped kernel method that needs weights only, not of hrank"):
        make_method("scratch", of="hrank")


def test_every_method_has_an_example():
    assert {name for name in methods() if not name.startswith("test-")} == EXAMPLES
