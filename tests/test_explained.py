"""What benign accuracy explains: lines in closed form, what is left beside them, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from effects_by_hand import evaluated, pruned, trained
from scipy import stats

from gkp.artifact import explained, figures, tables
from gkp.artifact.explained import printed_networks
from gkp.artifact.published import published, superscores
from gkp.evaluation.statistics import beside_line, fit_line

METHODS = ("none", "cc", "fpgm", "hrank", "l2", "lrf", "sfp", "sr-gkp")


# --- lines ------------------------------------------------------------------------------------------------------------


def test_a_line_explains_everything_on_it_and_nothing_across_it():
    x = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    exact = fit_line(x, 0.1 + 0.5 * x, list("abcde"))
    assert exact.r2 == pytest.approx(1) and (exact.slope, exact.low, exact.high) == pytest.approx((0.5, 0.5, 0.5))
    flat = fit_line(x, np.array([0.1, 0.2, 0.1, 0.2, 0.1]), list("abcde"))
    assert flat.r2 == pytest.approx(0, abs=1e-12) and flat.low < 0 < flat.high


def test_the_variance_explained_is_the_square_of_the_correlation_and_seeds_make_no_certainty():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12))
    once = fit_line(x, y, [str(i) for i in range(12)])
    assert once.r2 == pytest.approx(stats.pearsonr(x, y).statistic ** 2)
    thrice = fit_line(np.tile(x, 3), np.tile(y, 3), [str(i) for i in range(12)] * 3)  # three seeds that agree
    assert thrice.slope == pytest.approx(once.slope)
    assert 0.9 < (thrice.high - thrice.low) / (once.high - once.low) < 1


def test_the_errors_of_a_slope_are_clustered_as_in_the_sandwich_formula():
    rng = np.random.default_rng(1)
    x, y, groups = rng.normal(size=20), rng.normal(size=20), np.repeat(np.arange(5), 4)
    found = fit_line(x, y, groups)
    a = np.stack([np.ones(20), x], axis=1)
    bread, e = np.linalg.inv(a.T @ a), y - a @ np.linalg.lstsq(a, y, rcond=None)[0]
    scores = np.stack([a[groups == g].T @ e[groups == g] for g in range(5)])
    error = np.sqrt((bread @ (scores.T @ scores) @ bread)[1, 1] * 5 / 4 * 19 / 18)
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 4) * error)


def test_what_is_left_is_the_distance_from_the_line_of_the_others_with_a_prediction_interval():
    x, y = np.array([0.0, 1.0, 2.0, 3.0, 1.5]), np.array([0.1, 0.9, 2.1, 2.9, 2.0])
    left, low, high = beside_line(x, y, list("abcdz"), apart=np.arange(5) == 4)
    line = stats.linregress(x[:4], y[:4])
    rest = y[:4] - line.intercept - line.slope * x[:4]
    half = stats.t.ppf(0.975, 2) * np.sqrt((rest @ rest) / 2 * (1 + 1 / 4))  # 1.5 is the mean of the others: no lever
    assert left == pytest.approx(2.0 - line.intercept - 1.5 * line.slope)
    assert (low, high) == pytest.approx((left - half, left + half))


def test_seeds_of_one_method_count_as_one_point_of_the_line_of_the_others():
    x, y = np.array([0.0, 1.0, 2.0, 3.0, 1.5]), np.array([0.1, 0.9, 2.1, 2.9, 2.0])
    more = beside_line(np.append(x, x[0]), np.append(y, y[0]), list("abcdza"), apart=np.array([0, 0, 0, 0, 1, 0], bool))
    assert more == pytest.approx(beside_line(x, y, list("abcdz"), apart=np.arange(5) == 4))
    assert np.isnan(beside_line(x, y, list("abcdz"), apart=np.zeros(5, bool))).all()


# --- networks ---------------------------------------------------------------------------------------------------------


def on_a_line(folder, gift: int = 0) -> list:
    """Networks of two seeds each whose attacked images follow from the benign ones; SR-GKP has some more."""
    found = []
    for at, method in enumerate(METHODS):
        for seed in (0, 1):
            net, clean = pruned(method, seed), 300 + 8 * at + seed
            found.append(trained(net, folder))
            attacked = clean // 2 + (gift if method == "sr-gkp" else 2 * (at % 2))
            found += [evaluated(net, folder, clean, attacked, protocol=part) for part in ("paper", "pixel")]
    return found


def test_networks_are_taken_by_architecture_and_length_and_others_left_aside(tmp_path):
    aside = [replace(pruned("sr-gkp"), options={"alpha": 0.5}), replace(pruned("l2"), epochs=9)]
    aside += [replace(pruned("l2"), scratch=True), pruned("rap-admm")]
    results = on_a_line(tmp_path) + [evaluated(net, tmp_path, 100, 90) for net in aside]
    points = explained.networks(results)
    assert set(points["source"]) == {"ResNet-20, 2 epochs", "ResNet-20, 9 epochs"}
    assert not points["method"].str.contains("scratch|rap-admm").any()
    lines = explained.explained(points)
    assert set(lines["source"]) == {"ResNet-20, 2 epochs"} and set(lines["networks"]) == {16} and set(lines["methods"]) == {8}
    assert {"fgsm-0.01", "fgsm-0.1", "pgd-8/255", "worst-case-1/255"} <= set(lines["attack"])


def test_what_sr_gkp_has_beside_its_benign_accuracy_is_found_and_told(tmp_path):
    (none, much) = (explained.of_both(on_a_line(tmp_path / str(gift), gift)) for gift in (1, 40))
    ours = much[~much["printed"]]
    assert (ours["low"] > 0).all() and ours["left"].to_numpy() == pytest.approx(39 / 400, abs=0.005)
    assert (none.loc[~none["printed"], "low"] < 0).all() and (none.loc[~none["printed"], "r2"] > 0.9).all()
    answer = figures.explained(on_a_line(tmp_path / "again", 40)).answer
    assert "SR-GKP's interval is above the line in 4 of 4, below it in 0, +9." in answer
    colours = {tuple(line.get_color()) for line in figures.explained([]).drawing.legends[0].get_lines()}
    assert len(colours) == 3 and tuple(figures.method_colour("sr-gkp")) not in colours
    assert " % (median of 4 columns, " in answer and ") on ResNet-20, 2 epochs; SR-GKP" in answer


def test_the_papers_rows_are_its_printed_networks_each_once_and_without_adversarial_training():
    points = printed_networks()
    assert set(points["source"].str.partition(",")[0]) == {f"Table {n}" for n in (9, 10, 11, 12, 17, 18, 19)}
    table = points[points["source"] == "Table 10, ResNet-56"]
    assert "RAP-ADMM" not in set(table["method"]) and "RAP-ADMM" in set(published(10)["method"])
    best = superscores(10, likely=True)
    for method, rows in table.groupby("method"):
        assert rows["benign"].max() == pytest.approx(best.loc[method, "clean"] / 100)
        assert not rows.duplicated(["benign", "attack", "attacked"]).any()


def test_nothing_finished_leaves_the_papers_tables_and_names_are_the_papers(tmp_path):
    figure, table = figures.explained([]), tables.explained([])
    assert figure.question == table.title == "How much does benign accuracy explain, and is anything left for SR-GKP?"
    assert figure.answer.startswith("In the paper's tables benign accuracy alone explains, of what differs between networks, ")
    assert table.shown.index[0] == "Table 9, ResNet-32" and len(table.shown) == 7
    assert list(table.shown)[1:] == ["(a) FGSM .01", "(b) FGSM .1", "(c) PGD 8/255"]
    here = tables.explained(on_a_line(tmp_path, 4)).shown
    assert here.index[0] == "ResNet-20, 2 epochs" and here.loc["ResNet-20, 2 epochs", "methods"] == "8"
