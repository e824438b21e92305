"""Executed notebooks: what an execution depended on, whether it still stands, and the reading copy that is committed.

Beside each executed copy lies `.executed/NAME.json`: hashes of what the notebook was executed from, the cells it used with
the sha256 of their results, and the files it wrote with theirs. A notebook is up to date while all of that is as it was.
Source and outputs are told apart here once, for `gkp reproduce`, `gkp publish` and `gkp verify` alike.

Cost: well under a second for ten notebooks; nothing of Jupyter is imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gkp.artifact.experiments.ledger import Used
from gkp.artifact.experiments.store import Store, default_store, read_json, write_json
from gkp.errors import BadInput
from gkp.files import checkout, replace_file

RECORDS = ".executed"
INJECTED = "injected-parameters"  # papermill's tag for the cell it adds
HOW = ("jobs",)  # parameters that say how fast, never what


@dataclass(frozen=True)
class Record:
    """One execution of a notebook.

    origin: what -> sha256 of everything the outputs follow from but for the cells; cells: those it used; files: path below
    the output folder -> sha256; seconds: how long it ran, waiting and computing included.
    """

    name: str
    origin: dict[str, str]
    cells: tuple[Used, ...]
    files: dict[str, str]
    seconds: float

    def save(self, out: Path) -> None:
        """Keeps the record beside the executed copy in `out`."""
        replace_file(record_file(out, self.name), lambda partial: write_json(partial, asdict(self)))

    @classmethod
    def load(cls, out: Path, name: str) -> Record | None:
        """The record of the notebook in `out`, or None when there is none that can be read."""
        found = read_json(record_file(out, name))
        try:
            return None if found is None else cls(**{**found, "cells": tuple(Used(**cell) for cell in found["cells"])})
        except (KeyError, TypeError):  # another version of this program wrote it
            return None

    def outdated(self, origin: Mapping[str, str], out: Path, store: Store | None = None) -> str | None:
        """Why the notebook has to be executed again, in a few words; None when it does not."""
        store = store or default_store()
        if changed := [what for what in origin if self.origin.get(what) != origin[what]]:
            return f"{', '.join(changed)} changed"
        for path, sha256 in self.files.items():
            if not (out / path).is_file():
                return f"{path} is gone"
            if sha256_of_file(out / path) != sha256:
                return f"{path} was edited"
        for cell in self.cells:
            if cell.asked and not cell.is_unchanged(store):
                return f"cell {cell.id} is {'there now' if cell.sha256 is None else 'gone or another'}"
        return None


def record_file(out: Path, name: str) -> Path:
    """Where the record of a notebook executed into `out` is."""
    return out / RECORDS / f"{name}.json"


def origin(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, str]:
    """What -> sha256 of all that the outputs of an execution follow from, the cells of the grid excepted."""
    what = {name: value for name, value in parameters.items() if name not in HOW}
    profile = Path(str(parameters.get("profile", "")))
    return {
        "the notebook": source_sha256(read_notebook(notebook)),
        "its parameters": _sha256(json.dumps(what, sort_keys=True)),
        "the profile's file": sha256_of_file(profile) if profile.suffix == ".py" and profile.is_file() else "",
        "gkp": _code(),
        "data/published": _published(),
        "an installed package": _packages(),
    }


def read_notebook(file: Path) -> dict[str, Any]:
    """The notebook as JSON. Raises BadInput when it is none."""
    try:
        book = json.loads(file.read_text(encoding="utf-8"))
        cells = book["cells"]
        assert all(isinstance(cell, dict) and "source" in cell for cell in cells)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise BadInput(f"{file} is not a notebook ({type(error).__name__}); restore it with git") from error
    return book


def sources(book: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(type, text) of each cell that an author wrote: without outputs, counts, times, and what papermill has added."""
    return [
        (cell["cell_type"], "".join(cell["source"]))
        for cell in book["cells"]
        if INJECTED not in cell.get("metadata", {}).get("tags", [])
    ]


def source_sha256(book: Mapping[str, Any]) -> str:
    """The sha256 of a notebook's `sources`."""
    return _sha256(json.dumps(sources(book)))


def was_executed(book: Mapping[str, Any]) -> bool:
    """Whether the notebook carries outputs."""
    return any(cell.get("execution_count") or cell.get("outputs") for cell in book["cells"])


def reading_copy(book: Mapping[str, Any], profile: str) -> dict[str, Any]:
    """The executed notebook as it is committed: same sources, same outputs, no times.

    The cell that papermill injected goes and the counts close up; the parameters cell says in its output with which profile
    it was executed, and the metadata carry the hash of the sources that gave these outputs: an edit later on shows.
    """
    cells, count = [], 0
    for old in book["cells"]:
        tags = old.get("metadata", {}).get("tags", [])
        if INJECTED in tags:
            continue
        cell = {name: old[name] for name in ("cell_type", "id", "source") if name in old}
        cell["metadata"] = {"tags": tags} if tags else {}
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count
            cell["outputs"] = [_output(output, count) for output in old.get("outputs", [])]
            if "parameters" in tags:
                said = f"executed with profile = {profile!r}: make reproduce PROFILE={profile}\n"
                cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [said]}]
        cells.append(cell)
    kept = {name: book["metadata"][name] for name in ("kernelspec", "language_info") if name in book["metadata"]}
    kept["language_info"] = {"name": "python"}
    return {
        "cells": cells,
        "metadata": {**kept, "gkp": {"profile": profile, "sources_sha256": source_sha256(book)}},
        "nbformat": book["nbformat"],
        "nbformat_minor": book["nbformat_minor"],
    }


def _output(output: Mapping[str, Any], count: int) -> dict[str, Any]:
    return {**output, "execution_count": count} if "execution_count" in output else dict(output)


def sha256_of_file(file: Path) -> str:
    """The sha256 of a file's bytes."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _of_files(folder: Path, files: Iterable[Path]) -> str:
    return _sha256(json.dumps([(file.relative_to(folder).as_posix(), sha256_of_file(file)) for file in sorted(files)]))


def _code() -> str:
    package = Path(__file__).resolve().parents[1]
    return _of_files(package, package.rglob("*.py"))


def _published() -> str:
    folder = (checkout() or Path.cwd()) / "data" / "published"
    return _of_files(folder, (file for file in folder.rglob("*") if file.is_file()))


@cache
def _packages() -> str:
    installed = {f"{found.name}=={found.version}" for found in metadata.distributions() if found.name != "gkp"}
    return _sha256("\n".join([sys.version, *sorted(installed)]))
