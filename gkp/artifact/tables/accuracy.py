"""Accuracy of networks, without and under attack, and on what is left of images above a frequency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from gkp.artifact.experiments.kinds import LatencyCell, Network, PruneCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import ATTACKED
from gkp.artifact.results import STRONG, evaluations
from gkp.artifact.tables.table import Table, by_method, images, not_run, spread_out, with_interval
from gkp.evaluation.outcomes import Outcomes
from gkp.evaluation.statistics import mean_rank


def accuracies(outcomes: Mapping[str, Outcomes], *, keys: Sequence[str] | None = None, title: str = "Accuracy (%)") -> Table:
    """Accuracy of each network (column) without and under each attack (row), with 95 % Wilson intervals.

    Args:
        outcomes: Name -> outcome matrix.
        keys: Which attacks; by default all that the first network has.
        title: To which protocol, data, n and seed are added.
    """
    if not outcomes:
        return not_run(title)
    rows, shown = [], {}
    for network, out in outcomes.items():
        frame = out.to_frame().reset_index()
        frame = frame[frame["attack"].isin(keys)] if keys is not None else frame
        rows.append(frame.assign(network=network, protocol=out.protocol, dataset=out.dataset, seed=out.seed))
        shown[network] = dict(zip(frame["attack"], with_interval(frame), strict=True))
    first = next(iter(outcomes.values()))
    title = f"{title} · {first.dataset}, {first.protocol} protocol, n = {first.n:,}, seed {first.seed}, 95 % Wilson intervals"
    return Table(title, pd.DataFrame(shown), pd.concat(rows, ignore_index=True))


def methods_table(results: Sequence[Result], *, protocol: str, title: str) -> Table:
    """Cost of each network and its accuracy under each of the protocol's attacks, with n, seed and 95 % Wilson intervals.

    Args:
        results: Finished networks and their evaluations; a row for each, in their order.
        protocol: A role of `gkp.artifact.results.plays`: "paper", "pixel", "precision".
        title: Of the table.
    """
    found = [(one, one.network) for one in evaluations(results, protocol) if one.network]
    points, shown = [], []
    for one, network in found:
        cost = {name: network[name] for name in ("paper_macs", "params")}
        rows = pd.DataFrame(one.accuracies)
        points.append(rows.assign(**one.facts, **cost, protocol=protocol))
        told = dict(zip(rows["attack"], with_interval(rows), strict=True))
        off = network.figures.get("off_budget")  # of methods whose steps are too coarse
        note = "" if off is None else f" ({off:+.1%}, not at equal MACs)"
        millions = {"MACs (M)": f"{cost['paper_macs'] / 1e6:.3f}{note}", "params (M)": f"{cost['params'] / 1e6:.3f}"}
        shown.append({**millions, **told, "n": one.facts["n"], "seed": one.facts["seed"]})
    if not points:
        return not_run(title)
    order = ["method", "seed", "n", "paper_macs", "params", "protocol", "attack", "accuracy", "low", "high"]
    names = pd.Series([one.facts["method"] for one, _ in found])
    return Table(title, by_method(pd.DataFrame(shown), names), pd.concat(points, ignore_index=True)[order])


def high_frequency(results: Sequence[Result]) -> Table:
    """Table 1: accuracy of each network on the whole test set and on what is left of it above each cut, with intervals.

    Args:
        results: Finished networks and their evaluations, of which those in the part "frequency" are shown, in their order.
    """
    points = [
        {
            "method": one.facts["method"],
            "model": one.net.model,
            "cut": one.cell.variant.removeprefix("high-frequency-") or "full",
            **{name: value for name, value in clean.items() if name != "attack"},
            "n": one.facts["n"],
            "seed": one.facts["seed"],
        }
        for one in evaluations(results, "frequency")
        for clean in one.accuracies
        if clean["attack"] == "clean"
    ]
    title = "Table 1 · accuracy (%) on frequencies above a cut"
    if not points:
        return not_run(title)
    frame = pd.DataFrame(points)
    shown = spread_out(frame, with_interval(frame), columns="cut")
    return Table(f"{title}, {images(frame)}, 95 % Wilson intervals", shown, frame)


def strong_attacks(results: Sequence[Result]) -> Table:
    """Accuracy of each network under attacks of its own choice (cascades, AutoAttack), with n, interval and cost.

    Args:
        results: Finished networks, their evaluations and measured latencies.

    Returns:
        A table whose points have a row for each network and attack; "macs": multiply-accumulates in millions, by the
        paper's counter; "latency": seconds for the largest batch relative to the dense network, 1 for an unpruned
        network and NaN where it was not measured.
    """
    took = {result.cell.net.hash: _largest_batch(result) for result in results if isinstance(result.cell, LatencyCell)}
    points = [
        {
            "method": one.facts["method"],
            "macs": one.network["paper_macs"] / 1e6,
            "latency": took.get(one.net.hash, np.nan if _is_pruned(one.net) else 1.0),
            "seed": one.facts["seed"],
            "n": one.facts["n"],
            "of": one.cell.purpose or one.cell.protocol,
            **row,
        }
        for one in evaluations(results, STRONG)
        for row in one.accuracies
        if one.network and not row["attack"].startswith("worst-case")
    ]
    if not points:
        return not_run("Accuracy (%) under strong attacks")
    frame = pd.DataFrame(points)
    attacked = frame[frame["attack"] != "clean"]
    text = [f"{told}, n {n:,}" for told, n in zip(with_interval(attacked), attacked["n"], strict=True)]
    shown = spread_out(attacked, text, columns="attack")
    return Table("Accuracy (%) under strong attacks, 95 % Wilson intervals", shown, frame)


def _largest_batch(timed: Result) -> float:
    """The compact network's seconds for its largest batch, relative to the dense one's."""
    return float(max(timed["latency"], key=lambda row: row["batch_size"])["ratio"])


def _is_pruned(net: Network | PruneCell) -> bool:
    return isinstance(net, PruneCell) and net.method != "none"


def mean_ranks(
    points: pd.DataFrame, *, title: str = "Table 20 · mean rank over benign accuracy and the three attacks"
) -> Table:
    """Methods by the mean of their ranks on benign, (a), (b) and (c), 1 being the best: the rule behind Table 20.

    Any difference counts, however small: `gkp.evaluation.compare.rank_groups` says which are significant.

    Args:
        points: Those of `methods_table(..., protocol="paper")`; unpruned networks are left out, as in the paper.
        title: Of the table.
    """
    rows = points[points["attack"].isin(ATTACKED) & ~points["method"].str.startswith("unpruned")] if len(points) else points
    if rows.empty:
        return not_run(title)
    wide = rows.pivot_table(index="method", columns="attack", values="accuracy", sort=False)[list(ATTACKED)]
    ranks = mean_rank(wide).sort_values("mean rank")
    told = ranks.map("{:g}".format).assign(**{"mean rank": ranks["mean rank"].map("{:.2f}".format)})
    frame = ranks.reset_index().assign(n=int(rows["n"].iloc[0]))
    return Table(f"{title} · last epoch, {images(frame)}", by_method(told, frame["method"]), frame)
