"""The evidence for one claim: finished experiments as results, outcome matrices and accuracies per image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from gkp.artifact import experiments as grid
from gkp.artifact.claims.decision import NotRun
from gkp.artifact.claims.evidence import Index, Net
from gkp.artifact.claims.gpu_hours import SETTINGS
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import ARCHITECTURES
from gkp.artifact.results import mean_right, of_one_budget, outcomes_of
from gkp.errors import BadInput
from gkp.evaluation.outcomes import Outcomes
from gkp.evaluation.statistics import Spread

PAPER_EPOCHS = 300  # of fine-tuning on CIFAR-10, in the paper
NAMES = ARCHITECTURES | {  # shown names of `subject`
    "tiny-imagenet-20 resnet56": "ResNet-56 on 20 classes of Tiny-ImageNet",
    "tiny-imagenet resnet56": "ResNet-56 on Tiny-ImageNet",
    "tiny-imagenet resnet101": "ResNet-101 on Tiny-ImageNet",
    "imagenet resnet50": "ResNet-50 on ImageNet",
    "imagenet resnet50 torchvision": "torchvision's ResNet-50 on ImageNet",
}


@dataclass
class Case:
    """The evidence for one claim.

    Attributes:
        index: The experiments of the profile, or those of one length of fine-tuning.
        results: Hash of a cell -> result, for finished cells.
        model: The architecture on which the claim is decided.
        same: The architectures for which the paper reports the claim.
        whole: The experiments of every length of fine-tuning where `index` has those of one; else None.
    """

    index: Index
    results: Mapping[str, Result]
    model: str = ""
    same: tuple[str, ...] = ()
    _spreads: dict[tuple[str, str, str], Spread] = field(default_factory=dict)
    whole: Index | None = None

    def at(self, model: str, same: tuple[str, ...] = (), index: Index | None = None) -> Case:
        """Return the same evidence for another claim.

        Args:
            model: The architecture on which that claim is decided.
            same: The architectures for which the paper reports it.
            index: The experiments of one length of fine-tuning; None for those of this case.
        """
        return Case(index or self.index, self.results, model, same, self._spreads, self.whole or self.index)

    def those_of(self, cells: Iterable[Cell]) -> list[Result]:
        """The results of those of these cells that are finished."""
        return [self.results[cell.hash] for cell in cells if cell.hash in self.results]

    def finished(self, net: Net, part: str | None = None) -> dict[int, Result]:
        """Seed -> result of a network, or of its evaluation, for the seeds that are finished.

        Args:
            net: The network.
            part: The evaluation, as in `gkp.artifact.results.plays`; None for the network itself.

        Raises:
            NotRun: No seed is finished.
        """
        networks = self.index.networks(net, self.model)
        cells = {seed: self.index.evaluation(cell, part) if part else cell for seed, cell in networks.items()}
        found = {seed: self.results[cell.hash] for seed, cell in cells.items() if cell and cell.hash in self.results}
        if not found:
            raise NotRun(f"{net.label} of {self.model} is not finished")
        return found

    def available(self, nets: Iterable[Net], part: str) -> list[Net]:
        """The networks that are finished and evaluated in this part."""
        found = []
        for net in nets:
            with suppress(NotRun):
                self.finished(net, part), self.finished(net)
                found.append(net)
        return found

    def first(self, net: Net, part: str | None = None) -> Result:
        """The result of the first finished seed, as `finished`. Raises NotRun where there is none."""
        return next(iter(self.finished(net, part).values()))

    def outcomes(self, net: Net, part: str) -> dict[int, Outcomes]:
        """Seed -> outcome matrix of an evaluation. Raises NotRun where none is finished, or its files were not kept."""
        try:
            return {seed: outcomes_of(result) for seed, result in self.finished(net, part).items()}
        except BadInput as error:
            raise NotRun(str(error)) from None

    def one(self, net: Net, part: str) -> Outcomes:
        """The outcome matrix of the first finished seed. Raises NotRun as `outcomes` does."""
        return next(iter(self.outcomes(net, part).values()))

    def rows(self, net: Net, part: str, keys: Sequence[str]) -> list[np.ndarray]:
        """The share of attacks under which each image is classified correctly, for each finished seed.

        Args:
            net: The network.
            part: The evaluation, as in `gkp.artifact.results.plays`.
            keys: The attacks, keys of `Outcomes.rows`.

        Returns:
            An array (N,) in [0, 1] for each seed.

        Raises:
            NotRun: No seed is finished, or an attack was not run.
        """
        try:
            return [mean_right(out, keys) for out in self.outcomes(net, part).values()]
        except BadInput as error:
            raise NotRun(f"{net.label} of {self.model} was {error}") from None

    def spread(self, part: str, keys: Sequence[str], *, borrowed: bool = False) -> Spread:
        """The spread over seeds of an accuracy of this architecture.

        It is pooled over all methods with several seeds and over all lengths of fine-tuning, because long ones have one seed.
        A method whose seeds remove so different parts that their networks are of different sizes is left out.

        Args:
            part: The evaluations, as in `gkp.artifact.results.plays`.
            keys: The attacks whose accuracies are averaged.
            borrowed: Whether an architecture with one seed of everything takes the spread of the one with most seeds.
        """
        at = (self.model, part, "+".join(keys))
        if at not in self._spreads:
            groups = []
            for index in (self.whole or self.index).by_length(self.model):
                case = self.at(self.model, self.same, index)
                for net in index.methods(self.model):
                    with suppress(NotRun):
                        if of_one_budget([network["paper_macs"] for network in case.finished(net).values()]):
                            groups.append(case.rows(net, part, keys))
            self._spreads[at] = Spread.pooled(groups)
        own = self._spreads[at]
        if own.df or not borrowed:
            return own
        others = {
            model: self.at(model).spread(part, keys) for model in (self.whole or self.index).models if model != self.model
        }
        model = max(others, key=lambda name: others[name].df, default=None)
        return replace(others[model], of=NAMES.get(model, model)) if model and others[model].df else own

    def epochs(self) -> int:
        """The longest fine-tuning of this architecture here, in epochs; 0 where there is none."""
        longest = self.index.tuned(self.model)
        return longest.finetuned if longest else 0

    def network(self) -> str:
        """The name of the architecture, with those of the paper where it reports the claim for others."""
        name = NAMES.get(self.model, self.model)
        return name if not self.same or self.model in self.same else f"{name} (the paper: {self._papers()})"

    def setting(self) -> str:
        """The architecture and the epochs of fine-tuning, and how both differ from the paper's."""
        name, epochs = NAMES.get(self.model, self.model), f"{self.epochs()} epoch{'' if self.epochs() == 1 else 's'}"
        if not self.same:
            return f"{name}, {epochs}"
        off = [self._papers()] if self.model not in self.same else []
        off += [f"{wanted} epochs"] if self.epochs() < (wanted := self._papers_epochs()) else []
        return f"{name}, {epochs} ({'the paper: ' + ', '.join(off) if off else 'as in the paper'})"

    def _papers_epochs(self) -> int:
        """The epochs of fine-tuning in the paper, of this network or of the first one for which it reports the claim."""
        return next((SETTINGS[name][2] for name in (self.model, *self.same) if name in SETTINGS), PAPER_EPOCHS)

    def _papers(self) -> str:
        return ", ".join(NAMES.get(model, model) for model in self.same)

    def at_paper_scale(self) -> bool:
        """Whether this is the paper's setting: one of its architectures, trained and fine-tuned as long, not on digits."""
        longest = self.index.tuned(self.model)
        if longest is None or self.model not in self.same or self.index.embedded:
            return False
        wanted = self._papers_epochs()
        return longest.finetuned >= wanted and getattr(longest.net, "epochs", wanted) >= wanted


def case_of(profile: str, results: Sequence[Result] | None = None, store: grid.Store | None = None) -> Case:
    """The evidence of a profile.

    Args:
        profile: A name, or the path of a Python file.
        results: Finished experiments to use.
        store: Where to look for others; None for `gkp.artifact.experiments.default_store()`.

    Raises:
        BadInput: The profile is not known.
    """
    index = Index.of(profile)
    given = {result.cell.hash: result for result in results or ()}
    stored = grid.load([cell for cell in index.cells if cell.hash not in given], store=store)
    return Case(index, {**{result.cell.hash: result for result in stored}, **given})
