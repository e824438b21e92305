"""A table to read, and the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

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
