"""Figures of all methods at once: their marks, their order and their answers, on outcomes made by hand."""

import math

import effects_by_hand
import numpy as np
import pandas as pd
import pytest
from effects_by_hand import N, evaluated, pruned, report, trained

from gkp.artifact import figures, tables
from gkp.artifact.effects import ATTACKS
from gkp.artifact.figures import protocol, results
from gkp.artifact.figures.figure import panels


def dots(found, **options):
    return figures.method_dots(tables.methods_table(found, protocol="paper", title="").points, **options)


@pytest.fixture
def compared(tmp_path):
    """Four methods whose order under attack is CC, SR-GKP, L2-GKP, FPGM; the first two are 2 of 400 images apart."""
    return report(tmp_path, none=(300,), fpgm=(60,), l2_gkp=(130,), sr_gkp=(228,), cc=(230,))


def test_dots_are_ordered_by_robustness_after_the_unpruned_network_and_named_as_in_the_paper(compared):
    figure = dots(compared)
    ax = figure.drawing.axes[0]
    named = {label.get_text(): at for label, at in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}
    assert sorted(named, key=named.get, reverse=True) == ["unpruned, fine-tuned", "CC", "SR-GKP", "L2-GKP", "FPGM"]
    assert [ax.get_title() for ax in figure.drawing.axes] == ["Benign", "(a) FGSM .01", "(b) FGSM .1", "(c) PGD 8/255"]


def test_the_answer_names_the_best_those_that_cannot_be_told_apart_and_the_place_of_sr_gkp(compared):
    answer = dots(compared, attacks=["pgd-8/255"], question="Who?").answer
    assert answer == (
        "Best, (c) PGD 8/255: CC, 1 more cannot be told apart from it. SR-GKP has rank 2 of 4. "
        "Bars: 95 %, n = 400 images; one seed: networks are told apart, not their methods."
    )


def test_an_axis_is_made_for_what_can_be_told_apart_and_the_rest_is_written_at_its_edge():
    _, (ax,) = panels(1, 1, 4, 4)
    values = [0.880, 0.885, 0.890, 0.895, 0.70, 0.99]
    rows = pd.DataFrame({"accuracy": values}, index=["cc", "lrf", "sfp", "fpgm", "random", "l2"])
    rows = rows.assign(low=rows["accuracy"] - 0.005, high=rows["accuracy"] + 0.005)
    results._dots(ax, rows, range(6))
    assert ax.get_xlim() == pytest.approx((87.5 - 0.05 * 2.5, 90 + 0.05 * 2.5))
    assert [text.get_text() for text in ax.texts] == ["◂ 70.0", "99.0 ▸"]


def test_what_lies_within_the_bars_of_the_others_is_drawn_and_not_written_at_the_wrong_edge():
    """An outlier by the quartiles, below all others, was an arrow to the right where a bar of theirs reached as far down."""
    _, (ax,) = panels(1, 1, 4, 4)
    rows = pd.DataFrame({"accuracy": [0.68, 0.685, 0.69, 0.695, 0.64, 0.5]}, index=["cc", "lrf", "sfp", "fpgm", "random", "l2"])
    rows = rows.assign(low=rows["accuracy"] - [0.05, 0.005, 0.005, 0.005, 0.005, 0.005], high=rows["accuracy"] + 0.005)
    results._dots(ax, rows, range(6))
    assert [text.get_text() for text in ax.texts] == ["◂ 50.0"] and ax.get_xlim()[0] < 63
    drawn = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert drawn == pytest.approx([68, 68.5, 69, 69.5, 64])


def test_equal_networks_leave_room_for_those_a_little_apart():
    _, (ax,) = panels(1, 1, 4, 4)
    rows = pd.DataFrame({"accuracy": [0.89] * 5 + [0.91]}, index=list("abcdef"))
    results._dots(ax, rows.assign(low=rows["accuracy"] - 0.006, high=rows["accuracy"] + 0.006), range(6))
    assert not ax.texts and ax.get_xlim()[1] > 91.6


def test_the_legend_has_sr_gkp_in_its_one_colour_and_every_family_in_use(compared):
    figure = dots(compared)
    (legend,) = figure.drawing.legends
    named = dict(zip((text.get_text() for text in legend.get_texts()), legend.legend_handles, strict=True))
    assert set(named) == {"SR-GKP", "unpruned, fine-tuned", "filter pruning", "channel pruning", "grouped kernel pruning"}
    assert named["SR-GKP"].get_color() == figures.method_colour("sr-gkp (alpha 0.5)")


def test_what_the_choice_of_the_epoch_adds_is_the_mean_over_seeds():
    rows = [
        {"method": method, "seed": seed, "last": last, "last_low": last - 0.1, "last_high": last + 0.1, "best": best}
        for method, seed, last, best in (("sr-gkp", 0, 0.5, 0.6), ("sr-gkp", 1, 0.4, 0.7), ("cc", 0, 0.3, 0.3))
    ]
    points = pd.DataFrame(rows).assign(n=100, metric="fgsm-0.1")
    figure = figures.superscore_dots(points.assign(gain=points["best"] - points["last"]))
    assert figure.answer.startswith(
        "Under (b) FGSM .1, 10.0 points on average, between 0.0 (CC) and 20.0 (SR-GKP); the orders by last"
    )
    assert "mean over 1 to 2 seeds" in figure.answer and figure.drawing.axes[0].get_xlabel() == "(b) FGSM .1, accuracy (%)"


def test_the_front_is_what_no_cheaper_network_beats_and_an_attack_that_leaves_nothing_has_no_panel():
    rows = [("l2", 1.0, 0.3), ("cc", 2.0, 0.2), ("sr-gkp", 4.0, 0.5)]
    points = pd.DataFrame(
        [
            {"method": method, "latency": cost, "attack": attack, "accuracy": value, "low": 0.0, "high": 1.0, "n": 9, "seed": 0}
            for method, cost, accuracy in rows
            for attack, value in (("cascade-1/255", accuracy), ("autoattack-8/255", 0.0), ("clean", 0.9))
        ]
    )
    figure = figures.pareto(points, costs={"latency": "Latency"})
    assert figure.answer.endswith("bars: 95 %; one seed.")
    assert figure.answer.startswith("Not dominated, from the cheapest on: Cascade 1/255: L2Norm, SR-GKP.")
    assert [ax.get_title() for ax in figure.drawing.axes] == ["Cascade 1/255, n = 9"]
    in_our_engine = points["method"].map({"l2": 1.0, "cc": 0.9, "sr-gkp": 0.7})
    figure = figures.pareto(points.assign(fast=in_our_engine), costs={"latency": "PyTorch, time", "fast": "Ours, time"})
    assert "Cascade 1/255, PyTorch: L2Norm, SR-GKP; Cascade 1/255, Ours: SR-GKP. The grey" in figure.answer
    assert [ax.get_xlabel() for ax in figure.drawing.axes] == ["PyTorch, time", "Ours, time"]


def test_of_equally_cheap_networks_the_most_accurate_is_on_the_front_and_those_not_measured_are_counted():
    rows = [("unpruned", 1.0, 0.1), ("unpruned, fine-tuned", 1.0, 0.3), ("sr-gkp", 1.0, 0.2), ("cc", None, 0.9)]
    points = pd.DataFrame(
        [
            {"method": method, "latency": cost, "attack": "cascade-1/255", "accuracy": value, "low": 0.0, "high": 1.0, "n": 9}
            for method, cost, value in rows
        ]
    ).assign(seed=0)
    costs = {"latency": "PyTorch, time", "fast": "Ours, time"}
    answer = figures.pareto(points.assign(fast=np.nan), costs=costs).answer
    assert "Cascade 1/255, PyTorch: unpruned, fine-tuned. The grey" in answer
    assert answer.endswith("Not measured, and left out: 1 of 4 networks (PyTorch), 4 of 4 networks (Ours).")


def test_time_is_told_against_the_dense_network():
    rows = [
        {"model": "resnet56", "batch_size": 1, "form": form, "median": ratio, "iqr": 0.1, "ratio": ratio}
        for form, ratio in (("dense", 1.0), ("grouped", 3.0), ("filters removed", 0.8))
    ]
    figure = figures.latency_dots(pd.DataFrame(rows))
    assert figure.answer.startswith("Only with filters removed: grouped, 3.00 to 3.00 times the dense network's time")
    assert [label.get_text() for label in figure.drawing.axes[0].get_yticklabels()] == ["ResNet-56"]


def test_high_frequencies_are_told_by_pairs_of_images():
    near = {"low": 0.28, "high": 0.62, "n": 50}  # intervals of all of them meet
    rows = [
        {"method": method, "cut": cut, "accuracy": value, "difference": value - 0.5, "p_holm": p, **near}
        for cut in ("full", "0.7")
        for method, value, p in (("unpruned", 0.5, math.nan), ("cc", 0.6, 0.01), ("sr-gkp", 0.53, 0.2), ("lrf", 0.3, 1e-9))
    ]
    figure = figures.frequency_dots(pd.DataFrame(rows))
    assert figure.answer.startswith(
        "Significantly above the unpruned network: 1 of 3 pruned networks at a cut of 0.7, and 1 below it (by pairs of images"
    )
    assert [ax.get_title() for ax in figure.drawing.axes] == ["All frequencies", "Above 0.7"]


def test_the_slope_chart_compares_levels_and_orders_on_the_same_networks(tmp_path, monkeypatch):
    true_labels = (*effects_by_hand.ATTACKS["paper"], ("fgsm", 0.1, "fgsm-0.1-true"))
    renamed = effects_by_hand.ATTACKS | {"paper": true_labels}
    monkeypatch.setattr(effects_by_hand, "ATTACKS", renamed)
    found = report(tmp_path / "true", none=(300,), cc=(200,), sr_gkp=(100,), l2_gkp=(150,))
    figure = figures.protocols(found)
    assert figure.answer == (
        "The level, mean of 3 methods: 37.5 % (FGSM .1, predicted labels), 37.5 % (FGSM .1, true labels), "
        "37.5 % (Pixels, 1/255). "
        "The order, rank correlation with the first: +1.00 (FGSM .1, true labels), +1.00 (Pixels, 1/255). "
        "SR-GKP has rank 3, 3, 3. Bars, on SR-GKP: 95 %, n = 400 images; one seed."
    )
    assert figures.protocols(report(tmp_path / "none", none=(300,), cc=(200,))).points.empty


def test_autoattack_is_a_further_step_of_the_slope_chart_for_the_methods_that_have_it(tmp_path, monkeypatch):
    true_labels = (*effects_by_hand.ATTACKS["paper"], ("fgsm", 0.1, "fgsm-0.1-true"))
    monkeypatch.setitem(effects_by_hand.ATTACKS, "paper", true_labels)
    found = report(tmp_path, none=(300,), cc=(200,), sr_gkp=(100,), l2_gkp=(150,))
    found += [evaluated(pruned(row), tmp_path, 360, right, protocol="strong") for row, right in (("none", 200), ("cc", 60))]
    assert "AutoAttack" not in figures.protocols(found).answer  # of a single method
    found.append(evaluated(pruned("sr-gkp"), tmp_path, 360, 80, protocol="strong"))
    figure = figures.protocols(found)
    last = figure.points[figure.points["protocol"] == "AutoAttack, 1/255"].set_index("method")
    assert last["accuracy"].to_dict() == {"cc": 60 / N, "sr-gkp": 80 / N} and last["rank"].isna().all()
    assert figure.answer.endswith(
        " AutoAttack, 1/255, run for 2 of them, leaves 17.5 % where Pixels, 1/255, leaves 37.5 %, rank correlation -1.00. "
        "SR-GKP has rank 3, 3, 3. Bars, on SR-GKP: 95 %, n = 400 images; one seed."
    )
    left, right = figure.drawing.axes[:2]
    assert [len(ax.get_xticks()) for ax in (left, right)] == [4, 3]

    found.append(evaluated(pruned("l2-gkp"), tmp_path, 360, 70, protocol="strong"))
    figure = figures.protocols(found)  # of all methods: it takes part in the order
    assert figure.points[figure.points["protocol"] == "AutoAttack, 1/255"].set_index("method")["rank"].to_dict() == {
        "cc": 3, "sr-gkp": 1, "l2-gkp": 2,
    }  # fmt: skip
    assert "SR-GKP has rank 3, 3, 3, 1." in figure.answer


def test_curves_are_of_the_methods_with_several_rates(tmp_path):
    found = report(tmp_path, sr_gkp=(200,), cc=(220,))
    for rate, macs, attacked in ((10 / 16, 16_000_000, 120), (3 / 4, 11_000_000, 80)):
        net = pruned("sr-gkp", rate=rate)
        found += [trained(net, tmp_path, paper_macs=macs), evaluated(net, tmp_path, 340, attacked)]
    figure = figures.rates(found)
    line = figure.points[figure.points["panel"] == "Mean of the paper's three attacks"]
    assert set(figure.points["method"]) == {"sr-gkp"} and line["macs"].tolist() == [23_390_858, 16_000_000, 11_000_000]
    assert line["accuracy"].tolist() == pytest.approx([200 / N, 120 / N, 80 / N])
    assert figure.answer.startswith(
        "From 7/16 to 12/16 of the kernels removed, SR-GKP changes by -5.0 points (benign), -30.0 points (mean of the paper's"
    )
    assert figures.rates(report(tmp_path / "one", sr_gkp=(200,))).points.empty


def test_a_network_that_was_not_kept_has_no_multiply_accumulates_and_is_on_no_curve(tmp_path):
    found = report(tmp_path, sr_gkp=(200,), cc=(220,))
    for method in ("sr-gkp", "cc"):
        net = pruned(method, rate=10 / 16)
        found += [evaluated(net, tmp_path, 340, 120)] + ([trained(net, tmp_path)] if method == "sr-gkp" else [])
    figure = figures.rates(found)
    assert set(figure.points["method"]) == {"sr-gkp"} and "(pixels" not in figure.answer  # which has one rate


def test_the_order_after_other_lengths_has_the_ranks_that_the_data_leave_open(tmp_path):
    found = []
    for epochs, counts in ((0, {"cc": 300, "sr-gkp": 200, "l2-gkp": 199}), (2, {"cc": 100, "sr-gkp": 200, "l2-gkp": 199})):
        for method, attacked in counts.items():
            net = pruned(method, epochs=epochs)
            found += [trained(net, tmp_path), evaluated(net, tmp_path, 360, attacked)]
    figure = figures.order_by_epochs(found)
    rows = figure.points.set_index(["epochs", "method"])[["rank", "low", "high"]].apply(tuple, axis=1).to_dict()
    assert rows == {
        (0, "cc"): (1, 1, 1), (0, "sr-gkp"): (2, 2, 3), (0, "l2-gkp"): (3, 2, 3),
        (2, "cc"): (3, 3, 3), (2, "sr-gkp"): (1, 1, 2), (2, "l2-gkp"): (2, 1, 2),
    }  # fmt: skip
    assert figure.answer.startswith("Yes, for 2 pairs for sure (CC and L2-GKP; CC and SR-GKP). Rank correlation of 0 and 2")
    assert figure.answer.endswith("3 methods; n = 400 images, one seed.")
    assert figures.order_by_epochs(report(tmp_path / "one", sr_gkp=(200,), cc=(100,))).points.empty


def test_every_mark_of_an_order_is_inside_its_interval(compared):
    side = protocol.scores(compared, "paper", ATTACKS)
    found = pd.DataFrame(protocol._ranks(side, {row: row for row in side.pruned}, side.pruned, 2))
    assert (found["low"] <= found["rank"]).all() and (found["rank"] <= found["high"]).all()
    assert np.array_equal(np.sort(found["rank"]), [1, 2, 3, 4])


def test_time_against_what_is_removed_says_what_each_engine_gives():
    times = {"dense": (1.0, 1.1, 0.6), "grouped, 7/16": (5.0, 6.0, 0.4), "filters, 7/16": (0.7, 0.8, 0.45)}
    rows = [
        {"model": model, "threads": threads, "batch_size": size, "form": form, "engine": engine, "ratio": ratio * scale}
        for model, scale in (("resnet20", 10), ("resnet56", 1))
        for threads in (1, 2)
        for size in (1, 32, 128)
        for form, ratios in times.items()
        for engine, ratio in zip(("ONNX Runtime", "OpenVINO", "gkp"), ratios, strict=True)
    ]
    figure = figures.speed_lines(pd.DataFrame(rows))
    assert len(figure.points) == 3 * 3 * 3 and set(figure.points["threads"]) == {1}
    assert "7/16 of the kernels removed, grouped kernels take 5.00 to 5.00 times" in figure.answer
    assert "0.40 to 0.40 in gkp.compile" in figure.answer and "0.70 to 0.70 and 0.45 to 0.45" in figure.answer
    assert [ax.get_title() for ax in figure.drawing.axes] == ["ResNet-56, 1 image", "ResNet-56, 128 images"]
    folded = [{**row, "engine": "torch, folded", "ratio": 0.1} for row in rows if row["engine"] == "gkp"]
    answer = figures.speed_lines(pd.DataFrame([*rows, *folded])).answer  # it makes grouped kernels dense: that is no pruning
    assert "take 5.00 to 5.00 times" in answer and "0.10 to 0.10 and 0.45 to 0.45" in answer
    without = pd.DataFrame([row for row in rows if row["engine"] != "gkp"])
    assert "not measured in gkp.compile" in figures.speed_lines(without).answer
    assert "not run" in repr(figures.speed_lines(pd.DataFrame()).drawing.axes[0].texts[0].get_text())
