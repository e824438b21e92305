"""Tables say what the runs say, with n, seed and interval; Table 8 is held against the registry."""

import pandas as pd
import pytest

from gkp.artifact import tables
from gkp.artifact.experiments.kinds import EvaluateCell, PruneCell, TrainCell
from gkp.artifact.experiments.report import Result
from gkp.data.sources import load_dataset
from gkp.evaluation.benchmark import benchmark
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
    assert table.shown.loc["pgd-4/255", "pruned"] == f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
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
            "clean": "50.0 [40.0, 60.0]",
            "n": 20,
            "seed": 7,
        }
    ]
    assert (
        tables.row_name(baseline) == "unpruned"
        and tables.row_name(PruneCell(net=baseline, method="none")) == "unpruned, fine-tuned"
    )


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
        "sfp",
        "tmi-gkp",
        "sr-gkp",
    }
    here = points[(points["type, here"] != "not implemented") & (points["type, published"] != "")]
    assert len(here) == 12 and set(here.index[here["type, here"] != here["type, published"]]) == {"GAL", "NPPM"}
    one_shot = here.index[here["procedure, published"] == "one-shot"]
    assert (here.loc[one_shot, "procedure, here"] == "one-shot").all()
    assert set(here.index[(here["procedure, published"] != "one-shot") & (here["procedure, here"] == "one-shot")]) == {"HRank"}
    assert "adapted" in points.loc["HRank", "fidelity"]
    assert set(points.index[points["type, here"] == "not implemented"]) == {"RAP-ADMM"}
