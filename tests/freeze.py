"""Write tests/frozen/: the ids of every cell and the public names, which a change of layout must not change.

    python tests/freeze.py          # after adding cells on purpose; the diff shows that nothing else changed
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import gkp

FOLDER = Path(__file__).parent / "frozen"


def cell_ids(profile: str) -> list[str]:
    """Label and hash of each cell of the profile, sorted."""
    return sorted(cell.id for cell in gkp.profiles.cells(profile))


def public_names() -> dict[str, str]:
    """Public name -> its signature as text; "" for what has none."""
    found = {}
    for name in gkp.__all__:
        try:
            found[name] = str(inspect.signature(getattr(gkp, name)))
        except (TypeError, ValueError):
            found[name] = ""
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for profile in ("quick", "cifar10", "paper"):
        (FOLDER / f"{profile}.txt").write_text("\n".join(cell_ids(profile)) + "\n")
    (FOLDER / "names.json").write_text(json.dumps(public_names(), indent=2) + "\n")
