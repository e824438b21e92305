"""The work of trainings and evaluations, by which durations are scaled: passes of an image through a ResNet-20."""

from __future__ import annotations

# Multiply-accumulates for one image relative to ResNet-20, at 32x32 pixels.
SIZE = {
    "resnet20": 1.0,
    "resnet32": 1.7,
    "resnet44": 2.4,
    "resnet56": 3.1,
    "resnet110": 6.2,
    "vgg16_bn": 7.7,
    "resnet101": 61.5,
    "resnet50": 2.06,
}
_IMAGES = {  # training images, pixels relative to 32x32
    "digits": (1100, 0.25),
    "cifar10": (45_000, 1.0),
    "tiny-imagenet": (100_000, 4.0),
    "tiny-imagenet-20": (10_000, 4.0),
    "imagenet": (1_281_167, 49.0),
}
_OTHER = (100_000, 4.0)  # for a data set that is not known
# Passes of an image through the network, by part of an evaluation; the engine takes half as long in pixels.
PASSES = {
    **{"paper": 8.0, "pixel": 60.0, "cascade": 1500.0, "unattacked": 1.0},
    **{"autoattack": 300.0, "autoattack, small radius": 1700.0},
}
_SCORED = 2.0  # scoring an image in the paper's protocol takes as long as training on so many


def pixels_of(dataset: str) -> float:
    """The pixels of an image of a data set, relative to 32x32."""
    return _IMAGES.get(dataset, _OTHER)[1]


def training_work(dataset: str, model: str, epochs: int, scored: int = 0) -> float:
    """The work of a training.

    Args:
        dataset: The data set.
        model: The architecture.
        epochs: Passes over the training images.
        scored: Images scored in the paper's protocol during the training, summed over epochs.
    """
    images, pixels = _IMAGES.get(dataset, _OTHER)
    return max(1.0, (epochs * images + _SCORED * scored) * pixels * SIZE.get(model, 1.0))


def evaluation_work(dataset: str, model: str, examples: int | None, protocol: str, engine: str = "torch") -> float:
    """The work of an evaluation.

    Args:
        dataset: The data set.
        model: The architecture.
        examples: The number of test images; None for all.
        protocol: "paper" or "pixel", or another key of PASSES.
        engine: "torch" or "fast".
    """
    images, pixels = _IMAGES.get(dataset, _OTHER)
    passes = PASSES[protocol] / (2 if engine == "fast" and protocol == "pixel" else 1)
    return (examples or images / 5) * pixels * SIZE.get(model, 1.0) * passes
