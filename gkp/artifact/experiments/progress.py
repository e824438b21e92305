"""What a person sees while cells are computed: a bar with an estimate on a terminal, one line a cell elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Collection

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.compute import Outcome
from gkp.artifact.experiments.estimate import Durations, count_kinds, in_words, kind_of

_EVERY = 0.5  # seconds between updates of the estimate


class Progress:
    """Counts finished cells and estimates what is left from recorded durations, those of this run included.

    show: None for automatic: a bar when stderr is a terminal, else lines.
    """

    def __init__(self, todo: Collection[Cell], durations: Durations, *, show: bool) -> None:
        self._total, self._done, self._slots = len(todo), 0, 1
        self._durations, self._show, self._bar = durations, show and bool(todo), None
        if not self._show:
            return
        self._left: Counter = count_kinds(todo)
        self._shown_at = 0.0
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total,
                unit="cell",
                dynamic_ncols=True,
                bar_format="{n_fmt}/{total_fmt} cells |{bar}| {elapsed} {postfix}",
            )
        self.update(self._slots)

    def update(self, slots: int) -> None:
        """Shows how long the rest takes on this many workers. Cheap: does nothing more than twice a second."""
        self._slots = max(1, slots)
        if self._show and self._bar is not None and time.monotonic() - self._shown_at > _EVERY:
            self._bar.set_postfix_str(self._rest())
            self._shown_at = time.monotonic()

    def settle(self, cell: Cell, outcome: Outcome, *, blocked: Collection[Cell] = ()) -> None:
        """Takes the end of a cell, and the cells that cannot be computed because of it, into account."""
        if outcome.status == "computed":
            self._durations.add(cell, outcome.seconds)
        self._done += 1 + len(blocked)
        if not self._show:
            return
        for ended in (cell, *blocked):
            self._left[kind_of(ended.spec), ended.stage, ended.work] -= 1
        failed = outcome.status == "failed"
        if self._bar is not None:
            self._bar.update(1 + len(blocked))
            if failed:
                self.say(f"failed: {cell.id}: {outcome.kind}: {outcome.message}")
            return
        end = f"failed ({outcome.kind}: {outcome.message})" if failed else f"{outcome.status} in {in_words(outcome.seconds)}"
        self.say(f"[{self._done}/{self._total}] {cell.id} {end}; {self._rest()}")

    def say(self, message: str) -> None:
        """A line for the person watching."""
        if not self._show:
            return
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.close()

    def _rest(self) -> str:
        if self._done >= self._total:
            return "nothing left"
        seconds, unknown = self._durations.total(self._left)
        if unknown == self._total - self._done:
            return "no estimate yet"
        return f"about {in_words(seconds / self._slots)} left" + (f" and {unknown} cells never timed" if unknown else "")
