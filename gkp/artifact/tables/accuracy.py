"""Accuracy of networks, without and under attack, and on what is left of images above a frequency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from gkp.artifact.experiments.kinds import EvaluateCell, LatencyCell, Network, PruneCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import ATTACKED
from gkp.artifact.results import net_seed, row_name, with_interval
from gkp.artifact.tables.table import Table, not_run
from gkp.evaluation.outcomes import Outcomes


def accuracies(outcomes: Mapping[str, Outcomes], *, keys: Sequence[str] | None = None, title: str = "Accuracy (%)") -> Table:
    """Accuracy of each network (column) without and under each attack (row), with 95 % Wilson intervals.

    keys: which attacks (default: all that the first network has). The title states protocol, data, n and seed.
    """
    if not outcomes:
        return not_run(title)
    rows, shown = [], {}
    for network, out in outcomes.items():
        frame = out.to_frame().reset_index()
        frame = frame[frame["attack"].isin(keys)] if keys is not None else frame
        facts = {"protocol": out.protocol, "dataset": out.dataset, "seed": out.seed}
        rows.append(frame.assign(network=network, **facts))
        cells = zip(frame["attack"], frame["accuracy"], frame["low"], frame["high"], strict=True)
        shown[network] = {key: with_interval(a, low, high) for key, a, low, high in cells}
    first = next(iter(outcomes.values()))
    title = f"{title} · {first.dataset}, {first.protocol} protocol, n = {first.n:,}, seed {first.seed}, 95 % Wilson intervals"
    return Table(title, pd.DataFrame(shown), pd.concat(rows, ignore_index=True))


def methods_table(results: Sequence[Result], *, protocol: str, title: str) -> Table:
    """A row for each evaluated network, in the order of `results`: method, cost, accuracy under each attack.

    results: a finished run that holds networks and their evaluations; only those in `protocol` are shown. Every row states n
    and seed, every accuracy its 95 % Wilson interval.
    """
    networks = {result.cell.hash: result for result in results if not isinstance(result.cell, EvaluateCell)}
    points, shown = [], []
    for result in results:
        cell = result.cell
        if not isinstance(cell, EvaluateCell) or cell.protocol != protocol or cell.net.hash not in networks:
            continue
        network = networks[cell.net.hash]
        method = row_name(cell.net)
        facts = {
            "method": method,
            "seed": net_seed(cell.net),
            "n": result["n"],
            "paper_macs": network["paper_macs"],
            "params": network["params"],
        }
        row: dict[str, str | int] = {
            "method": method,
            "MACs (M)": f"{facts['paper_macs'] / 1e6:.3f}",
            "params (M)": f"{facts['params'] / 1e6:.3f}",
        }
        for attack, value in result["accuracy"].items():
            low, high = result["interval"][attack]
            points.append({**facts, "protocol": protocol, "attack": attack, "accuracy": value, "low": low, "high": high})
            row[attack] = with_interval(value, low, high)
        shown.append({**row, "n": result["n"], "seed": facts["seed"]})
    if not points:
        return not_run(title)
    return Table(title, pd.DataFrame(shown).set_index("method"), pd.DataFrame(points))


def high_frequency(results: Sequence[Result]) -> Table:
    """Table 1: accuracy of each network on the whole test set and on what is left of it above each cut, with intervals.

    results: networks and their evaluations, of which those on a high-frequency variant (or, without attack, on the plain test
    set) are shown, in the order of the networks.
    """
    points = []
    for result in results:
        cell = result.cell
        if not isinstance(cell, EvaluateCell) or cell.attacks != () or not (cell.variant + "-").startswith(("-", "high-")):
            continue
        low, high = result["interval"]["clean"]
        points.append(
            {
                "method": row_name(cell.net),
                "model": cell.net.model,
                "cut": cell.variant.removeprefix("high-frequency-") or "full",
                "accuracy": result["accuracy"]["clean"],
                "low": low,
                "high": high,
                "n": result["n"],
                "seed": net_seed(cell.net),
            }
        )
    if not points:
        return not_run("Table 1 · accuracy (%) on frequencies above a cut")
    frame = pd.DataFrame(points)
    text = [with_interval(row.accuracy, row.low, row.high) for row in frame.itertuples()]
    shown = frame.assign(text=text).pivot(index="method", columns="cut", values="text")
    shown = shown.loc[list(dict.fromkeys(frame["method"])), list(dict.fromkeys(frame["cut"]))]
    title = f"Table 1 · accuracy (%) on frequencies above a cut, n = {int(frame['n'].iloc[0]):,}, 95 % Wilson intervals"
    return Table(title, shown, frame)


def strong_attacks(results: Sequence[Result]) -> Table:
    """Accuracy of each network under attacks of its own choice (cascades, AutoAttack), with n, interval and cost.

    results: networks and their evaluations, of which those with attacks other than the protocol's are shown. points: a row a
    network and attack; "macs": multiply-accumulates in millions, by the paper's counter; "latency": seconds for the largest
    batch relative to the dense network, 1 for the network itself and NaN where it was not measured.
    """
    networks = {result.cell.hash: result for result in results if not isinstance(result.cell, EvaluateCell)}
    took = {result.cell.net.hash: _largest_batch(result) for result in results if isinstance(result.cell, LatencyCell)}
    points = []
    for result in results:
        cell = result.cell
        if not isinstance(cell, EvaluateCell) or not cell.attacks or cell.net.hash not in networks:
            continue
        for attack, value in result["accuracy"].items():
            low, high = result["interval"][attack]
            if not attack.startswith("worst-case"):
                facts = {"method": row_name(cell.net), "macs": networks[cell.net.hash]["paper_macs"] / 1e6}
                facts["latency"] = took.get(cell.net.hash, float("nan") if _is_pruned(cell.net) else 1.0)
                facts |= {"seed": net_seed(cell.net), "n": result["n"], "of": cell.purpose or cell.protocol}
                points.append({**facts, "attack": attack, "accuracy": value, "low": low, "high": high})
    if not points:
        return not_run("Accuracy (%) under strong attacks")
    frame = pd.DataFrame(points)
    attacked = frame[frame["attack"] != "clean"]
    text = [f"{with_interval(row.accuracy, row.low, row.high)}, n {row.n:,}" for row in attacked.itertuples()]
    shown = attacked.assign(text=text).pivot(index="method", columns="attack", values="text")
    shown = shown.loc[list(dict.fromkeys(attacked["method"])), list(dict.fromkeys(attacked["attack"]))]
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

    points: as `methods_table(..., protocol="paper").points` has them; unpruned rows are left out, as they are there. Any
    difference counts, however small: `gkp.evaluation.compare.rank_groups` says which can be told apart.
    """
    rows = points[points["attack"].isin(ATTACKED) & ~points["method"].str.startswith("unpruned")] if len(points) else points
    if rows.empty:
        return not_run(title)
    wide = rows.pivot_table(index="method", columns="attack", values="accuracy", sort=False)[list(ATTACKED)]
    ranks = wide.rank(ascending=False, method="min")
    frame = ranks.assign(**{"mean rank": ranks.mean(axis=1)}).sort_values("mean rank")
    n = int(rows["n"].iloc[0])
    shown = frame.map("{:g}".format).assign(**{"mean rank": frame["mean rank"].map("{:.2f}".format)})
    return Table(f"{title} · last epoch, n = {n:,}", shown, frame.reset_index().assign(n=n))
