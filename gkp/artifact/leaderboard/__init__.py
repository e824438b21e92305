"""`leaderboard`: entries as one self-contained HTML page, sortable, with RobustBench's columns plus what a network costs.

One table and one plot per data set, threat model and eps: robust accuracies at different eps are never ranked against each
other. Ranked as RobustBench does, by the best known robust accuracy; the range of ranks that the 95 % intervals leave open
stands beside it. Cost: a second and a fraction of one per table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gkp.artifact.leaderboard.page import render
from gkp.artifact.leaderboard.ranking import Group, grouped
from gkp.errors import BadInput
from gkp.evaluation.robustbench.schema import check_entry

__all__ = [
    "Group",
    "grouped",
    "leaderboard",
]


def leaderboard(entries: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "Robustness leaderboard") -> Path:
    """The file written: one HTML page that loads nothing from anywhere, the same bytes for the same entries.

    entries: as `gkp.evaluation.robustbench.entry.entry` makes and `load_entries` loads them. path: a file, by custom ending
    in .html. Raises BadInput for no entries, an entry that is not sound, and a file that cannot be written, leaving what was
    there.
    """
    if not entries:
        raise BadInput("there are no entries to rank; make some with gkp.evaluation.robustbench.entry.entry and save_entry")
    sound = [check_entry(entry, f"entry {number} ({entry.get('name')!r})") for number, entry in enumerate(entries, start=1)]
    page, path = render(grouped(sound), title), Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise BadInput(f"cannot write the leaderboard to {path} ({error.strerror}); choose a file you may write") from error
    return path
