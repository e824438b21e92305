"""Accuracies and differences of methods over seeds, and the two figures that show them, on outcome matrices made by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from effects_by_hand import BASELINE, N, evaluated, pruned, report, trained

from gkp.artifact import effects, experiments, figures, profiles
from gkp.evaluation.statistics import Spread
from gkp.files import locate


@pytest.fixture
def results(tmp_path):
    """Of 400 images the unpruned network gets 200 under attack, SR-GKP 150, L2-GKP 199 and Least-Smooth-GKP 280."""
    return report(tmp_path, none=(200, 200), sr_gkp=(150, 150), l2_gkp=(199, 199), least_smooth_gkp=(280, 280))


def test_a_difference_is_that_of_the_means_over_seeds_on_the_same_images(results):
    found = effects.scores(results, "paper", effects.ATTACKS)
    estimate = found.minus("sr-gkp", "unpruned, fine-tuned")
    assert estimate.value == pytest.approx(-50 / N) and (estimate.n, estimate.seeds) == (N, 2)
    deviation = math.sqrt((50 / N) * (1 - 50 / N) * N / (N - 1))  # 50 images are lost, none is won
    assert estimate.high - estimate.value == pytest.approx(1.959964 * deviation / math.sqrt(N), rel=1e-5)


def test_seeds_widen_every_interval_by_their_pooled_spread(tmp_path):
    found = effects.scores(report(tmp_path, none=(200, 208), sr_gkp=(150,)), "paper", effects.ATTACKS)
    spread = Spread(math.sqrt(2) * 4 / N, 1)  # two seeds, 8 images apart: one degree of freedom
    assert (found.spread.sd, found.spread.df) == (pytest.approx(spread.sd), 1)
    one = found.accuracy("sr-gkp")
    of_images = 1.959964 * math.sqrt(150 * 250 / N / (N - 1) / N)
    assert one.high == pytest.approx(min(1, one.value + math.hypot(of_images, spread.half_width(1))), rel=1e-5)


def test_leaders_are_the_best_and_those_that_cannot_be_told_apart_from_it(tmp_path):
    found = report(tmp_path, none=(300,), sr_gkp=(200,), l2_gkp=(198,), random_gkp=(150,))
    assert effects.scores(found, "paper", ["pgd-8/255"]).leaders() == {"sr-gkp", "l2-gkp"}
    assert effects.scores([], "paper", ["pgd-8/255"]).leaders() == set()


def test_other_images_missing_files_missing_attacks_and_shapes_from_scratch_are_left_out(tmp_path):
    found = report(tmp_path, sr_gkp=(200,))
    for net in (other := pruned("l2-gkp"), lost := pruned("random-gkp"), shape := pruned("sr-gkp", scratch=True)):
        found += [trained(net, tmp_path), evaluated(net, tmp_path, 360, 100, first=5 if net is other else 0)]
        if net is lost:
            (found[-1].folder / "outcomes.npz").unlink()
    assert list(effects.scores(found, "paper", ["clean"]).rows) == ["sr-gkp"]
    assert list(effects.scores(found, "paper", ["clean"], wanted=lambda one: one.net is shape).rows) == [
        "sr-gkp shape from scratch"
    ]
    assert effects.scores(found, "paper", ["pgd-4/255"]).rows == {}


def test_the_paper_s_own_difference_is_that_of_table_10():
    assert effects.printed_differences()["sr-gkp"] == pytest.approx((76.40 + 45.17 + 44.85 - 75.15 - 39.64 - 42.58) / 300)
    assert effects.printed_differences(["clean"])["hrank"] == pytest.approx((92.27 - 93.24) / 100)
    assert {"gal", "nppm"} <= set(effects.printed_differences()) and "rap-admm" not in effects.printed_differences()


def test_the_forest_plot_says_for_how_many_methods_pruning_costs_robustness(results):
    figure = figures.forest(results)
    assert figure.question == "Does pruning cost robustness?" == figure.drawing.get_suptitle()
    assert figure.answer.startswith(
        "For some methods. Under the paper's protocol, 1 of 3 methods are less robust than the unpruned network fine-tuned as "
        "long (by up to 12.5 points), 1 more robust than it (Least-Smooth-GKP), and 1 cannot be told apart from it; "
        "in pixels at 1/255, 1 of 3"
    )
    assert figure.answer.endswith("Bars: 95 %; n = 400 images; 2 seeds.")
    rows = figure.points.set_index(["panel", "method"])
    assert rows["difference"].tolist() == pytest.approx([-0.125, -1 / N, 0.2] * 2)
    assert rows["printed"].notna().tolist() == [True, False, False] + [False] * 3  # the paper has no attack in pixels


def test_rows_of_the_forest_plot_are_named_as_in_the_paper_grouped_and_ordered_by_effect(results):
    ax = figures.forest(results).drawing.axes[0]
    named = [label.get_text() for label in ax.get_yticklabels()]
    order = sorted(named, key=dict(zip(named, ax.get_yticks(), strict=True)).get, reverse=True)
    assert order == ["Grouped kernels", "Least-Smooth-GKP", "L2-GKP", "SR-GKP"]


def test_a_method_with_one_protocol_alone_has_its_row_in_the_forest_plot(tmp_path):
    found = report(tmp_path, none=(200,), sr_gkp=(150,))
    net = pruned("random-gkp")
    found += [trained(net, tmp_path), evaluated(net, tmp_path, 350, 10, protocol="pixel")]
    left, right = figures.forest(found).drawing.axes
    assert (len(left.containers), len(right.containers)) == (1, 2)
    assert "Random-GKP" in [label.get_text() for label in left.get_yticklabels()]


def test_the_trade_off_is_a_rank_correlation_with_its_sign(tmp_path):
    found = [trained(BASELINE, tmp_path)]
    for at, method in enumerate(["none", "sr-gkp", "l2-gkp", "random-gkp", "greedy-gkp", "fpgm", "cc"]):
        net = pruned(method)
        found += [trained(net, tmp_path), evaluated(net, tmp_path, 380 - 10 * at, 100 + 10 * at)]
    figure = figures.trade_off(found)
    assert figure.answer.startswith(
        "Yes. Rank correlation of benign and attacked accuracy over pruned networks: under the paper's"
    )
    assert "-1.00 (p = 0, 6 methods)" in figure.answer and figure.answer.endswith("Bars: 95 %; n = 400 images; one seed.")
    assert (figure.points["difference_benign"] < 0).all() and (figure.points["difference_attacked"] > 0).all()
    assert sum(text.get_text() == "SR-GKP" for text in figure.drawing.axes[0].texts) == 1


def test_an_outlier_is_a_triangle_on_the_edge_of_the_trade_off_with_its_coordinates(tmp_path):
    found = [trained(BASELINE, tmp_path)]
    for at, method in enumerate(["none", "sr-gkp", "l2-gkp", "random-gkp", "greedy-gkp", "fpgm", "cc", "dhp"]):
        net = pruned(method)
        benign = 200 if method == "dhp" else 380 - 10 * at
        found += [trained(net, tmp_path), evaluated(net, tmp_path, benign, 100 + 10 * at)]
    figure = figures.trade_off(found)
    ax, points = figure.drawing.axes[0], figure.points.set_index("method")
    outside = 100 * points.loc["dhp", ["difference_benign", "difference_attacked"]].astype(float)
    assert outside.iloc[0] < ax.get_xlim()[0] < 100 * points["difference_benign"].drop("dhp").min()
    assert f"DHP ({outside.iloc[0]:+.1f}, {outside.iloc[1]:+.1f})" in [text.get_text() for text in ax.texts]
    (mark,) = [line for line in ax.lines if line.get_marker() == "<"]
    assert mark.get_xdata()[0] == ax.get_xlim()[0] and mark.get_ydata()[0] == pytest.approx(outside.iloc[1])


@pytest.mark.parametrize("draw", [figures.forest, figures.trade_off])
def test_without_the_unpruned_network_under_the_same_fine_tuning_there_is_nothing_to_compare(draw, tmp_path):
    assert draw([]).points.empty and draw(report(tmp_path, sr_gkp=(100,))).points.empty


def test_a_notebook_shows_the_answer_under_the_figure_and_its_file_has_it_beside_the_points(results, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    figure = figures.forest(results)
    figure._ipython_display_()
    assert [set(data) for data in shown] == [{"image/png", "text/plain"}, {"text/markdown", "text/plain"}]
    assert shown[1]["text/markdown"] == figure.answer
    figure.save("robustness", tmp_path / "out")
    assert (tmp_path / "out" / "robustness.txt").read_text() == f"{figure.question}\n{figure.answer}\n"
    assert figure.question in (tmp_path / "out" / "robustness.svg").read_text()
    assert len(pd.read_csv(tmp_path / "out" / "robustness.csv")) == 6


def test_the_committed_differences_are_those_that_the_claims_are_decided_by():
    row = pd.read_csv(locate("verdicts.csv")).set_index("id").loc["sr-over-random-gkp"]
    found = effects.scores(experiments.load(profiles.cells("cifar10", "main", "seeds")), "paper", effects.ATTACKS)
    estimate = found.minus("sr-gkp", "random-gkp")
    assert (estimate.n, estimate.seeds) == (row["n"], row["seeds"])
    assert [estimate.value, estimate.low, estimate.high] == pytest.approx(row[["value", "low", "high"]].tolist(), rel=1e-4)


def test_names_that_fit_are_written_beside_their_dots_and_none_covers_another():
    from gkp.artifact.figures.figure import label_dots, panels

    drawing, (ax,) = panels(1, 1, 4, 4)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    drawing.draw_without_rendering()
    at = np.full(30, 0.5)
    label_dots(ax, at, at, ["SR-GKP"] * 30)
    drawing.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert 2 <= len(boxes) < 30
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
