"""Folders of image files as data sets: torchvision's ImageFolder, Tiny-ImageNet as it is distributed, ImageNet.

| name | images | what it is |
|---|---|---|
| `folder:PATH` | as they are, all of one size | PATH/train/CLASS/..., PATH/val/CLASS/... and so on, or PATH/CLASS/... alone |
| `folder:PATH?size=224` | 224x224 | the same; what is not 224x224 is resized to 256 on the shorter side and cut at the centre |
| `tiny-imagenet` | 64x64 | the folder `tiny-imagenet-200`: 100,000 in train, 10,000 in val with val_annotations.txt |
| `tiny-imagenet-20` | 64x64 | 20 classes of it: 10,000 in train, 1,000 in val |
| `imagenet` | 224x224 | the folder `imagenet` or `ILSVRC2012`: 1,281,167 in train/CLASS/..., 50,000 in val/CLASS/... |

Of the training images of ImageNet the middle 256x256 pixels are kept, after resizing the shorter side to 256: training sees
random parts of them resized to 224x224, as the paper's does (252 GB). Whatever else asks for them gets their middle 224x224.

Split "train" is the folder train, "val" the folder val (or valid, validation), "test" the folder test, or val where that is
missing or has no labels, as in both ImageNets. A folder of classes alone is whatever split is asked for. Classes, their order
and that of the images are torchvision's: the images come class by class, but those of an annotation file in its order. Grey,
palette and CMYK images become RGB as there, transparency is dropped, and of 16 bits the upper 8 stay.

Everything is decoded once into a uint8 file in the user's cache, mapped into memory: 10,000 images of 64x64 take 2 s, 123 MB.
It is made anew when a file of the folder changes. Normalisation is ImageNet's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkp import files
from gkp.data.dataset import Dataset
from gkp.data.decoding import PREFIX, Size, decode, mapped
from gkp.errors import BadInput
from gkp.networks.classifier import IMAGENET_MEAN, IMAGENET_STD

_PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Known:
    """A data set that consists of a folder.

    Attributes:
        folders: Its usual names.
        size: Pixels a side that its images are cropped to; None to take them as they are.
        stored: Pixels a side of the square that is kept of its training images, of which training crops parts of `size` at
            random; None to keep what is cropped.
        url: Where to get it.
        classes: Those that are taken, sorted; none for all.
    """

    folders: tuple[str, ...]
    size: int | None
    url: str
    stored: int | None = None
    classes: tuple[str, ...] = ()


_TWENTY = """n01443537 n01784675 n02002724 n02123045 n02231487 n02410509 n02666196 n02808440 n02906734 n03014705
    n03250847 n03544143 n03763968 n03930313 n04067472 n04254777 n04376876 n04532106 n07614500 n07768694"""
KNOWN = {
    "tiny-imagenet": Known(("tiny-imagenet-200",), None, "http://cs231n.stanford.edu/tiny-imagenet-200.zip"),
    "imagenet": Known(("imagenet", "ILSVRC2012"), 224, "https://image-net.org/download.php", stored=256),
}
KNOWN["tiny-imagenet-20"] = replace(KNOWN["tiny-imagenet"], classes=tuple(_TWENTY.split()))
_loaded: dict[tuple[str, str, Path], Dataset] = {}


def is_folder(name: str) -> bool:
    """Whether `load_folder` has data sets of this name."""
    return name in KNOWN or (isinstance(name, str) and name.startswith(PREFIX))


def folder_is_here(name: str) -> bool:
    """Whether the folder of this data set exists."""
    return not why_absent(name)


def why_absent(name: str) -> str:
    """Why a data set that is a folder, and so is never downloaded, is not here, in one line; "" for any other."""
    try:
        return "" if not is_folder(name) or os.path.isdir(root := _root(name)[0]) else f"{name}: {root} is not there"
    except BadInput as reason:
        return str(reason)


def load_folder(name: str, split: str) -> Dataset:
    """Load a split of a folder of images, once per process as long as no file changes.

    Args:
        name: "folder:PATH", "folder:PATH?size=224", "tiny-imagenet" or "imagenet".
        split: "train", "val", "train+val" or "test".

    Raises:
        BadInput: The folder, the split, a class or an image is missing; images cannot be read or are of several sizes; or there
            is no room for the decoded ones.
    """
    root, side = _root(name)
    stored = KNOWN[name].stored if name in KNOWN and split == "train" else None
    size = Size(stored, stored) if stored else Size.usual(side) if side else None
    if not os.path.isdir(root):
        what = "is a file" if os.path.isfile(root) else "is not there"
        raise BadInput(f"{name}: {root} {what}; give the folder that has the folders of the classes, or train and val")
    try:
        parts, classes = _parts(root, split)
        samples = [sample for part in parts for sample in _samples(part, classes)]
        if chosen := KNOWN[name].classes if name in KNOWN else ():
            samples, classes = _only(chosen, samples, classes), list(chosen)
        paths, labels = [path for path, _ in samples], torch.tensor([label for _, label in samples])
        target = _cache_file(root, "+".join(part.name for part in parts), [size, *chosen], paths, labels)
    except OSError as error:
        raise BadInput(f"{name}: cannot be read ({files.one_line(error)}); make its folders and files readable") from error
    key = (name, split, target)
    if key not in _loaded:
        images = mapped(target) if os.path.exists(target) else None
        if images is None:
            decode(paths, size, target, name)
            images = mapped(target)
        assert images is not None
        normal, crop = (IMAGENET_MEAN, IMAGENET_STD), side if stored and side else 0
        _loaded[key] = Dataset(name, split, images, labels, len(classes), *normal, flip=name in KNOWN, crop=crop)
    return _loaded[key]


def _root(name: str) -> tuple[Path, int | None]:
    """The folder of a data set, and the size that its images get."""
    if name in KNOWN:
        known = KNOWN[name]
        found = (files.locate(folder) for folder in known.folders)
        root = next((path for path in found if path is not None), None)
        if root is None:
            searched = ", ".join(str(folder) for folder in files.searched_folders())
            raise BadInput(
                f"{name}: {' or '.join(known.folders)} is in none of the folders searched ({searched}); get it from "
                f"{known.url}, unpack it, and name the folder that holds {known.folders[0]} in GKP_DATA"
            )
        return root, known.size
    path, _, size = name.removeprefix(PREFIX).partition("?size=")
    if not path:
        raise BadInput(f"{name!r} names no folder; give folder:PATH")
    if size and not (size.isascii() and size.isdigit() and int(size) >= 1):
        raise BadInput(f"{name}: size is {size!r}; give a whole number of pixels, such as folder:{path}?size=224")
    return files.user_path(path).resolve(), int(size) if size else None


def _parts(root: Path, split: str) -> tuple[list[Path], list[str]]:
    """The folders that make up a split, and the names of the classes: those of the training part, or else of val."""
    there = {part: next((root / n for n in names if (root / n).is_dir()), None) for part, names in _PARTS.items()}
    if not any(there.values()):
        return [root], _classes(root)
    if there["test"] is None or not _has_labels(there["test"]):
        if split == "train+val" and there["val"] is not None:
            raise BadInput(f"{root}: what is tested on is {there['val'].name}, so there is no train+val; ask for train")
        there["test"] = there["val"]
    wanted = {part: there[part] for part in split.split("+")}
    if missing := [part for part, folder in wanted.items() if folder is None]:
        known = ", ".join(part for part, folder in there.items() if folder is not None)
        names = " or ".join(_PARTS[missing[0]])
        raise BadInput(f"{root}: has no folder {names} with labelled images for the split {split}; its splits: {known}")
    found = [folder for folder in wanted.values() if folder is not None]
    return found, _classes(there["train"] or there["val"] or found[0])


def _has_labels(part: Path) -> bool:
    """Whether the images of a part stand in folders of classes or in an annotation file."""
    inner = [entry.name for entry in os.scandir(part) if entry.is_dir()]
    return _annotations(part).is_file() or inner not in ([], ["images"])


def _annotations(part: Path) -> Path:
    return part / f"{part.name}_annotations.txt"


def _classes(part: Path) -> list[str]:
    """The names of the classes, sorted as torchvision sorts them."""
    if _annotations(part).is_file():
        return sorted({word for _, word in _annotated(part)})
    names = sorted(entry.name for entry in os.scandir(part) if entry.is_dir())
    if not names:
        raise BadInput(f"{part}: has no folders of classes; put the images of each class into a folder of its own")
    return names


def _annotated(part: Path) -> list[tuple[Path, str]]:
    """The images of an annotation file and their classes, in its order: lines of name, class and whatever follows."""
    rows = [line.split("\t") for line in _annotations(part).read_text(errors="replace").splitlines() if line.strip()]
    if short := next((row for row in rows if len(row) < 2), None):
        raise BadInput(f"{_annotations(part)}: the line {short[0][:60]!r} has no class; each has a file, a tab and a class")
    if not rows:
        raise BadInput(f"{_annotations(part)}: is empty; each line has a file, a tab and a class")
    return [(part / "images" / row[0], row[1].strip()) for row in rows]


def _samples(part: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """The images of a part and their labels."""
    numbers = {name: i for i, name in enumerate(classes)}
    if _annotations(part).is_file():
        rows = _annotated(part)
        _check_known({name for _, name in rows}, numbers, part)
        if lost := next((path for path, _ in rows if not path.is_file()), None):
            raise BadInput(f"{lost}: is not there, but {_annotations(part)} names it; unpack the data set again")
        return [(path, numbers[name]) for path, name in rows]
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # late: torchvision takes a second to import

    here = _classes(part)
    _check_known(here, numbers, part)
    chosen = {name: numbers[name] for name in here}
    found = make_dataset(str(part), chosen, extensions=IMG_EXTENSIONS, allow_empty=True)
    if empty := sorted(set(chosen.values()) - {label for _, label in found}):
        raise BadInput(
            f"{part / classes[empty[0]]}: has no image ({', '.join(IMG_EXTENSIONS)}); remove it, or put some into it"
        )
    return [(Path(path), label) for path, label in found]


def _only(chosen: Sequence[str], samples: list[tuple[Path, int]], classes: list[str]) -> list[tuple[Path, int]]:
    """The images of these classes, labelled by their place among them. Raises BadInput for a class without images."""
    numbers = {classes.index(name): at for at, name in enumerate(chosen) if name in classes}
    found = [(path, numbers[label]) for path, label in samples if label in numbers]
    if missing := set(range(len(chosen))) - {label for _, label in found}:
        raise BadInput(f"{samples[0][0]}: beside it is no image of {chosen[min(missing)]}; unpack the data set again")
    return found


def _check_known(names: Iterable[str], numbers: dict[str, int], part: Path) -> None:
    if strange := sorted(set(names) - set(numbers)):
        raise BadInput(f"{part}: has the class {strange[0]!r}, which the training part has not; rename it or take it away")


def _cache_file(root: Path, part: str, how: list[Any], paths: Sequence[Path], labels: Tensor) -> Path:
    """The file of the decoded images, named by the folder, size and classes, and by the names, sizes and times of the files."""
    stats, above = [path.stat() for path in paths], len(str(root))
    seen = [[str(path)[above:], stat.st_size, stat.st_mtime_ns] for path, stat in zip(paths, stats, strict=True)]
    where = files.json_sha256([str(root), part, *how])[:12]
    what = files.json_sha256([seen, labels.tolist()])[:16]
    return files.cache_folder() / "folders" / f"{root.name}-{part}-{where}-{what}.npy"
