"""The table that all functions of this package return, and how tables print names, percentages and intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import pandas as pd

from gkp.artifact.experiments.report import Result
from gkp.artifact.results import not_run_yet, paper_name
from gkp.errors import BadInput


@dataclass(frozen=True)
class Table:
    """A table as text, with the numbers it was made from.

    Attributes:
        title: What it shows, with n, seeds and the kind of interval.
        shown: The text of its cells.
        points: The numbers, one a row, with networks by `gkp.artifact.results.row_name`.
        notes: Name of a row -> further text; collapsed in a notebook.
        legend: The meaning of the marks.
        marked: Whether `shown` has marks: **bold**, _underlined_, and " · " before text on a line of its own.
        saved: The files that `save` has written.
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
            name: The file name without suffix.
            folder: The folder; None for `build/tables`.

        Returns:
            The path of the CSV file.
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
    """The frame as HTML with one row of headers; every header has its scope, row or column."""
    if frame.empty:
        return ""
    levels = frame.index.nlevels
    flat = frame.reset_index(names=[name or "" for name in frame.index.names], allow_duplicates=True)
    flat.columns.name = None  # pandas would give it a column of its own, empty in every row
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
    """The text of a table with one row for each network.

    Args:
        columns: Heading -> text of each row.
        rows: The `row_name` of each row.

    Returns:
        The columns, indexed by the paper's names of the rows.
    """
    frame = pd.DataFrame({name: list(values) for name, values in columns.items()})
    return frame.set_index(pd.Index(rows.map(paper_name), name="method"))


def spread_out(frame: pd.DataFrame, text: Iterable[str], *, columns: str) -> pd.DataFrame:
    """The text of a table with one row for each method and one column for each value of a column of its points.

    Args:
        frame: Points with columns "method" and `columns`.
        text: The text for each row of `frame`.
        columns: The name of a column of `frame`, whose values become the headings.

    Returns:
        The text, with methods and headings in order of appearance and methods by their names in the paper.

    Raises:
        BadInput: A method has several points in a column, such as those of two seeds.
    """
    wide = pivoted(frame, text, index=["method"], columns=columns)
    wide = wide.loc[frame["method"].unique(), frame[columns].unique()]
    return wide.rename(index=paper_name)


def pivoted(frame: pd.DataFrame, text: Iterable[str], *, index: list[str], columns: str) -> pd.DataFrame:
    """The text of each row of `frame` by some columns of its points and one more; BadInput where two rows have one place."""
    if (again := frame.duplicated([*index, columns])).any():
        place = ", ".join(map(str, frame.loc[again, [*index, columns]].iloc[0]))
        raise BadInput(f"there are several results for {place}; give those of one seed, rate and length of fine-tuning")
    return frame.assign(text=list(text)).pivot(index=index, columns=columns, values="text")


def with_interval(rows: pd.DataFrame) -> list[str]:
    """Accuracies with intervals in percent, "90.0 [88.1, 91.6]", from rows with columns accuracy, low and high."""
    values = zip(rows["accuracy"], rows["low"], rows["high"], strict=True)
    return [f"{100 * accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for accuracy, low, high in values]


def marked(accuracy: float, low: float, high: float, *, rank: float, tied: bool) -> str:
    """The text of an accuracy in a ranked column: the best is bold, the second best underlined.

    Args:
        accuracy, low, high: The accuracy and its interval, in percent.
        rank: The rank, from 1; NaN where it is not ranked.
        tied: Whether it is not the best but does not differ significantly from the best.
    """
    mark = "**" if rank == 1 else "_" if rank == 2 else ""
    return f"{mark}{accuracy:.1f}{mark}{' =' if tied else ''} [{low:.1f}, {high:.1f}]"


def percent(fractions: pd.Series, form: str = "{:.2f}") -> pd.Series:
    """Fractions as percent, with two decimals or in another format."""
    return (100 * fractions).map(form.format)


def beside(text: Iterable[str], printed: Iterable[float | None], form: str = "{:.2f}") -> list[str]:
    """The text of a column with the paper's value below each of ours, for a marked table.

    Args:
        text: Our values as text.
        printed: The paper's values; None or NaN where it prints none.
        form: The format of the paper's values.
    """
    pairs = zip(text, printed, strict=True)
    return [ours if theirs is None or pd.isna(theirs) else f"{ours} · paper {form.format(theirs)}" for ours, theirs in pairs]


def titled(*parts: str) -> str:
    """The title of a table of several parts; empty ones are left out."""
    return " · ".join(filter(None, parts))


def provenance(runs: Sequence[Result]) -> str:
    """One line with the numbers of cached and computed cells, their seconds, commits, versions and processors.

    Args:
        runs: Results of `gkp.artifact.experiments.run`.
    """
    if not runs:
        return "0 cells are finished: nothing above was measured here"
    records = [result.run for result in runs]
    cached = sum(result.cached for result in runs)
    seconds = sum(float(record.get("seconds", 0)) for record in records)
    commits = sorted({str(record.get("git_commit", "unknown"))[:10] for record in records})
    machines = sorted({str(record.get("hardware", {}).get("processor", "unknown")) for record in records})
    versions = records[0].get("versions", {})
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "torchvision", "numpy") if name in versions)
    return (
        f"{len(runs)} cells, {cached} cached and {len(runs) - cached} computed here; {seconds:.0f} s of computing in all; "
        f"commit {', '.join(commits)}; {named}; {', '.join(machines)}"
    )
