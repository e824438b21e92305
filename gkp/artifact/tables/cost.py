"""What pruning costs and saves: Table 7 (grouping and pruning time), parameters, MACs and measured latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import nn

from gkp.artifact.experiments.kinds import SpeedCell, TimingCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import NETWORKS, published
from gkp.artifact.results import test_images
from gkp.artifact.tables.table import Table, beside, not_run
from gkp.attacks import attack
from gkp.networks.build import build_model
from gkp.pruning.cost import cost
from gkp.pruning.prune import prune
from gkp.pruning.twin import PrunedModel

CLUSTERINGS = ("kpca", "spectral", "dbscan")


def same_function(pruned: nn.Module, small: nn.Module, dataset: str, *, n: int = 32) -> str:
    """How far the logits of a masked twin and of its compact network are apart, in one line.

    Args:
        pruned: The masked twin.
        small: The compact network.
        dataset: Whose first n test images are attacked; random ones where that would take a download.
        n: Number of images.
    """
    if (test := test_images(dataset, n)) is not None:
        x, what = attack(pruned, test.pixels(), test.labels, "pgd", eps=1 / 255, steps=20, seed=0), "under attack"
    else:
        x, what = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)), "of random pixels"
    with torch.no_grad():
        apart = float((pruned(x) - small(x)).abs().max())
    return f"masked and compact differ by at most {apart:.1e} in any logit, on {n} images {what}"


def costs(networks: Mapping[str, nn.Module], *, input_shape: Sequence[int] = (3, 32, 32)) -> Table:
    """Parameters and multiply-accumulates of each network, a masked twin counted as the compact network it stands for.

    Args:
        networks: Name -> network.
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


# (data set, network as the paper calls it, ours, classes, image side, rate): what Tables 3, 9-13 and 17-19 count
COUNTED = (
    *(("CIFAR-10", name, model, 10, 32, 7 / 16) for name, model in NETWORKS.items()),
    *(("CIFAR-10", name, NETWORKS[name], 10, 32, 10 / 16) for name in ("ResNet-32", "ResNet-56", "ResNet-110")),
    ("ImageNet", "ResNet-50", "resnet50", 1000, 224, 3 / 4),
)


def published_counts(*datasets: str) -> Table:
    """What grouped kernel pruning leaves of the paper's networks, counted here beside what the paper prints.

    MACs by the paper's counter and parameters, in millions, with three decimals as printed. The networks are built without
    weights: only shapes count.

    Args:
        datasets: "CIFAR-10", "ImageNet".
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

    Args:
        results: Finished timing cells, among others. One measurement of each clustering, the median of five of snaking.
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
        "network": frame["model"],
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
    """Measured inference: the dense network, its grouped convolutions and its filter-pruned twin of the same MACs.

    Seconds a batch (median, quartile range) and the ratio to the dense network within one run: below 1 is faster.

    Args:
        results: Finished timing cells, among others.
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
    shown = frame.assign(text=text).pivot(index=["model", "batch_size"], columns="form", values="text")
    order = [form for form in dict.fromkeys(frame["form"]) if form in shown.columns]
    return Table("Latency of a batch, one thread; in brackets the ratio to the dense network", shown[order], frame)


def speeds(results: Sequence[Result]) -> Table:
    """Milliseconds of a pass of every form of a network in every engine, and the ratio to dense in the best stock engine.

    Args:
        results: Finished speed cells, among others.
    """
    frame = _speeds(results)
    if frame.empty:
        return not_run("Speed of a forward pass")
    text = [f"{1000 * row.seconds:.2f} ms ({row.ratio:.2f}x)" for row in frame.itertuples()]
    index = ["model", "threads", "batch_size", "form"]
    shown = frame.assign(text=text).pivot(index=index, columns="engine", values="text")
    order = pd.MultiIndex.from_frame(frame[index].drop_duplicates())
    title = "Speed of a forward pass; in brackets the ratio to the dense network in the best stock engine, median of rounds"
    return Table(title, shown.loc[order, frame["engine"].unique()].fillna("not installed"), frame)


def accelerations(results: Sequence[Result]) -> Table:
    """What accelerates a pruned network: the pruning, or the engine. Ratios of seconds; below 1 is faster.

    "stock": the pruned network, as it is stored, to the dense one, each in the stock engine that is best for it. "engine":
    dense in `gkp.compile` to dense in the best stock engine. "pruning": pruned to dense, both in `gkp.compile`. "both": pruned
    there to dense in the best stock engine.

    Args:
        results: Finished speed cells, among others.
    """
    frame, points = _speeds(results), []
    for (model, threads, size), rows in frame.groupby(["model", "threads", "batch_size"], sort=False) if len(frame) else ():
        ours = rows[rows["engine"] == "gkp"].set_index("form")["ratio"]
        stock = rows[rows["engine"] != "gkp"]
        dense_again = stock["form"].str.startswith("grouped") & (stock["engine"] == "torch, folded")
        best = stock[~dense_again].groupby("form", sort=False)["ratio"].min()
        for form in best.index.drop("dense"):
            point = {"model": model, "threads": threads, "batch_size": size, "form": form, "stock": best[form]}
            if form in ours.index:
                point |= {"engine": ours["dense"], "pruning": ours[form] / ours["dense"], "both": ours[form]}
            points.append(point)
    if not points:
        return not_run("What accelerates a pruned network")
    found = pd.DataFrame(points)
    shown = found.set_index(["model", "threads", "batch_size", "form"]).map("{:.2f}x".format)
    return Table("What accelerates a pruned network: seconds relative to the dense network's", shown, found)


def _speeds(results: Sequence[Result]) -> pd.DataFrame:
    """The rows of all finished speed cells, with the model of each."""
    timed = [result for result in results if isinstance(result.cell, SpeedCell)]
    return pd.DataFrame([{"model": result["model"], **row} for result in timed for row in result["speed"]])


def _timings(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if isinstance(result.cell, TimingCell)]
