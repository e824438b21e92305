"""A table to read, and the numbers behind it; how all tables print a row's name, a percentage and an interval."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import pandas as pd

from gkp.artifact.experiments.report import Result
from gkp.artifact.results import not_run_yet, paper_name


@dataclass(frozen=True)
class Table:
    """A table to read and the numbers behind it.

    Attributes:
        title: What it shows, with n, seeds and kind of interval.
        shown: Text, for people.
        points: One number a row, for machines; networks by `gkp.artifact.results.row_name`.
        notes: More to say of a row, by its name; in a notebook they are folded.
        legend: What the marks in it mean.
        marked: Whether `shown` has marks: **bold**, _underlined_, and what follows " · " on a line of its own.
        saved: Where `save` has written it.
    """

    title: str
    shown: pd.DataFrame
    points: pd.DataFrame
    notes: Mapping[str, str] = field(default_factory=dict)
    legend: str = ""
    marked: bool = False
    saved: list[Path] = field(default_factory=list, compare=False, repr=False)

    def save(self, name: str, folder: str | Path | None = None) -> Path:
        """Write `points` as `name`.csv.

        Args:
            name: File name without suffix.
            folder: Where to; by default `build/tables`.

        Returns:
            The path of the CSV.
        """
        target = Path(folder or "build/tables")
        target.mkdir(parents=True, exist_ok=True)
        self.points.to_csv(target / f"{name}.csv", index=False)
        self.saved.append(target / f"{name}.csv")
        return self.saved[-1]

    def _repr_html_(self) -> str:
        items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(note)}</dd>" for name, note in self.notes.items())
        fold = f"<details><summary>Reasons, costs, commands</summary><dl>{items}</dl></details>" if items else ""
        legend = f"<br><small>{_as_html(self.legend)}</small>" if self.legend else ""
        shown = self.shown.map(_as_html) if self.marked else self.shown
        safe = shown.rename(index=_safe, columns=_safe) if self.marked else shown
        link = "".join(f'<a href="{escape(file.as_posix())}">{escape(file.name)}</a>' for file in self.saved[-1:])
        return f"<b>{escape(self.title)}</b>{legend}{_as_table(safe, escape=not self.marked)}{link}{fold}"

    def __repr__(self) -> str:
        return "\n".join(filter(None, (self.title, self.legend, self.shown.to_string())))


def _safe(value: object) -> object:
    return escape(value) if isinstance(value, str) else value


def _as_table(frame: pd.DataFrame, *, escape: bool) -> str:
    """The frame as HTML with one row of headers, each of which says whether it is of a row or a column."""
    if frame.empty:
        return ""
    levels = frame.index.nlevels
    flat = frame.reset_index(names=[name or "" for name in frame.index.names], allow_duplicates=True)
    with pd.option_context("display.max_colwidth", None):
        head, body, rest = flat.to_html(index=False, escape=escape, border=0).partition("<tbody>")
    head = head.replace("<th></th>", "<td></td>").replace("<th>", '<th scope="col">')  # a corner without a name is no header
    return head + body + re.sub(rf"<tr>((?:\s*<td>.*?</td>){{{levels}}})", _row_headers, rest, flags=re.DOTALL)


def _row_headers(cells: re.Match[str]) -> str:
    return "<tr>" + cells[1].replace("<td>", '<th scope="row">').replace("</td>", "</th>")


def _as_html(value: object) -> str:
    """A marked cell as HTML."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(str(value)))
    text = re.sub(r"(?<!\w)_(.+?)_(?!\w)", r"<u>\1</u>", text)
    return re.sub(r" · (.+)$", r"<br><small>\1</small>", text)


def not_run(title: str) -> Table:
    """Placeholder stating that these experiments have not been run."""
    return Table(not_run_yet(title), pd.DataFrame(), pd.DataFrame())


def by_method(columns: dict[str, Iterable], rows: pd.Series) -> pd.DataFrame:
    """A table to read: these columns, a row for each `row_name` of `rows`, named as the paper does."""
    frame = pd.DataFrame({name: list(values) for name, values in columns.items()})
    return frame.set_index(pd.Index(rows.map(paper_name), name="method"))


def spread_out(frame: pd.DataFrame, text: Iterable[str], *, columns: str) -> pd.DataFrame:
    """A table to read: a row a method and a column for each value of `columns`, both in order of appearance.

    Args:
        frame: Points with columns "method" and `columns`.
        text: What to print for each of its rows.
        columns: The name of a column of `frame`.
    """
    wide = frame.assign(text=list(text)).pivot(index="method", columns=columns, values="text")
    wide = wide.loc[frame["method"].unique(), frame[columns].unique()]
    return wide.rename(index=paper_name)


def with_interval(rows: pd.DataFrame) -> list[str]:
    """Accuracy and interval in percent, "90.0 [88.1, 91.6]", of rows with columns accuracy, low and high."""
    values = zip(rows["accuracy"], rows["low"], rows["high"], strict=True)
    return [f"{100 * accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for accuracy, low, high in values]


def marked(accuracy: float, low: float, high: float, *, rank: float, tied: bool) -> str:
    """An accuracy as a ranked column prints it: the best is bold, the second best underlined.

    Args:
        accuracy, low, high: The accuracy and its interval, in percent.
        rank: From 1; NaN where it is not ranked.
        tied: Whether it is not the best, and does not differ significantly from the best.
    """
    mark = "**" if rank == 1 else "_" if rank == 2 else ""
    return f"{mark}{accuracy:.1f}{mark}{' =' if tied else ''} [{low:.1f}, {high:.1f}]"


def percent(fractions: pd.Series, form: str = "{:.2f}") -> pd.Series:
    """Fractions as percent with two decimals, or in another form."""
    return (100 * fractions).map(form.format)


def beside(text: Iterable[str], printed: Iterable[float | None], form: str = "{:.2f}") -> list[str]:
    """Our cells with what the paper prints on a line of their own, where it prints something; for a marked table."""
    pairs = zip(text, printed, strict=True)
    return [ours if theirs is None or pd.isna(theirs) else f"{ours} · paper {form.format(theirs)}" for ours, theirs in pairs]


def provenance(runs: Sequence[Result]) -> str:
    """One line for the foot of a notebook: what was cached and what computed, on what, with which versions, in how long.

    Args:
        runs: Results of `gkp.artifact.experiments.run`.
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
