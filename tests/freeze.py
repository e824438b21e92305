"""Write tests/frozen/: the ids of every cell, and the public names with their signatures. No change of layout may change them.

python tests/freeze.py          # after adding cells on purpose; the diff shows that nothing else changed
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import gkp
from gkp.artifact import profiles

FOLDER = Path(__file__).parent / "frozen"
PROFILES = ("quick", "cifar10", "paper")


def cell_ids(profile: str) -> list[str]:
    """Label and hash of each cell of the profile, sorted."""
    return sorted(cell.id for cell in profiles.cells(profile))


def public_names() -> dict[str, str]:
    """Public name -> its signature as text, "" for an exception."""
    found = {}
    for name in gkp.__all__:
        value = getattr(gkp, name)
        raises = isinstance(value, type) and issubclass(value, Exception)
        found[name] = "" if raises else str(inspect.signature(value))
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in PROFILES:
        (FOLDER / f"{name}.txt").write_text("\n".join(cell_ids(name)) + "\n")
    (FOLDER / "names.json").write_text(json.dumps(public_names(), indent=2) + "\n")
