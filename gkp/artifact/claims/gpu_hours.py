"""What deciding a claim costs: minutes for the experiments of a profile, GPU-hours for the paper's own setting.

GPU-hours are scaled from the one wall time that was published: fine-tuning ResNet-20 for 300 epochs of 50,000 images, with two
attacks on the test set after each, took 2 h 26 min on a Colab GPU (log of the public code). Scaled by multiply-accumulates,
images and epochs. ResNet-20 keeps a GPU waiting, so for larger networks this is an upper bound.
"""

from __future__ import annotations

from collections.abc import Iterable

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import EvaluateCell
from gkp.artifact.experiments.todo import family

_COLAB_HOURS, _COLAB_MACS, _COLAB_IMAGES, _COLAB_EPOCHS = 2 + 26 / 60, 40.938e6, 50_000, 300
SETTINGS = {  # the paper's: multiply-accumulates of one image, training images, epochs
    "resnet20": (40.938e6, 50_000, 300),
    "resnet32": (69.479e6, 50_000, 300),
    "resnet56": (126.561e6, 50_000, 300),
    "resnet110": (254.995e6, 50_000, 300),
    "vgg16_bn": (314.433e6, 50_000, 300),
    "tiny-imagenet resnet56": (506.254e6, 100_000, 300),
    "tiny-imagenet resnet101": (10081.092e6, 100_000, 100),
    "imagenet resnet50": (4122.828e6, 1_281_167, 100),
}
# units of `Cell.work` that one core does in a second: training images of ResNet-20, passes of an image through it, layers timed
_PER_SECOND = {"train": 170.0, "prune": 170.0, "evaluate": 400.0, "timing": 1 / 45, "latency": 0.4, "pretrained": 1.0}
# passes of an image through the network, by `EvaluateCell.part`; `Cell.work` assumes 8 and 60 for the two protocols
_PASSES = {"paper": 8.0, "pixel": 60.0, "cascade": 1500.0, "autoattack": 300.0, "frequency": 1.0}


def gpu_hours(setting: str, networks: int) -> float:
    """GPU-hours, at most, of trainings in the paper's own setting with their attacks.

    Args:
        setting: A network of the paper, one of `SETTINGS`.
        networks: How many are trained, the unpruned one among them where the paper trained it.
    """
    macs, images, epochs = SETTINGS[setting]
    return networks * _COLAB_HOURS * macs / _COLAB_MACS * images / _COLAB_IMAGES * epochs / _COLAB_EPOCHS


def for_gpu(cells: Iterable[Cell]) -> bool:
    """Whether these are all meant for a GPU, as those of the profile "paper" are: minutes of a core mean nothing then."""
    found = list(cells)
    return bool(found) and all(cell.threads == 0 for cell in found)


def stated_minutes(cells: Iterable[Cell]) -> float:
    """Minutes for these and all they are built on, one after the other, estimated from their work and cores."""
    return sum(_stated_seconds(cell) for cell in family(cells).values()) / 60


def _stated_seconds(cell: Cell) -> float:
    work = cell.work
    if isinstance(cell, EvaluateCell):
        passes = _PASSES.get(cell.part, _PASSES["frequency"] if cell.variant else _PASSES["pixel"])
        work *= passes / _PASSES[cell.protocol]
    return work / _PER_SECOND.get(cell.stage, 1.0) / max(1, cell.threads)


def hours_in_words(hours: float) -> str:
    """ "about 15 GPU-hours at most"."""
    return f"about {hours:,.0f} GPU-hours at most" if hours >= 10 else f"about {hours:.1f} GPU-hours at most"
