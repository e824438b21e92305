"""The beam search against brute force, against a slow transcription of the paper's search, and against the released code."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkp.checkpoints import load_model
from gkp.errors import BadInput
from gkp.pruning.prune import prune
from gkp.pruning.sr_gkp.selection import (
    Balance,
    _similarity,
    greedy,
    largest_norm,
    least_smooth,
    smooth_beam_greedy,
    watch_beam,
)


def similarity(kernels):
    x = kernels.double().numpy()
    s = 1 - np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    np.fill_diagonal(s, 1)
    return s


def cost(s, members, beta):
    inner = sum(s[a, b] for a, b in itertools.combinations(members, 2))
    outer = sum(max(s[b, p] for b in members) for p in range(len(s)) if p not in members)
    return inner - beta * outer


def slow_search(s, rough, keep, width, alpha, every, beta_rule):
    """Smooth Beam Greedy as prose has it: lists of branches, one start after another."""
    channels, frozen, candidates = len(s), None, []

    def beta(size):
        nonlocal frozen
        value = math.comb(size, 2) / (channels - size)
        if beta_rule == "paper":
            return value
        frozen = value if frozen is None else frozen
        return frozen

    for start in range(channels):
        beam, extensions = [(start,)], 0
        while len(beam[0]) < keep:
            longer = []
            for branch in beam:
                others = [j for j in range(channels) if j not in branch]
                others.sort(key=lambda j, branch=branch: sum(s[b, j] for b in branch))
                longer += [(*branch, j) for j in others[:width]]
            beam, extensions = longer, extensions + 1
            if extensions % every == 0:
                b = beta(len(beam[0]))
                by_cost = sorted(beam, key=lambda v: cost(s, v, b), reverse=True)
                by_rough = sorted(range(len(by_cost)), key=lambda r: sum(rough[j] for j in by_cost[r]), reverse=True)
                scored = [(alpha * rank + (1 - alpha) * position, by_cost[rank]) for position, rank in enumerate(by_rough)]
                scored.sort(key=lambda pair: pair[0], reverse=True)
                beam = [branch for _, branch in scored[:width]]
        candidates += beam
    b = beta(keep)
    return sorted(min(candidates, key=lambda v: cost(s, v, b)))


@pytest.mark.parametrize("rule", ["released", "paper"])
@pytest.mark.parametrize(
    ("channels", "keep", "width", "every", "alpha"),
    [
        (16, 9, 2, 3, 0.9),
        (16, 9, 2, 3, 0.1),
        (12, 7, 3, 2, 0.5),
        (10, 4, 2, 5, 0.75),
        (9, 8, 4, 1, 0.5),
        (8, 3, 2, 2, 0.0),
    ],
)
def test_the_vectorised_search_equals_the_slow_one(channels, keep, width, every, alpha, rule):
    generator = torch.Generator().manual_seed(channels * keep + width)
    kernels = torch.randn(3, channels, 5, generator=generator)
    rough = torch.rand(3, channels, generator=generator, dtype=torch.float64)
    kept = smooth_beam_greedy(kernels, rough, keep, beam_width=width, balance=Balance(alpha, every, rule))
    for group in range(3):
        assert kept[group].tolist() == slow_search(
            similarity(kernels[group]), rough[group].tolist(), keep, width, alpha, every, rule
        )


@given(channels=st.integers(3, 7), data=st.data(), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_beam_as_wide_as_the_layer_finds_the_best_of_all_subsets(channels, data, seed):
    keep = data.draw(st.integers(2, min(channels - 1, 5)))
    kernels = torch.randn(1, channels, 4, generator=torch.Generator().manual_seed(seed))
    kept = smooth_beam_greedy(kernels, torch.zeros(1, channels), keep, beam_width=channels, balance=Balance(0.9, 0, "paper"))
    s, beta = similarity(kernels[0]), math.comb(keep, 2) / (channels - keep)
    best = min(cost(s, subset, beta) for subset in itertools.combinations(range(channels), keep))
    assert cost(s, tuple(kept[0].tolist()), beta) == pytest.approx(best, abs=1e-9)


def test_three_kernels_on_a_line_keep_the_two_ends():
    kernels = torch.tensor([[[0.0], [1.0], [10.0]]])
    assert smooth_beam_greedy(kernels, torch.zeros(1, 3), 2).tolist() == [[0, 2]]
    assert greedy(kernels, 2).tolist() == [[0, 2]]


def test_among_identical_kernels_the_first_in_order_win():
    assert smooth_beam_greedy(torch.ones(2, 6, 3), torch.zeros(2, 6), 3).tolist() == [[0, 1, 2], [0, 1, 2]]


def test_blocks_of_starts_do_not_change_the_choice(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    kernels, rough = torch.randn(2, 24, 6, generator=generator), torch.rand(2, 24, generator=generator)
    whole = smooth_beam_greedy(kernels, rough, 13)
    monkeypatch.setattr("gkp.pruning.sr_gkp.selection.BLOCK_BYTES", 1)  # one start at a time
    assert torch.equal(smooth_beam_greedy(kernels, rough, 13), whole)


@pytest.mark.parametrize("search", [greedy, lambda kernels, keep: smooth_beam_greedy(kernels, torch.zeros(1, 4), keep)])
def test_of_equal_costs_in_two_blocks_of_starts_the_first_wins(monkeypatch, search):
    monkeypatch.setattr("gkp.pruning.sr_gkp.selection.BLOCK_BYTES", 1)  # one start at a time
    monkeypatch.setattr("gkp.pruning.sr_gkp.selection_compiled.engine", "numpy")
    square = torch.tensor(
        [[[0.0, 0.0], [3.0, 3.0], [3.0, 0.0], [0.0, 3.0]]]
    )  # starts 0 and 1 find one diagonal, 2 and 3 the other
    assert search(square, 2).tolist() == [[0, 1]]


@pytest.mark.parametrize("channels", [16, 64, 65, 130, 200])
def test_distances_computed_in_strips_are_those_of_the_whole_matrix(channels):
    kernels = torch.randn(channels, 18, generator=torch.Generator().manual_seed(channels))
    whole = 1 - torch.cdist(kernels.double(), kernels.double(), compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(0)
    assert np.array_equal(_similarity(kernels), whole.numpy())


@pytest.mark.parametrize(("channels", "released"), [(16, 0.5), (32, 6 / 28), (64, 0.1)])
def test_the_released_beta_is_frozen_at_the_first_check_and_the_papers_follows_the_set(channels, released):
    keep = channels * 9 // 16
    assert Balance().beta_at(keep, channels, keep) == pytest.approx(released)
    final = {16: 5.142857, 32: 10.928571, 64: 22.5}[channels]
    assert Balance(beta="paper").beta_at(keep, channels, keep) == pytest.approx(final)
    assert Balance(beta=2.0).beta_at(keep, channels, keep) == 2.0


def test_least_smooth_removes_the_roughest_and_largest_norm_the_shortest():
    assert least_smooth(torch.tensor([[3.0, 1.0, 2.0, 0.5]]), 2).tolist() == [[1, 3]]
    assert largest_norm(torch.tensor([[[3.0, 4.0], [0.0, 1.0], [6.0, 0.0], [2.0, 2.0]]]), 2).tolist() == [[0, 2]]


def test_a_watched_search_shows_beams_of_2_4_8_then_2_again():
    steps = watch_beam(torch.randn(16, 4), torch.rand(16), 9, start=3)
    assert [len(step.added) for step in steps] == [2, 4, 8, 4, 8, 16, 4, 8]
    assert [len(step.stay) for step in steps] == [2, 4, 2, 4, 8, 2, 4, 8]
    assert [step.size for step in steps] == list(range(2, 10))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: smooth_beam_greedy(torch.randn(1, 4, 2), torch.rand(1, 4), 4),
        lambda: smooth_beam_greedy(torch.randn(1, 4, 2), torch.rand(1, 4), 0),
        lambda: smooth_beam_greedy(torch.randn(1, 4, 2), torch.rand(1, 4), 2, beam_width=0),
        lambda: Balance(alpha=1.5),
        lambda: Balance(check_every=-1),
        lambda: Balance(beta="published"),
    ],
)
def test_impossible_searches_are_refused(wrong):
    with pytest.raises(BadInput):
        wrong()


def test_the_plan_equals_the_released_codes_in_144_of_144_filter_groups(official_weights, official_selection):
    net = load_model("resnet20", weights="srgkp-official")
    plan = prune(net, "sr-gkp", rate=7 / 16, groups=8).plan
    assert set(plan) == set(official_selection)
    same_groups = same_permutations = 0
    for name, reference in official_selection.items():
        spec = plan[name]
        same_groups += sum(kept.tolist() == theirs for kept, theirs in zip(spec.kept, reference["kept"], strict=True))
        same_permutations += torch.argsort(spec.permutation).tolist() == reference["output_permutation"]
    assert (same_groups, same_permutations) == (144, 18)
