"""Figures: their points follow from the network, and saving leaves SVG, PNG and CSV, the same bytes each time."""

import numpy as np
import pandas as pd
import pytest

from gkp.artifact import figures as plots
from gkp.data.sources import load_dataset
from gkp.errors import BadInput
from gkp.evaluation.benchmark import benchmark
from gkp.networks.build import build_model
from gkp.pruning.prune import prune
from gkp.pruning.sr_gkp.smoothness import smoothness


@pytest.fixture(scope="module")
def pruned():
    return prune(build_model("resnet20"), "sr-gkp")


def test_figure_1_removes_the_same_share_at_every_granularity(pruned):
    points = plots.granularities(pruned, "layer1.0.conv1").points
    removed = 1 - points.groupby("granularity")["stays"].mean()
    assert dict(removed) == {"filter": 7 / 16, "channel": 7 / 16, "kernel": 7 / 16, "grouped kernel": 7 / 16}
    grouped = points[points["granularity"] == "grouped kernel"]
    mask = pruned.plan["layer1.0.conv1"].mask(16)[:, :, 0, 0].numpy()
    assert np.array_equal(grouped["stays"].to_numpy().reshape(16, 16), mask)


def test_figure_3_shows_the_filters_as_the_plan_deals_them(pruned):
    dense = build_model("resnet20")  # masking changes smoothness: deal the weights that were pruned
    points = plots.snaking(dense, "layer2.1.conv2").points
    assert points["group"].tolist() == pruned.plan["layer2.1.conv2"].group_of_filter.tolist()
    assert points["smoothness"].to_numpy() == pytest.approx(smoothness(dense.layer2[1].conv2.weight).sum(dim=1).numpy())


def test_figure_4_ends_with_every_branch_full_and_one_path_in_colour(pruned):
    points = plots.beam(build_model("resnet20"), "layer1.0.conv1", start=3).points
    assert points.groupby("size").size().tolist() == [1, 2, 4, 8, 4, 8, 16, 4, 8]
    assert points.groupby("size")["stays"].sum().tolist() == [1, 2, 4, 2, 4, 8, 2, 4, 8]


def test_robustness_curves_carry_the_intervals_of_the_outcomes(pruned):
    out = benchmark(pruned, load_dataset("digits", "test").first(12), eps=["1/255", "8/255"])
    points = plots.robustness_curves({"pruned": out}).points
    frame = out.to_frame()
    assert points["eps (of 255)"].tolist() == [0, 1, 8]
    assert points["low"].tolist() == frame.loc[["clean", "pgd-1/255", "pgd-8/255"], "low"].tolist()


def test_networks_of_one_method_have_its_colour_and_lines_of_their_own(pruned):
    out = benchmark(pruned, load_dataset("digits", "test").first(4), eps="1/255")
    named = {"unpruned": out, "SR-GKP, one shot": out, "SR-GKP, fine-tuned": out}
    lines = [bars.lines[0] for bars in plots.robustness_curves(named).drawing.axes[0].containers]
    assert [line.get_color() for line in lines] == [plots.method_colour(row) for row in ("unpruned", "sr-gkp", "sr-gkp")]
    assert [line.get_linestyle() for line in lines] == ["-", "-", "--"]


def test_a_saved_figure_is_svg_png_and_csv_and_the_same_bytes_each_time(tmp_path, pruned):
    for folder in ("one", "two"):
        plots.snaking(pruned, "layer1.0.conv1").save("figure_3", tmp_path / folder)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names == ["figure_3.csv", "figure_3.png", "figure_3.svg"]
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    assert len(pd.read_csv(tmp_path / "one" / "figure_3.csv")) == 16


def test_figures_go_to_build_in_the_current_folder(tmp_path, pruned, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plots.snaking(pruned, "layer1.0.conv1").save("figure_3")
    assert (tmp_path / "build" / "figures" / "figure_3.png").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda net: plots.snaking(net, "layer9.conv"), "no layer layer9.conv"),
        (lambda net: plots.granularities(net.net, "layer1.0.conv1"), "is not pruned by grouped kernels in this network"),
        (lambda net: plots.beam(net, "layer1.0.conv1", start=16), "start must be an input channel of layer1.0.conv1, 0 to 15"),
    ],
)
def test_figures_of_layers_that_are_not_there_are_refused(wrong, message, pruned):
    with pytest.raises(BadInput, match=message):
        wrong(pruned)
