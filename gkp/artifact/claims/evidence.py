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

from gkp.artifact import profiles
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import EvaluateCell, Network, PretrainedCell, PruneCell, SpeedCell, TimingCell
from gkp.artifact.groups import RATE, UNPRUNED, is_theirs
from gkp.artifact.published import ATTACKED
from gkp.artifact.results import BASELINE as UNTRAINED
from gkp.artifact.results import NAMES, in_brackets, plays, trained_for_robustness, variant_of
from gkp.errors import BadInput

EMBEDDED = "digits"
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
        """From claims.toml: "sr-gkp", or { method = "sr-gkp", alpha = 0.1, rate = 0.75 }. BadInput for an unknown method."""
        method, options = (given, {}) if isinstance(given, str) else (given.get("method"), dict(given))
        if method not in _NAMES:
            raise BadInput(f"no method is called {method!r}; there are {', '.join(_NAMES)}")
        options.pop("method", None)
        rate = options.pop("rate", RATE)
        return cls(str(method), tuple(sorted(options.items())), rate)

    def at(self, rate: float) -> Net:
        """The same at another rate."""
        return replace(self, rate=rate)

    @property
    def label(self) -> str:
        """Its name for people."""
        return _NAMES.get(self.method, self.method) + in_brackets(self.options)


BASELINE, CONTINUED, SR, TMI = Net("baseline"), Net(UNPRUNED), Net("sr-gkp"), Net("tmi-gkp")


def subject(cell: Network | PruneCell) -> str:
    """What a claim calls the network that a cell trains or prunes: its architecture, and what else it may be trained on.

    Returns:
        "resnet56" on CIFAR-10 or the digits, "tiny-imagenet resnet56", or "imagenet resnet50 torchvision" for public weights.
    """
    if cell.dataset in (EMBEDDED, "cifar10"):
        return cell.model
    net = cell.net if isinstance(cell, PruneCell) else cell
    return " ".join((cell.dataset, cell.model, *([net.weights] if isinstance(net, PretrainedCell) else [])))


@dataclass(frozen=True)
class Index:
    """The cells of a profile by what they measure; its networks are named as `subject` names them."""

    cells: tuple[Cell, ...]
    profile: str = ""
    _shorter: dict[tuple[str, int], Index] = field(default_factory=dict, compare=False, repr=False)

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
        """Network -> what was fine-tuned of the one baseline of it that most come from, by growing epochs."""
        found: dict[str, list[PruneCell]] = {}
        for cell in self.cells:
            if not isinstance(cell, PruneCell) or not cell.epochs or cell.scratch or is_theirs(cell.net):
                continue  # what is trained of the authors' network is held against their log
            if self.embedded or cell.dataset != EMBEDDED:
                found.setdefault(subject(cell), []).append(cell)
        for model, members in found.items():
            baselines = [cell.net.hash for cell in members]
            most = max(dict.fromkeys(baselines), key=baselines.count)
            found[model] = sorted((cell for cell in members if cell.net.hash == most), key=lambda cell: cell.finetuned)
        return found

    @cached_property
    def _evaluations(self) -> dict[str, list[EvaluateCell]]:
        found: dict[str, list[EvaluateCell]] = {}
        for cell in self.cells:
            if isinstance(cell, EvaluateCell):
                found.setdefault(cell.net.hash, []).append(cell)
        return found

    def by_schedule(self, model: str) -> list[Index]:
        """One index for each length of fine-tuning of this architecture, the longest first: networks are compared within one.

        This index itself where nothing of the architecture is fine-tuned.
        """
        lengths = sorted({cell.finetuned for cell in self._pruned.get(model, ())}, reverse=True)
        return [self._of_length(model, epochs) for epochs in lengths] if len(lengths) > 1 else [self]

    def _of_length(self, model: str, epochs: int) -> Index:
        if (model, epochs) not in self._shorter:
            others = {
                c.hash
                for c in self.cells
                if isinstance(c, PruneCell)
                and subject(c) == model
                and c.epochs
                and c.finetuned != epochs
                and not is_theirs(c.net)
            }
            kept = (cell for cell in self.cells if cell.hash not in others)
            self._shorter[model, epochs] = Index(tuple(kept), self.profile)
        return self._shorter[model, epochs]

    def tuned(self, model: str) -> PruneCell | None:
        """The longest fine-tuning of this architecture, None where there is none."""
        return next(reversed(self._pruned.get(model, ())), None)

    def methods(self, model: str, rate: float = RATE) -> list[Net]:
        """Every method, but no variant of one, at this rate, the unpruned network under the same fine-tuning first.

        Without those that are trained for robustness: they would differ from all others whatever they pruned.
        """
        members = [cell for cell in self._pruned.get(model, ()) if not variant_of(cell) and _same_rate(cell, rate)]
        members = [cell for cell in members if not trained_for_robustness(cell.method)]
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
            if cell.method == net.method and variant_of(cell) == dict(net.options) and _same_rate(cell, net.rate)
        ]
        return {cell.seed: cell for cell in fitting if cell.finetuned == fitting[-1].finetuned}

    def _official(self, net: Net, model: str) -> dict[int, Network | PruneCell]:
        for cell in self.cells:
            source = cell.net if isinstance(cell, PruneCell) and not cell.epochs and cell.method == "sr-gkp" else cell
            if is_theirs(source) and source.model == model and (source is cell) == (net.method == "official"):
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

    def timed(self, kind: type[TimingCell | SpeedCell], model: str) -> list[Cell]:
        """The first cell of this kind that measures a network of this architecture, as a list; empty where there is none."""
        found: list[Cell] = [cell for cell in self.cells if isinstance(cell, kind) and cell.net.model == model]
        return found[:1]

    def seeds(self, nets: Iterable[Net], model: str, most: int | None = None) -> list[Cell]:
        """The networks themselves, of all seeds or the first `most`; empty when one of them is not there."""
        groups = [list(self.networks(net, model).values())[:most] for net in nets]
        return [cell for group in groups for cell in group] if all(groups) else []

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

    def every_method(self, part: str, model: str) -> list[Cell]:
        """The cells of all `methods` that are evaluated in this part."""
        return self.available([], self.methods(model), part, model)


def _same_rate(cell: PruneCell, rate: float) -> bool:
    return cell.method == UNPRUNED or abs(cell.rate - rate) < 1e-9
