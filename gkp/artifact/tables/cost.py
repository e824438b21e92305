"""Tables of costs: seconds of grouping and pruning (Table 7), parameters, MACs, latency, and speed in several engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import nn

from gkp.artifact.experiments.kinds import SpeedCell, TimingCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import ARCHITECTURES, NETWORKS, published
from gkp.artifact.results import test_images
from gkp.artifact.tables.table import Table, beside, not_run, pivoted
from gkp.attacks import attack
from gkp.networks.build import build_model
from gkp.pruning.cost import cost
from gkp.pruning.prune import prune
from gkp.pruning.twin import PrunedModel

CLUSTERINGS = ("kpca", "spectral", "dbscan")


def same_function(pruned: nn.Module, small: nn.Module, dataset: str) -> str:
    """One line with the largest difference between the logits of a masked twin and of its compact network.

    Args:
        pruned: The masked twin.
        small: The compact network.
        dataset: Whose first 32 test images are attacked; random ones where that would take a download.
    """
    n = 32
    if (test := test_images(dataset, n)) is not None:
        x, what = attack(pruned, test.pixels(), test.labels, "pgd", eps=1 / 255, steps=20, seed=0), "under attack"
    else:
        x, what = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)), "of random pixels"
    with torch.no_grad():
        apart = float((pruned(x) - small(x)).abs().max())
    return f"masked and compact differ by at most {apart:.1e} in any logit, on {n} images {what}"


def costs(networks: Mapping[str, nn.Module], *, input_shape: Sequence[int] = (3, 32, 32)) -> Table:
    """Parameters and multiply-accumulates of each network.

    Args:
        networks: Name -> network; a masked twin is counted as its compact network.
        input_shape: (C, H, W) of one image.
    """
    points = pd.DataFrame(
        [
            {
                "network": name,
                "form": "masked twin" if isinstance(net, PrunedModel) else "as stored",
                "params": counted.params,
                "macs": counted.macs,
                "paper_macs": counted.paper_macs,
            }
            for name, net in networks.items()
            for counted in [cost(net, input_shape=input_shape)]
        ]
    )
    shown = points.set_index("network")[["params", "macs", "paper_macs"]].map("{:,}".format)
    return Table(f"Cost for one image of {'x'.join(map(str, input_shape))}", shown, points)


# (data set, the paper's name of the network, ours, classes, image side, rate), counted in Tables 3, 9-13 and 17-19
COUNTED = (
    *(("CIFAR-10", name, model, 10, 32, 7 / 16) for name, model in NETWORKS.items()),
    *(("CIFAR-10", name, NETWORKS[name], 10, 32, 10 / 16) for name in ("ResNet-32", "ResNet-56", "ResNet-110")),
    ("ImageNet", "ResNet-50", "resnet50", 1000, 224, 3 / 4),
)


def published_counts(*datasets: str) -> Table:
    """MACs and parameters of the paper's networks after grouped kernel pruning, counted here and as printed.

    In millions with three decimals, as printed; MACs are counted as the paper does. Only the shapes of layers matter, so the
    networks are not trained.

    Args:
        datasets: "CIFAR-10", "ImageNet" or both.
    """
    printed = published()
    printed = printed[(printed["method"] == "SR-GKP") & printed["metric"].isin(["MACs", "params"])]
    points = []
    for dataset, network, model, classes, side, rate in COUNTED:
        if dataset not in datasets:
            continue
        net, shape = build_model(model, num_classes=classes), (3, side, side)
        dense, pruned = cost(net, input_shape=shape), cost(prune(net, "l2-gkp", rate=rate), input_shape=shape)
        rows = printed[(printed["dataset"] == dataset) & (printed["network"] == network) & (printed["rate"] == rate)]
        reported = {m.lower(): rows.loc[rows["metric"] == m, "value"].tolist() for m in ("MACs", "params")}
        here = {"macs": round(pruned.paper_macs / 1e6, 3), "params": round(pruned.params / 1e6, 3)}
        points.append(
            {
                "dataset": dataset,
                "network": network,
                "rate": rate,
                "dense_macs": round(dense.paper_macs / 1e6, 3),
                "dense_params": round(dense.params / 1e6, 3),
                **here,
                **{f"{metric}_reported": max(values) if values else None for metric, values in reported.items()},
                "equal": all(here[metric] in values for metric, values in reported.items()),
            }
        )
    frame = pd.DataFrame(points)
    titles = {
        "network": "network",
        "rate": "rate",
        "dense_macs": "MACs, dense (M)",
        "macs": "MACs, pruned (M)",
        "macs_reported": "reported MACs",
        "params": "params, pruned (M)",
        "params_reported": "reported params",
        "equal": "equal",
    }
    shown = frame[list(titles)].rename(columns=titles).set_index("network")
    shown["equal"] = shown["equal"].map({True: "to the last digit", False: "no"})
    return Table(f"Counted here and reported, {', '.join(datasets)}", shown, frame)


def grouping_times(results: Sequence[Result]) -> Table:
    """Table 7: seconds to group the same layers by smoothness snaking and by TMI-GKP's three clusterings, and their ratio.

    Snaking is the median of five measurements; each clustering is measured once.

    Args:
        results: Results, of which those of timing cells are shown.
    """
    points = []
    for result in _timings(results):
        found = result["grouping"]
        clustering = sum(found[name] for name in CLUSTERINGS)
        points.append(
            {
                "model": result["model"],
                **{name: found[name] for name in ("layers", "of", "snaking", *CLUSTERINGS)},
                "clustering": clustering,
                "ratio": clustering / found["snaking"],
                "sr_gkp_total": result["pruning"]["sr-gkp"],
                "threads": result["threads"],
            }
        )
    if not points:
        return not_run("Table 7 · seconds of grouping")
    frame = pd.DataFrame(points)
    theirs = published(7).pivot_table(index="network", columns=["method", "metric"], values="value").rename(index=NETWORKS)
    theirs = theirs.reindex(frame["model"])
    snaking, tmi = theirs["SR-GKP", "grouping"], theirs["TMI-GKP", "grouping"]
    shown = {
        "network": frame["model"].replace(ARCHITECTURES),
        "layers": [f"{layers} of {of}" for layers, of in zip(frame["layers"], frame["of"], strict=True)],
        "smoothness snaking (s)": beside(frame["snaking"].map("{:.4f}".format), snaking, "{:,.0f}"),
        "TMI clusterings (s)": beside(frame["clustering"].map("{:.1f}".format), tmi, "{:,.0f}"),
        "ratio": beside(frame["ratio"].map("{:,.0f}x".format), tmi / snaking, "{:,.0f}x"),
        "SR-GKP, grouping + search (s)": beside(
            frame["sr_gkp_total"].map("{:.2f}".format), theirs["SR-GKP", "grouping and pruning"], "{:,.0f}"
        ),
    }
    legend = "paper: seconds of its machine, which it does not name; ratios are what can be compared"
    read = pd.DataFrame(shown).set_index("network")
    return Table("Table 7 · seconds on one thread, measured here", read, frame, legend=legend, marked=True)


def latencies(results: Sequence[Result]) -> Table:
    """Latency of the dense network, of its grouped convolutions, and of a filter-pruned network with the same MACs.

    Median and quartile range for a batch, and the ratio to the dense network in the same run; below 1 is faster.

    Args:
        results: Results, of which those of timing cells are shown.
    """
    points = []
    for result in _timings(results):
        dense = {row["batch_size"]: row["median"] for row in result["latency"] if row["form"] == "dense"}
        for row in result["latency"]:
            ratio = row["median"] / dense[row["batch_size"]]
            points.append({"model": result["model"], **row, "ratio": ratio, "threads": result["threads"]})
    if not points:
        return not_run("Latency of a batch")
    frame = pd.DataFrame(points)
    text = [f"{1000 * row.median:.2f} ms ({row.ratio:.2f}x)" for row in frame.itertuples()]
    shown = pivoted(frame, text, index=["model", "batch_size"], columns="form")
    order = [form for form in dict.fromkeys(frame["form"]) if form in shown.columns]
    title = "Latency of a batch in PyTorch, one thread, median; in brackets the ratio to the dense network"
    return Table(title, shown[order].rename(index=ARCHITECTURES), frame)


def speeds(results: Sequence[Result]) -> Table:
    """The time of a forward pass for each form of a network in each engine, and its ratio to dense in the best stock engine.

    Args:
        results: Results, of which those of speed cells are shown.
    """
    frame = _speeds(results)
    if frame.empty:
        return not_run("Speed of a forward pass")
    text = [f"{1000 * row.seconds:.2f} ms ({row.ratio:.2f}x)" for row in frame.itertuples()]
    index = ["model", "threads", "batch_size", "form"]
    shown = pivoted(frame, text, index=index, columns="engine")
    order = pd.MultiIndex.from_frame(frame[index].drop_duplicates())
    title = "Speed of a forward pass; in brackets the ratio to the dense network in the best stock engine, median of rounds"
    ordered = shown.loc[order, frame["engine"].unique()].fillna("not installed")
    return Table(title, ordered.rename(index=ARCHITECTURES), frame)


def accelerations(results: Sequence[Result]) -> Table:
    """Ratios of times that separate what pruning accelerates from what the engine accelerates; below 1 is faster.

    Args:
        results: Results, of which those of speed cells are shown.

    Returns:
        A table with the columns "stock": pruned to dense, each in its fastest stock engine, but for those that make grouped
        kernels dense (see `made_dense`); "engine": dense in `gkp.compile` to dense in the best stock engine; "pruning": pruned
        to dense, both in `gkp.compile`; "both": pruned in `gkp.compile` to dense in the best stock engine.
    """
    frame, points = _speeds(results), []
    for (model, threads, size), rows in frame.groupby(["model", "threads", "batch_size"], sort=False) if len(frame) else ():
        ours = rows[rows["engine"] == "gkp"].set_index("form")["ratio"]
        best = rows[(rows["engine"] != "gkp") & ~made_dense(rows)].groupby("form", sort=False)["ratio"].min()
        for form in best.index.drop("dense"):
            point = {"model": model, "threads": threads, "batch_size": size, "form": form, "stock": best[form]}
            if form in ours.index:
                point |= {"engine": ours["dense"], "pruning": ours[form] / ours["dense"], "both": ours[form]}
            points.append(point)
    if not points:
        return not_run("What accelerates a pruned network")
    found = pd.DataFrame(points)
    shown = found.set_index(["model", "threads", "batch_size", "form"]).map("{:.2f}x".format).rename(index=ARCHITECTURES)
    return Table("What accelerates a pruned network: seconds relative to the dense network's", shown, found)


def made_dense(points: pd.DataFrame) -> pd.Series:
    """The points of grouped kernels in an engine that computes them as dense ones, so that pruning saves it nothing."""
    return points["form"].str.startswith("grouped") & (points["engine"] == "torch, folded")


def _speeds(results: Sequence[Result]) -> pd.DataFrame:
    """The rows of all speed cells, with their architecture."""
    timed = [result for result in results if isinstance(result.cell, SpeedCell)]
    return pd.DataFrame([{"model": result["model"], **row} for result in timed for row in result["speed"]])


def _timings(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if isinstance(result.cell, TimingCell)]
