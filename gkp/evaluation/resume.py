"""What an evaluation has found so far, so that one that was interrupted goes on with the images that are missing.

A folder: `evaluation.json` says which evaluation it belongs to; every other file holds the outcomes of some images under one
attack (`ROW-SHA256.npz`, no pickle), written beside and renamed. Such a piece is named by its own hash: one that was
truncated or edited does not bear its name, and its images are attacked again. Since outcomes depend neither on the batch size
nor on the other images, pieces of any size fit together.

AutoAttack, which takes all images together, is one piece; until it is finished there are the batches that its parts have done
(`part-ROW-KEY-SHA256.npy`).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gkp.errors import BadInput
from gkp.evaluation.outcomes import differing
from gkp.files import json_sha256, replace_file

FORMAT = 1


class Pieces:
    """The finished pieces of one evaluation, kept in a folder.

    Args:
        folder: Where they are kept; it is made if need be.
        identity: All that determines outcomes, as plain JSON types.
        logits: The network's of the first images, (n,): two networks may have the same weights and compute something else.

    Raises:
        BadInput: The folder belongs to another evaluation or cannot be written.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], logits: np.ndarray):
        self.folder, here = Path(folder), json.loads(json.dumps({"format": FORMAT, **identity}))
        # in every piece too, so that a piece cannot stray into the folder of another evaluation
        self.digest = json_sha256(here)
        path = self.folder / "evaluation.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"{self.folder}: is a file; give a folder for the checkpoint")
        there = _read_json(path)
        if there is not None:
            mend = "give another folder, or delete it to start anew"
            if difference := differing(there["identity"], here):
                raise BadInput(f"{self.folder}: belongs to another evaluation ({difference}); {mend}")
            before = np.array(there["logits"])
            if before.shape != logits.shape or not np.allclose(
                before, logits, rtol=1e-3, atol=1e-3 * np.abs(before).max(initial=0)
            ):
                raise BadInput(f"{self.folder}: belongs to another network, of the same weights but with other logits; {mend}")
            return
        text = json.dumps({"identity": here, "logits": logits.tolist()}, indent=1)
        replace_file(path, text)

    def save(self, row: int, **arrays: np.ndarray) -> None:
        """Keep these arrays as a piece of that row. Raises BadInput when they cannot be written."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, evaluation=np.array(self.digest), **arrays)
        _write(self.folder, f"{row:03d}", ".npz", buffer.getvalue())

    def parts(self, row: int) -> Parts:
        """What an attack on all images together has finished of this row."""
        return Parts(self.folder, f"part-{row:03d}-", self.digest)

    def load(self) -> dict[int, list[dict[str, np.ndarray]]]:
        """Row -> the pieces kept of it. Damaged ones, and those of another evaluation, are left out."""
        found: dict[int, list[dict[str, np.ndarray]]] = {}
        for path in sorted(self.folder.glob("???-*.npz")):
            row, data = path.stem.partition("-")[0], _intact(path)
            if data is None or not row.isdigit():
                continue
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = dict(archive)
            if str(arrays.pop("evaluation", "")) == self.digest:
                found.setdefault(int(row), []).append(arrays)
        return found


class Parts:
    """The finished batches of one row, a `gkp.attacks.autoattack.Memory` of files.

    Args:
        folder: The folder of the evaluation.
        prefix: Of the files of this row.
        digest: Of the evaluation; it goes into the names, so that a file cannot stray into another one.
    """

    def __init__(self, folder: Path, prefix: str, digest: str):
        self.folder, self.prefix, self.digest = folder, prefix, digest

    def get(self, key: str, /) -> Tensor | None:
        """The images kept under this key; None when there are none, or they are damaged."""
        for path in sorted(self.folder.glob(f"{self._stem(key)}-*.npy")):
            if (data := _intact(path)) is not None:
                return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))
        return None

    def __setitem__(self, key: str, found: Tensor, /) -> None:
        """Keeps images. Raises BadInput when they cannot be written."""
        buffer = io.BytesIO()
        np.save(buffer, found.detach().cpu().numpy(), allow_pickle=False)
        _write(self.folder, self._stem(key), ".npy", buffer.getvalue())

    def clear(self) -> None:
        """Removes those of this row."""
        for path in self.folder.glob(f"{self.prefix}*.npy"):
            path.unlink(missing_ok=True)

    def _stem(self, key: str) -> str:
        return self.prefix + _short(f"{self.digest} {key}".encode())


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _write(folder: Path, stem: str, suffix: str, data: bytes) -> None:
    """Write a file that is named by its own hash. Raises BadInput when it cannot be written."""
    replace_file(folder / f"{stem}-{_short(data)}{suffix}", data)


def _intact(path: Path) -> bytes | None:
    """The content of such a file; None where it does not bear its name."""
    data = path.read_bytes()
    return data if path.stem.rpartition("-")[2] == _short(data) else None


def _read_json(path: Path) -> dict[str, Any] | None:
    """The file's content, or None when it is not there or was cut off while it was written."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"identity", "logits"} <= found.keys() else None
