"""What `gkp reproduce` agrees with the runs inside a notebook: which cells they used, whose turn it is, whether to compute.

All go by environment variables that it sets for each notebook's kernel, and do nothing where they are not set:

    GKP_LEDGER   a file that gets a line for each cell a run asked for, and for each ancestor of those
    GKP_TURN     a lock file: of several notebooks executed side by side, one computes cells at a time, with all its workers;
                 the others find what they share with it in the store when their turn comes
    GKP_FINISHED set to anything: runs take the cells that are finished and compute none

Cost: one hash of a small file for each finished cell.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gkp.artifact.experiments.store import Entry, Store
from gkp.artifact.experiments.todo import Plan, family

LEDGER, TURN, FINISHED = "GKP_LEDGER", "GKP_TURN", "GKP_FINISHED"


@dataclass(frozen=True)
class Used:
    """A cell that a notebook used. sha256: of its result.json, None when it was asked for and there was none.

    asked: whether it was asked for, or only needed as an ancestor; computed: whether it was computed there and then; looked_at:
    whether it was only looked at, to be used if it was there (verdicts do that with every cell of a profile), and never run.
    """

    id: str
    hash: str
    sha256: str | None
    asked: bool
    computed: bool
    looked_at: bool = False

    @property
    def needed(self) -> bool:
        """Whether a run asked for it, so that the notebook's own tables rest on it."""
        return self.asked and not self.looked_at

    def is_unchanged(self, store: Store) -> bool:
        """Whether the store has the very result that was used; for a cell that was missing, whether it still is."""
        return sha256_of(store.lookup(self.id, self.hash)) == self.sha256


def sha256_of(entry: Entry | None) -> str | None:
    """The sha256 of a finished cell's result.json; None for no entry."""
    return None if entry is None else hashlib.sha256((entry.folder / "result.json").read_bytes()).hexdigest()


def note(plan: Plan, computed: Iterable[str], store: Store, *, looked_at: bool) -> None:
    """Writes what a run used into the ledger, if there is one. computed: hashes of cells it computed; looked_at: see Used."""
    if not (file := os.environ.get(LEDGER)):
        return
    asked, computed = {cell.hash for cell in plan.cells}, set(computed)
    with open(file, "a", encoding="utf-8") as ledger:
        for key, cell in family(plan.cells).items():
            sha256 = sha256_of(plan.finished.get(key) or store.lookup(cell.id, key))
            ledger.write(json.dumps(asdict(Used(cell.id, key, sha256, key in asked, key in computed, looked_at))) + "\n")


def read(file: Path) -> list[Used]:
    """The cells in a ledger, `merged`; none where there is no ledger."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return merged(Used(**json.loads(line)) for line in lines)


def merged(cells: Iterable[Used]) -> list[Used]:
    """These cells, each once: asked for, computed or run if any of the runs did so, with the last run's result."""
    found: dict[str, Used] = {}
    for used in cells:
        before = found.get(used.hash, used)
        asked, computed = used.asked or before.asked, used.computed or before.computed
        found[used.hash] = Used(used.id, used.hash, used.sha256, asked, computed, used.looked_at and before.looked_at)
    return list(found.values())


def headline(cells: Iterable[Used]) -> str:
    """The cells asked for in one line: "42 cells: 40 cached, 1 computed, 1 missing"; "no cells" when there are none.

    Those that were only looked at count where there are no others.
    """
    every = [cell for cell in cells if cell.asked]
    asked = [cell for cell in every if cell.needed] or every
    if not asked:
        return "no cells"
    missing, computed = sum(cell.sha256 is None for cell in asked), sum(cell.computed for cell in asked)
    counts = f"{len(asked) - missing - computed} cached, {computed} computed" + (f", {missing} missing" if missing else "")
    return f"{len(asked)} cell{'' if len(asked) == 1 else 's'}: {counts}"


@contextmanager
def turn() -> Iterator[bool]:
    """Waits until no other notebook of this `gkp reproduce` computes cells. Gives whether there was a turn to wait for.

    A dead holder's turn is over, as with every lock of `gkp.artifact.experiments.lock`.
    """
    if not (file := os.environ.get(TURN)):
        yield False
        return
    import fcntl

    with open(file, "ab") as held:
        with suppress(OSError):  # a file system without locks: they compute at once, which is slower and not wrong
            fcntl.flock(held, fcntl.LOCK_EX)
        yield True
