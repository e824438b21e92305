"""TMI-GKP: the grouped kernel pruning before SR-GKP (Zhong et al., ICLR 2022).

Per layer, filters are clustered in three ways into equal groups; the clustering that spreads the "tickets magnitude increase"
(the movement of weights from an early snapshot to the end) most evenly over its groups wins a vote over snapshots; in each
group the greedy search keeps distant grouped kernels. It needs the trace of a training (`WeightTrace`); the cheap stand-ins
that its authors also support, one clustering or random groups, need weights only.

ResNet-20 on one core: the three clusterings 27 to 33 s, all but 1 s of it t-SNE and DBSCAN, where smoothness snaking takes
0.006 s warm and 0.014 s cold: 1,900 to 5,600 times as long (Table 7 has 940 to 1,830 times, for code that clusters anew at
every snapshot). Selection 0.15 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.pruning.grouped import GroupedSpec, kept_count
from gkp.pruning.methods.tmi_gkp.clusterings import CLUSTERINGS, cluster
from gkp.pruning.methods.tmi_gkp.trace import HOW, Trace, WeightTrace, snapshot_epochs
from gkp.pruning.methods.tmi_gkp.vote import vote
from gkp.pruning.plan import Plan
from gkp.pruning.registry import register
from gkp.pruning.sr_gkp.grouping import grouped_kernels
from gkp.pruning.sr_gkp.selection import Beta, greedy

__all__ = [
    "TMIGKP",
    "Trace",
    "WeightTrace",
    "snapshot_epochs",
]

BETA: dict[str, Beta] = {"resnet32": 1.0, "resnet56": 2.0}  # as in the authors' settings; "paper" for all others
NEAREST = 0.2  # share of kept kernels that each pruned one is compared with


@register(
    "tmi-gkp",
    reference="Zhong et al., ICLR 2022",
    family="grouped kernel",
    needs=("weights", "training snapshots"),
    fidelity=(
        "adapted: clusters are made equal by optimal assignment to the nearest centres where the released code moves filters "
        "one by one, those of its DBSCAN to the farthest open centre; on today's scikit-learn; snapshots are rounded to 16 "
        "bits; a layer is clustered once, not once per snapshot to the same result"
    ),
)
@dataclass(frozen=True)
class TMIGKP:
    """TMI-GKP and its stand-ins.

    Args:
        rate, groups: As in `gkp.prune`.
        seed: Of k-means and t-SNE (released: 0), or of random groups.
        trace: A `Trace` or its file; needed by grouping="vote".
        grouping: "vote" for the method itself; "kpca", "spectral", "dbscan" or "random" for stand-ins that need no trace.
        beta: See `gkp.pruning.sr_gkp.selection.Balance`; None for the authors' choice by network.

    Raises:
        BadInput: Unknown grouping.
    """

    rate: float = 7 / 16
    groups: int = 8
    seed: int = 0
    trace: Trace | str | Path | None = None
    grouping: str = "vote"
    beta: Beta | None = None

    def __post_init__(self) -> None:
        if self.grouping not in ("vote", "random", *CLUSTERINGS):
            raise BadInput(f'grouping must be "vote", {", ".join(map(repr, CLUSTERINGS))} or "random", not {self.grouping!r}')

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """The filter groups of each layer and the inputs that each group keeps.

        Raises:
            BadInput: No trace for the vote, or one of another network.
        """
        architecture = getattr(net, "architecture", None)
        beta = BETA.get(getattr(architecture, "name", ""), "paper") if self.beta is None else self.beta
        keeps = {name: kept_count(conv.in_channels, self.rate, name) for name, conv in convs.items()}
        changes = self._changes(convs)
        layers = {}
        for i, (name, conv) in enumerate(convs.items()):
            group_of_filter = self._group(conv.weight, changes.get(name), self.seed + i)
            kernels = grouped_kernels(conv.weight, group_of_filter)
            layers[name] = GroupedSpec(
                group_of_filter, greedy(kernels, keeps[name], beta=beta, nearest=int(NEAREST * keeps[name]))
            )
        return Plan(layers)

    def _changes(self, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """The trace of each layer; empty if there is no vote."""
        if self.grouping != "vote":
            return {}
        if self.trace is None:
            raise BadInput(f"tmi-gkp needs the trace of a training; {HOW}")
        trace = self.trace if isinstance(self.trace, Trace) else Trace.load(self.trace)
        return {name: trace.of(name, conv) for name, conv in convs.items()}

    def _group(self, weight: Tensor, changes: Tensor | None, random_seed: int) -> Tensor:
        """The group of each filter `(C_out,)`."""
        if self.grouping == "random":
            shuffled = torch.randperm(len(weight), generator=torch.Generator().manual_seed(random_seed))
            return shuffled % self.groups
        if changes is None:
            return cluster(self.grouping, weight, self.groups, seed=self.seed)
        candidates = {name: cluster(name, weight, self.groups, seed=self.seed) for name in CLUSTERINGS}
        return candidates[vote(changes, candidates)]
