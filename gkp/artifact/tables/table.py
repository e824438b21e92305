"""A table to read, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gkp.artifact.experiments.report import Result
from gkp.files import output_folder


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


def not_run(title: str) -> Table:
    """A table without rows, for cells that have not been computed: said, not hidden."""
    return Table(f"{title} · not run: none of its cells is finished", pd.DataFrame(), pd.DataFrame())


def provenance(runs: Sequence[Result]) -> str:
    """One line for the foot of a notebook: what was cached and what computed, on what, with which versions, in how long.

    runs: results of `gkp.artifact.experiments.run.run`.
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
