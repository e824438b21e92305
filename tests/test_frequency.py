"""High- and low-frequency images: what a cut keeps and removes in closed form, what identities hold, what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gkp.artifact.figures.frequency import reconstructions
from gkp.data.dataset import Dataset
from gkp.data.shifts import CONVENTIONS, THETAS, high_frequency, high_pass, low_frequency, low_mask, low_pass
from gkp.data.sources import load_dataset
from gkp.errors import BadInput
from gkp.evaluation.benchmark import accuracy, predict

N = 32


def cosine(down: int, across: int, *, amplitude: float = 0.25, height: int = N, width: int = N) -> torch.Tensor:
    """(1, 1, H, W): 1/2 plus one cosine of so many periods down and across."""
    i, j = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return 0.5 + amplitude * torch.cos(2 * torch.pi * (down * i / height + across * j / width))[None, None]


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(convention: str, theta: float) -> float:
    return theta * N / 2 if convention == "pixels" else theta


# periods down and across -> below theta = .5 of a 32x32 image? square: below 8 both ways; half-side: within 8;
# corner: within .5 * sqrt(16^2 + 16^2) = 11.3; coefficients: within sqrt(512 / pi) = 12.8
CUTS = {
    (0, 7): {"square": True, "half-side": True, "corner": True, "coefficients": True, "pixels": True},
    (7, 7): {"square": True, "half-side": False, "corner": True, "coefficients": True, "pixels": False},
    (0, 8): {"square": False, "half-side": False, "corner": True, "coefficients": True, "pixels": False},
    (5, -6): {"square": True, "half-side": True, "corner": True, "coefficients": True, "pixels": True},
    (12, 2): {"square": False, "half-side": False, "corner": False, "coefficients": True, "pixels": False},
    (0, 16): {"square": False, "half-side": False, "corner": False, "coefficients": False, "pixels": False},
    (16, 16): {"square": False, "half-side": False, "corner": False, "coefficients": False, "pixels": False},
}


@pytest.mark.parametrize("periods", CUTS)
def test_a_pure_cosine_is_kept_whole_or_removed_whole_and_the_mean_is_low(periods):
    x = cosine(*periods)
    for convention, below in CUTS[periods].items():
        low = low_pass(x, at(convention, 0.5), convention=convention)
        high = high_pass(x, at(convention, 0.5), convention=convention)
        kept, empty = (low, high) if below else (high, low)
        assert (kept - (x if below else x - 0.5)).abs().max() < 1e-12, convention
        assert (empty - (0 if below else 0.5)).abs().max() < 1e-12, convention


def test_pixels_are_the_absolute_radius_of_wang_et_al_as_a_plain_loop_has_it():
    x, radius = noise(0, 1, 1, N, N), 4
    shifted = np.fft.fftshift(np.fft.fft2(x[0, 0].numpy()))
    mask = np.array([[np.hypot(i - N / 2, j - N / 2) < radius for j in range(N)] for i in range(N)])
    low = np.fft.ifft2(np.fft.ifftshift(shifted * mask))
    high = np.fft.ifft2(np.fft.ifftshift(shifted * ~mask))
    assert np.abs(low.imag).max() < 1e-14 and np.abs(high.imag).max() < 1e-14  # so real part or magnitude is no question
    assert low_pass(x, radius, convention="pixels")[0, 0].numpy() == pytest.approx(low.real, abs=1e-12)
    assert high_pass(x, radius, convention="pixels")[0, 0].numpy() == pytest.approx(high.real, abs=1e-12)


def test_energy_cuts_each_image_where_the_share_below_would_exceed_theta():
    # energies, mean apart: 1 : 4 : 5, at radii 2, 5 and 9; the second image has all of its energy at radius 1
    first = cosine(0, 2, amplitude=0.1) + cosine(3, 4, amplitude=0.2) + cosine(9, 0, amplitude=0.05**0.5) - 1
    x = torch.cat([first, cosine(1, 0)])
    for theta, low in [(0.05, []), (0.3, [(0, 2, 0.1)]), (0.5, [(0, 2, 0.1), (3, 4, 0.2)]), (0.7, [(0, 2, 0.1), (3, 4, 0.2)])]:
        expected = 0.5 + sum((cosine(i, j, amplitude=a) - 0.5 for i, j, a in low), torch.zeros(1))
        assert (low_pass(x, theta, convention="energy")[:1] - expected).abs().max() < 1e-12, theta
        assert (low_pass(x, theta, convention="energy")[1] - 0.5).abs().max() < 1e-12
    assert (low_pass(x, 1, convention="energy") - x).abs().max() < 1e-12


def test_a_share_theta_of_the_coefficients_lies_below_the_cut_in_whole_rings():
    for theta in (0, 0.3, 0.5, 0.7, 1):
        mask = low_mask(N, N, theta, convention="coefficients")
        ring = 1 / N  # the widest ring holds 36 of 1,024 coefficients
        assert theta - 1.2 * ring < mask.double().mean() <= theta + 1e-9


@settings(max_examples=40, deadline=None)
@given(
    convention=st.sampled_from(CONVENTIONS),
    theta=st.floats(0, 1),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_low_plus_high_is_the_image_and_their_energies_add_up(convention, theta, height, width, seed):
    x = noise(seed, 2, 3, height, width)
    low = low_pass(x, at(convention, theta), convention=convention)
    high = high_pass(x, at(convention, theta), convention=convention)
    assert (low + high - x).abs().max() < 1e-12
    assert low.square().sum() + high.square().sum() == pytest.approx(x.square().sum().item())  # Parseval: a projection
    assert (low * high).sum().item() == pytest.approx(0, abs=1e-10)
    again = high_pass(high, at(convention, theta), convention=convention)
    if convention != "energy":  # which cuts what is left anew
        assert (again - high).abs().max() < 1e-12
    assert low.dtype == x.dtype and low.shape == x.shape


def test_keeping_the_mean_adds_the_mean_of_each_channel_unless_the_cut_is_nought():
    x = noise(1, 2, 3, 8, 6)
    mean = x.mean(dim=(2, 3), keepdim=True)
    for convention in CONVENTIONS:
        theta = at(convention, 0.4)
        without, kept = (high_pass(x, theta, convention=convention, keep_mean=keep) for keep in (False, True))
        assert (kept - without - mean).abs().max() < 1e-12
    assert (high_pass(x, 0, keep_mean=True) - x).abs().max() < 1e-12
    assert (high_pass(x, 0) - x).abs().max() < 1e-12


def test_an_image_is_changed_alike_alone_and_among_others_and_by_every_channel():
    x = noise(2, 5, 3, 8, 8).float()
    for convention in CONVENTIONS:
        theta = at(convention, 0.5)
        together = high_pass(x, theta, convention=convention)
        assert torch.equal(together[3:4], high_pass(x[3:4], theta, convention=convention))
        if convention != "energy":
            assert torch.allclose(together[:, 1:2], high_pass(x[:, 1:2], theta, convention=convention), atol=1e-6)


def test_the_test_set_of_table_1_is_clipped_rounded_and_says_what_it_is():
    data = load_dataset("digits", "test").first(20)
    for change, function in ((high_frequency, high_pass), (low_frequency, low_pass)):
        test = change(data, 0.3)
        exact = function(data.pixels(), 0.3, **({"keep_mean": True} if change is high_frequency else {}))
        assert (test.pixels() - exact.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
        assert torch.equal(test.labels, data.labels) and test.sha256 != data.sha256
        assert test.name == f"digits+{change.__name__.replace('_', '-')}-0.3" and test.split == "test"
    assert high_frequency(data, 4, convention="pixels").name == "digits+high-frequency-pixels-4"
    assert high_frequency(data, 0.3, keep_mean=False).name == "digits+high-frequency-0.3-zero-mean"
    assert torch.equal(high_frequency(data, 0).images, data.images)
    assert torch.equal(low_frequency(data, 1, convention="coefficients").images, data.images)


def test_more_than_one_chunk_of_images_is_changed_as_one_would_be(monkeypatch):
    data = load_dataset("digits", "test").first(7)
    whole = high_frequency(data, 0.5)
    monkeypatch.setattr("gkp.data.shifts._CHUNK", 3)
    assert torch.equal(high_frequency(data, 0.5).images, whole.images)


@pytest.mark.usefixtures("cifar10_root", "public_weights")
def test_accuracy_falls_with_theta_as_in_table_1():
    """The paper's Table 1, unpruned ResNet-56: 77.05 / 50.77 / 22.79. Theta's meaning is inferred, so only the order counts."""
    import gkp

    net, data = gkp.load_model("resnet56", weights="akamaster"), load_dataset("cifar10").first(200)
    found = [accuracy(net, high_frequency(data, theta)) for theta in THETAS]
    assert found == pytest.approx([0.7705, 0.5077, 0.2279], abs=0.12)  # 200 images: 2 standard errors are 0.07
    assert found[0] > found[1] > found[2]


def test_figure_2_shows_every_version_of_one_image_with_what_each_network_makes_of_it(tmp_path):
    data = load_dataset("digits", "test").first(5)
    nets = {"always three": Always(3), "by its grey": Brightness()}
    figure = reconstructions(data, 4, nets)
    points = figure.points
    assert points["part"].tolist() == ["image"] * 2 + ["low"] * 6 + ["high"] * 6
    assert points["theta"].dropna().tolist() == [theta for _ in range(2) for theta in THETAS for _ in nets]
    assert set(points["true class"]) == {f"class {int(data.labels[4])}"}
    assert (points[points["network"] == "always three"]["predicted"] == "class 3").all()
    grey = points[points["network"] == "by its grey"].set_index(["part", "theta"])["predicted"]
    for part, change in (("low", low_frequency), ("high", high_frequency)):
        for theta in THETAS:
            seen = predict(Brightness(), change(data, theta))[4]
            assert grey[part, theta] == f"class {int(seen.argmax())}"
    assert (points["right"] == (points["predicted"] == points["true class"])).all()
    figure.save("figure_2", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["figure_2.csv", "figure_2.png", "figure_2.svg"]
    shown = [ax.images[0].get_array() for ax in figure.drawing.axes if ax.images]
    assert np.array_equal(shown[0], data.images[4].permute(1, 2, 0).numpy()) and len(shown) == 7
    assert np.array_equal(shown[-1], high_frequency(data, 0.7).images[4].permute(1, 2, 0).numpy())


def test_figure_2_without_a_finished_network_is_not_run():
    figure = reconstructions("digits", 4, {})
    assert figure.points.empty and "not run" in figure.drawing.axes[0].texts[0].get_text()


class Always(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 5.0 * torch.eye(10)[self.k].expand(len(x), -1)


class Brightness(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -100 * (x.std(dim=(1, 2, 3))[:, None] - torch.arange(10) / 25).abs()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: reconstructions(toy(), 5, {"a": Always(0)}), "give positions in 0..1"),
        (lambda x: reconstructions(toy(), 0, {}), "at least one network"),
        (lambda x: high_pass(x, 1.5), r"theta is 1.5; with convention 'half-side' it must be a number from 0 to 1"),
        (lambda x: high_pass(x, float("nan")), "theta is nan"),
        (lambda x: high_pass(x, "0.3"), "theta is '0.3'"),
        (lambda x: low_pass(x, -1, convention="pixels"), "it must be a radius of 0 or more"),
        (lambda x: low_pass(x, 0.3, convention="round"), "unknown convention 'round'.*known: half-side, corner"),
        (lambda x: high_pass(x[0], 0.3), r"images are torch.float64 \(3, 4, 4\); give a float tensor"),
        (lambda x: high_pass(x.byte(), 0.3), "images are torch.uint8"),
        (lambda x: high_pass(x / 0, 0.3), "hold NaN or infinity"),
        (lambda x: low_mask(4, 4, 0.3, convention="energy"), "cuts each image at another radius"),
        (lambda x: high_frequency(toy(), 2), "theta is 2"),
    ],
)
def test_what_cannot_be_cut_is_refused(wrong, message):
    with pytest.raises(BadInput, match=message):
        wrong(noise(3, 2, 3, 4, 4))


def toy() -> Dataset:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    return Dataset("toy", "test", images, torch.zeros(2, dtype=torch.int64), 2, (0.5,) * 3, (0.5,) * 3)
