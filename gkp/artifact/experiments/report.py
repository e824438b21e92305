"""The results of a run, in the order of the cells, and its failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.compute import Outcome
from gkp.artifact.experiments.entry import read_json
from gkp.errors import BadInput, RunFailed

_ABSENT = object()


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Attributes:
        cell: Its specification.
        figures: The values that its stage returned.
        folder: Where its files are.
        cached: Whether it was finished before this run.
        files: Name -> sha256 and bytes of each file that its stage wrote.
    """

    cell: Cell
    figures: dict[str, Any]
    folder: Path
    cached: bool
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """A value by name."""
        return self.figures[name]

    @cached_property
    def run(self) -> dict[str, Any]:
        """When, where and how it was computed: git commit, versions, hardware, seconds, peak memory."""
        return read_json(self.folder / "run.json") or {}

    def file(self, name: str) -> Path:
        """The path of a file or folder that the stage wrote.

        Raises:
            BadInput: This copy of the cell does not have it.
        """
        path = self.folder / name
        if not path.exists():
            raise BadInput(
                f"{self.cell.id}: {name} is not in {self.folder}; this copy of the cell was kept without it: "
                "recompute the cell to have it"
            )
        return path


@dataclass(frozen=True)
class Report(Sequence[Result]):
    """The results of a run, a sequence in the order of the requested cells without those that have no result.

    Attributes:
        results: The results of finished cells.
        computed: The number of requested cells that were computed now.
        extra: The number of other cells that were computed now, as parents.
        failures: The outcomes of failed cells.
        blocked: Id -> id of the failed ancestor.
        missing: Requested cells without a result: failed, blocked, or not computed.
        damaged: Id -> why a stored cell was refused.
        stopped: Ids of cells that were stopped at the deadline, or not started because of it.
        lines: The lines of a dry run, or the reasons why cells were left out.
        failed_folder: Where the logs of failed cells are.
    """

    results: tuple[Result, ...]
    computed: int = 0
    extra: int = 0
    failures: tuple[Outcome, ...] = ()
    blocked: dict[str, str] = field(default_factory=dict)
    missing: tuple[Cell, ...] = ()
    damaged: dict[str, str] = field(default_factory=dict)
    stopped: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    failed_folder: Path = Path(".failed")

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Result, ...]: ...
    def __getitem__(self, index: int | slice) -> Result | tuple[Result, ...]:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __repr__(self) -> str:
        return self.headline

    @property
    def cached(self) -> int:
        """The number of requested cells that were finished before this run."""
        return sum(result.cached for result in self.results)

    @property
    def exit_status(self) -> int:
        """The exit status of the command line: 0 if nothing failed, else 1."""
        return 1 if self.failures else 0

    @property
    def headline(self) -> str:
        """One line: "42 cells: 40 cached, 2 computed"."""
        total, n_damaged = len(self.results) + len(self.missing), len(self.damaged)
        absent = [cell.id for cell in self.missing]
        blocked = sum(cell_id in self.blocked for cell_id in absent)
        failed = len({outcome.id for outcome in self.failures}.intersection(absent))
        counts = {"failed": failed, "blocked": blocked, "missing": len(absent) - failed - blocked}
        parts = [f"{self.cached} cached", f"{self.computed} computed"]
        parts += [f"{count} {word}" for word, count in counts.items() if count]
        notes = [f"{_count(self.extra, 'parent')} computed on the way"] if self.extra else []
        notes += ["the time was up: run again to go on"] if self.stopped else []
        notes += [f"{n_damaged} damaged and not used"] if n_damaged else []
        return f"{_count(total, 'cell')}: {', '.join(parts)}" + (f" ({'; '.join(notes)})" if notes else "")

    def failure_lines(self) -> list[str]:
        """A line for each failed cell, with the reason and the path of its log, and one for blocked cells."""
        lines = [
            f"failed: {outcome.id}: {outcome.kind}: {outcome.message} (log: {self.failed_folder / outcome.id})"
            for outcome in self.failures
        ]
        if self.blocked:
            lines.append(f"blocked: {_count(len(self.blocked), 'cell')} built on a failed one")
        return lines

    def compared_with(self, before: Iterable[Result]) -> Iterator[str]:
        """Yield a line for each result that existed before: whether it is the same, or what differs."""
        old = {result.cell.hash: result for result in before}
        for new in self.results:
            if (known := old.get(new.cell.hash)) is None:
                continue
            pairs = ((known.figures, new.figures), (known.files, new.files))
            changed = [name for a, b in pairs for name in sorted({**a, **b}) if a.get(name, _ABSENT) != b.get(name, _ABSENT)]
            if not changed:
                yield f"the same as before: {new.cell.id}"
                continue
            was, now = known.figures.get("accuracy", {}), new.figures.get("accuracy", {})
            both = [key for key in was if key in now and was[key] != now[key]]
            moved = [f"{key} {100 * was[key]:.2f} -> {100 * now[key]:.2f} %" for key in both]
            yield f"differs in {', '.join(moved or changed)}: {new.cell.id}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


class CellsFailed(RunFailed):
    """Some cells failed and all others were computed; `report` has the results and the reasons."""

    def __init__(self, report: Report) -> None:
        self.report = report
        first, *rest = report.failures
        more = f" and {len(rest)} more" if rest else ""
        super().__init__(
            f"{report.headline}; failed: {first.id}: {first.kind}: {first.message}{more} (logs in {report.failed_folder})"
        )
