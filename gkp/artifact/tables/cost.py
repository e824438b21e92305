"""What pruning costs and saves: Table 7 (grouping and pruning time), parameters, MACs and measured latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import nn

from gkp.artifact.experiments.kinds import TimingCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import published
from gkp.artifact.tables.table import Table, not_run
from gkp.networks.build import build_model
from gkp.pruning.cost import cost
from gkp.pruning.prune import prune
from gkp.pruning.twin import PrunedModel

CLUSTERINGS = ("kpca", "spectral", "dbscan")


def costs(networks: Mapping[str, nn.Module], *, input_shape: Sequence[int] = (3, 32, 32)) -> Table:
    """Parameters and multiply-accumulates of each network, a masked twin counted as the compact network it stands for."""
    counted = {name: cost(net, input_shape=input_shape) for name, net in networks.items()}
    points = pd.DataFrame(
        [
            {
                "network": name,
                "form": "masked twin" if isinstance(networks[name], PrunedModel) else "as stored",
                "params": c.params,
                "macs": c.macs,
                "paper_macs": c.paper_macs,
            }
            for name, c in counted.items()
        ]
    )
    shown = points.set_index("network")[["params", "macs", "paper_macs"]].map("{:,}".format)
    return Table(f"Cost for one image of {'x'.join(map(str, input_shape))}", shown, points)


# (data set, network as the paper calls it, ours, classes, image side, rate): what Tables 3, 9-13 and 17-19 count
COUNTED = (
    ("CIFAR-10", "ResNet-20", "resnet20", 10, 32, 7 / 16),
    ("CIFAR-10", "ResNet-32", "resnet32", 10, 32, 7 / 16),
    ("CIFAR-10", "ResNet-56", "resnet56", 10, 32, 7 / 16),
    ("CIFAR-10", "ResNet-110", "resnet110", 10, 32, 7 / 16),
    ("CIFAR-10", "VGG-16", "vgg16_bn", 10, 32, 7 / 16),
    ("CIFAR-10", "ResNet-32", "resnet32", 10, 32, 10 / 16),
    ("CIFAR-10", "ResNet-56", "resnet56", 10, 32, 10 / 16),
    ("CIFAR-10", "ResNet-110", "resnet110", 10, 32, 10 / 16),
    ("ImageNet", "ResNet-50", "resnet50", 1000, 224, 3 / 4),
)


def published_counts(*datasets: str) -> Table:
    """What grouped kernel pruning leaves of the paper's networks, counted here beside what the paper prints (A3).

    datasets: "CIFAR-10", "ImageNet". MACs by the paper's counter and parameters, in millions, with three decimals as printed.
    The networks are built without weights: only shapes count.
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
    shown = pd.DataFrame(
        {
            "network": frame["network"],
            "rate": frame["rate"],
            "MACs, dense (M)": frame["dense_macs"],
            "MACs, pruned (M)": frame["macs"],
            "reported MACs": frame["macs_reported"],
            "params, pruned (M)": frame["params"],
            "reported params": frame["params_reported"],
            "equal": frame["equal"].map({True: "to the last digit", False: "no"}),
        }
    )
    return Table(f"Counted here and reported, {', '.join(datasets)}", shown.set_index("network"), frame)


def grouping_times(results: Sequence[Result]) -> Table:
    """Table 7: seconds to group the same layers by smoothness snaking and by TMI-GKP's three clusterings, and their ratio.

    results: finished timing cells, among others. One measurement of each clustering, the median of five of snaking.
    """
    points = []
    for result in _timings(results):
        found = result["grouping"]
        clustering = sum(found[name] for name in CLUSTERINGS)
        points.append(
            {
                "model": result["model"],
                "layers": found["layers"],
                "of": found["of"],
                "snaking": found["snaking"],
                **{name: found[name] for name in CLUSTERINGS},
                "clustering": clustering,
                "ratio": clustering / found["snaking"],
                "sr_gkp_total": result["pruning"]["sr-gkp"],
                "threads": result["threads"],
            }
        )
    if not points:
        return not_run("Table 7 · seconds of grouping")
    frame = pd.DataFrame(points)
    shown = pd.DataFrame(
        {
            "network": frame["model"],
            "layers": [f"{row.layers} of {row.of}" for row in frame.itertuples()],
            "smoothness snaking (s)": frame["snaking"].map("{:.4f}".format),
            "TMI clusterings (s)": frame["clustering"].map("{:.1f}".format),
            "ratio": frame["ratio"].map("{:,.0f}x".format),
            "SR-GKP, grouping + search (s)": frame["sr_gkp_total"].map("{:.2f}".format),
        }
    )
    return Table("Table 7 · seconds on one thread, measured here", shown.set_index("network"), frame)


def latencies(results: Sequence[Result]) -> Table:
    """Measured inference: the dense network, its grouped convolutions and its filter-pruned twin of the same MACs.

    Seconds a batch (median, quartile range) and the ratio to the dense network within one run: below 1 is faster.
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


def _timings(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if isinstance(result.cell, TimingCell)]
