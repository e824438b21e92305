"""Tables and figures of what a run gave, on results made by hand: rows, numbers, and what is said when there are none."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gkp.artifact import figures as plots
from gkp.artifact import standings, tables
from gkp.artifact.experiments.kinds import EvaluateCell, LatencyCell, PruneCell, SpeedCell, TimingCell, TrainCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.results import attack_name

BASELINE = TrainCell(dataset="digits", epochs=1)
PRUNED = {
    (m, s): PruneCell(net=BASELINE, method=m, epochs=2, seed=s, log_examples=50) for m in ("sr-gkp", "l2-gkp") for s in (0, 1)
}
ACCURACY = {"clean": 0.9, "fgsm-0.01": 0.8, "fgsm-0.1": 0.5, "fgsm-0.1-true": 0.4, "pgd-8/255": 0.6}


def result(cell, folder, **figures):
    return Result(cell, figures, folder, True)


def evaluated(net, folder, accuracy, n=100, **fields):
    interval = {key: [value - 0.1, value + 0.05] for key, value in accuracy.items()}
    return result(EvaluateCell(net=net, **fields), folder, accuracy=accuracy, interval=interval, n=n)


@pytest.fixture
def results(tmp_path):
    """A baseline and two methods of two seeds, evaluated in both protocols; sr-gkp is the better under attack."""
    found = [
        result(BASELINE, tmp_path, params=270_000, paper_macs=41_000_000, model_sha256="b"),
        evaluated(BASELINE, tmp_path, ACCURACY, protocol="paper"),
    ]
    for (method, seed), cell in PRUNED.items():
        better = 0.1 * (method == "sr-gkp") + 0.02 * seed
        epochs = [{"clean": 0.8, "fgsm-0.1": 0.7 - better}, {"clean": 0.9, "fgsm-0.1": 0.5 + better}]
        soft = [{"clean": 1.0, "fgsm-0.1": 1.0}]  # before the final cut: the paper counts no such epoch
        found.append(result(cell, tmp_path, params=152_794, paper_macs=23_000_000, epochs=epochs, soft_epochs=soft))
        attacked = {key: value + better * (key != "clean") for key, value in ACCURACY.items()}
        found.append(evaluated(cell, tmp_path, attacked, protocol="paper"))
        found.append(evaluated(cell, tmp_path, {"clean": 0.9, "pgd-1/255": 0.3 + better}, n=10, protocol="pixel"))
    return found


def test_predicted_labels_are_set_against_true_ones_with_the_rank_of_each_method_under_both(results):
    table = tables.label_choice(results)
    points = table.points[table.points["seed"] == 0].set_index("method")
    assert points.loc["sr-gkp", ["predicted", "true"]].tolist() == pytest.approx([0.6, 0.5])
    assert (table.points["difference"].round(9) == 0.1).all() and "n = 100" in table.title
    assert table.shown["rank, predicted"].to_dict() == {"unpruned": 3, "SR-GKP": 1, "L2-GKP": 2}  # methods, not their seeds
    assert table.shown["seeds"].to_dict() == {"unpruned": 1, "SR-GKP": 2, "L2-GKP": 2}
    assert table.shown.loc["SR-GKP", "predicted labels"] == "61.00" and table.shown.loc["unpruned", "difference"] == "+10.00"
    assert table.title.startswith("(b) FGSM .1 (normalised units)")


def test_the_last_epoch_is_set_against_the_best_of_those_at_the_final_cost(results):
    points = tables.epoch_choice(results).points.set_index(["method", "seed"])
    row = points.loc[("l2-gkp", 0)]
    assert row["last"] == 0.5 and row["best"] == 0.7 and row["best_epoch"] == 1 and row["epochs"] == 2
    assert row["gain"] == pytest.approx(0.2) and row["clean_at_best"] == 0.8 and row["clean_last"] == 0.9
    assert row["last_low"] == pytest.approx(0.3664, abs=1e-4)  # Wilson, 25 of 50
    assert points.loc[("sr-gkp", 1), "gain"] == pytest.approx(0.0, abs=1e-9)  # 0.62 is the last and the best


def test_pgd_is_shown_in_both_units_with_its_own_n(results):
    table = tables.space_choice(results)
    one = table.points[(table.points["method"] == "sr-gkp") & (table.points["seed"] == 0)].set_index("eps")
    assert one["accuracy"].to_dict() == pytest.approx({"normalised 8/255": 0.7, "pixel 1/255": 0.4})
    assert one["n"].to_dict() == {"normalised 8/255": 100, "pixel 1/255": 10} and table.title.endswith("n = 100, 10")


def test_seeds_are_averaged_and_a_single_one_says_so(results):
    table = tables.seed_spread(results)
    assert table.shown.loc["SR-GKP", "(b) FGSM .1"] == f"61.00 ± {100 * np.std([0.6, 0.62], ddof=1):.2f}"
    assert table.shown.loc["unpruned", "(b) FGSM .1"] == "50.00 (one seed)" and table.shown.loc["L2-GKP", "seeds"] == 2


def test_mean_ranks_follow_the_rule_of_table_20_and_leave_the_unpruned_network_out(results):
    points = tables.methods_table([r for r in results if getattr(r.cell, "seed", 0) == 0], protocol="paper", title="").points
    table = tables.mean_ranks(points[points["seed"] == 0])
    assert table.shown["mean rank"].to_dict() == {"SR-GKP": "1.00 · paper 2.33", "L2-GKP": "1.75"}  # the paper has no L2-GKP
    assert list(table.shown.columns) == ["Benign", "(a) FGSM .01", "(b) FGSM .1", "(c) PGD 8/255", "mean rank"]
    ranks = table.points.set_index("method")["mean rank"]
    assert ranks.to_dict() == {"sr-gkp": 1.0, "l2-gkp": 1.75}  # equal on benign: both first; second on three attacks


def test_table_1_has_a_column_for_each_cut_and_passes_other_variants_over(tmp_path):
    cells = [("", 0.9), ("high-frequency-0.3", 0.5), ("high-frequency-0.5", 0.2), ("rotate-10", 0.1)]
    found = [evaluated(BASELINE, tmp_path, {"clean": value}, attacks=(), variant=variant) for variant, value in cells]
    found.append(evaluated(BASELINE, tmp_path, ACCURACY, protocol="paper"))
    table = tables.high_frequency(found)
    assert list(table.shown.columns) == ["full", "0.3", "0.5"]
    assert table.shown.loc["unpruned", "0.3"] == "50.0 [40.0, 55.0] · paper 77.05"
    assert plots.frequency_dots(table.points).points["cut"].tolist() == ["full", "0.3", "0.5"]


def test_every_table_shows_the_evaluations_of_its_part_and_no_others(results, tmp_path):
    """A network with evaluations in all parts has one row in each table: those of ResNet-56 gave notebook 02 four more."""
    others = [
        *({"attacks": (), "variant": variant} for variant in ("", "high-frequency-0.3", "high-frequency-0.7")),
        {"attacks": ("cascade",), "purpose": "cascade"},
        {"attacks": ({"attack": "autoattack", "eps": "1/255"},)},
        {"variant": "rotate-10"},
        {"eps": ("4/255",), "purpose": "start"},
    ]
    pixel = evaluated(BASELINE, tmp_path, {"clean": 0.9, "pgd-1/255": 0.3}, protocol="pixel")
    strange = [{"clean": 0.5, f"attack-{n}": 0.1} for n in range(len(others))]
    found = [*results, pixel, *(evaluated(BASELINE, tmp_path, a, **f) for a, f in zip(strange, others, strict=True))]
    for protocol in ("paper", "pixel"):
        points = tables.methods_table(found, protocol=protocol, title="").points
        assert not points.duplicated(["method", "seed", "attack"]).any() and points["attack"].eq("clean").sum() == 5
        assert not points["attack"].str.startswith("attack-").any()
        spread = tables.seed_spread(found, protocol=protocol, attacks=["clean"])
        assert len(spread.points) == 5 and spread.shown.loc["unpruned", "Benign"] == "90.00 (one seed)"
    space = tables.space_choice(found).points
    assert space[space["method"] == "unpruned"]["accuracy"].tolist() == [0.6, 0.3]
    assert tables.high_frequency(found).points["cut"].tolist() == ["full", "0.3", "0.7"]
    assert len(tables.strong_attacks(found).points) == 4
    assert len(tables.label_choice(found).points) == 5


def test_strong_attacks_are_listed_with_their_n_and_what_the_network_costs(results, tmp_path):
    strong = evaluated(PRUNED["sr-gkp", 0], tmp_path, {"clean": 0.9, "cascade-1/255": 0.2}, n=8, attacks=("cascade",))
    table = tables.strong_attacks([*results, strong])
    assert table.shown.loc["SR-GKP", "Cascade 1/255"] == "20.0 [10.0, 25.0], n 8"
    assert set(table.points["macs"]) == {23.0} and set(table.points["attack"]) == {"clean", "cascade-1/255"}
    assert set(plots.pareto(table.points, costs={"macs": "MACs (M)"}).points["method"]) == {"sr-gkp"}


def test_latency_is_that_of_the_largest_batch_1_for_the_unpruned_network_and_left_out_where_it_was_not_measured(
    results, tmp_path
):
    nets = {"unpruned": BASELINE, **{method: PRUNED[method, 0] for method in ("sr-gkp", "l2-gkp")}}
    strong = [evaluated(net, tmp_path, {"cascade-1/255": 0.2}, attacks=("cascade",)) for net in nets.values()]
    rows = [{"batch_size": 128, "ratio": 2.5}, {"batch_size": 1, "ratio": 4.0}]
    timed = [result(LatencyCell(net=nets["sr-gkp"]), tmp_path, latency=rows)]
    points = tables.strong_attacks([*results, *strong, *timed]).points
    assert points.set_index("method")["latency"].dropna().to_dict() == {"unpruned": 1.0, "sr-gkp": 2.5}
    assert points["latency_fast"].isna().all()  # no network was timed in our engine, so nothing is relative to anything
    assert set(plots.pareto(points, costs={"latency": "latency"}).points["method"]) == {"unpruned", "sr-gkp"}
    timed += [result(LatencyCell(net=nets["l2-gkp"], engine="fast"), tmp_path, latency=[{"batch_size": 128, "ratio": 0.7}])]
    points = tables.strong_attacks([*results, *strong, *timed]).points.set_index("method")
    assert points["latency"].dropna().to_dict() == {"unpruned": 1.0, "sr-gkp": 2.5}
    assert points["latency_fast"].dropna().to_dict() == {"unpruned": 1.0, "l2-gkp": 0.7}


def test_times_become_ratios_within_one_run(tmp_path):
    latency = [
        {"form": form, "batch_size": size, "median": seconds * size, "iqr": 0.1, "measurements": 3}
        for size in (1, 128)
        for form, seconds in (("dense", 2.0), ("grouped", 6.0), ("filters removed", 1.0))
    ]
    grouping = {"layers": 3, "of": 18, "snaking": 0.01, "kpca": 1.0, "spectral": 1.0, "dbscan": 8.0}
    timed = result(
        TimingCell(net=BASELINE),
        tmp_path,
        model="resnet20",
        threads=1,
        grouping=grouping,
        pruning={"sr-gkp": 0.3},
        latency=latency,
    )
    grouped = tables.grouping_times([timed])
    assert grouped.points.loc[0, "ratio"] == pytest.approx(1000) and grouped.shown.loc["ResNet-20", "layers"] == "3 of 18"
    larger = replace(timed, figures={**timed.figures, "model": "resnet56"})
    beside = tables.grouping_times([timed, larger]).shown
    assert beside.loc["ResNet-20", "ratio"] == "1,000x" and beside.loc["ResNet-56", "ratio"] == "1,000x · paper 1,826x"
    assert beside.loc["ResNet-56", "SR-GKP, grouping + search (s)"] == "0.30 · paper 1,243"
    measured = tables.latencies([timed])
    assert measured.points.set_index(["form", "batch_size"])["ratio"].to_dict() == {
        ("dense", 1): 1.0, ("grouped", 1): 3.0, ("filters removed", 1): 0.5,
        ("dense", 128): 1.0, ("grouped", 128): 3.0, ("filters removed", 128): 0.5,
    }  # fmt: skip
    assert set(measured.shown.index.get_level_values("model")) == {"ResNet-20"}
    assert len(plots.latency_dots(measured.points).points) == 6


def test_what_accelerates_is_split_into_the_engine_and_the_pruning(tmp_path):
    ratios = {
        "dense": {"torch": 3.0, "torch, folded": 2.0, "ONNX Runtime": 1.0, "gkp": 0.6},
        "grouped, 7/16": {"torch": 9.0, "torch, folded": 2.0, "ONNX Runtime": 5.0, "gkp": 0.45},
        "filters, 7/16": {"torch": 2.0, "torch, folded": 0.7, "ONNX Runtime": 0.8, "gkp": 0.3},
    }
    rows = [
        {"form": form, "engine": engine, "threads": 1, "batch_size": 1, "seconds": ratio / 1000, "ratio": ratio}
        for form, engines in ratios.items()
        for engine, ratio in engines.items()
    ]
    measured = result(SpeedCell(net=BASELINE), tmp_path, model="resnet20", speed=rows)
    shown = tables.speeds([measured]).shown
    assert list(shown.columns) == list(ratios["dense"])
    assert shown.loc[("ResNet-20", 1, 1, "grouped, 7/16"), "ONNX Runtime"] == "5.00 ms (5.00x)"
    split = tables.accelerations([measured]).points.set_index("form")
    assert split.loc["grouped, 7/16", ["stock", "engine", "pruning", "both"]].tolist() == pytest.approx([5.0, 0.6, 0.75, 0.45])
    assert split.loc["filters, 7/16", ["stock", "engine", "pruning", "both"]].tolist() == pytest.approx([0.7, 0.6, 0.5, 0.3])
    stock_only = result(SpeedCell(net=BASELINE), tmp_path, model="resnet20", speed=[r for r in rows if r["engine"] != "gkp"])
    assert list(tables.accelerations([stock_only]).points["stock"]) == [5.0, 0.7]


def test_without_speed_cells_the_tables_of_speed_say_so():
    assert all("not run" in repr(table([])).lower() for table in (tables.speeds, tables.accelerations))


def test_what_is_counted_here_equals_what_the_paper_prints_for_its_residual_networks():
    points = tables.published_counts("CIFAR-10").points.set_index(["network", "rate"])
    assert points["equal"].drop("VGG-16", level="network").drop("ResNet-20", level="network").all()
    assert points.loc[("ResNet-56", 0.4375), ["macs", "macs_reported"]].tolist() == [71.855, 71.855]


def test_networks_are_loaded_by_the_name_of_their_row_the_small_one_where_there_is_one(tmp_path):
    from gkp.checkpoints import save_model
    from gkp.networks.build import build_model
    from gkp.pruning.prune import prune
    from gkp.pruning.twin import PrunedModel

    net = build_model("resnet20")
    save_model(net, tmp_path / "a" / "model")
    for form, made in (("model", prune(net, "l2-gkp")), ("compact", prune(net, "l2-gkp").compact())):
        save_model(made, tmp_path / "b" / form)
    found = [result(BASELINE, tmp_path / "a"), result(PRUNED["l2-gkp", 0], tmp_path / "b")]
    loaded = tables.load_networks(found, "unpruned", "l2-gkp", "sr-gkp")
    assert list(loaded) == ["unpruned", "l2-gkp"] and not isinstance(loaded["l2-gkp"], PrunedModel)


def test_networks_are_compared_by_the_kernels_that_they_keep(tmp_path):
    from gkp.checkpoints import save_model
    from gkp.networks.build import build_model
    from gkp.pruning.prune import prune

    net = build_model("resnet20")
    found = []
    for at, (method, options, rate) in enumerate(
        [("random-gkp", {}, 7 / 16), ("sr-gkp", {"alpha": 0.0}, 7 / 16), ("sr-gkp", {}, 7 / 16), ("sr-gkp", {}, 10 / 16),
         ("l1norm-b", {}, 7 / 16)]
    ):  # fmt: skip
        cell = PruneCell(net=BASELINE, method=method, options=options, rate=rate, epochs=2)
        save_model(prune(net, method, rate=rate, **options).compact(), tmp_path / str(at) / "compact")
        found.append(result(cell, tmp_path / str(at)))
    table = tables.kept_kernels(found)
    points = table.points.set_index("method")
    assert list(points.index) == ["random-gkp", "sr-gkp (alpha 0.0)", "sr-gkp"] and set(points["n"]) == {672}
    assert points["share"]["sr-gkp"] == 1 and points["differing"]["sr-gkp"] == 0
    assert points["share"]["random-gkp"] == pytest.approx(9 / 16, abs=0.02)
    assert "56 % of the kernels would be common by chance" in table.title


@pytest.mark.parametrize(
    "table", [tables.label_choice, tables.epoch_choice, tables.space_choice, tables.seed_spread, tables.high_frequency,
              tables.strong_attacks, tables.grouping_times, tables.latencies, standings.of_results,
              tables.kept_kernels],
)  # fmt: skip
def test_without_finished_cells_a_table_says_that_it_was_not_run(table):
    made = table([])
    assert "not run" in made.title and made.points.empty


def test_evaluations_that_are_not_finished_are_left_out():
    cells = {"unpruned": EvaluateCell(net=BASELINE)}
    assert tables.load_outcomes(cells, []) == {}
    assert "not run" in tables.accuracies({}).title and plots.robustness_curves({}).points.empty


def test_without_points_a_figure_says_that_it_was_not_run():
    nothing = pd.DataFrame()
    for draw in (plots.method_dots, plots.superscore_dots, plots.frequency_dots, plots.latency_dots):
        assert draw(nothing).points.empty
    assert plots.pareto(nothing, costs={"macs": "MACs"}).points.empty


def test_without_a_finished_cell_the_provenance_names_no_commit():
    assert tables.provenance([]) == "0 cells are finished: nothing above was measured here"


def test_an_attack_is_called_alike_with_predicted_and_with_true_labels():
    assert attack_name("fgsm-0.01", "paper") == "(a) FGSM .01" and attack_name("clean", "paper") == "Benign"
    assert attack_name("fgsm-0.01-true", "paper") == "(a) FGSM .01, true labels"
    assert attack_name("worst-case-1/255", "pixel") == "Worst case 1/255"


def test_a_network_is_called_as_in_the_paper_by_one_function():
    from gkp.artifact.groups import NAMES
    from gkp.artifact.published import names_here
    from gkp.artifact.results import paper_name
    from gkp.pruning.registry import methods

    assert {NAMES[here]: here for here in names_here().values() if here != "none"}.items() <= names_here().items()
    assert set(methods()) <= set(NAMES) and len(set(NAMES.values())) == len(NAMES)
    assert paper_name("sr-gkp shape from scratch") == "SR-GKP shape from scratch"
    assert paper_name("l1norm-b (csb 0.5), one shot") == "L1Norm-B (csb 0.5), one shot"
    assert paper_name("unpruned, fine-tuned") == "unpruned, fine-tuned" and paper_name("my-own") == "my-own"


def test_a_method_has_one_colour_whatever_its_options_and_a_family_shares_one():
    colour = plots.method_colour
    assert colour("sr-gkp (alpha 0.5), one shot") == colour("sr-gkp") != colour("l2-gkp") == colour("random-gkp")
    assert colour("cc") == colour("lrf") != colour("hrank") == colour("sfp-smooth (csb 0.5)")
    assert len({colour("unpruned"), colour("unpruned, fine-tuned"), colour("sr-gkp"), colour("l2")}) == 4


def test_the_superscore_figure_draws_what_the_table_found(results):
    points = tables.epoch_choice(results).points
    assert plots.superscore_dots(points).points["gain"].tolist() == points["gain"].tolist()


def test_the_papers_numbers_on_cifar10_do_not_stand_beside_networks_of_other_images(tmp_path):
    net = TrainCell(dataset="tiny-imagenet-20", model="resnet56", epochs=1)
    found = [
        result(net, tmp_path, params=860_000, paper_macs=506_000_000),
        evaluated(net, tmp_path, ACCURACY, protocol="paper"),
    ]
    table = tables.methods_table(found, protocol="paper", title="20 classes", attacks=["clean", "fgsm-0.1"])
    assert list(table.shown["Benign"]) == ["90.0 [80.0, 95.0]"] and "paper: what it prints" not in table.legend


def test_the_best_of_epochs_that_were_not_all_scored_has_its_own_number(tmp_path):
    rows = [
        {"epoch": at, "clean": 0.9} | ({"fgsm-0.1": value} if value else {}) for at, value in enumerate((0, 0.2, 0, 0.1), 1)
    ]
    log = result(PruneCell(net=BASELINE, epochs=4, log_examples=50, log_epochs=(2, 4)), tmp_path, epochs=rows)
    assert tables.epoch_choice([log]).shown["which"].tolist() == ["2 of 4"]
