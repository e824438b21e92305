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
from gkp.grid.report import Result
from gkp.outcomes import Outcomes
from gkp.plans import PrunedModel


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
