"""Image files decoded once into one array of uint8 pixels in the user's cache, mapped into memory."""

from __future__ import annotations

import contextlib
import glob
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from gkp import files
from gkp.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

PREFIX = "folder:"  # of the names of folders that are no known data set
_CHUNK = 512  # images that are decoded at a time


class Size(NamedTuple):
    """The size that images get: their shorter side, in pixels, and the side of the square cut out of their middle."""

    shorter: int
    side: int

    @classmethod
    def usual(cls, side: int) -> Size:
        """As usual on ImageNet: 256 and 224 pixels, or both in this proportion."""
        return cls(round(side * (256 / 224)), side)


def mapped(path: Path) -> Tensor | None:
    """The images of a file, mapped into memory, and never written back; None if it is damaged."""
    try:
        array = open_memmap(path, mode="c")
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(array) if array.dtype == np.uint8 and array.ndim == 4 else None


def decode(paths: Sequence[Path], size: Size | None, target: Path, name: str) -> None:
    """Write all images as one array (N, 3, H, W). Raises BadInput, and leaves nothing behind, if one cannot be read."""
    from tqdm import tqdm

    readable = ((path, image) for path in paths if isinstance(image := _read(path, size), np.ndarray))
    model, first = next(readable, (paths[0], np.zeros((3, 1, 1), np.uint8)))
    broken: list[tuple[Path, str]] = []
    shape = (len(paths), *first.shape)

    def write(partial: Path) -> None:
        need, free = int(np.prod(shape)), shutil.disk_usage(target.parent).free
        if need > free:  # a write into a mapped file on a full disk would kill the process
            raise BadInput(
                f"{name}: its {len(paths):,} images take {need / 1e9:.1f} GB and {target.parent} has {free / 1e9:.1f} GB left; "
                "make room, or set XDG_CACHE_HOME to a folder on another disk"
            )
        array = open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        with ThreadPoolExecutor() as pool, tqdm(total=len(paths), unit="image", desc=f"decoding {name}", disable=None) as bar:
            for start in range(0, len(paths), _CHUNK):
                some = paths[start : start + _CHUNK]
                for i, (path, image) in enumerate(zip(some, pool.map(lambda p: _read(p, size), some), strict=True), start):
                    if isinstance(image, str):
                        broken.append((path, image))
                    elif image.shape != shape[1:]:
                        raise BadInput(_sizes(name, model, shape[1:], path, image.shape))
                    else:
                        array[i] = image
                bar.update(len(some))
        if broken:
            which = ", ".join(f"{path} {reason}" for path, reason in broken[:3])
            raise BadInput(f"{name}: {len(broken)} of {len(paths):,} images cannot be read ({which}); replace or remove them")
        array.flush()

    hint = "set XDG_CACHE_HOME to a folder you may write to"
    files.replace_all({target: write}, lambda problem: f"{target}: cannot be written ({problem}); {hint}")
    before = f"{glob.escape(target.stem.rpartition('-')[0])}-*.npy"  # copies of the same folder as it was
    with contextlib.suppress(OSError):
        for old in target.parent.glob(before):
            if old != target:
                old.unlink()


def _sizes(name: str, one: Path, here: Sequence[int], other: Path, there: Sequence[int]) -> str:
    path = name.removeprefix(PREFIX) if name.startswith(PREFIX) else one.parent
    sizes = f"{one.name} is {here[2]}x{here[1]} and {other.name} {there[2]}x{there[1]}"
    return f"{name}: images are of several sizes ({sizes}); give the one that all shall get, as folder:{path}?size=224"


def _read(path: Path, size: Size | None) -> np.ndarray | str:
    """The pixels of an image, uint8 (3, H, W), or the reason why there are none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as file, Image.open(file) as image:
            if image.mode == "F":
                return "has pixels of 32-bit floats"
            if image.mode.startswith("I"):  # 16 bits of grey
                rgb = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
            else:
                rgb = image.convert("RGB")
    except UnidentifiedImageError:
        return "is empty" if not path.stat().st_size else "is no image"
    except Exception as error:  # whatever the decoders of damaged files raise
        return f"is damaged: {files.one_line(error)[:80]}"
    if size is not None and rgb.size != (size.side, size.side):  # those are cut already
        rgb = _cropped(rgb, size)
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def _cropped(image: Image, size: Size) -> Image:
    """An image of Pillow's, resized and its middle cut out, as torchvision does."""
    from torchvision.transforms import functional as F

    return F.center_crop(F.resize(image, [size.shorter]), [size.side])
