"""Read a finished cell from its folder and check its hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkp.artifact.experiments.cell import canonical
from gkp.files import file_sha256


class Damaged(Exception):
    """A stored cell differs from what was written."""


@dataclass(frozen=True)
class Entry:
    """A finished cell on disk.

    Attributes:
        folder: Its folder.
        figures: The values that its stage returned.
        files: Name -> sha256 and bytes of each file that its stage wrote.
        absent: The names of files that this copy lacks.
    """

    folder: Path
    figures: dict[str, Any]
    files: dict[str, dict[str, Any]]
    absent: tuple[str, ...]

    def run(self) -> dict[str, Any]:
        """When, where and how it was computed (run.json); empty where there is no such file."""
        return read_json(self.folder / "run.json") or {}


def signature(body: Mapping[str, Any]) -> str:
    """The sha256 in result.json of the rest of that file."""
    return hashlib.sha256(canonical(body)).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none."""
    try:
        value = _parse(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _parse(raw: bytes) -> Any:
    """The value of JSON. ValueError where it is none, also for NaN and infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(raw, parse_constant=refuse)


def figures_of(folder: Path) -> dict[str, Any]:
    """The values of a finished cell in a folder that the store has checked."""
    found = read_json(folder / "result.json")
    assert found is not None
    return found["figures"]


def network_in(folder: Path) -> str:
    """The name of the folder with the network of a finished cell: "compact" where something was pruned, else "model"."""
    return "compact" if (folder / "compact").exists() else "model"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON with sorted keys. ValueError for NaN and infinity, TypeError for values that are not plain."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_entry(folder: Path, cell_hash: str) -> Entry | None:
    """Read the finished cell in a folder, checking result.json by its sha256 and the other files by their size.

    Args:
        folder: The folder.
        cell_hash: The hash of the cell.

    Returns:
        The cell; None where the folder does not exist.

    Raises:
        Damaged: The cell differs from what was written, or is another cell.
    """
    path = folder / "result.json"
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir():
            raise Damaged(f"{folder}: has no result.json") from None
        return None
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        body = _parse(raw)
        signed = body.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise Damaged(f"{path}: is truncated or not what was written") from None
    if signature(body) != signed:
        raise Damaged(f"{path}: differs from what was written (its sha256 does not fit)")
    if body["hash"] != cell_hash:
        raise Damaged(f"{path}: is the result of another cell, {body['hash']}")
    absent = []
    for name, facts in body["files"].items():
        try:
            size = os.stat(folder / name).st_size
        except OSError:
            absent.append(name)
            continue
        if size != facts["bytes"]:
            raise Damaged(f"{folder / name}: has {size} bytes, not {facts['bytes']}")
    return Entry(folder, body["figures"], body["files"], tuple(absent))


def check_files(entry: Entry) -> None:
    """Check the sha256 of each file that is there.

    Raises:
        Damaged: A file differs from what was written.
    """
    for name, facts in entry.files.items():
        if name not in entry.absent and file_sha256(entry.folder / name) != facts["sha256"]:
            raise Damaged(f"{entry.folder / name}: differs from what was written (its sha256 does not fit)")
