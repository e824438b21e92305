"""Paired statistics against values worked out by hand, and images that are carried from one network to another."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from toys import made

from gkp.data.dataset import Dataset
from gkp.errors import BadInput
from gkp.evaluation.benchmark import benchmark
from gkp.evaluation.compare import common_accuracy, compare, mean_ranks, rank_groups, transfer
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.evaluation.statistics import exceeds, mcnemar, paired_interval, upper_bound


def table(both: int, only_a: int, only_b: int, neither: int) -> dict[str, Outcomes]:
    """Two clean rows with this contingency table."""
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return {"a": made(a), "b": made(b)}


# --- pairs ----------------------------------------------------------------------------------------------------------


def test_mcnemar_and_the_difference_are_those_worked_out_by_hand():
    (row,) = compare(table(20, 6, 1, 3), "clean").to_dict("records")
    # of 7 discordant images 6 speak for a: p = 2 (C(7, 0) + C(7, 1)) / 2^7 = 16 / 128
    assert row["p"] == row["p_holm"] == pytest.approx(0.125)
    assert (row["a"], row["b"], row["n"], row["only_a"], row["only_b"]) == ("a", "b", 30, 6, 1)
    assert row["difference"] == pytest.approx(5 / 30) and row["low"] <= row["difference"] <= row["high"]


def test_networks_that_are_right_on_the_same_images_do_not_differ():
    (row,) = compare(table(5, 0, 0, 5), "clean").to_dict("records")
    assert (row["difference"], row["low"], row["high"], row["p"], row["p_holm"]) == (0, 0, 0, 1, 1)


def test_holm_multiplies_the_smallest_p_by_all_pairs_and_the_next_by_one_less():
    n = 40
    a, b, c = np.ones(n, dtype=bool), np.ones(n, dtype=bool), np.ones(n, dtype=bool)
    b[:6], c[:10] = False, False  # b is wrong on 6 of the 10 images that c is wrong on
    frame = compare({"a": made(a), "b": made(b), "c": made(c)}, "clean").set_index(["a", "b"])
    assert frame["p"].to_dict() == pytest.approx({("a", "b"): 2 / 2**6, ("a", "c"): 2 / 2**10, ("b", "c"): 2 / 2**4})
    # sorted: 2/1024 * 3, then 2/64 * 2, then 2/16 * 1
    assert frame["p_holm"].to_dict() == pytest.approx({("a", "c"): 6 / 2**10, ("a", "b"): 4 / 2**6, ("b", "c"): 2 / 2**4})


def test_drawing_counts_is_drawing_images():
    # All 4^4 resamples of 4 images with the differences 1, 1, -1, 0, against the multinomial of the counts.
    exact = np.bincount([sum(draw) + 4 for draw in product((1, 1, -1, 0), repeat=4)], minlength=9) / 4**4
    counts = stats.multinomial(4, [0.5, 0.25, 0.25])
    multinomial = np.zeros(9)
    for a, b in product(range(5), repeat=2):
        if a + b <= 4:
            multinomial[a - b + 4] += counts.pmf([a, b, 4 - a - b])
    assert multinomial == pytest.approx(exact)


def test_the_bootstrap_interval_is_that_of_scipy_and_of_the_normal_limit():
    only_a, only_b, n = 300, 220, 4000
    low, high = paired_interval(only_a, only_b, n, seed=1, resamples=40_000)
    a, b = np.zeros(n), np.zeros(n)
    a[:only_a], b[only_a : only_a + only_b] = 1, 1
    reference = stats.bootstrap(
        (a, b), lambda a, b, axis: (a - b).mean(axis), paired=True, method="percentile", n_resamples=2000, batch=200,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    difference, half = (only_a - only_b) / n, 1.959964 * ((only_a + only_b) / n - ((only_a - only_b) / n) ** 2) ** 0.5 / n**0.5
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.03 * 2 * half)
    assert (reference.low, reference.high) == pytest.approx((low, high), abs=0.06 * 2 * half)


def test_the_interval_depends_on_the_seed_alone_and_grows_with_confidence():
    few = {"only_a": 30, "only_b": 20, "n": 500, "resamples": 100}
    assert paired_interval(**few, seed=3) == paired_interval(**few, seed=3) != paired_interval(**few, seed=4)
    low, high = paired_interval(30, 20, 500, confidence=0.99)
    inner = paired_interval(30, 20, 500, confidence=0.8)
    assert low < inner[0] < inner[1] < high
    trio = {**table(200, 30, 20, 250), "c": made([1] * 500)}
    pair, among = (compare(some, "clean").iloc[0] for some in (table(200, 30, 20, 250), trio))
    assert (pair["low"], pair["high"]) == (among["low"], among["high"])


def test_one_sided_tests_and_bounds_are_those_worked_out_by_hand():
    assert mcnemar(6, 1) == pytest.approx(16 / 128) and mcnemar(6, 1, one_sided=True) == pytest.approx(8 / 128)
    assert mcnemar(0, 0) == 1 and mcnemar(3, 3) == 1
    assert exceeds(2, 3, 0.5) == pytest.approx(4 / 8)  # of 3: exactly 2 in three ways, all 3 in one
    assert upper_bound(0, 10) == pytest.approx(1 - 0.05**0.1)  # 0 of 10 has a chance of 5 % there


# --- groups ---------------------------------------------------------------------------------------------------------


def wrong_on(*counts: int, n: int = 200) -> list[Outcomes]:
    """Networks that are wrong on the first so many of n images: of two, the better is never wrong alone."""
    return [made(np.arange(n) >= count) for count in counts]


def test_rank_groups_are_those_found_by_hand():
    # Wrong on 0, 6, 12 and 40 images: the discordant counts of pairs are 6, 12, 40, 6, 34, 28, the exact p of k to 0 is
    # 2 / 2^k. After Holm for 6 pairs the two pairs of 6 (p 0.031) keep 2 * 0.031 = 0.0625: not told apart. All others are.
    best, good, fair, poor = wrong_on(0, 6, 12, 40)
    groups = rank_groups({"poor": poor, "fair": fair, "best": best, "good": good}, "clean")
    assert list(groups.index) == ["best", "good", "fair", "poor"] and groups.index.name == "network"
    assert groups["groups"].tolist() == ["A", "A B", "B", "C"]
    assert groups["rank"].tolist() == [1, 1, 2, 4]
    assert groups["accuracy"].tolist() == [1, 0.97, 0.94, 0.8] and set(groups["n"]) == {200}
    low, high = groups.loc["good", ["low", "high"]]
    assert low < 0.97 < high


def test_equal_networks_share_one_group_in_the_order_of_their_names():
    groups = rank_groups(dict(zip("cab", wrong_on(7, 7, 7), strict=True)), "clean")
    assert list(groups.index) == ["a", "b", "c"]
    assert set(groups["groups"]) == {"A"} and set(groups["rank"]) == {1}


def test_all_networks_apart_are_ranked_strictly():
    groups = rank_groups(dict(zip("abc", wrong_on(90, 0, 30), strict=True)), "clean")
    assert groups["groups"].to_dict() == {"b": "A", "c": "B", "a": "C"}
    assert groups["rank"].to_dict() == {"b": 1, "c": 2, "a": 3}


def test_a_network_can_be_in_two_groups_without_its_neighbour_in_accuracy():
    # x and z err on many images of their own and agree with nobody's errors; y errs within those of x.
    n = 120
    x, y, z = (np.ones(n, dtype=bool) for _ in range(3))
    x[:20], y[:10], z[60:75] = False, False, False  # x against y: 10 to 0; x against z: 15 to 20; y against z: 15 to 10
    groups = rank_groups({"x": made(x), "y": made(y), "z": made(z)}, "clean")
    assert groups["groups"].to_dict() == {"y": "A", "z": "A B", "x": "B"}
    assert groups["rank"].to_dict() == {"y": 1, "z": 1, "x": 2}


def test_letters_are_shared_by_exactly_the_pairs_that_cannot_be_told_apart():
    generator = np.random.default_rng(0)
    nets = {f"net{i}": made(generator.random(300) < 0.55 + 0.04 * i) for i in range(9)}
    groups = rank_groups(nets, "clean")["groups"].str.split().map(set)
    pairs = compare(nets, "clean")
    assert 0 < (pairs["p_holm"] < 0.05).sum() < len(pairs)
    for a, b, p in pairs[["a", "b", "p_holm"]].itertuples(index=False):
        assert bool(groups[a] & groups[b]) == (p >= 0.05)


def test_mean_ranks_follow_the_rule_of_table_20():
    a, b, c = made([1, 1, 1, 1], [1, 0, 0, 0]), made([1, 1, 1, 0], [1, 1, 0, 0]), made([1, 1, 1, 0], [0, 0, 0, 0])
    nets = {"a": a, "b": b, "c": c}
    assert mean_ranks(nets, ["clean", "fgsm-1/255"]).to_dict() == {"a": 1.5, "b": 1.5, "c": 2.5}
    assert mean_ranks(nets, ["clean"], ties="average").to_dict() == {"a": 1, "b": 2.5, "c": 2.5}


# --- commonly correct images ----------------------------------------------------------------------------------------


def test_common_accuracy_counts_only_images_that_all_classify_correctly():
    a, b = made([1, 1, 1, 1, 0], [1, 0, 1, 0, 0]), made([0, 1, 1, 1, 1], [0, 1, 1, 0, 1])
    frame = common_accuracy({"a": a, "b": b})
    assert list(frame.columns) == ["network", "attack", "accuracy", "low", "high", "n"] and set(frame["n"]) == {3}
    found = {(row.network, row.attack): row.accuracy for row in frame.itertuples()}
    expected = {"a": 1 / 3, "b": 2 / 3}
    assert found == pytest.approx({(net, f"{row}-1/255"): expected[net] for net in "ab" for row in ("fgsm", "worst-case")})
    assert common_accuracy({"a": a, "b": b}, ["clean"])["accuracy"].tolist() == [1, 1]
    with pytest.raises(BadInput, match="no image is classified correctly by all networks"):
        common_accuracy({"a": made([1, 0]), "b": made([0, 1])})


# --- what is refused ------------------------------------------------------------------------------------------------

BASE = ([1, 1, 0, 1], [1, 0, 0, 1])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            made(*BASE, data_sha256="e"),
            r"a and b were evaluated on different images: data_sha256 is 'd' in one, 'e' in the other",
        ),
        (made(*BASE, protocol="paper"), "protocol is 'pixel' in one, 'paper' in the other"),
        (made(*BASE, indices=np.array([0, 1, 2, 4])), r"a \(4 images\) and b \(4\) were evaluated on different images of made"),
        (made([1, 1, 0], [1, 0, 0]), r"a \(4 images\) and b \(3\) were evaluated on different images of made"),
        (made(BASE[0]), "b has no outcomes under 'fgsm-1/255'; it has: clean"),
        (
            made(*BASE, attacks=(AttackSpec("pgd", 1 / 255, options={"steps": 2}, key="fgsm-1/255"),)),
            "fgsm-1/255 is not the same in a and b",
        ),
    ],
)
@pytest.mark.parametrize(
    "function", [compare, rank_groups, lambda o, k: mean_ranks(o, [k]), lambda o, k: common_accuracy(o, [k])]
)
def test_outcomes_that_are_not_pairs_are_refused(other, message, function):
    with pytest.raises(BadInput, match=message) as caught:
        function({"a": made(*BASE), "b": other}, "fgsm-1/255")
    assert "\n" not in str(caught.value)


def test_a_worst_case_over_other_attacks_is_refused():
    one = made(*BASE)
    more = AttackSpec("pgd", 1 / 255)
    two = replace(one, right=np.vstack([one.right, one.right[1:]]), attacks=(*one.attacks, more))
    with pytest.raises(BadInput, match="worst-case-1/255 is not the same in a and b: pgd-1/255 is None in one"):
        compare({"a": one, "b": two}, "worst-case-1/255")
    assert compare({"a": one, "b": two}, "fgsm-1/255")["p"].tolist() == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare({"a": made(*BASE)}, "clean"), "needs two outcome matrices or more, not 1"),
        (lambda: compare(table(1, 1, 1, 1), "clean", confidence=95), "confidence 95"),
        (lambda: paired_interval(5, 6, 10), "5 and 6 discordant images of 10"),
        (lambda: rank_groups(table(1, 1, 1, 1), "clean", alpha=5), "alpha must lie between 0 and 1, not 5"),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(BadInput, match=message):
        call()


# --- transfer -------------------------------------------------------------------------------------------------------


class Direction(nn.Module):
    """Class 1 where w . (x - 1/2) > 0, for one-pixel images of two channels."""

    def __init__(self, *w: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x: Tensor) -> Tensor:
        score = 10 * ((x[:, :, 0, 0] - 0.5) * self.w).sum(1)
        return torch.stack([-score / 2, score / 2], dim=1)


def images(*pixels: tuple[int, int], labels: list[int] | None = None) -> Dataset:
    values = torch.tensor(pixels, dtype=torch.uint8).view(-1, 2, 1, 1)
    return Dataset("two", "test", values, torch.tensor(labels or [1] * len(pixels)), 2, (0.5, 0.5), (0.2, 0.2))


def test_transfer_moves_images_by_the_source_and_judges_them_by_the_target():
    # Half grey is 127.5; `first` looks at the first channel, `both` at the sum. FGSM moves what is looked at by -8 levels.
    first, both = Direction(1.0, 0.0), Direction(1.0, 1.0)
    data = images((130, 150), (150, 110), (134, 126), (160, 160))
    found = transfer({"first": first, "both": both}, data, attack="fgsm", eps="8/255")
    # Made on `first`: (122, 150), (142, 110), (126, 126), (152, 152). `first` is wrong on 122 and 126; the excess over 127.5
    # that `both` sees is 17, -3, -3, 49. Made on `both`: (122, 142), (142, 102), (126, 118), (152, 152): the same verdicts of
    # `first`, and for `both` the excess 9, -11, -11, 49.
    assert found.matrix().to_numpy().tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert found.right.astype(int).tolist() == [[[0, 1, 0, 1], [1, 0, 0, 1]], [[0, 1, 0, 1], [1, 0, 0, 1]]]
    assert found.matrix().columns.tolist() == found.matrix().index.tolist() == ["first", "both"]
    frame = found.to_frame()
    assert list(frame.columns) == ["source", "target", "accuracy", "low", "high", "n"] and set(frame["n"]) == {4}
    assert frame["low"].iloc[0] == pytest.approx(0.150, abs=1e-3)  # Wilson for 2 of 4


def test_a_network_that_does_not_see_the_change_is_not_fooled():
    one, other = Direction(1.0, 0.0), Direction(0.0, 1.0)
    found = transfer({"one": one, "other": other}, images((130, 130), (129, 132)), attack="fgsm", eps="8/255")
    assert found.matrix().to_numpy().tolist() == [[0, 1], [1, 0]]


def test_an_image_that_is_misclassified_without_attack_is_never_right_and_can_be_left_out():
    one, other = Direction(1.0, 0.0), Direction(0.0, 1.0)
    data = images((130, 100), (130, 250), (250, 250))  # `other` is wrong on the first
    found = transfer({"one": one, "other": other}, data, attack="fgsm", eps="8/255")
    assert found.right.astype(int).tolist() == [[[0, 0, 1], [0, 1, 1]], [[1, 1, 1], [0, 1, 1]]]
    assert found.clean.astype(int).tolist() == [[1, 1, 1], [0, 1, 1]]
    common = found.to_frame(common=True)
    assert set(common["n"]) == {2} and found.matrix(common=True).to_numpy().tolist() == [[0.5, 1], [1, 1]]
    mirror = Direction(-1.0, 0.0)  # wrong wherever `one` is right, until the attack on `one` takes the image across
    assert transfer({"one": one, "mirror": mirror}, images((130, 100)), attack="fgsm", eps="8/255").right[0].sum() == 0
    with pytest.raises(BadInput, match="no image is classified correctly by all networks"):
        transfer({"a": one, "b": other}, images((130, 100)), attack="fgsm").matrix(common=True)


def test_transfer_makes_all_steps_and_its_diagonal_is_the_white_box():
    one, other = Direction(1.0, 0.2), Direction(0.2, 1.0)
    generator = torch.Generator().manual_seed(0)
    pixels = [tuple(pair) for pair in torch.randint(100, 180, (60, 2), generator=generator).tolist()]
    data = images(*pixels)
    full = transfer({"one": one, "other": other}, data, eps="8/255", batch_size=7)
    for i, net in enumerate((one, other)):
        alone = benchmark(net, data, attacks="pgd", eps="8/255")
        assert np.array_equal(full.right[i, i], alone.right[1])
    assert full.attack.options == {"drop_fallen": False}
    early = transfer({"one": one, "other": other}, data, eps="8/255", options={"drop_fallen": True})
    assert full.matrix().loc["one", "other"] < early.matrix().loc["one", "other"]
    again = transfer({"one": one, "other": other}, data, eps="8/255", batch_size=200)
    assert np.array_equal(full.right, again.right)


@pytest.mark.parametrize(
    ("networks", "options", "message"),
    [
        ({"a": Direction(1.0, 0.0)}, {}, "transfer needs two networks or more, not 1"),
        ({"a": Direction(1.0, 0.0), "b": nn.Sequential(nn.Flatten(), nn.Linear(2, 3))}, {}, "the network has 3 logits, two 2"),
        ({"a": Direction(1.0, 0.0), "b": Direction(1.0, 0.0)}, {"eps": "8"}, 'write "8/255"'),
        ({"a": Direction(1.0, 0.0), "b": Direction(1.0, 0.0)}, {"attack": "bim"}, "unknown attack 'bim'"),
        ({"a": Direction(1.0, 0.0), "b": Direction(1.0, 0.0)}, {"options": {"speed": 1}}, "pgd has no option 'speed'"),
        ({"a": Direction(1.0, 0.0), "b": Direction(1.0, 0.0)}, {"n_examples": 5}, "n_examples is 5; give 1 to 1"),
    ],
)
def test_transfer_refuses_what_does_not_fit(networks, options, message):
    with pytest.raises(BadInput, match=message):
        transfer(networks, images((130, 130)), **options)
