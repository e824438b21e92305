"""Find the experiments of a profile that measure a network.

They are found by method, rate, options, epochs, seed and part, never by their place in the profile.
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
from gkp.artifact.groups import NAMES, RATE, UNPRUNED, is_theirs
from gkp.artifact.published import ATTACKED
from gkp.artifact.results import BASELINE as UNTRAINED
from gkp.artifact.results import CONTINUED as TRAINED
from gkp.artifact.results import in_brackets, plays, trained_for_robustness, variant_of
from gkp.errors import BadInput

EMBEDDED = "digits"
COLUMNS = dict(zip(("benign", "(a)", "(b)", "(c)"), ATTACKED, strict=True))  # headings of the paper's tables -> attacks
_OTHER_KEY = re.compile(r"[a-z]+(-[a-z]+)*-\d[\d./]*(-true)?")
_NAMES = NAMES | {
    UNPRUNED: TRAINED,
    "baseline": UNTRAINED,
    "official": "the authors' ResNet-20",
    "official sr-gkp": "the authors' ResNet-20 after one-shot SR-GKP",
}


class Keys(tuple[str, ...]):
    """Attacks (keys of an outcome matrix) whose accuracies are averaged."""

    @classmethod
    def of(cls, text: str) -> Keys:
        """Read from claims.toml: "benign, (a), (b), (c)", or keys such as "worst-case-1/255". BadInput for another word."""
        words = [COLUMNS.get(word, word) for word in text.split(", ")]
        for word in words:
            if word not in ATTACKED and not _OTHER_KEY.fullmatch(word):
                raise BadInput(f"{word!r} is no column; give {', '.join(COLUMNS)}, or an attack such as 'worst-case-1/255'")
        return cls(words)


@dataclass(frozen=True)
class Net:
    """A network as a row of a table, whatever its seed.

    Attributes:
        method: The identifier of a method; "none" for the unpruned network under the same fine-tuning, "baseline" for the same
            before fine-tuning, "official" for the authors' ResNet-20, "official sr-gkp" for that one after one-shot pruning.
        options: Options of the method that differ from its defaults.
        rate: The share of kernels removed.
    """

    method: str
    options: tuple[tuple[str, Any], ...] = ()
    rate: float = RATE

    @classmethod
    def of(cls, given: str | Mapping[str, Any]) -> Net:
        """Read from claims.toml: "sr-gkp", or { method = "sr-gkp", alpha = 0.1, rate = 0.75 }. BadInput for other methods."""
        method, options = (given, {}) if isinstance(given, str) else (given.get("method"), dict(given))
        if method not in _NAMES:
            raise BadInput(f"no method is called {method!r}; there are {', '.join(_NAMES)}")
        options.pop("method", None)
        rate = options.pop("rate", RATE)
        return cls(str(method), tuple(sorted(options.items())), rate)

    def at(self, rate: float) -> Net:
        """The same network at another rate."""
        return replace(self, rate=rate)

    @property
    def label(self) -> str:
        """The name that is shown."""
        return _NAMES.get(self.method, self.method) + in_brackets(self.options)


BASELINE, CONTINUED, SR, TMI = Net("baseline"), Net(UNPRUNED), Net("sr-gkp"), Net("tmi-gkp")


def subject(cell: Network | PruneCell) -> str:
    """The name by which claims refer to the network that a cell trains or prunes.

    Returns:
        The architecture on CIFAR-10 and on digits, "resnet56"; elsewhere the data set, the architecture and the name of public
        weights: "tiny-imagenet resnet56", "imagenet resnet50 torchvision".
    """
    if cell.dataset in (EMBEDDED, "cifar10"):
        return cell.model
    net = cell.net if isinstance(cell, PruneCell) else cell
    return " ".join((cell.dataset, cell.model, *([net.weights] if isinstance(net, PretrainedCell) else [])))


@dataclass(frozen=True)
class Index:
    """The cells of a profile by what they measure; networks are named by `subject`.

    Attributes:
        cells: The cells.
    """

    cells: tuple[Cell, ...]
    _shorter: dict[tuple[str, int], Index] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, profile: str) -> Index:
        """The index of a profile, without the cells of its first notebook. BadInput for an unknown profile."""
        groups = [name for name in profiles.groups(profile) if name != "start"]
        return cls(tuple(profiles.cells(profile, *groups)))

    @cached_property
    def embedded(self) -> bool:
        """Whether all networks were trained on digits (the data that come with scikit-learn)."""
        datasets = {cell.dataset for cell in self.cells if isinstance(cell, Network | PruneCell)}
        return datasets <= {EMBEDDED}

    @cached_property
    def _pruned(self) -> dict[str, list[PruneCell]]:
        """`subject` -> the fine-tuned networks of the baseline that most of them start from, the shortest training first."""
        found: dict[str, list[PruneCell]] = {}
        for cell in self.cells:
            if not isinstance(cell, PruneCell) or not cell.epochs or cell.scratch or is_theirs(cell.net):
                continue  # fine-tunings of the authors' network are compared with their log only
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
        """Those of `by_length` within which networks are compared.

        They are the lengths of the unpruned network's fine-tuning, where it has one: a method that trains its small network
        from scratch may have a length of its own, which is no other schedule.
        """
        every = self.by_length(model)
        unpruned = [part for part in every if any(cell.method == UNPRUNED for cell in part._pruned.get(model, ()))]
        return unpruned or every

    def by_length(self, model: str) -> list[Index]:
        """One index for each length of fine-tuning of this architecture, the longest first.

        This index itself where the architecture has fewer than two lengths.
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
            self._shorter[model, epochs] = Index(tuple(kept))
        return self._shorter[model, epochs]

    @property
    def models(self) -> list[str]:
        """The architectures of which pruned networks are in the profile."""
        return list(self._pruned)

    def tuned(self, model: str) -> PruneCell | None:
        """A network of this architecture with the longest fine-tuning; None where none is fine-tuned."""
        return next(reversed(self._pruned.get(model, ())), None)

    def methods(self, model: str, rate: float = RATE) -> list[Net]:
        """Every method with its default options at this rate, the unpruned network under the same fine-tuning first.

        Methods that train on adversarial images are left out: their robustness does not come from what they prune.
        """
        members = [cell for cell in self._pruned.get(model, ()) if not variant_of(cell) and _same_rate(cell, rate)]
        members = [cell for cell in members if not trained_for_robustness(cell.method)]
        return [Net(method, (), rate) for method in dict.fromkeys(cell.method for cell in members)]

    def networks(self, net: Net, model: str) -> dict[int, Network | PruneCell]:
        """Seed -> the cell of this network, with the longest fine-tuning in the profile; empty where it has none."""
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
        """The evaluation of a network, that with most images; None where there is none.

        Args:
            cell: The network.
            part: The role of the evaluation, as in `gkp.artifact.results.plays`: "paper", "pixel", "cascade", ...
        """
        found = [e for e in self._evaluations.get(cell.hash, ()) if plays(e, part)]
        return max(found, key=lambda e: math.inf if e.examples is None else e.examples, default=None)

    def timed(self, kind: type[TimingCell | SpeedCell], model: str) -> list[Cell]:
        """The first cell of this kind that measures a network of this architecture, as a list; empty where there is none."""
        found: list[Cell] = [cell for cell in self.cells if isinstance(cell, kind) and cell.net.model == model]
        return found[:1]

    def seeds(self, nets: Iterable[Net], model: str, most: int | None = None) -> list[Cell]:
        """The cells of some networks, not of their evaluations.

        Args:
            nets: The networks.
            model: The architecture.
            most: Seeds of each; None for all.

        Returns:
            The cells; empty where the profile lacks one of the networks.
        """
        groups = [list(self.networks(net, model).values())[:most] for net in nets]
        return [cell for group in groups for cell in group] if all(groups) else []

    def measured(self, nets: Iterable[Net], parts: Iterable[str], model: str) -> list[Cell]:
        """The cells of some networks and of their evaluations, all seeds.

        Args:
            nets: The networks.
            parts: The roles of the evaluations, as in `gkp.artifact.results.plays`.
            model: The architecture.

        Returns:
            The cells; empty where the profile lacks one network or evaluation.
        """
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
        """The cells of some networks and of their evaluations, as far as the profile has them.

        Args:
            needed: Networks without which there is nothing to decide.
            wished: Further networks, taken where they are there.
            part: The role of the evaluations, as in `gkp.artifact.results.plays`.
            model: The architecture.

        Returns:
            The cells; empty where the profile lacks a needed network or its evaluation.
        """
        groups = [self.measured([net], [part], model) for net in needed]
        if not all(groups):
            return []
        groups += [self.measured([net], [part], model) for net in wished]
        return list({cell.hash: cell for group in groups for cell in group}.values())

    def every_method(self, part: str, model: str) -> list[Cell]:
        """The cells of all `methods` that are evaluated in this part, and of these evaluations."""
        return self.available([], self.methods(model), part, model)


def _same_rate(cell: PruneCell, rate: float) -> bool:
    return cell.method == UNPRUNED or abs(cell.rate - rate) < 1e-9
