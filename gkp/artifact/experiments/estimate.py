"""How long cells will take, from how long cells like them took: the run.json files of the stores."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import accumulate
from statistics import median
from typing import Any

from gkp.artifact.experiments.cell import Cell, canonical
from gkp.artifact.experiments.store import Store, read_json

AT_MOST = 2000  # stored cells read; more would not change a median


class Durations:
    """Recorded seconds by kind of cell: same stage, parameters but for the seed, and work (parameters do not say of which
    network an evaluation is), else same stage per unit of work.

    Both are medians. The one per unit of work weighs each cell by its work: hundreds of cells of the digits, which take seconds
    to start, would else say that the few large ones take twice as long as they do.
    """

    def __init__(self) -> None:
        self._like: dict[tuple[bytes, float], list[float]] = defaultdict(list)
        self._rates: dict[str, list[tuple[float, float]]] = defaultdict(list)

    @classmethod
    def of(cls, store: Store) -> Durations:
        """What the cells of this store took, those of its read-only roots included."""
        found = cls()
        for root in (*store.read_only, store.root):
            if not root.is_dir():
                continue
            folders = sorted(path for path in root.iterdir() if not path.name.startswith("."))
            for folder in folders[:: max(1, len(folders) // AT_MOST)]:
                spec, run = read_json(folder / "spec.json"), read_json(folder / "run.json")
                if spec and run:
                    found._add(kind_of(spec), spec["stage"], run["seconds"], run["work"])
        return found

    def add(self, cell: Cell, seconds: float) -> None:
        """Takes a cell that has just been computed into account."""
        self._add(kind_of(cell.spec), cell.stage, seconds, cell.work)

    def _add(self, kind: bytes, stage: str, seconds: float, work: float) -> None:
        self._like[kind, work].append(seconds)
        self._rates[stage].append((seconds / work, work))

    def estimate(self, cell: Cell) -> float | None:
        """Seconds the cell should take; None when no cell of its stage has ever been timed."""
        return self._estimate(kind_of(cell.spec), cell.stage, cell.work)

    def _estimate(self, kind: bytes, stage: str, work: float) -> float | None:
        if (kind, work) in self._like:
            return median(self._like[kind, work])
        return _weighted_median(self._rates[stage]) * work if stage in self._rates else None

    def total(self, kinds: Mapping[tuple[bytes, str, float], int]) -> tuple[float, int]:
        """(seconds of all cells that can be estimated, how many cannot), for counts as `count_kinds` gives."""
        seconds, unknown = 0.0, 0
        for kind, count in kinds.items():
            each = self._estimate(*kind)
            if each is None:
                unknown += count
            else:
                seconds += each * count
        return seconds, unknown


def _weighted_median(pairs: Iterable[tuple[float, float]]) -> float:
    """The lowest value that, with those below it, has half of all weight; of (value, weight)."""
    ordered = sorted(pairs)
    half = sum(weight for _, weight in ordered) / 2
    return next(value for (value, _), below in zip(ordered, accumulate(w for _, w in ordered), strict=True) if below >= half)


def count_kinds(cells: Iterable[Cell]) -> Counter[tuple[bytes, str, float]]:
    """How many cells there are of each kind that `Durations` tells apart."""
    return Counter((kind_of(cell.spec), cell.stage, cell.work) for cell in cells)


def kind_of(spec: Mapping[str, Any]) -> bytes:
    """What two cells share when one should take as long as the other."""
    return canonical([spec["stage"], {name: value for name, value in spec["params"].items() if name != "seed"}])


def in_words(seconds: float) -> str:
    """A duration as people say it: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
