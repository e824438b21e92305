"""Estimated GPU-hours of a claim in the paper's own setting; `gkp.artifact.experiments.status` estimates minutes here.

The only published time is scaled by multiply-accumulates, images and epochs: fine-tuning ResNet-20 for 300 epochs of 50,000
images, with two attacks on the test set after each epoch, took 2 h 26 min on a Colab GPU (log of the public code). ResNet-20
uses a GPU badly, so for larger networks this is an upper bound.
"""

from __future__ import annotations

_COLAB_HOURS, _COLAB_MACS, _COLAB_IMAGES, _COLAB_EPOCHS = 2 + 26 / 60, 40.938e6, 50_000, 300
SETTINGS = {  # of the paper: multiply-accumulates for one image, training images, epochs
    "resnet20": (40.938e6, 50_000, 300),
    "resnet32": (69.479e6, 50_000, 300),
    "resnet56": (126.561e6, 50_000, 300),
    "resnet110": (254.995e6, 50_000, 300),
    "vgg16_bn": (314.433e6, 50_000, 300),
    "tiny-imagenet resnet56": (506.254e6, 100_000, 300),
    "tiny-imagenet resnet101": (10081.092e6, 100_000, 100),
    "imagenet resnet50": (4122.828e6, 1_281_167, 100),
    "imagenet resnet50 torchvision": (4122.828e6, 1_281_167, 100),
}


def gpu_hours(setting: str, networks: int) -> float:
    """Upper bound on the GPU-hours of trainings in the paper's own setting, including their attacks.

    Args:
        setting: A key of `SETTINGS`.
        networks: The number of trainings, including that of the unpruned network where the paper trained it.
    """
    macs, images, epochs = SETTINGS[setting]
    return networks * _COLAB_HOURS * macs / _COLAB_MACS * images / _COLAB_IMAGES * epochs / _COLAB_EPOCHS


def hours_in_words(hours: float) -> str:
    """GPU-hours as text: "about 15 GPU-hours at most"."""
    return f"about {hours:,.0f} GPU-hours at most" if hours >= 10 else f"about {hours:.1f} GPU-hours at most"
