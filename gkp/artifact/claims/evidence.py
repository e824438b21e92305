"""The evidence: which experiments of a profile measure a network, and what the finished ones found.

Experiments are found by what they are (method, rate, options, epochs, seed, part), never by their place in a profile.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from gkp.artifact import experiments as grid
from gkp.artifact import profiles
from gkp.artifact.claims.decision import NotRun
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import EvaluateCell, Network, PretrainedCell, PruneCell, TimingCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.groups import RATE, UNPRUNED
from gkp.artifact.published import ATTACKED
from gkp.artifact.results import BASELINE as UNTRAINED
from gkp.artifact.results import NAMES, in_brackets, plays
from gkp.errors import BadInput
from gkp.evaluation.outcomes import Outcomes
from gkp.evaluation.statistics import Spread

EMBEDDED = "digits"
PAPER_EPOCHS = 300  # of fine-tuning on CIFAR-10, in the paper
COLUMNS = dict(zip(("benign", "(a)", "(b)", "(c)"), ATTACKED, strict=True))  # as the paper's tables head them
_OTHER_KEY = re.compile(r"[a-z]+(-[a-z]+)*-\d[\d./]*(-true)?")
_NAMES = NAMES | {
    "baseline": UNTRAINED,
    "official": "the authors' ResNet-20",
    "official sr-gkp": "the authors' ResNet-20 after one-shot SR-GKP",
}


class Keys(tuple[str, ...]):
    """Rows of an outcome matrix, by which accuracies are averaged."""

    @classmethod
    def of(cls, text: str) -> Keys:
        """From claims.toml: "benign, (a), (b), (c)", or rows such as "worst-case-1/255". BadInput for another word."""
        words = [COLUMNS.get(word, word) for word in text.split(", ")]
        for word in words:
            if word not in ATTACKED and not _OTHER_KEY.fullmatch(word):
                raise BadInput(f"{word!r} is no column; give {', '.join(COLUMNS)}, or an attack such as 'worst-case-1/255'")
        return cls(words)


@dataclass(frozen=True)
class Net:
    """A row of a table, of all seeds.

    Attributes:
        method: A method's identifier; "none" is the unpruned network under the same fine-tuning, "baseline" that before any,
            "official" the authors' ResNet-20, and "official sr-gkp" that network after one-shot pruning.
        options: Of the method, where they are not its own defaults.
        rate: The share of kernels removed.
    """

    method: str
    options: tuple[tuple[str, Any], ...] = ()
    rate: float = RATE

    @classmethod
    def of(cls, given: str | Mapping[str, Any]) -> Net:
        """From claims.toml: "sr-gkp", or { method = "sr-gkp", alpha = 0.1 }. Raises BadInput for an unknown method."""
        method, options = (given, {}) if isinstance(given, str) else (given.get("method"), dict(given))
        if method not in _NAMES:
            raise BadInput(f"no method is called {method!r}; there are {', '.join(_NAMES)}")
        options.pop("method", None)
        return cls(str(method), tuple(sorted(options.items())))

    def at(self, rate: float) -> Net:
        """The same at another rate."""
        return replace(self, rate=rate)

    @property
    def label(self) -> str:
        """Its name for people."""
        return _NAMES.get(self.method, self.method) + in_brackets(self.options)


BASELINE, CONTINUED, SR, TMI = Net("baseline"), Net(UNPRUNED), Net("sr-gkp"), Net("tmi-gkp")


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
            baselines = [cell.net.hash for cell in members]
            most = max(dict.fromkeys(baselines), key=baselines.count)
            found[model] = sorted((cell for cell in members if cell.net.hash == most), key=lambda cell: cell.epochs)
        return found

    @cached_property
    def _evaluations(self) -> dict[str, list[EvaluateCell]]:
        found: dict[str, list[EvaluateCell]] = {}
        for cell in self.cells:
            if isinstance(cell, EvaluateCell):
                found.setdefault(cell.net.hash, []).append(cell)
        return found

    def tuned(self, model: str) -> PruneCell | None:
        """The longest fine-tuning of this architecture, None where there is none."""
        return next(reversed(self._pruned.get(model, ())), None)

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
        """The evaluation of a network on the most images.

        Args:
            cell: The network.
            part: As in `gkp.artifact.results.plays`: "paper", "pixel", "cascade", "autoattack", "high-frequency-0.3", ...
        """
        found = [e for e in self._evaluations.get(cell.hash, ()) if plays(e, part)]
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

    def available(self, needed: Sequence[Net], wished: Sequence[Net], part: str, model: str) -> list[Cell]:
        """The cells of the needed networks and of those wished for that are there; empty when a needed one is not."""
        groups = [self.measured([net], [part], model) for net in needed]
        if not all(groups):
            return []
        groups += [self.measured([net], [part], model) for net in wished]
        return list({cell.hash: cell for group in groups for cell in group}.values())


def _same_rate(cell: PruneCell, rate: float) -> bool:
    return cell.method == UNPRUNED or abs(cell.rate - rate) < 1e-9


@dataclass
class Case:
    """One claim's evidence.

    Attributes:
        index: The experiments of the profile.
        results: Hash -> result, of those that are finished.
        model: The architecture it is decided on.
        same: The architectures for which the paper reports the claim.
    """

    index: Index
    results: Mapping[str, Result]
    model: str = ""
    same: tuple[str, ...] = ()
    _outcomes: dict[str, Outcomes] = field(default_factory=dict)
    _spreads: dict[tuple[str, str, str], Spread] = field(default_factory=dict)

    def at(self, model: str, same: tuple[str, ...] = ()) -> Case:
        """The same evidence for another claim, on another architecture."""
        return Case(self.index, self.results, model, same, self._outcomes, self._spreads)

    def finished(self, net: Net, part: str | None = None) -> dict[int, Result]:
        """Seed -> result of the network, or of its evaluation in `part`, for the seeds that are finished.

        Raises:
            NotRun: When none is.
        """
        networks = self.index.networks(net, self.model)
        cells = {seed: self.index.evaluation(cell, part) if part else cell for seed, cell in networks.items()}
        found = {seed: self.results[cell.hash] for seed, cell in cells.items() if cell and cell.hash in self.results}
        if not found:
            raise NotRun(f"{net.label} of {self.model} is not finished")
        return found

    def available(self, nets: Iterable[Net], part: str) -> list[Net]:
        """Those of the networks that are finished and evaluated in this part."""
        found = []
        for net in nets:
            try:
                self.finished(net, part), self.finished(net)
            except NotRun:
                continue
            found.append(net)
        return found

    def first(self, net: Net, part: str | None = None) -> Result:
        """The result of its first finished seed. Raises NotRun when there is none."""
        return next(iter(self.finished(net, part).values()))

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

    def one(self, net: Net, part: str) -> Outcomes:
        """The outcome matrix of its first finished seed. Raises NotRun as `outcomes`."""
        return next(iter(self.outcomes(net, part).values()))

    def rows(self, net: Net, part: str, keys: Sequence[str]) -> list[np.ndarray]:
        """For each finished seed how often each image is classified correctly, (N,) in [0, 1], over these keys.

        Raises:
            NotRun: When none is finished or has these keys.
        """
        found = []
        for out in self.outcomes(net, part).values():
            rows = out.rows()
            if missing := [key for key in keys if key not in rows]:
                raise NotRun(f"{net.label} of {self.model} was not evaluated under {', '.join(missing)}")
            found.append(np.mean([rows[key] for key in keys], axis=0))
        return found

    def spread(self, part: str, keys: Sequence[str]) -> Spread:
        """How much an accuracy of this architecture varies with the seed, pooled over every method that has several."""
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
        longest = self.index.tuned(self.model)
        return longest.epochs if longest else 0

    def at_paper_scale(self) -> bool:
        """Whether this is the paper's own setting: one of its architectures, trained and fine-tuned as long."""
        longest = self.index.tuned(self.model)
        if longest is None or self.model not in self.same or self.index.embedded:
            return False
        return longest.epochs >= PAPER_EPOCHS and getattr(longest.net, "epochs", PAPER_EPOCHS) >= PAPER_EPOCHS


def case_of(profile: str, results: Sequence[Result] | None = None, store: grid.Store | None = None) -> Case:
    """The evidence of a profile.

    Args:
        profile: A name, or the path of a Python file. Raises BadInput for another.
        results: Finished experiments to use.
        store: Where else to look for finished ones; by default where `gkp.artifact.experiments.run` keeps them.
    """
    index = Index.of(profile)
    given = {result.cell.hash: result for result in results or ()}
    stored = grid.load([cell for cell in index.cells if cell.hash not in given], store=store)
    return Case(index, {**{result.cell.hash: result for result in stored}, **given})
