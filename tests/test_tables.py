"""Tables say what the runs say, with n, seed and interval; Table 8 is held against the registry."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from effects_by_hand import N, evaluated, pruned, report, trained

from gkp.artifact import figures, tables
from gkp.artifact.effects import exceptions, over_seeds
from gkp.artifact.experiments.kinds import EvaluateCell, PruneCell, TrainCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.tables.table import not_run
from gkp.data.sources import load_dataset
from gkp.errors import BadInput
from gkp.evaluation.benchmark import benchmark
from gkp.evaluation.statistics import Spread, wilson
from gkp.networks.build import build_model
from gkp.pruning.prune import prune
from gkp.pruning.registry import methods


@pytest.fixture(scope="module")
def outcomes():
    data = load_dataset("digits", "test").first(15)
    net = build_model("resnet20")
    return {"dense": benchmark(net, data, eps="4/255"), "pruned": benchmark(prune(net, "l2-gkp"), data, eps="4/255")}


def test_accuracies_are_shown_in_percent_and_saved_as_fractions(outcomes, tmp_path):
    table = tables.accuracies(outcomes)
    frame = outcomes["pruned"].to_frame()
    row = frame.loc["pgd-4/255"]
    assert table.shown.loc["PGD 4/255", "pruned"] == f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
    assert "n = 15" in table.title and "seed 0" in table.title and "95 % Wilson" in table.title
    saved = pd.read_csv(table.save("accuracies", tmp_path))
    assert set(saved["network"]) == {"dense", "pruned"} and saved["accuracy"].between(0, 1).all() and (saved["n"] == 15).all()


def test_a_masked_twin_costs_what_its_compact_network_costs():
    net = build_model("resnet20")
    pruned = prune(net, "sr-gkp")
    points = tables.costs({"dense": net, "twin": pruned, "compact": pruned.compact()}).points.set_index("network")
    assert points.loc["twin", "params"] == points.loc["compact", "params"] == 152_794
    assert points.loc["dense", "paper_macs"] == 40_938_122


def test_the_methods_table_joins_each_evaluation_with_the_cost_of_its_network(tmp_path):
    baseline = TrainCell(dataset="digits", epochs=1)
    pruned = PruneCell(net=baseline, method="sr-gkp", options={"alpha": 0.5}, epochs=0, seed=7)
    evaluated = EvaluateCell(net=pruned, protocol="paper")
    figures = {"accuracy": {"clean": 0.5}, "interval": {"clean": [0.4, 0.6]}, "n": 20}
    results = [
        Result(baseline, {"params": 9, "paper_macs": 9}, tmp_path, True),
        Result(pruned, {"params": 152_794, "paper_macs": 23_390_858}, tmp_path, True),
        Result(evaluated, figures, tmp_path, True),
        Result(EvaluateCell(net=pruned, protocol="pixel"), figures, tmp_path, True),
    ]
    table = tables.methods_table(results, protocol="paper", title="main")
    assert table.shown.reset_index().to_dict("records") == [
        {
            "method": "SR-GKP (alpha 0.5), one shot",
            "MACs (M)": "23.391",
            "params (M)": "0.153",
            "Benign": "50.0 [40.0, 60.0]",
            "seeds": 1,
        }
    ]
    assert table.title == "main · n = 20" and table.points[["n", "seed"]].to_numpy().tolist() == [[20, 7]]
    assert (
        tables.row_name(baseline) == "unpruned"
        and tables.row_name(PruneCell(net=baseline, method="none")) == "unpruned, fine-tuned"
    )


@pytest.fixture
def compared(tmp_path):
    """Of 400 images CC gets most, SR-GKP and LRF hardly fewer, L2-GKP half as many; HRank is at another rate."""
    found = report(tmp_path, none=(300,), cc=(200, 204), lrf=(195,), sr_gkp=(198, 202), l2_gkp=(100,))
    other = pruned("hrank", rate=10 / 16)
    return [*found, trained(other, tmp_path), evaluated(other, tmp_path, 360, 399)]


def test_best_and_second_best_are_marked_and_all_that_cannot_be_told_apart_from_the_best(compared):
    table = tables.methods_table(compared, protocol="paper", title="main")
    column = table.shown["(b) FGSM .1"].str.replace(r" \[.*?\]", "", regex=True)
    assert column.to_dict() == {
        "unpruned, fine-tuned": "75.0",
        "CC, 7/16": "**50.5** · paper 29.89",
        "LRF, 7/16": "48.8 = · paper 28.20",
        "SR-GKP, 7/16": "_50.0_ = · paper 45.17",
        "L2-GKP, 7/16": "25.0",
        "HRank, 10/16": "99.8 · paper 17.14",
    }
    groups = table.points[table.points["attack"] == "fgsm-0.1"].drop_duplicates("method").set_index("method")["group"]
    assert groups.dropna().to_dict() == {"cc": 1, "lrf": 1, "sr-gkp": 1, "l2-gkp": 2}
    assert len(table.shown.columns) + 1 == 8 and table.shown["seeds"].tolist() == [1, 2, 1, 2, 1, 1]


def test_in_a_notebook_marks_are_bold_and_underlined_and_nothing_else_is_markup(compared):
    table = tables.methods_table(compared, protocol="paper", title="a < b")
    html = table._repr_html_()
    assert "<b>50.5</b>" in html and "<u>50.0</u>" in html and "<br><small>paper 45.17</small>" in html
    assert "a &lt; b" in html and "**" not in html and "<b>best</b>, <u>second best</u>" in html
    odd = tables.Table("t", pd.DataFrame({"<i>": ["<b>1</b> a_b_c"]}, index=["<u>"]), pd.DataFrame(), marked=True)
    assert "&lt;i&gt;" in odd._repr_html_() and "&lt;b&gt;1&lt;/b&gt; a_b_c" in odd._repr_html_()


@pytest.mark.parametrize("marked", [False, True])
def test_headers_stand_in_one_row_and_say_what_they_are_of_whatever_names_the_rows(marked):
    index = pd.MultiIndex.from_tuples([("resnet20", 1), ("resnet20", 128)], names=["network", "batch"])
    twice = pd.DataFrame({"ms": ["2", "3"], "note": ["a" * 70, "<"]}, index=index)
    pivoted = twice.rename_axis(columns="attack")  # whose name was a header of its own above an empty column
    for frame in (twice, twice.droplevel(1), twice.reset_index(drop=True), twice.rename_axis([None, "batch"]), pivoted):
        html = tables.Table("t", frame, frame, marked=marked)._repr_html_()
        levels = frame.index.nlevels
        named = [name for name in frame.index.names if name]
        assert re.findall(r'<th scope="col">(.*?)</th>', html) == [*named, "ms", "note"]
        assert html.count('<th scope="row">') == 2 * levels and html.count("<th") == html.count("<th scope") + html.count(
            "<thead"
        )
        assert "a" * 70 in html and "&lt;" in html and html.count("<tr") == 3


def test_several_seeds_are_one_row_whose_interval_has_their_spread(compared):
    table = tables.methods_table(compared, protocol="paper", title="main")
    row = over_seeds(table.points).set_index(["method", "attack"]).loc[("cc", "pgd-8/255")]
    half = [wilson(count, N)[1] - count / N for count in (200, 204)]
    spread = Spread.pooled([[200 / N, 204 / N], [198 / N, 202 / N]])
    assert row["accuracy"] == pytest.approx(202 / N) and row["seeds"] == 2
    assert row["high"] - row["accuracy"] == pytest.approx(math.hypot(np.mean(half), spread.half_width(1 / 2)))


def test_methods_that_stand_apart_lend_no_spread_and_show_their_own():
    """The unpruned network had the spread of adversarial training, and networks of several sizes that of all others."""
    seeds = {"cc": (0.70, 0.702), "gal": (0.6, 0.7), "rap-admm": (0.3, 0.4), "unpruned": (0.8,)}
    facts = {"model": "resnet20", "attack": "clean"}
    rows = [
        facts
        | {"method": method, "rate": 0.0 if method == "unpruned" else 7 / 16, "epochs": 3 if method in ("cc", "gal") else 0}
        | {"accuracy": value, "low": value - 0.01, "high": value + 0.01, "paper_macs": 23e6 - 2e6 * at * (method == "gal")}
        for method, values in seeds.items()
        for at, value in enumerate(values)
    ]
    found = over_seeds(pd.DataFrame(rows)).set_index("method")
    half = {row: Spread.pooled([values]).half_width(1 / 2) for row, values in seeds.items()}
    width = found["accuracy"] - found["low"]
    assert width[["cc", "gal"]].tolist() == pytest.approx([math.hypot(0.01, half["cc"]), math.hypot(0.01, half["gal"])])
    assert width["unpruned"] == pytest.approx(0.01)
    assert found.loc["rap-admm", "low"] == max(0.0, found.loc["rap-admm", "accuracy"] - math.hypot(0.01, half["rap-admm"]))


def test_networks_of_several_rates_are_told_apart_by_name_and_those_that_are_not_ranked_are_listed(tmp_path):
    found = report(tmp_path, none=(300,), sr_gkp=(200,), cc=(220,), rap_admm=(390,))
    assert list(tables.methods_table(found, protocol="paper", title="").shown.index)[1:3] == ["SR-GKP", "CC"]
    more = pruned("sr-gkp", rate=10 / 16)
    found += [trained(more, tmp_path), evaluated(more, tmp_path, 340, 120)]
    table = tables.methods_table(found, protocol="paper", title="")
    adversarial = "RAP-ADMM [adversarially trained], 7/16"
    assert list(table.shown.index) == ["unpruned, fine-tuned", "SR-GKP, 7/16", "CC, 7/16", adversarial, "SR-GKP, 10/16"]
    assert "; not ranked, no other method being trained alike: RAP-ADMM [adversarially trained], SR-GKP" in table.legend


def test_the_order_of_seeds_does_not_matter_to_the_last_bit():
    rows = [
        {"method": method, "model": "m", "rate": 0.5, "epochs": 3, "attack": "clean", "accuracy": value, "low": 0, "high": 1}
        for method, values in (("cc", (0.1, 0.2, 0.3)), ("lrf", (0.3, 0.2, 0.1)))
        for value in values
    ]
    assert over_seeds(pd.DataFrame(rows))["accuracy"].nunique() == 1 != len({sum((0.1, 0.2, 0.3)), sum((0.3, 0.2, 0.1))})


def two_networks(folder) -> tuple[list[Result], list[Result]]:
    """Results of a ResNet-20, and of a VGG-16 that gets more without attack and less under it."""
    found = []
    for model, add, methods_of in (("resnet20", 0, ("none", "sr-gkp", "l2-gkp", "dhp")), ("vgg16_bn", 30, ("none", "sr-gkp"))):
        baseline, rows = TrainCell(dataset="digits", model=model, epochs=1), []
        for at, method in enumerate(methods_of):
            log = [{"epoch": 2, "clean": 0.9, "fgsm-0.1": 0.5}]
            net = PruneCell(net=baseline, method=method, epochs=2, log_examples=9)
            rows += [trained(net, folder, epochs=log)]
            rows += [evaluated(net, folder, 300 + add - at, 200 - 5 * add + at, protocol=part) for part in ("paper", "pixel")]
        found.append(rows)
    return found[0], found[1]


def test_tables_and_figures_with_a_row_for_each_method_are_of_one_network_and_say_which(tmp_path):
    first, other = two_networks(tmp_path)
    for make in (
        lambda found: tables.seed_spread(found, attacks=["clean"]),
        lambda found: tables.space_choice(found),
        lambda found: tables.epoch_choice(found),
        figures.forest,
        figures.trade_off,
        figures.protocols,
        lambda found: figures.method_dots(tables.methods_table(found, protocol="paper", title="").points),
    ):
        alone, both = make(first), make([*first, *other])
        assert len(alone.points) and both.points.equals(alone.points)
        assert "ResNet-20 alone; not shown: VGG-16" in repr(both) and "alone" not in repr(alone)


def test_rows_of_one_method_are_told_apart_by_what_differs_and_ranked_within_their_network(tmp_path):
    first, other = two_networks(tmp_path)
    table = tables.methods_table([*first, *other], protocol="paper", title="")
    assert table.shown["network"].tolist() == ["ResNet-20"] * 4 + ["VGG-16"] * 2
    assert "network" not in tables.methods_table(first, protocol="paper", title="").shown
    ranks = tables.mean_ranks(table.points).points.set_index("method")
    assert ranks.loc["sr-gkp", ["clean", "fgsm-0.1"]].tolist() == [1, (3 + 1) / 2] and "unpruned, fine-tuned" not in ranks.index
    rates = [trained(net := pruned("sr-gkp", rate=10 / 16), tmp_path), evaluated(net, tmp_path, 300, 100)]
    shown = tables.methods_table([*report(tmp_path, sr_gkp=(200,)), *rates], protocol="paper", title="").shown
    assert list(shown.index) == ["SR-GKP, 7/16", "SR-GKP, 10/16"] and "network" not in shown and "epochs" not in shown


def test_results_of_two_rates_where_a_method_has_one_row_are_refused_in_a_line(tmp_path):
    found = report(tmp_path, none=(300,), sr_gkp=(200,), l2_gkp=(150,))
    other = pruned("sr-gkp", rate=10 / 16)
    found += [
        trained(other, tmp_path),
        evaluated(other, tmp_path, 300, 100),
        evaluated(other, tmp_path, 300, 9, protocol="pixel"),
    ]
    with pytest.raises(BadInput, match=r"sr-gkp, seed 0, stands for several networks"):
        figures.forest(found)
    with pytest.raises(BadInput, match=r"there are several results for sr-gkp, normalised 8/255; give those of one seed"):
        tables.space_choice(found)
    with pytest.raises(BadInput, match="several networks of one method and seed"):
        tables.seed_spread(found, attacks=["clean"])
    with pytest.raises(BadInput, match="there are several rates or schedules of one"):
        figures.method_dots(tables.methods_table(found, protocol="paper", title="").points)


def test_what_is_not_compared_on_equal_terms_is_named(tmp_path):
    found = report(tmp_path, none=(300,), sr_gkp=(200,), l2_gkp=(150,))
    for net in (longer := pruned("dhp", epochs=9, soft_epochs=3), off := pruned("gal"), pruned("rap-admm")):
        found += [trained(net, tmp_path, off_budget=-0.063 if net is off else None), evaluated(net, tmp_path, 350, 90)]
    assert exceptions(found) == (
        "Fine-tuned for 6 epochs, not 2: DHP. Left out: RAP-ADMM [adversarially trained]. Not at equal MACs: GAL."
    )
    assert exceptions(found) in figures.forest(found).answer and longer.finetuned == 6
    assert exceptions(report(tmp_path, none=(300,), sr_gkp=(200,))) == ""


def test_transfer_between_networks_that_are_not_finished_is_not_run(tmp_path):
    for found in ([], report(tmp_path, sr_gkp=(200,))[:1]):
        assert "not run" in tables.transferred(found, "unpruned", "sr-gkp").title


def test_the_field_s_protocol_has_the_worst_case_at_each_radius_or_every_attack_at_one(compared):
    whole = tables.methods_table(compared, protocol="pixel", title="pixels")
    assert list(whole.shown.columns) == ["Benign", "Worst case 1/255", "seeds"]
    one = tables.methods_table(compared, protocol="pixel", title="pixels", radius="8/255")  # nobody attacked at that
    assert list(one.shown.columns) == ["Benign", "FGSM 1/255", "PGD 1/255", "Worst case 1/255", "seeds"]
    assert whole.points.equals(one.points)


def test_a_column_in_which_nothing_is_left_is_not_shown_and_the_legend_says_so(tmp_path):
    table = tables.methods_table(report(tmp_path, none=(1,), sr_gkp=(0,)), protocol="pixel", title="pixels")
    assert list(table.shown.columns) == ["Benign", "seeds"]
    assert table.legend.endswith("at most 0.5% everywhere and not shown: Worst case 1/255")


def test_an_evaluation_whose_network_was_not_kept_is_shown_without_its_cost(tmp_path):
    table = tables.methods_table([evaluated(pruned("sr-gkp"), tmp_path, 360, 100)], protocol="paper", title="main")
    assert table.shown.loc["SR-GKP", ["MACs (M)", "params (M)"]].tolist() == ["", ""]


def test_table_8_has_every_method_and_the_registry_agrees_on_the_type_of_each():
    points = tables.method_checklist().points.set_index("method")
    assert set(methods()) <= {
        *points.index,
        "cc",
        "dhp",
        "fpgm",
        "gal",
        "hrank",
        "l1norm-a",
        "l1norm-b",
        "lrf",
        "nppm",
        "rap-admm",
        "sfp",
        "tmi-gkp",
        "sr-gkp",
    }
    here = points[(points["type, here"] != "not implemented") & (points["type, published"] != "")]
    assert len(here) == 13 and set(here.index[here["type, here"] != here["type, published"]]) == {"GAL", "NPPM"}
    one_shot = here.index[here["procedure, published"] == "one-shot"]
    assert (here.loc[one_shot, "procedure, here"] == "one-shot").all()
    assert set(here.index[(here["procedure, published"] != "one-shot") & (here["procedure, here"] == "one-shot")]) == {"HRank"}
    assert "adapted" in points.loc["HRank", "fidelity"]
    assert not (points["type, here"] == "not implemented").any()


def test_a_table_of_nothing_is_its_title():
    html = not_run("Table 3")._repr_html_()
    assert "Table 3 · not run" in html and "<t" not in html
