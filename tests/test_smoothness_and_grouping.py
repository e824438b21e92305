"""Eq 1 by hand, and the S-wise deal of Figure 3."""

import itertools

import pytest
import torch

from gkp.errors import BadInput
from gkp.pruning.sr_gkp.grouping import deal_snakewise, default_grouping, grouped_kernels, magnitude_snaking, smoothness_snaking
from gkp.pruning.sr_gkp.smoothness import grouped_roughness, smoothness


def kernel(*rows):
    return torch.tensor(rows, dtype=torch.float32)[None, None]


def test_a_constant_kernel_is_perfectly_smooth():
    assert smoothness(torch.full((2, 3, 3, 3), -0.7)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_single_spike_in_the_middle_differs_from_eight_neighbours_counted_both_ways():
    assert smoothness(kernel([0, 0, 0], [0, 3, 0], [0, 0, 0])).item() == 2 * 8 * 9


def test_a_spike_in_a_corner_has_three_neighbours_and_on_an_edge_five():
    assert smoothness(kernel([2, 0, 0], [0, 0, 0], [0, 0, 0])).item() == 2 * 3 * 4
    assert smoothness(kernel([0, 0, 0], [2, 0, 0], [0, 0, 0])).item() == 2 * 5 * 4


def test_signs_do_not_matter_because_squares_are_compared():
    assert smoothness(kernel([1, -1, 1], [-1, 1, -1], [1, -1, 1])).item() == 0


def test_smoothness_equals_the_double_loop_over_ordered_neighbour_pairs():
    weight = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    cells = list(itertools.product(range(3), range(3)))
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for (i, j), (u, v) in itertools.product(cells, cells):
        if (i, j) != (u, v) and max(abs(i - u), abs(j - v)) == 1:
            expected += (weight[:, :, i, j] ** 2 - weight[:, :, u, v] ** 2).abs()
    torch.testing.assert_close(smoothness(weight), expected, rtol=1e-12, atol=0)


def test_a_1x1_kernel_has_no_neighbours():
    assert smoothness(torch.randn(4, 5, 1, 1)).abs().sum() == 0


def test_dealing_goes_left_to_right_then_right_to_left():
    score = torch.tensor([5.0, 0.0, 3.0, 1.0, 4.0, 2.0])  # ascending order of filters: 1, 3, 5, 2, 4, 0
    assert deal_snakewise(score, 2).tolist() == [1, 0, 0, 1, 0, 1]  # rows (1 3) (2 5 reversed: 5->1, 2->0) (4 0)
    assert deal_snakewise(score, 3).tolist() == [0, 0, 2, 1, 1, 2]


def test_equal_scores_keep_their_order():
    assert deal_snakewise(torch.zeros(8), 4).tolist() == [0, 1, 2, 3, 3, 2, 1, 0]


def test_filters_that_do_not_divide_are_refused_with_the_remedy():
    with pytest.raises(BadInput, match="12 filters do not divide into 8 equal groups; use groups that divide 12"):
        deal_snakewise(torch.zeros(12), 8)


def test_smooth_filters_lead_under_smoothness_snaking():
    weight = torch.zeros(4, 1, 3, 3)
    weight[:, 0, 1, 1] = torch.tensor([4.0, 1.0, 3.0, 2.0])  # rougher with every unit
    assert smoothness_snaking(weight, 2).tolist() == [0, 0, 1, 1]  # dealt 1, 3 | 2, 0


def test_magnitude_snaking_sorts_by_descending_signed_sum():
    weight = torch.tensor([-9.0, 1.0, 5.0, 2.0]).view(4, 1, 1, 1)  # descending: 2, 3, 1, 0
    assert magnitude_snaking(weight, 2).tolist() == [0, 1, 0, 1]


def test_1x1_convolutions_are_grouped_by_magnitude_and_others_by_smoothness():
    one, three = torch.randn(8, 4, 1, 1), torch.randn(8, 4, 3, 3)
    assert torch.equal(default_grouping(one, 4), magnitude_snaking(one, 4))
    assert torch.equal(default_grouping(three, 4), smoothness_snaking(three, 4))


def test_grouped_kernels_hold_the_kernels_of_one_group_for_one_input_channel():
    weight = torch.arange(4 * 3 * 4, dtype=torch.float32).view(4, 3, 2, 2)
    labels = torch.tensor([1, 0, 1, 0])
    kernels = grouped_kernels(weight, labels)
    assert kernels.shape == (2, 3, 8)
    assert torch.equal(kernels[1, 2], torch.cat([weight[0, 2].flatten(), weight[2, 2].flatten()]))


def test_the_roughness_of_a_grouped_kernel_is_the_sum_over_its_filters():
    weight = torch.randn(4, 3, 3, 3)
    labels = torch.tensor([1, 0, 1, 0])
    torch.testing.assert_close(grouped_roughness(weight, labels)[1], smoothness(weight)[[0, 2]].sum(dim=0))
