"""Noise, shifts, rotations and CIFAR-10-C: what is changed and how, how it is scored, what is refused."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from gkp import files
from gkp.data.dataset import Dataset
from gkp.data.shifts import gaussian_noise, rotate, shift
from gkp.data.sources import CORRUPTIONS, load_cifar10c
from gkp.errors import BadInput
from gkp.evaluation.corruptions import corruption_accuracy, ladder

PER_SEVERITY = 4  # images in the small CIFAR-10-C of these tests, for 10,000


def toy(n: int = 6, side: int = 8, fill: int | None = None) -> Dataset:
    images = torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    if fill is not None:
        images = torch.full_like(images, fill)
    return Dataset("toy", "test", images, torch.arange(n) % 3, 3, (0.5,) * 3, (0.2,) * 3)


class Brightness(nn.Module):
    """Ten classes by the mean of the image, 25 or 26 grey levels each."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centres = (torch.arange(10) + 0.5) / 10
        return -(x.mean(dim=(1, 2, 3))[:, None] - centres).abs()


# --- noise ----------------------------------------------------------------------------------------------------------


def test_noise_is_normal_with_the_given_deviation_and_independent_between_pixels_and_images():
    data = toy(n=4, side=64, fill=128)
    noise = (gaussian_noise(data, 0.05).images.double() - 128) / 255
    values = noise.flatten(1).numpy()
    rounding = 1 / 255 / 12**0.5
    assert values.std() == pytest.approx(np.hypot(0.05, rounding), rel=0.02)  # 49,152 values: 1 standard error is 0.3 %
    assert values.mean() == pytest.approx(0, abs=4 * 0.05 / values.size**0.5)
    smooth = values + np.random.default_rng(0).uniform(-0.5, 0.5, values.shape) / 255  # so that ties do not decide the test
    assert stats.kstest(smooth.ravel() / smooth.std(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(values) - np.eye(4)).max() < 4 / values.shape[1] ** 0.5


def test_noise_of_an_image_depends_on_its_position_and_the_seed_alone():
    data = toy(6)
    noisy = gaussian_noise(data, 0.1, seed=3)
    assert torch.equal(gaussian_noise(data.first(2), 0.1, seed=3).images, noisy.images[:2])
    assert torch.equal(gaussian_noise(data, 0.1, seed=3).images, noisy.images)
    assert not torch.equal(gaussian_noise(data, 0.1, seed=4).images, noisy.images)
    assert noisy.name == "toy+gaussian-noise-0.1-seed-3" and gaussian_noise(data, 0.1).name == "toy+gaussian-noise-0.1"
    assert torch.equal(noisy.labels, data.labels) and torch.equal(data.images, toy(6).images)


def test_noise_is_clipped_not_wrapped_and_none_of_it_changes_nothing():
    assert torch.equal(gaussian_noise(toy(), 0).images, toy().images)
    white, black = (gaussian_noise(toy(n=2, side=32, fill=fill), 0.1).images for fill in (255, 0))
    for images, bound in ((white, 255), (black, 0)):
        assert (images == bound).double().mean() == pytest.approx(0.5, abs=0.05)
        assert (images.double() - bound).abs().max() < 255 * 0.1 * 6


# --- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "dx", "dy"), [(8, 2, 0), (8, 0, 3), (7, -1, 2), (32, 4, -4), (8, 0, 0), (5, -4, -4)])
def test_a_shift_moves_every_pixel_right_and_down_and_black_comes_in(side, dx, dy):
    data = toy(3, side)
    expected = torch.zeros_like(data.images)
    for i in range(side):
        for j in range(side):
            if 0 <= i - dy < side and 0 <= j - dx < side:
                expected[:, :, i, j] = data.images[:, :, i - dy, j - dx]
    moved = shift(data, dx, dy)
    assert torch.equal(moved.images, expected) and moved.name == f"toy+shift-{dx}-{dy}"


@pytest.mark.parametrize(("degrees", "quarters"), [(90, 1), (-90, -1), (180, 2), (0, 0)])
def test_quarter_turns_are_exact_and_positive_ones_go_counter_clockwise(degrees, quarters):
    data = toy(3, 8)
    assert torch.equal(rotate(data, degrees).images, torch.rot90(data.images, quarters, dims=(2, 3)))
    assert rotate(data, degrees).name == f"toy+rotate-{degrees}"


def test_a_small_turn_moves_a_dot_by_the_angle_and_leaves_the_centre_white():
    data = toy(1, 65, fill=0)
    data.images[:, :, 31:34, 51:54] = 255  # 20 pixels to the right of the centre, (32, 32)
    turned = rotate(data, 30).images[0, 0].double()
    i, j = torch.meshgrid(torch.arange(65), torch.arange(65), indexing="ij")
    centre = [float((turned * axis).sum() / turned.sum()) - 32 for axis in (i, j)]
    assert centre == pytest.approx([-20 * 0.5, 20 * 0.75**0.5], abs=0.1)  # up and to the right
    white = rotate(toy(1, 65, fill=255), 30).images[0, 0]
    assert white[32, 32] == 255 and (white[0, 0], white[-1, -1]) == (0, 0)


# --- the ladder -----------------------------------------------------------------------------------------------------


def test_the_ladder_has_a_row_for_each_change_with_the_interval_of_its_count():
    from statsmodels.stats.proportion import proportion_confint

    grey = torch.tensor([13, 38, 64, 90, 115, 140])[:, None, None, None].expand(-1, 3, 10, 10).to(torch.uint8)
    data = Dataset("grey", "test", grey, torch.arange(6), 10, (0.5,) * 3, (0.2,) * 3)
    table = ladder(Brightness(), data, sigmas=(0.01,), shifts=((5, 0), (0, -5)), degrees=(90,), batch_size=4)
    assert table.index.tolist() == ["none", "gaussian-noise-0.01", "shift-5-0", "shift-0--5", "rotate-90"]
    # half of the image black halves the mean: of the classes 0..5 only 0 keeps its own
    assert (table["accuracy"] * 6).round(9).tolist() == [6, 6, 1, 1, 6]
    assert (table["n"] == 6).all()
    assert table.loc["shift-5-0", ["low", "high"]].tolist() == pytest.approx(proportion_confint(1, 6, method="wilson"))


def test_a_rung_is_what_its_data_set_gives_for_any_batch_size():
    data, net = toy(6), nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    options = {"sigmas": (0.3,), "shifts": ((2, 1),), "degrees": (40,), "seed": 5}
    first, second = (ladder(net, data, **options, batch_size=size) for size in (1, 6))
    pd.testing.assert_frame_equal(first, second)
    with torch.no_grad():
        noisy = gaussian_noise(data, 0.3, seed=5)
        expected = (net(noisy.pixels()).argmax(1) == data.labels).double().mean()
    assert first.loc["gaussian-noise-0.3-seed-5", "accuracy"] == pytest.approx(expected.item())


# --- CIFAR-10-C -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar10c(tmp_path, monkeypatch):
    """A CIFAR-10-C of 4 images a severity: image k of severity s of corruption c is grey with value 10 c + s."""
    folder = tmp_path / "data" / "CIFAR-10-C"
    folder.mkdir(parents=True)
    for number, corruption in enumerate(CORRUPTIONS):
        grey = np.repeat(10 * number + np.arange(1, 6), PER_SEVERITY).astype(np.uint8)
        grey[1::PER_SEVERITY] = 255  # the second image of each severity
        images = np.broadcast_to(grey[:, None, None, None], (5 * PER_SEVERITY, 32, 32, 3))
        np.save(folder / f"{corruption}.npy", images)
    np.save(folder / "labels.npy", np.tile(np.array([0, 9, 1, 2], dtype=np.uint8), 5))
    monkeypatch.setenv("GKP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("gkp.data.sources._PER_SEVERITY", PER_SEVERITY)
    return folder


def test_a_severity_is_its_fifth_of_the_file_in_the_order_of_the_test_set(cifar10c):
    data = load_cifar10c("motion_blur", 3)  # the second corruption
    assert data.name == "cifar10-c+motion_blur-3" and data.split == "test" and data.num_classes == 10
    assert data.images[:, 0, 0, 0].tolist() == [13, 255, 13, 13] and data.images.shape == (4, 3, 32, 32)
    assert data.labels.tolist() == [0, 9, 1, 2]


def test_channels_and_rows_of_cifar10c_come_out_where_they_belong(cifar10c):
    images = np.random.default_rng(0).integers(256, size=(5 * PER_SEVERITY, 32, 32, 3), dtype=np.uint8)
    np.save(cifar10c / "fog.npy", images)
    assert load_cifar10c("fog", 2).images[1, 2, 5, 30] == images[5, 5, 30, 2]


def robustbench_corruptions() -> tuple[str, ...]:
    """Read from its source: it cannot be imported as it is installed."""
    package = importlib.util.find_spec("robustbench")
    tree = ast.parse((Path(package.origin).parent / "data.py").read_text())
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign) and len(node.targets) == 1}
    return ast.literal_eval(values["CORRUPTIONS"])


def test_the_corruption_score_is_the_plain_mean_of_75_accuracies_as_robustbench_has_it(cifar10c):
    theirs = robustbench_corruptions()
    assert theirs == CORRUPTIONS
    table = corruption_accuracy(Brightness(), n_examples=3, batch_size=2)
    assert table.shape == (15, 5) and table.index.tolist() == list(theirs)
    # of images 0, 1, 2 with labels 0, 9, 1: the second is always right, the others where the grey level is that of their class
    for (corruption, severity), accuracy in table.stack().items():
        grey = 10 * theirs.index(corruption) + severity
        right = 1 + (grey < 25.5) + (25.5 < grey < 51)
        assert accuracy == pytest.approx(right / 3), (corruption, severity)
    assert table.to_numpy().mean() == pytest.approx(float(np.mean([table.loc[c, s] for c in theirs for s in range(1, 6)])))


def test_cifar10c_that_is_not_there_is_never_downloaded_and_the_error_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("GKP_DATA", str(tmp_path / "mine"))
    monkeypatch.setattr(files, "reachable", lambda url: pytest.fail("the network was asked"))
    with pytest.raises(BadInput) as caught:
        load_cifar10c("fog", 1)
    message = str(caught.value)
    for part in ("CIFAR-10-C/fog.npy", str(tmp_path / "mine"), "zenodo.org/records/2535967", "CIFAR-10-C.tar", "GKP_DATA"):
        assert part in message
    assert "\n" not in message


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _pickle(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _npz(path):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"fog.npy: cannot be read as an array .* it is truncated or not an npy"),
        (lambda path: path.write_bytes(b""), "fog.npy: cannot be read as an array"),
        (lambda path: path.write_text("<html>"), "fog.npy: cannot be read as an array"),
        (_pickle, "fog.npy: cannot be read as an array"),
        (_npz, "fog.npy: cannot be read as an array"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no archive"), "fog.npy: cannot be read as an array"),
        (lambda path: np.save(path, np.zeros((20, 32, 32, 3))), r"fog.npy: is float64 \(20, 32, 32, 3\); .* uint8"),
        (lambda path: np.save(path, np.zeros((10, 32, 32, 3), np.uint8)), r"is uint8 \(10, 32, 32, 3\)"),
        (lambda path: np.save(path.with_name("labels.npy"), np.full(20, 10)), "labels run from 10 to 10"),
        (lambda path: np.save(path.with_name("labels.npy"), np.zeros(20)), r"labels.npy: is float64 \(20,\); .* integer"),
    ],
)
def test_files_that_are_not_cifar10c_are_refused(cifar10c, damage, message):
    damage(cifar10c / "fog.npy")
    with pytest.raises(BadInput, match=message):
        load_cifar10c("fog", 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: gaussian_noise(toy(), -0.1), "sigma is -0.1; give the standard deviation"),
        (lambda: gaussian_noise(toy(), float("nan")), "sigma is nan"),
        (lambda: gaussian_noise(toy(), 0.1, seed=-1), "seed must be an integer"),
        (lambda: shift(toy(), 1.5, 0), "dx is 1.5; give a whole number of pixels from -7 to 7"),
        (lambda: shift(toy(), 0, 8), "dy is 8"),
        (lambda: rotate(toy(), 181), "degrees is 181; give an angle from -180 to 180"),
        (lambda: load_cifar10c("rain", 1), "unknown corruption 'rain' of CIFAR-10-C; known: shot_noise"),
        (lambda: load_cifar10c("fog", 6), "severity is 6"),
        (lambda: load_cifar10c("fog", 1.0), "severity is 1.0"),
    ],
)
def test_changes_out_of_range_are_refused(wrong, message):
    with pytest.raises(BadInput, match=message):
        wrong()
