"""The rates of a GPU in images per second, as `gkp.artifact.experiments.probe` measures them, and estimates from them.

It does not import torch, so that a dry run stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import EvaluateCell, PruneCell, TrainCell
from gkp.artifact.experiments.work import PASSES, SIZE, pixels_of, training_work

_ENOUGH = 0.95  # share of the highest throughput that is worth no further process
_FALL = 4 / 255  # the radius from which on nearly every image falls at once, so that AutoAttack is soon done


class Images(NamedTuple):
    """The work of a cell on a GPU, in images of 32x32 pixels.

    Attributes:
        model: The architecture, a name of `gkp.networks.build`.
        trained: Images in forward and backward passes of a training.
        evaluated: Images evaluated in the paper's protocol, or the number that would take as long.
    """

    model: str
    trained: float
    evaluated: float


def images_of(cell: Cell) -> Images | None:
    """The images of a training or an evaluation that is meant for a GPU (threads=0); None for other cells."""
    if cell.threads != 0:
        return None
    if isinstance(cell, EvaluateCell) and cell.engine == "torch":
        model = cell.net.model
        passes = PASSES[part_of(cell.params)] / PASSES[cell.protocol]
        return Images(model, 0.0, cell.work / SIZE.get(model, 1.0) * passes / PASSES["paper"])
    if isinstance(cell, TrainCell | PruneCell):
        scored = cell.epochs if cell.log_epochs is None else len(cell.log_epochs)
        trained = training_work(cell.dataset, cell.model, cell.epochs) / SIZE.get(cell.model, 1.0)
        return Images(cell.model, trained, scored * cell.log_examples * pixels_of(cell.dataset))
    return None


def part_of(params: Mapping[str, Any]) -> str:
    """The kind of an evaluation that decides its cost, a key of PASSES."""
    if params.get("variant"):
        return "unattacked"
    if params["attacks"] is None:
        return params["protocol"]
    attacks = [{"attack": item} if isinstance(item, str) else item for item in params["attacks"]]
    names = "+".join(dict.fromkeys(item["attack"] for item in attacks)) or "unattacked"
    radii = [item["eps"] for item in attacks if "eps" in item] or params.get("eps") or ()
    if names == "autoattack" and any(map(_is_small, radii)):
        return "autoattack, small radius"
    return names if names in PASSES else "pixel"


def _is_small(eps: Any) -> bool:
    """Whether images are left at a radius; no for one that cannot be read, which the evaluation refuses.

    It reads "0.5/255" as `gkp.attacks.options.parse_eps` does, which imports torch.
    """
    above, _, below = str(eps).partition("/")
    try:
        return float(above) / float(below or 1) < _FALL
    except (ValueError, ZeroDivisionError):
        return False


@dataclass(frozen=True)
class Rates:
    """The rates of one device.

    Attributes:
        device: Its name.
        trained: Architecture -> images per second in training, in batches of 64.
        evaluated: Architecture -> images per second in the paper's protocol.
        together: Number of processes that train at once -> their total throughput relative to one process.
        steps: How training steps were executed: "graph", or "eager" with the reason.
    """

    device: str
    trained: Mapping[str, float]
    evaluated: Mapping[str, float]
    together: Mapping[int, float]
    steps: str

    def seconds(self, images: Images) -> float | None:
        """Seconds of a cell that uses the device alone; None for an architecture that was not measured."""
        if images.model not in self.trained:
            return None
        return images.trained / self.trained[images.model] + images.evaluated / self.evaluated[images.model]

    @property
    def jobs(self) -> int:
        """The smallest number of processes with nearly the highest throughput."""
        most = max(self.together.values())
        return min(count for count, gain in self.together.items() if gain >= _ENOUGH * most)

    def gain(self, jobs: int) -> float:
        """The throughput of `jobs` processes relative to one, by the nearest smaller number that was measured."""
        return self.together[max(count for count in self.together if count <= max(1, jobs))]

    @property
    def line(self) -> str:
        """The rates as a line of text."""
        trained = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.trained.items())
        evaluated = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.evaluated.items())
        return (
            f"measured on {self.device}: images/s in training {trained} (step: {self.steps}), evaluated {evaluated}; "
            f"{self.jobs} cells at once are {self.gain(self.jobs):.1f} times as fast as one"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "together": {str(count): gain for count, gain in self.together.items()}}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Rates:
        """Read what `to_json` wrote."""
        return cls(**{**found, "together": {int(count): gain for count, gain in found["together"].items()}})
