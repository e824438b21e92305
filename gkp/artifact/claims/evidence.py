"""The evidence: which cells of a profile measure a network, and what the finished ones found.

Cells are found by what they are (method, rate, options, epochs, seed, protocol), never by their place in a profile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from gkp.artifact import experiments as grid
from gkp.artifact import profiles
from gkp.artifact.claims.decision import NotRun
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import (
    EvaluateCell,
    Network,
    PretrainedCell,
    PruneCell,
    TimingCell,
    TrainCell,
)
from gkp.artifact.experiments.report import Result
from gkp.artifact.profiles import HIGH_RATE, RATE, UNPRUNED
from gkp.errors import BadInput
from gkp.evaluation.outcomes import Outcomes
from gkp.evaluation.statistics import Spread

EMBEDDED = "digits"
PAPER_EPOCHS = 300  # of fine-tuning on CIFAR-10 (PAPER A2)


@dataclass(frozen=True)
class Net:
    """A row of a table: a method with what tells it from others of that method; "baseline" is the unpruned network as it was
    before any fine-tuning, "none" the same after the fine-tuning of the others, "official" the authors' ResNet-20, and
    "official sr-gkp" that network after one-shot pruning."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()
    rate: float = RATE

    @property
    def label(self) -> str:
        """How reasons call it."""
        names = {"baseline": "unpruned", UNPRUNED: "unpruned, fine-tuned"}
        options = "".join(f" {name} {value}" for name, value in self.options)
        return names.get(self.method, self.method) + options


BASELINE, CONTINUED, SR, TMI = Net("baseline"), Net(UNPRUNED), Net("sr-gkp"), Net("tmi-gkp")


def high(net: Net) -> Net:
    """The same at 62.5 %."""
    return Net(net.method, net.options, HIGH_RATE)


@dataclass(frozen=True)
class Index:
    """The cells of a profile by what they measure."""

    cells: tuple[Cell, ...]
    profile: str = ""

    @classmethod
    def of(cls, profile: str) -> Index:
        """The index of a profile, without the example of its first notebook. Raises BadInput for an unknown profile."""
        groups = [name for name in profiles.groups(profile) if name != "start"]
        return cls(tuple(profiles.cells(profile, *groups)), profile)

    @cached_property
    def embedded(self) -> bool:
        """Whether nothing here has seen other data than the digits that come with scikit-learn."""
        datasets = {cell.dataset for cell in self.cells if isinstance(cell, Network | PruneCell)}
        return datasets <= {EMBEDDED}

    @cached_property
    def _pruned(self) -> dict[str, list[PruneCell]]:
        """Architecture -> the fine-tuned networks of the one baseline that most of them come from, by growing epochs."""
        found: dict[str, list[PruneCell]] = {}
        for cell in self.cells:
            if isinstance(cell, PruneCell) and cell.epochs and not cell.scratch and (self.embedded or cell.dataset != EMBEDDED):
                found.setdefault(cell.model, []).append(cell)
        for model, members in found.items():
            counts: dict[str, int] = {}
            for cell in members:
                counts[cell.net.hash] = counts.get(cell.net.hash, 0) + 1
            most = max(counts, key=lambda key: counts[key])
            found[model] = sorted((cell for cell in members if cell.net.hash == most), key=lambda cell: cell.epochs)
        return found

    @cached_property
    def _evaluations(self) -> dict[str, list[EvaluateCell]]:
        found: dict[str, list[EvaluateCell]] = {}
        for cell in self.cells:
            if isinstance(cell, EvaluateCell):
                found.setdefault(cell.net.hash, []).append(cell)
        return found

    def methods(self, model: str, rate: float = RATE) -> list[Net]:
        """Every method with its default options at this rate, the unpruned network under the same fine-tuning first."""
        members = [cell for cell in self._pruned.get(model, ()) if not cell.options and _same_rate(cell, rate)]
        return [Net(method, (), rate) for method in dict.fromkeys(cell.method for cell in members)]

    def networks(self, net: Net, model: str) -> dict[int, Network | PruneCell]:
        """Seed -> the cell of this network, of the longest fine-tuning that the profile has; empty where it has none."""
        members = self._pruned.get(model, [])
        if net.method == "baseline":
            return {0: members[0].net} if members else {}
        if net.method.startswith("official"):
            return self._official(net, model)
        fitting = [
            cell
            for cell in members
            if cell.method == net.method and dict(cell.options) == dict(net.options) and _same_rate(cell, net.rate)
        ]
        return {cell.seed: cell for cell in fitting if cell.epochs == fitting[-1].epochs}

    def _official(self, net: Net, model: str) -> dict[int, Network | PruneCell]:
        for cell in self.cells:
            source = cell.net if isinstance(cell, PruneCell) and not cell.epochs and cell.method == "sr-gkp" else cell
            theirs = isinstance(source, PretrainedCell) and source.weights == "srgkp-official" and source.model == model
            if theirs and (source is cell) == (net.method == "official"):
                return {0: cell}  # type: ignore[dict-item]  # a PretrainedCell, or a PruneCell of one
        return {}

    def evaluation(self, cell: Cell, part: str) -> EvaluateCell | None:
        """The evaluation of a network, on the most images. part: "paper", "pixel", "cascade", "autoattack", or the name of a
        changed test set, e.g. "high-frequency-0.3"."""
        found = [e for e in self._evaluations.get(cell.hash, ()) if e.part == part]
        return max(found, key=lambda e: math.inf if e.examples is None else e.examples, default=None)

    def timing(self, model: str) -> list[Cell]:
        """The measured costs of grouping and pruning a network of this architecture."""
        return list(filter(lambda cell: isinstance(cell, TimingCell) and cell.net.model == model, self.cells))[:1]

    def measured(self, nets: Iterable[Net], parts: Iterable[str], model: str) -> list[Cell]:
        """The cells that measure these networks in these parts, all seeds; empty when one network or part is not there."""
        found: dict[str, Cell] = {}
        parts = tuple(parts)
        for net in nets:
            seeds = self.networks(net, model)
            cells = [cell for network in seeds.values() for part in parts if (cell := self.evaluation(network, part))]
            if not seeds or len(cells) < len(parts):
                return []
            found |= {cell.hash: cell for cell in (*seeds.values(), *cells)}
        return list(found.values())


def _same_rate(cell: PruneCell, rate: float) -> bool:
    return cell.method == UNPRUNED or abs(cell.rate - rate) < 1e-9


@dataclass
class Case:
    """One claim's evidence: an architecture, and what of its cells is finished."""

    index: Index
    results: Mapping[str, Result]
    model: str = ""
    _outcomes: dict[str, Outcomes] = field(default_factory=dict)
    _spreads: dict[tuple[str, str, str], Spread] = field(default_factory=dict)

    def at(self, model: str) -> Case:
        """The same evidence, another architecture."""
        return Case(self.index, self.results, model, self._outcomes, self._spreads)

    def finished(self, net: Net, part: str | None = None) -> dict[int, Result]:
        """Seed -> result of the network, or of its evaluation in `part`, for the seeds that are finished.

        Raises NotRun when none is.
        """
        networks = self.index.networks(net, self.model)
        cells = {seed: self.index.evaluation(cell, part) if part else cell for seed, cell in networks.items()}
        found = {seed: self.results[cell.hash] for seed, cell in cells.items() if cell and cell.hash in self.results}
        if not found:
            raise NotRun(f"{net.label} of {self.model} is not finished")
        return found

    def outcomes(self, net: Net, part: str) -> dict[int, Outcomes]:
        """Seed -> outcome matrix. Raises NotRun when none is finished, or its files were not kept."""
        found = {}
        for seed, result in self.finished(net, part).items():
            key = result.cell.hash
            try:
                self._outcomes[key] = self._outcomes.get(key) or Outcomes.load(result.folder)
            except BadInput as error:
                raise NotRun(str(error)) from None
            found[seed] = self._outcomes[key]
        return found

    def rows(self, net: Net, part: str, keys: Sequence[str]) -> list[np.ndarray]:
        """(N,) in [0, 1] for each finished seed: how often each image is right, over these keys.

        Raises NotRun when none is finished or has these keys.
        """
        found = []
        for out in self.outcomes(net, part).values():
            rows = out.rows()
            if missing := [key for key in keys if key not in rows]:
                raise NotRun(f"{net.label} of {self.model} was not evaluated under {', '.join(missing)}")
            found.append(np.mean([rows[key] for key in keys], axis=0))
        return found

    def spread(self, part: str, keys: Sequence[str]) -> Spread:
        """How much an accuracy of this architecture moves with the seed, pooled over every method that has several."""
        at = (self.model, part, "+".join(keys))
        if at not in self._spreads:
            groups = []
            for net in self.index.methods(self.model):
                try:
                    groups.append([float(row.mean()) for row in self.rows(net, part, keys)])
                except NotRun:
                    continue
            self._spreads[at] = Spread.pooled(groups)
        return self._spreads[at]

    def epochs(self) -> int:
        """The epochs of fine-tuning that this architecture's networks get here."""
        members = self.index._pruned.get(self.model)
        return members[-1].epochs if members else 0

    def at_paper_scale(self, same: Sequence[str]) -> bool:
        """Whether this is the paper's own setting: an architecture of its, trained and fine-tuned as long."""
        trained = all(
            cell.net.epochs >= PAPER_EPOCHS
            for cell in self.index._pruned.get(self.model, ())[:1]
            if isinstance(cell.net, TrainCell)
        )
        return self.model in same and self.epochs() >= PAPER_EPOCHS and trained and not self.index.embedded


def case_of(profile: str, results: Sequence[Result] | None = None) -> Case:
    """The evidence of a profile: these results, and whatever else the stores hold. Raises BadInput for an unknown profile."""
    index = Index.of(profile)
    given = {result.cell.hash: result for result in results or ()}
    stored = grid.load([cell for cell in index.cells if cell.hash not in given])
    return Case(index, {**{result.cell.hash: result for result in stored}, **given})
