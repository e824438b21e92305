"""Tables for notebooks: every number with its n and interval, accuracies in percent, saved as CSV in fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import nn

from gkp.cost import cost
from gkp.files import output_folder
from gkp.grid.cell import Cell
from gkp.grid.cells import EvaluateCell, Network, PruneCell
from gkp.grid.report import Result
from gkp.methods import methods
from gkp.outcomes import Outcomes
from gkp.plans import PrunedModel
from gkp.published import published


@dataclass(frozen=True)
class Table:
    """A table to read and the numbers behind it. shown: text, for people. points: one number a row, for machines."""

    title: str
    shown: pd.DataFrame
    points: pd.DataFrame

    def save(self, name: str, folder: str | Path | None = None) -> Path:
        """The CSV's path: `name`.csv in `folder` (default: `tables` of the output folder) holds `points`."""
        target = Path(folder) if folder else output_folder() / "tables"
        target.mkdir(parents=True, exist_ok=True)
        self.points.to_csv(target / f"{name}.csv", index=False)
        return target / f"{name}.csv"

    def _repr_html_(self) -> str:
        return f"<b>{self.title}</b>{self.shown.to_html(escape=True)}"

    def __repr__(self) -> str:
        return f"{self.title}\n{self.shown.to_string()}"


def load_outcomes(cells: Mapping[str, Cell], results: Sequence[Result]) -> dict[str, Outcomes]:
    """Name -> outcome matrix, for named evaluation cells and the results of running them in that order."""
    by_hash = {result.cell.hash: result for result in results}
    return {name: Outcomes.load(by_hash[cell.hash].folder) for name, cell in cells.items()}


def accuracies(outcomes: Mapping[str, Outcomes], *, keys: Sequence[str] | None = None, title: str = "Accuracy (%)") -> Table:
    """Accuracy of each network (column) without and under each attack (row), with 95 % Wilson intervals.

    keys: which attacks (default: all that the first network has). The title states protocol, data, n and seed.
    """
    rows, shown = [], {}
    for network, out in outcomes.items():
        frame = out.to_frame().reset_index()
        frame = frame[frame["attack"].isin(keys)] if keys is not None else frame
        facts = {"protocol": out.protocol, "dataset": out.dataset, "seed": out.seed}
        rows.append(frame.assign(network=network, **facts))
        cells = zip(frame["attack"], frame["accuracy"], frame["low"], frame["high"], strict=True)
        shown[network] = {key: f"{100 * a:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for key, a, low, high in cells}
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
            "seed": getattr(cell.net, "seed", 0),
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
            row[attack] = f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        shown.append({**row, "n": result["n"], "seed": facts["seed"]})
    return Table(title, pd.DataFrame(shown).set_index("method"), pd.DataFrame(points))


def row_name(net: Network | PruneCell) -> str:
    """How a table calls a network: "unpruned", "unpruned, continued", or the method with its options."""
    if not isinstance(net, PruneCell):
        return "unpruned"
    if net.method == "none":
        return "unpruned, continued"
    options = ", ".join(f"{name} {value}" for name, value in dict(net.options).items())
    scratch = " shape from scratch" if getattr(net, "scratch", False) else ""
    return net.method + scratch + (f" ({options})" if options else "")


def method_checklist() -> Table:
    """Table 8, as published and as the registry has it: type, procedure and needs of every method, ours added below."""
    printed = published(8)
    known = methods()
    rows = []
    for row in printed.to_dict("records"):
        info = known.get(row["name_here"])
        rows.append(
            {
                "method": row["method"],
                "type, published": row["type"],
                "type, here": info.family if info else "not implemented",
                "procedure, published": row["procedure"],
                "procedure, here": info.procedure if info else "",
                "set-up, published": row["special_setup"],
                "needs, here": ", ".join(info.needs) if info else "",
                "fidelity": info.fidelity if info else "",
            }
        )
    for name in sorted(set(known) - set(printed["name_here"])):
        info = known[name]
        rows.append(
            {
                "method": name,
                "type, here": info.family,
                "procedure, here": info.procedure,
                "needs, here": ", ".join(info.needs),
                "fidelity": info.fidelity,
            }
        )
    frame = pd.DataFrame(rows).fillna("")
    return Table("Table 8 · method checklist, published and here", frame.set_index("method"), frame)


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


def provenance(runs: Sequence[Result]) -> str:
    """One line for the foot of a notebook: what was cached and what computed, on what, with which versions, in how long.

    runs: results of `gkp.grid.run`.
    """
    records = [result.run for result in runs]
    cached = sum(result.cached for result in runs)
    seconds = sum(float(record.get("seconds", 0)) for record in records)
    commits = sorted({str(record.get("git_commit", "unknown"))[:10] for record in records})
    machines = sorted({str(record.get("hardware", {}).get("processor", "unknown")) for record in records})
    versions = records[0].get("versions", {}) if records else {}
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "torchvision", "numpy") if name in versions)
    return (
        f"{len(runs)} cells, {cached} cached and {len(runs) - cached} computed here; {seconds:.0f} s of computing in all; "
        f"commit {', '.join(commits)}; {named}; {', '.join(machines)}"
    )
