"""Folders of image files: layouts, classes, what becomes of every kind of image, the decoded copy, and what is refused."""

from __future__ import annotations

import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from gkp import files
from gkp.artifact import experiments as grid
from gkp.artifact import profiles
from gkp.artifact.experiments.kinds import EvaluateCell, PretrainedCell, PruneCell, TrainCell
from gkp.checkpoints import save_model
from gkp.cli import main
from gkp.data import decoding, folders
from gkp.data.dataset import check_fit, to_unit
from gkp.data.sources import dataset_names, is_here, load_dataset
from gkp.errors import BadInput
from gkp.evaluation.benchmark import benchmark
from gkp.files import locate
from gkp.networks.build import INPUT_SIDE, build_model
from gkp.pruning.prune import prune
from gkp.training.loop import train
from gkp.training.recipe import Recipe

SUBSET = "tiny-imagenet-subset.tar"


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A machine with one GKP_DATA folder, and a cache of its own."""
    places = SimpleNamespace(data=tmp_path / "data", cache=tmp_path / "cache", root=tmp_path / "my images")
    places.data.mkdir()
    monkeypatch.setenv("GKP_DATA", str(places.data))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: places.cache)
    monkeypatch.setattr(files, "checkout", lambda: None)
    monkeypatch.setattr(folders, "_loaded", {})
    return places


def pixels(seed: int, side: tuple[int, int] = (6, 6)) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(*side, 3), dtype=np.uint8)


def put(path: Path, seed: int = 0, side: tuple[int, int] = (6, 6)) -> Path:
    """A PNG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, side)).save(path)
    return path


def classes(root: Path, names: list[str], n: int = 2, side: tuple[int, int] = (6, 6)) -> Path:
    """n images in a folder for each class."""
    for i, name in enumerate(names):
        for j in range(n):
            put(root / name / f"{j}.png", seed=100 * i + j, side=side)
    return root


def tiny(root: Path, n: int = 2) -> Path:
    """Tiny-ImageNet as it is distributed, of three classes and 8x8 pixels."""
    names = ["n03", "n01", "n02"]
    for i, name in enumerate(names):
        for j in range(n):
            put(root / "train" / name / "images" / f"{name}_{j}.JPEG", seed=10 * i + j, side=(8, 8))
        (root / "train" / name / f"{name}_boxes.txt").write_text("0\t0\t1\t1\n")
    rows = [f"val_{i}.JPEG\t{names[(2 * i) % 3]}\t0\t0\t5\t5" for i in (10, 9, 2, 1)]
    for row in rows:
        put(root / "val" / "images" / row.partition("\t")[0], seed=len(row), side=(8, 8))
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    put(root / "test" / "images" / "test_0.JPEG", side=(8, 8))
    (root / "wnids.txt").write_text("\n".join(names))
    return root


def refused(name: str, split: str = "train") -> str:
    """The message, which is one line; nothing is left in the cache."""
    with pytest.raises(BadInput) as error:
        load_dataset(name, split)
    assert "\n" not in str(error.value)
    assert not [path for path in files.cache_folder().rglob("*") if path.is_file()]
    return str(error.value)


# --- layouts --------------------------------------------------------------------------------------------------------


def test_classes_images_and_their_order_are_torchvisions(place: SimpleNamespace) -> None:
    classes(place.root, ["b", "a", "10", "9", "B", "é"])
    put(place.root / "a" / "deeper" / "x.PNG", seed=7)
    (place.root / "a" / "notes.txt").write_text("no image")
    (place.root / "README").write_text("no class")
    theirs = ImageFolder(str(place.root))
    for split in ("train", "val", "test", "train+val"):  # a folder of classes alone is whatever is asked for
        data = load_dataset(f"folder:{place.root}", split)
        assert data.labels.tolist() == theirs.targets and data.num_classes == 6 and (data.pad, data.flip) == (0, False)
        assert all(
            np.array_equal(np.asarray(image).transpose(2, 0, 1), x)
            for (image, _), x in zip(theirs, data.images.numpy(), strict=True)
        )
    assert theirs.classes == ["10", "9", "B", "a", "b", "é"]
    assert load_dataset(f"folder:{place.root}", "test") is data or data.split == "train+val"


def test_each_part_is_the_folder_of_its_name_and_labels_are_those_of_the_training_part(place: SimpleNamespace) -> None:
    classes(place.root / "train", ["cat", "dog", "eel"], n=3)
    classes(place.root / "valid", ["dog"], n=2)
    name = f"folder:{place.root}"
    assert load_dataset(name, "train").labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert load_dataset(name, "val").labels.tolist() == load_dataset(name, "test").labels.tolist() == [1, 1]
    assert load_dataset(name, "val").num_classes == 3
    with pytest.raises(BadInput, match=r"what is tested on is valid, so there is no train\+val; ask for train"):
        load_dataset(name, "train+val")
    classes(place.root / "test", ["cat", "eel"], n=1)
    assert load_dataset(name, "test").labels.tolist() == [0, 2] and load_dataset(name, "val").labels.tolist() == [1, 1]
    both = load_dataset(name, "train+val")
    assert both.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 1, 1]
    parts = [load_dataset(name, part).images for part in ("train", "val")]
    assert torch.equal(both.images, torch.cat(parts))


def test_tiny_imagenet_is_read_as_it_is_distributed(place: SimpleNamespace) -> None:
    tiny(place.data / "tiny-imagenet-200")
    for name in ("tiny-imagenet", f"folder:{place.data / 'tiny-imagenet-200'}"):
        training, test = load_dataset(name, "train"), load_dataset(name, "test")
        assert training.labels.tolist() == [0, 0, 1, 1, 2, 2] and training.images.shape == (6, 3, 8, 8)
        # val_10, val_9, val_2, val_1: classes n02 (20 % 3 = 2), n03 (18 % 3 = 0), n01 and n02
        assert test.labels.tolist() == load_dataset(name, "val").labels.tolist() == [1, 2, 0, 1]
        first = np.asarray(Image.open(place.data / "tiny-imagenet-200/val/images/val_10.JPEG"))
        assert np.array_equal(test.images[0].numpy(), first.transpose(2, 0, 1)) and test.num_classes == 3
    assert load_dataset("tiny-imagenet", "train").flip and {"tiny-imagenet", "imagenet"} < set(dataset_names())
    assert is_here("tiny-imagenet") and not is_here("imagenet") and not is_here("folder:/nowhere")


def test_some_classes_of_tiny_imagenet_are_a_data_set_of_their_own(place: SimpleNamespace, monkeypatch) -> None:
    tiny(place.data / "tiny-imagenet-200")
    few = replace(folders.KNOWN["tiny-imagenet"], classes=("n01", "n03"))
    monkeypatch.setitem(folders.KNOWN, "tiny-imagenet-20", few)
    for split in ("train", "test"):
        whole, part = load_dataset("tiny-imagenet", split), load_dataset("tiny-imagenet-20", split)
        chosen = whole.labels != 1  # n01, n02, n03
        assert part.num_classes == 2 and torch.equal(part.labels, whole.labels[chosen] // 2)
        assert torch.equal(part.images, whole.images[chosen]) and part.flip
    assert len(list((place.cache / "folders").iterdir())) == 4
    monkeypatch.setitem(folders.KNOWN, "tiny-imagenet-20", replace(few, classes=("n01", "n77")))
    with pytest.raises(BadInput, match=r"beside it is no image of n77; unpack the data set again$"):
        load_dataset("tiny-imagenet-20", "train")


def test_the_first_images_of_a_folder_are_of_all_its_classes(place: SimpleNamespace) -> None:
    data = load_dataset(f"folder:{classes(place.root, ['a', 'b', 'c'], n=3)}")
    assert data.first(5).labels.tolist() == [0, 0, 1, 1, 2]
    net = build_model("resnet20", num_classes=3, mean=data.mean, std=data.std)
    out = benchmark(net, data, n_examples=5, eps=("1/255",), attacks=("fgsm",), progress=False)
    assert out.indices.tolist() == [0, 1, 3, 4, 6] and out.labels.tolist() == [0, 0, 1, 1, 2]


def test_imagenet_is_resized_and_cropped_as_usual(place: SimpleNamespace) -> None:
    sides = {"a": (300, 260), "b": (40, 90), "c": (224, 224)}
    for name, side in sides.items():
        put(place.data / "ILSVRC2012" / "val" / name / "x.JPEG", seed=len(name), side=side)
    data = load_dataset("imagenet", "test")
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    for x, (name, side) in zip(data.images, sides.items(), strict=True):
        image = Image.open(place.data / "ILSVRC2012" / "val" / name / "x.JPEG").convert("RGB")
        expected = np.asarray(image if side == (224, 224) else usual(image)).transpose(2, 0, 1)
        assert np.array_equal(x.numpy(), expected)


def test_a_size_is_asked_for_where_images_differ_and_given_behind_the_path(place: SimpleNamespace) -> None:
    put(place.root / "a" / "0.png", side=(6, 9))
    put(place.root / "a" / "1.png", side=(6, 9))
    assert load_dataset(f"folder:{place.root}").images.shape == (2, 3, 6, 9)  # all alike: as they are
    put(place.root / "b" / "2.png", side=(12, 8))
    with pytest.raises(BadInput, match=r"several sizes \(0.png is 9x6 and 2.png 8x12\); .* folder:.*my images\?size=224$"):
        load_dataset(f"folder:{place.root}")
    assert load_dataset(f"folder:{place.root}?size=5").images.shape == (3, 3, 5, 5)


# --- images ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_image_becomes_rgb(place: SimpleNamespace) -> None:
    folder = place.root / "a"
    folder.mkdir(parents=True)
    grey, colour = pixels(1)[:, :, 0], Image.fromarray(pixels(2))
    saved = {
        "0grey.png": Image.fromarray(grey),
        "1deep.png": Image.fromarray(grey.astype(np.uint16) * 256 + 77),
        "2alpha.png": Image.fromarray(np.dstack([pixels(2), grey])),
        "3greyalpha.png": Image.fromarray(np.dstack([grey, grey])),
        "4palette.png": colour.quantize(16),
        "5cmyk.jpg": colour.convert("CMYK"),
        "6cmyk.tiff": colour.convert("CMYK"),
        "7bits.png": Image.fromarray(grey > 127),
        "8grey.JPEG": Image.fromarray(grey),
        "9web.webp": colour,
    }
    for name, image in saved.items():
        image.save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    found = load_dataset(f"folder:{place.root}").images.permute(0, 2, 3, 1).numpy()
    for i in (0, 1, 3):
        assert np.array_equal(found[i], np.dstack([grey] * 3)), i
    for i in (2, 6, 9):
        assert np.array_equal(found[i], pixels(2)), i
    assert np.array_equal(found[7], np.dstack([(grey > 127) * 255] * 3))
    for i, name in ((4, "4palette.png"), (5, "5cmyk.jpg"), (8, "8grey.JPEG")):
        assert np.array_equal(found[i], np.asarray(Image.open(folder / name).convert("RGB"))), name


def test_broken_images_are_counted_and_named(place: SimpleNamespace) -> None:
    classes(place.root, ["a", "b"], n=8, side=(32, 32))
    whole = (place.root / "a" / "3.png").read_bytes()
    (place.root / "a" / "3.png").write_bytes(whole[: len(whole) // 2])
    (place.root / "b" / "0.png").write_bytes(b"")
    (place.root / "b" / "1.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    (place.root / "b" / "2.png").write_bytes(whole[:40])
    message = refused(f"folder:{place.root}")
    assert "4 of 16 images cannot be read" in message and message.endswith("; replace or remove them")
    assert f"{place.root}/a/3.png is damaged: " in message and f"{place.root}/b/0.png is empty" in message
    assert f"{place.root}/b/1.png is no image" in message
    for path in ("a/3.png", "b/0.png", "b/1.png", "b/2.png"):
        (place.root / path).unlink()
    assert len(load_dataset(f"folder:{place.root}")) == 12


def test_a_folder_of_broken_images_alone_is_refused(place: SimpleNamespace) -> None:
    (place.root / "a").mkdir(parents=True)
    (place.root / "a" / "0.png").write_bytes(b"\x89PNG")
    Image.fromarray(np.ones((4, 4), np.float32)).save(place.root / "a" / "1.tiff")
    assert "2 of 2 images cannot be read" in refused(f"folder:{place.root}")


# --- the decoded copy -----------------------------------------------------------------------------------------------


def test_images_are_decoded_once_and_again_when_a_file_changes(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(place.root, ["a", "b"])
    name, read = f"folder:{place.root}", []
    original = decoding._read
    monkeypatch.setattr(decoding, "_read", lambda path, size: read.append(path) or original(path, size))
    data = load_dataset(name)
    assert load_dataset(name) is data and len(read) == 5  # the first one twice: it gives the shape
    folders._loaded.clear()  # another process
    again = load_dataset(name)
    assert torch.equal(again.images, data.images) and again.sha256 == data.sha256 and len(read) == 5
    again.images[0] = 0  # a copy of the page in memory
    folders._loaded.clear()
    assert torch.equal(load_dataset(name).images, data.images)
    put(place.root / "b" / "1.png", seed=999)
    os.utime(place.root / "b" / "1.png", (1, 1))
    assert np.array_equal(load_dataset(name).images[3].numpy(), pixels(999).transpose(2, 0, 1)) and len(read) == 10
    (place.root / "a" / "0.png").rename(place.root / "b" / "2.png")
    assert load_dataset(name).labels.tolist() == [0, 1, 1, 1]
    assert len(list((place.cache / "folders").iterdir())) == 1  # the older copies are gone


def test_a_damaged_copy_is_made_again_and_a_kill_leaves_none(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(place.root, ["a", "b"])
    data = load_dataset(f"folder:{place.root}")
    (copy,) = (place.cache / "folders").iterdir()
    sha256 = data.sha256
    copy.write_bytes(copy.read_bytes()[:150])
    folders._loaded.clear()
    assert load_dataset(f"folder:{place.root}").sha256 == sha256
    copy.unlink()
    folders._loaded.clear()

    def interrupted(path: Path, size: int | None) -> np.ndarray:
        if path.name == "1.png":
            raise KeyboardInterrupt
        return np.zeros((3, 6, 6), np.uint8)

    monkeypatch.setattr(decoding, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_dataset(f"folder:{place.root}")
    assert not list((place.cache / "folders").iterdir())


def test_a_full_disk_and_a_cache_that_cannot_be_written_are_said(
    place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes(place.root, ["a", "b"])
    with monkeypatch.context() as patch:
        patch.setattr(decoding.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
        assert "its 4 images take 0.0 GB and" in (message := refused(f"folder:{place.root}")) and "make room" in message
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: place.root / "a" / "0.png")
    with pytest.raises(BadInput, match=r"cannot be written .*; set XDG_CACHE_HOME to a folder you may write to"):
        load_dataset(f"folder:{place.root}")


# --- what is refused ------------------------------------------------------------------------------------------------


def other_class(root: Path) -> None:
    classes(root / "train", ["cat", "dog"])
    classes(root / "val", ["cat", "dgo"])


def only_training(root: Path) -> None:
    classes(root / "train", ["cat", "dog"])


def empty_class(root: Path) -> None:
    classes(root, ["cat", "dog"])
    (root / "eel").mkdir()


def flat(root: Path) -> None:
    put(root / "train" / "0.png")
    put(root / "val" / "1.png")


def lost(root: Path) -> None:
    (tiny(root) / "val" / "images" / "val_9.JPEG").unlink()


def cut_line(root: Path) -> None:
    (tiny(root) / "val" / "val_annotations.txt").write_text("val_1.JPEG\n")


def unknown_word(root: Path) -> None:
    (tiny(root) / "val" / "val_annotations.txt").write_text("val_1.JPEG\tn99\t0\n")


def no_rows(root: Path) -> None:
    (tiny(root) / "val" / "val_annotations.txt").write_text("\n")


@pytest.mark.parametrize(
    ("make", "split", "says"),
    [
        (lambda root: None, "test", "my images is not there; give the folder that has the folders of the classes"),
        (lambda root: root.write_text(""), "test", "my images is a file; give the folder that has"),
        (lambda root: root.mkdir(), "test", "has no folders of classes; put the images of each class into a folder of its own"),
        (other_class, "test", "val: has the class 'dgo', which the training part has not"),
        (only_training, "test", "has no folder test with labelled images for the split test; its splits: train"),
        (only_training, "val", "has no folder val or valid or validation with labelled images for the split val"),
        (empty_class, "train", r"eel: has no image \(.jpg, .jpeg, .png, .*\); remove it"),
        (flat, "train", "train: has no folders of classes"),
        (lost, "test", "val_9.JPEG: is not there, but .*val_annotations.txt names it"),
        (cut_line, "val", "val_annotations.txt: the line 'val_1.JPEG' has no class"),
        (unknown_word, "val", "val: has the class 'n99', which the training part has not"),
        (no_rows, "val", "val_annotations.txt: is empty"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused_in_one_line(place: SimpleNamespace, make, split: str, says: str) -> None:
    make(place.root)
    assert re.search(says, refused(f"folder:{place.root}", split))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("folder:", "'folder:' names no folder; give folder:PATH"),
        ("folder:/x?size=big", "size is 'big'; give a whole number of pixels, such as folder:/x?size=224"),
        ("folder:/x?size=0", "size is '0'"),
        ("tiny-imagenet", "tiny-imagenet-200 is in none of the folders searched"),
        ("imagenet", "download.php, unpack it, and name the folder that holds imagenet in GKP_DATA"),
        ("tiny", "unknown dataset 'tiny'; known: cifar10, digits, imagenet, tiny-imagenet, tiny-imagenet-20, folder:PATH"),
    ],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_refused_in_one_line(name: str, says: str) -> None:
    assert says in refused(name)


# --- the whole path -------------------------------------------------------------------------------------------------


def test_a_network_is_trained_pruned_and_evaluated_on_a_folder(place: SimpleNamespace, tmp_path: Path, capsys) -> None:
    classes(place.root / "train", ["cat", "dog"], n=8, side=(16, 16))
    classes(place.root / "val", ["cat", "dog"], n=3, side=(16, 16))
    name = f"folder:{place.root}"
    data = load_dataset(name, "train")
    net = build_model("resnet20", num_classes=2, mean=data.mean, std=data.std)
    log = train(net, data, Recipe(epochs=1, lr=0.01, batch_size=8), progress=False)
    assert log.dataset == f"{name}/train"
    pruned = prune(net, "l2-gkp")
    out = benchmark(pruned, name, protocol="pixel", eps=("8/255",), attacks=("fgsm",), progress=False)
    assert out.n == 6 and out.dataset == name and out.data_sha256 == load_dataset(name, "test").sha256
    save_model(pruned.compact(), tmp_path / "small")
    command = f"benchmark --checkpoint {tmp_path / 'small'} --attack fgsm --eps 8/255 --json --dataset".split()
    assert main([*command, name]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 6


@pytest.mark.parametrize(
    ("model", "dataset"), [("resnet56", "tiny-imagenet"), ("resnet101", "tiny-imagenet"), ("resnet50", "imagenet")]
)
def test_the_papers_networks_take_these_images(place: SimpleNamespace, model: str, dataset: str) -> None:
    folder, side = {"tiny-imagenet": ("tiny-imagenet-200", 64), "imagenet": ("imagenet", 240)}[dataset]
    classes(place.data / folder / "val", ["n01", "n02"], n=1, side=(side, side))
    data = load_dataset(dataset, "test")
    assert data.images.shape[2:] == (INPUT_SIDE.get(model, 64),) * 2
    check_fit(build_model(model, num_classes=2, mean=data.mean, std=data.std), data)


def test_a_tiny_imagenet_goes_through_the_cells_of_an_experiment(place: SimpleNamespace, tmp_path: Path) -> None:
    tiny(place.data / "tiny-imagenet-200", n=4)
    short = {"epochs": 1, "lr": 0.01, "batch_size": 6}
    baseline = TrainCell(dataset="tiny-imagenet", model="resnet20", **short)
    pruned = PruneCell(net=baseline, method="l2-gkp", rate=6 / 16, **short)
    evaluated = EvaluateCell(net=pruned, eps=("1/255",), attacks=("fgsm",))
    _, small, outcome = grid.run([baseline, pruned, evaluated], jobs=1, store=grid.Store(tmp_path / "store"), progress=False)
    assert small["input_shape"] == [3, 8, 8] and small["n"] == 12 and outcome["n"] == 4
    assert len(list((place.cache / "folders").iterdir())) == 2


def test_training_on_imagenet_sees_random_parts_and_everything_else_the_middle(place: SimpleNamespace) -> None:
    sides = {"a": (300, 260), "b": (40, 90), "c": (256, 256)}
    for part in ("train", "val"):
        for name, side in sides.items():
            put(place.data / "imagenet" / part / name / "x.JPEG", seed=len(name), side=side)
    training, test = load_dataset("imagenet", "train"), load_dataset("imagenet", "test")
    assert training.crop == 224 and training.images.shape == (3, 3, 256, 256) and test.crop == 0
    assert training.shape == test.shape == (3, 224, 224)
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(256)])
    for x, (name, _) in zip(training.images, sides.items(), strict=True):
        image = Image.open(place.data / "imagenet" / "train" / name / "x.JPEG").convert("RGB")
        assert np.array_equal(x.numpy(), np.asarray(usual(image)).transpose(2, 0, 1))
    assert torch.equal(training.pixels()[:2], test.pixels()[:2])  # the third one of the test set was enlarged first, as usual
    assert torch.equal(training.pixels(), to_unit(transforms.CenterCrop(224)(training.images)))


def test_the_papers_resnet50_goes_through_the_cells_of_an_experiment(place: SimpleNamespace, tmp_path: Path) -> None:
    for part, n in (("train", 1), ("val", 1)):
        classes(place.data / "imagenet" / part, ["n01", "n02"], n=n, side=(60, 50))
        for path in (place.data / "imagenet" / part).rglob("*.png"):
            path.rename(path.with_suffix(".JPEG"))
    short = {"epochs": 1, "lr": 0.01, "batch_size": 4}
    baseline = TrainCell(dataset="imagenet", model="resnet50", **short)
    pruned = PruneCell(net=baseline, method="l2-gkp", rate=3 / 4, **short)
    evaluated = EvaluateCell(net=pruned, protocol="paper", attacks=("fgsm-0.001",))
    net, small, outcome = grid.run([baseline, pruned, evaluated], jobs=1, store=grid.Store(tmp_path / "store"), progress=False)
    assert net["input_shape"] == small["input_shape"] == [3, 224, 224] and outcome["n"] == 2
    assert net["macs"] - small["macs"] == 3 * _of_3x3() // 4


def _of_3x3() -> int:
    """The multiply-accumulates of all 3x3 convolutions in ResNet-50's blocks."""
    blocks = {64: 3, 128: 4, 256: 6, 512: 3}
    return sum(9 * width**2 * (56 * 64 // width) ** 2 * n for width, n in blocks.items())


@pytest.mark.parametrize(
    ("model", "method", "rate", "side"), [("resnet56", "sr-gkp", 3 / 8, 64), ("resnet101", "l2-gkp", 7 / 8, 16)]
)  # ResNet-101 takes most of a minute at 64x64
def test_the_papers_networks_on_tiny_imagenet_go_through_them_too(
    place: SimpleNamespace, tmp_path: Path, model: str, method: str, rate: float, side: int
) -> None:
    for part, n in (("train", 2), ("val", 1)):
        classes(place.data / "tiny-imagenet-200" / part, ["n01", "n02"], n=n, side=(side, side))
    short = {"epochs": 1, "lr": 0.01, "batch_size": 4}
    baseline = TrainCell(dataset="tiny-imagenet", model=model, **short)
    pruned = PruneCell(net=baseline, method=method, rate=rate, **short)
    evaluated = EvaluateCell(net=pruned, protocol="paper", attacks=("fgsm-0.001", "pgd-4/255"))
    _, small, outcome = grid.run([baseline, pruned, evaluated], jobs=1, store=grid.Store(tmp_path / "store"), progress=False)
    printed = {"resnet56": 0.547, "resnet101": 24.226}[model]  # millions, Table 13
    assert small["input_shape"] == [3, side, side] and set(outcome["accuracy"]) == {"clean", "fgsm-0.001", "pgd-4/255"}
    of_two_classes = 198 * {"resnet56": 65, "resnet101": 2049}[model]  # of 200 the classifier would have so many more
    assert (small["params"] + of_two_classes) / 1e6 == pytest.approx(printed, abs=5e-4)


def test_the_papers_networks_on_these_images_are_cells_of_its_profile() -> None:
    for group, networks in (("tiny", 2), ("imagenet", 1), ("torchvision", 1)):
        found = profiles.cells("paper", group)
        assert sum(not isinstance(cell, PruneCell) for cell in found if hasattr(cell, "model")) == networks
        assert all(cell.threads == 0 for cell in found if not isinstance(cell, PretrainedCell))
    resnet50 = next(cell for cell in profiles.cells("paper", "imagenet") if isinstance(cell, PruneCell))
    assert (resnet50.epochs, resnet50.step_epochs, resnet50.batch_size, resnet50.weight_decay) == (100, 30, 256, 1e-4)
    assert {cell.rate for cell in profiles.cells("paper", "tiny") if isinstance(cell, PruneCell)} == {3 / 8, 7 / 8}


def test_the_work_of_the_papers_networks_is_estimated_by_their_multiply_accumulates() -> None:
    cells = [TrainCell(dataset="cifar10", model="resnet20"), TrainCell(dataset="tiny-imagenet", model="resnet56")]
    cells += [TrainCell(dataset="tiny-imagenet", model="resnet101"), TrainCell(dataset="imagenet", model="resnet50")]
    macs = [40.9e6 * 45_000, 506.3e6 * 100_000, 10_081.1e6 * 100_000, 4122.8e6 * 1_281_167]
    for cell, cost in zip(cells, macs, strict=True):
        assert cell.work / cells[0].work == pytest.approx(cost / macs[0], rel=0.02)


def test_a_subset_of_the_real_tiny_imagenet(place: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    archive = locate(SUBSET)
    if archive is None:
        pytest.skip(f"{SUBSET} is in none of the folders searched: name the one that holds it in GKP_DATA")
    monkeypatch.setenv("GKP_DATA", str(tmp_path))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: place.cache)
    with tarfile.open(archive) as tar:
        few = [file for file in tar if not re.search(r"train/.*_\d\d+\.JPEG", file.name)]  # ten of each class for training
        tar.extractall(tmp_path, few, filter="data")
    training, test = load_dataset("tiny-imagenet", "train"), load_dataset("tiny-imagenet", "test")
    assert training.images.shape == (200, 3, 64, 64) and training.labels.bincount().tolist() == [10] * 20
    assert test.images.shape == (1000, 3, 64, 64) and test.labels.bincount().tolist() == [50] * 20
    red, green, blue = test.images.unbind(1)
    assert 0.005 < ((red == green) & (red == blue)).flatten(1).all(1).float().mean() < 0.04  # grey ones
    theirs = ImageFolder(str(tmp_path / "tiny-imagenet-200" / "train"))
    assert training.labels.tolist() == theirs.targets
    for i in range(0, 200, 9):
        assert np.array_equal(training.images[i].numpy(), np.asarray(theirs[i][0]).transpose(2, 0, 1))
    net = build_model("resnet20", num_classes=20, mean=test.mean, std=test.std)
    out = benchmark(prune(net, "l2-gkp"), "tiny-imagenet", n_examples=4, eps=("1/255",), attacks=("fgsm",), progress=False)
    assert out.n == 4 and out.labels.tolist() == test.labels[:4].tolist()


def test_the_training_images_of_imagenet_are_not_those_of_its_folder_at_the_same_size(
    place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes(place.data / "imagenet" / "train", ["a", "b"], n=1, side=(9, 9))
    monkeypatch.setitem(folders.KNOWN, "imagenet", replace(folders.KNOWN["imagenet"], size=6, stored=8))
    stored = load_dataset("imagenet", "train")
    other = load_dataset(f"folder:{place.data / 'imagenet'}?size=8", "train")
    assert stored.images.shape == other.images.shape == (2, 3, 8, 8) and not torch.equal(stored.images, other.images)


def test_without_a_training_part_the_classes_of_val_are_numbered_the_same_in_test(place: SimpleNamespace) -> None:
    classes(place.root / "val", ["a", "b", "c"], n=1)
    classes(place.root / "test", ["b", "c"], n=1)
    val, test = (load_dataset(f"folder:{place.root}", split) for split in ("val", "test"))
    assert val.labels.tolist() == [0, 1, 2] and test.labels.tolist() == [1, 2] and test.num_classes == 3
