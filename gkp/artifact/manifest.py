"""data/MANIFEST: path, bytes, sha256, source and licence of every file under data/, as CSV.

Sources are stated once: those of published numbers in the table of data/published/README.md, those of measured files here. A
file without a source cannot be added.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from gkp.errors import BadInput
from gkp.files import file_sha256, replace_file

NAME = "MANIFEST"
MEASURED = {  # first part of the path -> source; all have the licence of this repository
    "results": "measured by this project: gkp run",
    "unfinished": "measured by this project: gkp run, not finished",
    "checkpoints": "trained by this project: gkp run",
    "verdicts.csv": "computed by gkp/artifact/claims from results/",
    "minutes.csv": "recorded while the notebooks were executed",
}


@dataclass(frozen=True)
class Row:
    """The entry of one file.

    Attributes:
        path: Its path below data/.
        bytes: Its size.
        sha256: Its hash.
        source: Where it is from.
        licence: The licence under which it may be used.
    """

    path: str
    bytes: int
    sha256: str
    source: str
    licence: str


def read(data: Path) -> dict[str, Row]:
    """Path -> row of the manifest in the folder `data`; empty without a manifest. BadInput for a damaged one."""
    file = data / NAME
    if not file.exists():
        return {}
    try:
        with open(file, encoding="utf-8", newline="") as opened:
            rows = [
                Row(row["path"], int(row["bytes"]), row["sha256"], row["source"], row["licence"])
                for row in csv.DictReader(opened)
            ]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is damaged ({error}); restore it with git") from None
    return {row.path: row for row in rows}


def write(data: Path) -> list[Row]:
    """Write the manifest of the files that are there and return its rows. BadInput for a file without a source."""
    rows = [Row(path, (data / path).stat().st_size, file_sha256(data / path), *origin_of(data, path)) for path in files(data)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([field.name for field in fields(Row)])
    table.writerows(astuple(row) for row in rows)
    replace_file(data / NAME, text.getvalue())
    return rows


def files(data: Path) -> list[str]:
    """The paths of all files under `data`, except the manifest and what a killed writer left."""
    found = (path.relative_to(data) for path in data.rglob("*") if path.is_file() and path != data / NAME)
    return sorted(path.as_posix() for path in found if not any(p.startswith(".") or p.endswith(".partial") for p in path.parts))


def origin_of(data: Path, path: str) -> tuple[str, str]:
    """(source, licence) of a file below `data`. Raises BadInput where its source is not stated."""
    first, _, rest = path.partition("/")
    if first in MEASURED:
        return MEASURED[first], "MIT"
    if path in ("README.md", "published/README.md"):
        return "written for this project", "MIT"
    readme = data / "published" / "README.md"
    if first == "published" and readme.exists():
        row = re.search(rf"^\| `{re.escape(rest)}` \|.*\| (.+?) \|$", readme.read_text(encoding="utf-8"), re.MULTILINE)
        if row:
            return row[1], "facts, free to use"
    raise BadInput(f"data/{path}: nothing says where it is from; add it to the table in data/published/README.md")


def problems(data: Path) -> list[str]:
    """The differences between the manifest and the files under `data`, a line each."""
    rows, there = read(data), files(data)
    found = [f"data/{path}: is in the manifest and not there" for path in sorted(rows.keys() - set(there))]
    for path in there:
        row, file = rows.get(path), data / path
        if row is None:
            found.append(f"data/{path}: is not in data/{NAME}; `gkp publish --cells` writes it anew")
        elif file.stat().st_size != row.bytes or file_sha256(file) != row.sha256:
            found.append(f"data/{path}: differs from data/{NAME}")
        elif not (row.source and row.licence):
            found.append(f"data/{path}: has no source or no licence in data/{NAME}")
    return found
