"""The trace of weights that TMI-GKP clusters by: recorded while a network is trained, kept as a small file.

Its content, per layer, snapshot and filter, is the sum of | |w_final| - |w_epoch| |, and w_final is known only at the end. So
`WeightTrace` holds |w| of the snapshots in memory during training, as 16-bit floats (36 snapshots: ResNet-20 19 MB, ResNet-110
124 MB), and reduces them to the sums at the end: no snapshot is written, except to the checkpoint of a training that can be
resumed. The file of the sums takes 0.1 MB for ResNet-20. Rounding |w| to 16 bits changes each sum by less than 0.05 % of the
filter's L1 norm.

    from gkp.pruning.methods.tmi_gkp import WeightTrace

    trace = WeightTrace()                       # epochs 35 to 70, the paper's of 300
    train(net, data, recipe, callbacks=[trace])
    trace.save("resnet20.trace")
    gkp.prune(net, "tmi-gkp", trace="resnet20.trace")
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.files import one_line, read_tensors, write_tensors
from gkp.networks.classifier import convolutions
from gkp.training.callback import Callback

FORMAT = "gkp weight trace 1"
HOW = (
    "train the network with a WeightTrace() (from gkp.pruning.methods.tmi_gkp import WeightTrace) among the callbacks of "
    'gkp.training.loop.train and give trace=, or take a stand-in that needs none: grouping="kpca", "spectral", "dbscan" '
    'or "random"'
)


@dataclass(frozen=True, eq=False)
class Trace:
    """The movement of every filter's |weights| from each snapshot to the end of training.

    Attributes:
        epochs: The E snapshots, counted from 1.
        changes: `(E, C_out)` float32 by layer name, sums of | |w_final| - |w_epoch| |.
        weights: sha256 of the final weight by layer name, to recognise the network.
    """

    epochs: tuple[int, ...]
    changes: Mapping[str, Tensor]
    weights: Mapping[str, str]

    def of(self, name: str, conv: nn.Conv2d) -> Tensor:
        """The changes `(E, C_out)` of layer `name`. Raises BadInput unless they were recorded for exactly this weight."""
        if name not in self.changes:
            raise BadInput(f"the trace has no layer {name}; it has {', '.join(self.changes)}; {HOW}")
        if self.weights[name] != _sha256(conv.weight):
            raise BadInput(f"the trace is of other weights than {name} has now; prune the network it was recorded with")
        return self.changes[name]

    def save(self, path: str | Path) -> Path:
        """Write the trace atomically and return its path. Raises BadInput if it cannot be written."""
        path = Path(path)
        header = {FORMAT: json.dumps({"epochs": self.epochs, "weights": dict(self.weights)}, sort_keys=True)}
        write_tensors(path, self.changes, header)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what `save` wrote. Raises BadInput if there is no such file or it is truncated or something else."""
        path = Path(path)
        if not path.is_file():
            raise BadInput(f"{path}: no such file with a weight trace; {HOW}")
        try:
            changes, header = read_tensors(path)
            fields = json.loads(header.get(FORMAT, "{}"))
            if fields:
                return cls(tuple(fields["epochs"]), changes, fields["weights"])
        except (OSError, KeyError, ValueError) as error:
            raise BadInput(f"{path}: is truncated or not a weight trace ({one_line(error)}); {HOW}") from error
        raise BadInput(f"{path}: is not a weight trace; {HOW}")


def snapshot_epochs(epochs: int) -> tuple[int, ...]:
    """The epochs to record in a training of so many: the same share as 35 to 70 of the paper's 300, at least one."""
    last = max(1, math.floor(70 / 300 * epochs))
    return tuple(range(min(last, math.ceil(35 / 300 * epochs)), last + 1))


@dataclass
class WeightTrace(Callback):
    """Records a `Trace` while a network is trained.

    Args:
        epochs: Snapshots are taken after these, counted from 1; see `snapshot_epochs` for other lengths than the paper's.
        layers: Names of convolutions; None for those the paper prunes (our networks) or all (any other).
    """

    epochs: tuple[int, ...] = tuple(range(35, 71))
    layers: tuple[str, ...] | None = None
    _snapshots: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _trace: Trace | None = field(default=None, init=False, repr=False)

    def before_training(self, net: nn.Module) -> None:
        """Discard earlier records. Raises BadInput for a layer that `net` does not have."""
        self._snapshots, self._trace = {}, None
        self._convs(net)

    def after_epoch(self, net: nn.Module, epoch: int) -> None:
        """Record |w| if this epoch is one of `epochs`."""
        if epoch in self.epochs:
            # contiguous, since training keeps weights in another memory format
            self._snapshots[epoch] = {
                name: conv.weight.detach().abs().half().cpu().contiguous() for name, conv in self._convs(net).items()
            }

    def finish(self, net: nn.Module) -> None:
        """Reduce the snapshots to sums, now that the final weights are known."""
        convs, epochs = self._convs(net), tuple(sorted(self._snapshots))
        changes = {
            name: torch.stack([filter_changes(conv.weight, self._snapshots[epoch][name]) for epoch in epochs])
            for name, conv in convs.items()
            if epochs
        }
        self._trace = Trace(epochs, changes, {name: _sha256(conv.weight) for name, conv in convs.items()})
        self._snapshots = {}

    def state(self) -> dict[str, Tensor]:
        """The snapshots so far, by "epoch.layer"."""
        return {f"{epoch}.{name}": w for epoch, layers in self._snapshots.items() for name, w in layers.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        self._snapshots = {}
        for key, weight in state.items():
            epoch, _, name = key.partition(".")
            self._snapshots.setdefault(int(epoch), {})[name] = weight

    @property
    def trace(self) -> Trace:
        """The recorded trace. Raises BadInput before the training has ended, or if it was too short for any snapshot."""
        if self._trace is None:
            raise BadInput("the weight trace is ready when the training has ended; call gkp.training.loop.train first")
        if not self._trace.epochs:
            first, last = min(self.epochs, default=0), max(self.epochs, default=0)
            raise BadInput(f"no epoch of {first} to {last} was reached; give epochs=snapshot_epochs(length of the training)")
        return self._trace

    def save(self, path: str | Path) -> Path:
        """Write the trace and return its path. Raises BadInput as `trace` does, or if it cannot be written."""
        return self.trace.save(path)

    def _convs(self, net: nn.Module) -> dict[str, nn.Conv2d]:
        every = convolutions(net)
        if self.layers is None:
            prunable = getattr(net, "prunable", None) or (lambda name, conv: conv.groups == 1)
            return {name: conv for name, conv in every.items() if prunable(name, conv)}
        if missing := [name for name in self.layers if name not in every]:
            raise BadInput(f"weight trace: no convolution called {', '.join(missing)}; there are {', '.join(every) or 'none'}")
        return {name: every[name] for name in self.layers}


def filter_changes(final: Tensor, magnitude: Tensor) -> Tensor:
    """Per filter, the sum of | |w_final| - |w_epoch| |, `(C_out,)` float32, from the final weight and a snapshot's |w|."""
    difference = final.detach().cpu().double().abs() - magnitude.double()
    return difference.abs().flatten(1).sum(dim=1).float()


def _sha256(weight: Tensor) -> str:
    return hashlib.sha256(weight.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()
