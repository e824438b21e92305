"""Datasets: what is in them, how they are found, how batches are made, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import pickle
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import CenterCrop, RandomResizedCrop

from gkp import files
from gkp.data import sources
from gkp.data.augmentation import augmented_batches, crop_and_flip
from gkp.data.dataset import Dataset, to_unit
from gkp.data.sources import load_dataset
from gkp.errors import BadInput
from gkp.files import fetch, locate, searched_folders
from gkp.networks.classifier import Architecture


def toy(n: int = 10, **changes: object) -> Dataset:
    fields: dict = {
        "name": "mine",
        "split": "test",
        "num_classes": 3,
        "mean": (0.5,) * 3,
        "std": (0.2,) * 3,
        "images": torch.randint(256, (n, 3, 5, 4), generator=seeded(n)).to(torch.uint8),
        "labels": torch.arange(n) % 3,
    }
    return Dataset(**{**fields, **changes})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A machine with one empty GKP_DATA folder, an empty cache, no checkout and no network."""
    places = SimpleNamespace(data=tmp_path / "my data", cache=tmp_path / "cache")
    places.data.mkdir()
    monkeypatch.setenv("GKP_DATA", str(places.data))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: places.cache)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "site-packages" / "gkp" / "files.py"))
    monkeypatch.setattr(files, "reachable", lambda url: False)
    return places


@pytest.fixture
def cifar10() -> None:
    if not (locate("cifar10_train.npz") and locate("cifar10_test.npz")) and not locate("cifar-10-batches-py"):
        pytest.skip("CIFAR-10 is in none of the folders searched: name the one that holds it in GKP_DATA")


# --- Dataset --------------------------------------------------------------------------------------------------------


def test_pixels_are_whole_255ths_and_batches_keep_the_order() -> None:
    data = toy(7)
    x = data.pixels()
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.from_numpy(data.images.numpy().astype(np.float32) / np.float32(255)))
    assert torch.equal(data.pixels([5, 2]), x[[5, 2]]) and torch.equal(data.pixels(slice(1, 3)), x[1:3])


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 20), batch_size=st.integers(1, 25))
def test_batches_of_any_size_put_together_give_the_whole_dataset(n: int, batch_size: int) -> None:
    data = toy(n)
    batches = list(data.batches(batch_size))
    assert [len(y) for _, y in batches[:-1]] == [batch_size] * ((n - 1) // batch_size)
    assert torch.equal(torch.cat([x for x, _ in batches]), data.pixels())
    assert torch.equal(torch.cat([y for _, y in batches]), data.labels)


def test_subset_takes_positions_arrays_and_masks_in_the_order_given() -> None:
    data = toy(6)
    for indices in ([4, 0, 4], torch.tensor([4, 0, 4]), np.array([4, 0, 4], dtype=np.uint8)):
        chosen = data.subset(indices)
        assert torch.equal(chosen.images, data.images[[4, 0, 4]]) and torch.equal(chosen.labels, data.labels[[4, 0, 4]])
    masked = data.subset(data.labels == 2)
    assert len(masked) == 2 and masked.labels.tolist() == [2, 2]
    assert torch.equal(data.first(2).images, data.images[:2]) and data.first(6) is data


@pytest.mark.parametrize("indices", [[6], [-1], [], [0.5], [[0, 1]], [True, False]])
def test_subset_refuses_positions_that_are_not_there(indices: list) -> None:
    with pytest.raises(BadInput, match="dataset 'mine', split 'test': indices"):
        toy(6).subset(indices)


@pytest.mark.parametrize("n", [0, 7, -1])
def test_first_refuses_none_or_more_than_there_are(n: int) -> None:
    with pytest.raises(BadInput, match="give 1 to 6"):
        toy(6).first(n)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": torch.rand(10, 3, 5, 4)}, r"images are torch.float32 \(10, 3, 5, 4\); give a uint8"),
        ({"images": torch.zeros(10, 5, 4, dtype=torch.uint8)}, "give a uint8 tensor of shape"),
        ({"images": torch.zeros(0, 3, 5, 4, dtype=torch.uint8)}, "N > 0"),
        ({"images": np.zeros((10, 3, 5, 4), np.uint8)}, "images are a ndarray"),
        ({"labels": torch.zeros(10)}, "give an int64 tensor"),
        ({"labels": torch.zeros(9, dtype=torch.int64)}, "10 images but 9 labels"),
        ({"labels": torch.full((10,), 3)}, r"labels run from 3 to 3; with num_classes=3 they must lie in 0\.\.2"),
        ({"labels": torch.full((10,), -1)}, "labels run from -1"),
        ({"mean": (0.5,)}, "must have 3 numbers each"),
        ({"std": (0.2, 0.0, 0.2)}, "std above 0"),
        ({"pad": -1}, "pad is -1"),
    ],
)
def test_a_dataset_of_ones_own_is_checked_when_it_is_made(changes: dict, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        toy(**changes)
    assert "dataset 'mine', split 'test'" in str(caught.value) and "\n" not in str(caught.value)


def test_sha256_is_that_of_the_bytes_and_sees_one_pixel_and_one_label() -> None:
    data = toy()
    expected = hashlib.sha256(data.images.numpy().tobytes() + data.labels.numpy().tobytes()).hexdigest()
    assert data.sha256 == expected
    other = data.images.clone()
    other[0, 0, 0, 0] ^= 1
    labels = data.labels.roll(1)
    assert len({expected, toy(images=other).sha256, toy(labels=labels).sha256}) == 3


# --- augmentation ---------------------------------------------------------------------------------------------------


def test_crops_and_flips_equal_a_slow_reference_image_by_image() -> None:
    images, n, pad = toy(40).images, 40, 2
    result = crop_and_flip(images, pad=pad, flip=True, generator=seeded(3))
    drawn = seeded(3)
    top, left = torch.randint(2 * pad + 1, (2, n), generator=drawn).tolist()
    mirrored = torch.randint(2, (n,), generator=drawn).tolist()
    assert set(top) == set(left) == set(range(5)) and set(mirrored) == {0, 1}  # else the test would prove little
    for i in range(n):
        padded = np.pad(images[i].numpy(), ((0, 0), (pad, pad), (pad, pad)))
        crop = padded[:, top[i] : top[i] + 5, left[i] : left[i] + 4]
        assert np.array_equal(result[i].numpy(), crop[:, :, ::-1] if mirrored[i] else crop), i


@pytest.mark.parametrize("ahead", [False, True])
def test_random_parts_are_torchvisions_and_resized_to_one_size(ahead: bool) -> None:
    images = torch.randint(256, (7, 3, 40, 30), generator=seeded(1), dtype=torch.uint8)
    data = Dataset("large", "train", images, torch.arange(7), 7, (0.5,) * 3, (0.2,) * 3, flip=True, crop=24)
    batches = list(augmented_batches(data, 7, generator=seeded(5), ahead=ahead))
    drawn = seeded(5)
    order, seed = torch.randperm(7, generator=drawn), int(torch.randint(2**62, (), generator=drawn))
    mirrored = torch.randint(2, (7,), generator=drawn).tolist()
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expected = [RandomResizedCrop(24, antialias=True)(images[i]) for i in order]  # it draws what the batch drew
    assert torch.equal(torch.get_rng_state(), before) and set(mirrored) == {0, 1}
    ((x, y),) = batches
    assert torch.equal(y, order) and x.shape == (7, 3, 24, 24)
    for found, image, flipped in zip(x, expected, mirrored, strict=True):
        assert torch.equal(found, to_unit(image.flip(2) if flipped else image))


def test_images_that_training_crops_are_otherwise_seen_in_their_middle() -> None:
    data = replace(toy(), crop=3)  # 5x4 pixels
    assert data.shape == (data.images.shape[1], 3, 3)
    middle = to_unit(CenterCrop(3)(data.images))
    assert torch.equal(data.pixels(), middle) and torch.equal(next(data.batches(len(data)))[0], middle)
    assert torch.equal(data.pixels([1, 0]), middle[[1, 0]])


@pytest.mark.parametrize("changes", [{"crop": 5}, {"crop": -1}, {"crop": 3, "pad": 1}])
def test_a_crop_larger_than_the_images_or_beside_padding_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(BadInput, match=r"give one of them, crop within images of 5x4$"):
        toy(**changes)


def test_an_augmented_epoch_holds_every_image_once_with_its_label() -> None:
    data = toy(23)
    batches = list(augmented_batches(data, 5, generator=seeded(0)))
    assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    original = {image.numpy().tobytes(): int(label) for image, label in zip(data.pixels(), data.labels, strict=True)}
    seen = [image.contiguous().numpy().tobytes() for image in x]  # pad 0, flip False: images are only shuffled
    assert sorted(seen) == sorted(original) and [original[image] for image in seen] == y.tolist()
    assert seen != list(original)
    assert [len(y) for _, y in augmented_batches(data, 5, generator=seeded(0), drop_last=True)] == [5, 5, 5, 5]


def test_augmentation_depends_on_the_generator_alone() -> None:
    data = toy(30, pad=1, flip=True)

    def epoch(generator: torch.Generator) -> torch.Tensor:
        return torch.cat([x for x, _ in augmented_batches(data, 8, generator=generator)])

    before = torch.get_rng_state()
    first, again, other = epoch(seeded(1)), epoch(seeded(1)), epoch(seeded(2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    one = seeded(1)
    assert torch.equal(epoch(one), first) and not torch.equal(epoch(one), first), "the next epoch differs"


@pytest.mark.parametrize(
    "make",
    [
        lambda: toy().batches(0),
        lambda: augmented_batches(toy(), 0, generator=seeded(0)),
        lambda: augmented_batches(toy(), 11, generator=seeded(0), drop_last=True),
    ],
)
def test_batch_sizes_that_leave_nothing_are_refused(make) -> None:
    with pytest.raises(BadInput, match="batch size"):
        next(iter(make()))


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_16x16_rgb_in_fixed_stratified_splits() -> None:
    parts = {split: load_dataset("digits", split) for split in sources.SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 1100, "val": 197, "train+val": 1297, "test": 500}
    for part in parts.values():
        assert part.images.shape[1:] == (3, 16, 16) and (part.num_classes, part.name) == (10, "digits")
        assert torch.equal(part.images[:, 0], part.images[:, 1]) and torch.equal(part.images[:, 0], part.images[:, 2])
        share = part.labels.bincount() / len(part)
        assert (share - share.mean()).abs().max() < 0.01
        assert not part.flip, "a mirrored digit is another sign"
    assert parts["test"].sha256 == "7b91050d532205c32601de098696c6243e46eaf82ef93451f5fdc29a533638dd"
    assert parts["train"].sha256 == "85b66fd80ea9b78e074c7954ec4f336ea146c383eeec8bda9913574206f47355"


def test_digits_training_and_validation_images_make_up_the_training_part() -> None:
    def rows(split: str) -> list[bytes]:
        data = load_dataset("digits", split)
        return [image.numpy().tobytes() for image in data.images]

    assert sorted(rows("train") + rows("val")) == sorted(rows("train+val"))
    assert len(set(rows("train+val") + rows("test"))) == 1797, "all images differ, so no test image was trained on"


def test_digits_are_a_bilinear_enlargement_of_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    data = load_dataset("digits", "test")
    image, label = data.images[0, 0].double().numpy() / 255 * 16, int(data.labels[0])
    # inside, four pixels of 2x2 have the weights 9, 3, 3, 1 of 16; a corner is the corner itself
    source = min(
        (row.reshape(8, 8) for row in small[labels == label]),
        key=lambda row: np.abs(row[::7, ::7] - image[::15, ::15]).sum() + abs(row - image[::2, ::2]).sum(),
    )
    inner = (9 * source[3, 3] + 3 * source[3, 4] + 3 * source[4, 3] + source[4, 4]) / 16
    assert image[7, 7] == pytest.approx(inner, abs=16 / 255 / 2 + 1e-9)
    assert image[::15, ::15] == pytest.approx(source[::7, ::7], abs=16 / 255 / 2 + 1e-9)


def test_digits_normalisation_is_that_of_its_training_images() -> None:
    data = load_dataset("digits", "train+val")
    x = data.pixels().double()
    assert x.mean((0, 2, 3)).tolist() == pytest.approx(data.mean, abs=5e-5)
    assert x.std((0, 2, 3)).tolist() == pytest.approx(data.std, abs=5e-5)


def test_a_dataset_is_loaded_once() -> None:
    assert load_dataset("digits", "test") is load_dataset("digits", "test")


@pytest.mark.parametrize(
    ("name", "split", "says"),
    [
        ("cifar100", "test", "unknown dataset 'cifar100'; known: cifar10, digits"),
        ("digits", "valid", r"unknown split 'valid' of dataset 'digits'; known: train, val, train\+val, test"),
    ],
)
def test_unknown_names_list_the_known_ones(name: str, split: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_dataset(name, split)


# --- cifar10 --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cifar10")
def test_cifar10_has_its_published_sizes_and_a_fixed_stratified_validation_cut() -> None:
    train, val, test = (load_dataset("cifar10", split) for split in ("train", "val", "test"))
    for part, each in ((train, 4500), (val, 500), (test, 1000)):
        assert part.images.shape == (10 * each, 3, 32, 32) and part.labels.bincount().tolist() == [each] * 10
        assert (part.pad, part.flip) == (4, True)
    labels_sha256 = hashlib.sha256(val.labels.numpy().tobytes()).hexdigest()
    assert labels_sha256 == "e5b021ebfa2ce6b0e7ec4da4096d3de5c8f76c1f1b1b4311205f60184da14e08"
    assert test.labels[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]  # cat, ship, ship, airplane, frog, frog, car, frog


@pytest.mark.usefixtures("cifar10")
def test_cifar10_train_and_val_are_disjoint_and_make_up_the_training_part() -> None:
    def keys(split: str) -> list[int]:
        images = load_dataset("cifar10", split).images
        return [hash(row) for row in images[:, :, ::3, ::3].flatten(1).numpy().view("V363").ravel().tolist()]

    train, val, whole = keys("train"), keys("val"), keys("train+val")
    assert sorted(train + val) == sorted(whole)


@pytest.mark.usefixtures("cifar10")
def test_cifar10_mean_is_the_papers() -> None:
    data = load_dataset("cifar10", "train+val")
    mean = data.images.flatten(2).sum(2, dtype=torch.int32).double().mean(0) / (255 * 32 * 32)
    assert mean.tolist() == pytest.approx(data.mean, abs=2e-4)


def test_missing_cifar10_names_the_file_the_folders_and_the_command(
    bare: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GKP_DATA", os.pathsep.join([str(bare.data), "/no/such/folder"]))
    with pytest.raises(BadInput) as caught:
        load_dataset("cifar10", "val")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "cifar10_train.npz",
        "cifar-10-batches-py",
        str(bare.data),
        "/no/such/folder (no such folder)",
        str(bare.cache),
        "python -c",
        "CIFAR10",
        "GKP_DATA",
    ):
        assert part in message
    assert not bare.cache.exists() and not any(bare.data.iterdir()), "nothing was written"


def whole_test_part() -> dict[str, np.ndarray]:
    images = np.zeros((10_000, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(10_000) % 251
    images[:, 0, 0, 1] = 7
    return {"images": images, "labels": (np.arange(10_000) % 10).astype(np.uint8)}


def test_cifar10_is_read_from_the_first_folder_that_has_it_and_again_when_the_file_changes(bare: SimpleNamespace) -> None:
    arrays = whole_test_part()
    np.savez(bare.data / "cifar10_test.npz", **arrays)
    data = load_dataset("cifar10", "test")
    assert data.images[5, :, 0, 0].tolist() == [5, 7, 0] and data.labels[:12].tolist() == [*range(10), 0, 1]
    assert load_dataset("cifar10", "test") is data
    arrays["images"][5, 0, 0, 0] = 99
    np.savez(bare.data / "cifar10_test.npz", **arrays)
    os.utime(bare.data / "cifar10_test.npz", ns=(1, 1))
    assert load_dataset("cifar10", "test").images[5, 0, 0, 0] == 99


def test_images_are_nchw_of_the_nhwc_file(bare: SimpleNamespace) -> None:
    arrays = whole_test_part()
    arrays["images"][3, 10, 20] = (1, 2, 3)  # row 10, column 20
    np.savez(bare.data / "cifar10_test.npz", **arrays)
    assert load_dataset("cifar10", "test").images[3, :, 10, 20].tolist() == [1, 2, 3]


def npy(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def small(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {"images": np.zeros((4, 32, 32, 3), np.uint8), "labels": np.zeros(4, np.uint8), **changes}


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (lambda: {"x": np.zeros(3)}, r"has the arrays \['x'\]; a CIFAR-10 file has images and labels"),
        (small, r"images are uint8 \(4, 32, 32, 3\); the test part of CIFAR-10 is uint8 \(10000, 32, 32, 3\)"),
        (lambda: small(images=np.zeros((4, 3, 32, 32))), r"images are float64 \(4, 3, 32, 32\)"),
        (lambda: {**whole_test_part(), "labels": np.zeros(10_000)}, "labels are float64"),
        (lambda: {**whole_test_part(), "labels": np.zeros(9_999, np.uint8)}, r"labels are uint8 \(9999,\)"),
        (lambda: {**whole_test_part(), "labels": (np.arange(10_000) % 100).astype(np.uint8)}, "labels run from 0 to 99"),
        (lambda: {**whole_test_part(), "labels": np.zeros(10_000, np.uint8)}, "has 1000 of each label"),
        (lambda: small(images=np.array([{}], dtype=object)), "cannot be read as an npz archive"),
    ],
)
def test_a_wrong_cifar10_file_is_refused_by_name(bare: SimpleNamespace, arrays, says: str) -> None:
    path = bare.data / "cifar10_test.npz"
    np.savez(path, **arrays())
    with pytest.raises(BadInput, match=says) as caught:
        load_dataset("cifar10", "test")
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_cifar10_file_is_refused_by_name(bare: SimpleNamespace, keep: float, save) -> None:
    path = bare.data / "cifar10_test.npz"
    save(path, **small())
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(BadInput, match="cannot be read as an npz archive") as caught:
        load_dataset("cifar10", "test")
    assert str(path) in str(caught.value)


def test_a_damaged_cifar10_file_is_refused_by_name(bare: SimpleNamespace) -> None:
    path = bare.data / "cifar10_test.npz"
    np.savez_compressed(path, **small(images=np.random.default_rng(0).integers(256, size=(4, 32, 32, 3), dtype=np.uint8)))
    content = bytearray(path.read_bytes())
    content[2000:2010] = b"0123456789"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read as an npz archive"):
        load_dataset("cifar10", "test")


@pytest.mark.parametrize(
    ("replace", "says"),
    [
        (
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
            "a Git LFS pointer",
        ),
        (lambda path: path.write_text("<!DOCTYPE html><html>"), "it is a web page, not the file"),
        (lambda path: path.write_text("404: Not Found"), "it is text .'404: Not Found'., not data"),
        (lambda path: path.write_bytes(b"\0" * 2000), "it is cut off before its first bytes"),
        (lambda path: path.write_bytes(gzip.compress(b"1")), r"it is packed \(gzip\)"),
        (lambda path: path.mkdir(), "it is a folder; give the file inside it"),
        (lambda path: path.symlink_to("gone.npz"), "it is a link to gone.npz, which is not there"),
        (lambda path: os.mkfifo(path), "it is not a regular file"),
        (lambda path: path.write_bytes(pickle.dumps({"images": 1})), "no archive"),
        (lambda path: path.write_bytes(npy(np.zeros(3))), "no archive"),
        (lambda path: path.write_bytes(bytes(range(256))), "no archive"),
    ],
)
def test_what_came_in_place_of_cifar10_is_one_line_that_mends_it(bare: SimpleNamespace, replace, says: str) -> None:
    path = bare.data / "cifar10_test.npz"
    replace(path)
    with pytest.raises(BadInput, match=f"cannot be read as an npz archive.*{says}") as caught:
        load_dataset("cifar10", "test")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_cifar10_damaged_anywhere_is_one_line(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = io.BytesIO()
    data.draw(st.sampled_from([np.savez, np.savez_compressed]))(whole, **small())
    content = bytearray(whole.getvalue())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "cifar10_test.npz"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GKP_DATA", str(path.parent))
        with pytest.raises(BadInput) as caught:  # four images are not CIFAR-10 either
            load_dataset("cifar10", "test")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_an_incomplete_torchvision_folder_is_refused_by_name(bare: SimpleNamespace) -> None:
    folder = bare.data / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"not the published bytes")
    with pytest.raises(BadInput, match="is not the CIFAR-10 that torchvision knows") as caught:
        load_dataset("cifar10", "test")
    assert str(folder) in str(caught.value)


class StandInForTorchvision:
    """torchvision.datasets.CIFAR10 without its network and md5 sums: the archive it unpacks is an npz of ours."""

    url = "https://example.invalid/cifar-10-python.tar.gz"
    fails = False

    def __init__(self, root: str, train: bool = True, download: bool = False):
        folder = Path(root) / "cifar-10-batches-py"
        if download:
            folder.mkdir()
            if self.fails:
                raise RuntimeError("File not found or corrupted.")
            np.savez(folder / "test.npz", **whole_test_part())
        with np.load(folder / "test.npz") as arrays:
            self.data, self.targets = arrays["images"], arrays["labels"].tolist()


def test_cifar10_is_downloaded_whole_into_the_cache_and_found_there(
    bare: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", StandInForTorchvision)
    monkeypatch.setattr(files, "reachable", lambda url: True)
    assert load_dataset("cifar10", "test").images[5, :, 0, 0].tolist() == [5, 7, 0]
    assert [path.name for path in bare.cache.iterdir()] == ["cifar-10-batches-py"]
    monkeypatch.setattr(files, "reachable", lambda url: pytest.fail("asked the network again"))
    assert len(load_dataset("cifar10", "test")) == 10_000


def test_a_failed_download_says_so_and_leaves_nothing_behind(bare: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", StandInForTorchvision)
    monkeypatch.setattr(StandInForTorchvision, "fails", True)
    monkeypatch.setattr(files, "reachable", lambda url: True)
    with pytest.raises(BadInput, match=r"download from https://example.invalid.* failed .*corrupted"):
        load_dataset("cifar10", "test")
    assert not any(bare.cache.iterdir())


def test_a_download_that_another_process_has_finished_meanwhile_is_taken(
    bare: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", StandInForTorchvision)
    monkeypatch.setattr(files, "reachable", lambda url: True)
    usual = os.replace

    def late(source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        usual(source, target)  # refused, for there is a folder now that is not empty

    monkeypatch.setattr(os, "replace", late)
    assert len(load_dataset("cifar10", "test")) == 10_000
    assert [path.name for path in bare.cache.iterdir()] == ["cifar-10-batches-py"]


# --- files ----------------------------------------------------------------------------------------------------------


def test_folders_of_gkp_data_come_first_then_the_repository_then_the_cache(
    bare: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    monkeypatch.setenv("GKP_DATA", os.pathsep.join(["", str(bare.data), str(second)]))
    assert searched_folders() == [bare.data, second, bare.cache]
    (tmp_path / "site-packages" / "pyproject.toml").parent.mkdir()
    (tmp_path / "site-packages" / "pyproject.toml").touch()  # now the package lies in a checkout
    assert searched_folders() == [bare.data, second, tmp_path / "site-packages" / "data", bare.cache]
    assert locate("a/b.txt") is None
    for folder in (bare.cache, second):
        (folder / "a").mkdir(parents=True)
        (folder / "a" / "b.txt").touch()
    assert locate("a/b.txt") == second / "a" / "b.txt"


def test_missing_file_names_the_file_the_folders_and_the_command(bare: SimpleNamespace) -> None:
    with pytest.raises(BadInput) as caught:
        fetch("checkpoints/x.th", url="https://example.invalid/x.th", sha256="0" * 64, what="weights x")
    message = str(caught.value)
    for part in ("weights x", "checkpoints/x.th", str(bare.data), str(bare.cache), "curl -L", "https://example.invalid/x.th"):
        assert part in message
    assert "\n" not in message and not bare.cache.exists()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A web server on this machine that answers every GET with b"weights" and counts them; it does not know HEAD."""
    seen = SimpleNamespace(gets=0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.gets += 1
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"weights")

        def log_message(self, *_: object) -> None:
            pass

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        seen.url = f"http://127.0.0.1:{web.server_port}/w.th"
        yield seen
        web.shutdown()
        thread.join()


WEIGHTS_SHA256 = hashlib.sha256(b"weights").hexdigest()
really_reachable = files.reachable


def test_a_file_is_downloaded_once_checked_and_mended_when_the_copy_is_damaged(
    bare: SimpleNamespace, server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "reachable", really_reachable)

    def get() -> Path:
        return fetch("checkpoints/w.th", url=server.url, sha256=WEIGHTS_SHA256, what="weights w")

    path = get()
    assert path == bare.cache / "checkpoints" / "w.th" and path.read_bytes() == b"weights"
    assert get() == path and server.gets == 1
    path.write_bytes(b"wei")
    assert get().read_bytes() == b"weights" and server.gets == 2
    path.write_bytes(b"tampered")
    monkeypatch.setattr(files, "reachable", lambda url: False)
    with pytest.raises(BadInput, match=r"weights w: checkpoints/w\.th is in none of the folders"):
        get()
    (bare.data / "checkpoints").mkdir()
    (bare.data / "checkpoints" / "w.th").write_bytes(b"the user's own")
    assert get() == bare.data / "checkpoints" / "w.th"


def test_a_download_with_another_sha256_is_refused(
    bare: SimpleNamespace, server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "reachable", really_reachable)
    with pytest.raises(BadInput, match=r"weights w: download from .* failed .*hash"):
        fetch("w.th", url=server.url, sha256="0" * 64, what="weights w")
    assert not (bare.cache / "w.th").exists()


def test_a_server_that_never_answers_is_given_up_within_the_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        assert not files.reachable(f"http://127.0.0.1:{mute.getsockname()[1]}/", timeout=0.2)
        assert time.monotonic() - started < 2
        port = mute.getsockname()[1]
    assert not files.reachable(f"http://127.0.0.1:{port}/", timeout=2), "nobody listens there any more"


def test_a_user_without_a_home_folder_needs_none_until_something_must_be_downloaded(monkeypatch, tmp_path):
    """As in a container that runs with the number of an unknown user."""

    def nobody(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setenv("GKP_DATA", str(tmp_path))
    (tmp_path / "mine.bin").write_bytes(b"1")
    assert locate("mine.bin") == tmp_path / "mine.bin" and locate("yours.bin") is None
    assert fetch("mine.bin", url="http://127.0.0.1:9/", sha256="0" * 64, what="mine") == tmp_path / "mine.bin"
    with pytest.raises(BadInput, match="this user has no home folder to download to; set XDG_CACHE_HOME"):
        fetch("yours.bin", url="http://127.0.0.1:9/", sha256="0" * 64, what="yours")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_the_first_images_of_classes_that_stand_one_after_the_other_are_taken_from_all_in_turn(
    sizes: list[int], data: st.DataObject
) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    every = toy(len(labels), images=images, labels=labels, num_classes=len(sizes))
    n = data.draw(st.integers(1, len(labels)))
    counts = every.first(n).labels.bincount(minlength=len(sizes)).tolist()
    fair = [0] * len(sizes)  # dealt out one by one to the classes that have some left
    while sum(fair) < n:
        for i, size in enumerate(sizes):
            fair[i] += fair[i] < size and sum(fair) < n
    assert counts == fair
    assert every.first(n).images[:, 0, 0, 0].tolist() == every.leading(n).tolist() == sorted(every.leading(n))
    m = data.draw(st.integers(1, n))
    assert torch.equal(every.first(n).first(m).images, every.first(m).images)


def test_the_first_images_in_mixed_order_are_those_that_come_first() -> None:
    data = toy(7)
    assert data.leading(4).tolist() == [0, 1, 2, 3] and data.first(4).images.data_ptr() == data.images.data_ptr()


def test_two_writers_of_a_file_do_not_write_into_each_other(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def slow(partial: Path) -> None:
        with partial.open("w") as first:
            first.write("a" * 3)
            files.replace_file(file, "bb")
            first.write("a" * 3)
        assert file.read_text() == "bb"

    files.replace_file(file, slow)
    assert file.read_text() == "aaaaaa" and os.listdir(tmp_path) == ["file"]


def test_a_writer_that_fails_in_its_own_way_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = files.replace_file(tmp_path / "file", "old")

    def failing(partial: Path) -> None:
        partial.write_text("half")
        raise RuntimeError("as torch says it of a full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        files.replace_file(file, failing)
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_what_is_written_below_the_home_folder_is_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert files.replace_file(Path("~/a.json"), "{}") == tmp_path / "home" / "a.json"
    assert files.replace_files(Path("~/net"), {"b": "1"}, "the network") == tmp_path / "home" / "net"
    assert os.listdir(tmp_path) == ["home"] and sorted(os.listdir("home")) == ["a.json", "net"]


@pytest.mark.parametrize(
    "which", [(3, 1), range(3, 0, -2), np.array([3, 1], np.uint8), torch.tensor([3, 1], dtype=torch.int16)]
)
def test_positions_are_positions_in_whatever_they_come(which) -> None:
    data = toy()
    expected = to_unit(data.images[[3, 1]])
    assert torch.equal(data.pixels(which), expected) and torch.equal(data.subset(which).pixels(), expected)


@pytest.mark.parametrize(
    "changes", [{"mean": (float("nan"), 0.5, 0.5)}, {"std": (float("nan"), 1, 1)}, {"mean": (125.3, 123, 114)}]
)
def test_a_normalisation_that_is_none_of_pixels_in_0_to_1_is_refused(changes) -> None:
    with pytest.raises(BadInput, match=r"of pixels in \[0, 1\], std above 0"):
        toy(**changes)
    with pytest.raises(BadInput, match=r"of pixels in \[0, 1\]"):
        Architecture("resnet20", **changes)


def test_padding_below_0_is_refused() -> None:
    with pytest.raises(BadInput, match="pad is -1; give 0 or more pixels"):
        crop_and_flip(toy().images, pad=-1, flip=False, generator=seeded(0))
