"""One claim's evidence: what the finished experiments found, as results, outcome matrices and rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from gkp.artifact import experiments as grid
from gkp.artifact.claims.decision import NotRun
from gkp.artifact.claims.evidence import Index, Net
from gkp.artifact.claims.gpu_hours import SETTINGS
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import ARCHITECTURES
from gkp.artifact.results import mean_right, outcomes_of
from gkp.errors import BadInput
from gkp.evaluation.outcomes import Outcomes
from gkp.evaluation.statistics import Spread

PAPER_EPOCHS = 300  # of fine-tuning on CIFAR-10, in the paper
NAMES = ARCHITECTURES | {  # of settings: architectures, with their data set where it is not CIFAR-10
    "tiny-imagenet-20 resnet56": "ResNet-56 on 20 classes of Tiny-ImageNet",
    "tiny-imagenet resnet56": "ResNet-56 on Tiny-ImageNet",
    "tiny-imagenet resnet101": "ResNet-101 on Tiny-ImageNet",
    "imagenet resnet50": "ResNet-50 on ImageNet",
    "imagenet resnet50 torchvision": "torchvision's ResNet-50 on ImageNet",
}


@dataclass
class Case:
    """One claim's evidence.

    Attributes:
        index: The experiments of the profile.
        results: Hash -> result, of those that are finished.
        model: The architecture it is decided on.
        same: The architectures for which the paper reports the claim.
        whole: The experiments of every length of fine-tuning, where `index` has those of one.
    """

    index: Index
    results: Mapping[str, Result]
    model: str = ""
    same: tuple[str, ...] = ()
    _spreads: dict[tuple[str, str, str], Spread] = field(default_factory=dict)
    whole: Index | None = None

    def at(self, model: str, same: tuple[str, ...] = (), index: Index | None = None) -> Case:
        """The same evidence for another claim, on another architecture; `index`: with one length of fine-tuning only."""
        return Case(index or self.index, self.results, model, same, self._spreads, self.whole or self.index)

    def those_of(self, cells: Iterable[Cell]) -> list[Result]:
        """The results of those of these cells that are finished."""
        return [self.results[cell.hash] for cell in cells if cell.hash in self.results]

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
            with suppress(NotRun):
                self.finished(net, part), self.finished(net)
                found.append(net)
        return found

    def first(self, net: Net, part: str | None = None) -> Result:
        """The result of its first finished seed. Raises NotRun when there is none."""
        return next(iter(self.finished(net, part).values()))

    def outcomes(self, net: Net, part: str) -> dict[int, Outcomes]:
        """Seed -> outcome matrix. Raises NotRun when none is finished, or its files were not kept."""
        try:
            return {seed: outcomes_of(result) for seed, result in self.finished(net, part).items()}
        except BadInput as error:
            raise NotRun(str(error)) from None

    def one(self, net: Net, part: str) -> Outcomes:
        """The outcome matrix of its first finished seed. Raises NotRun as `outcomes`."""
        return next(iter(self.outcomes(net, part).values()))

    def rows(self, net: Net, part: str, keys: Sequence[str]) -> list[np.ndarray]:
        """For each finished seed how often each image is classified correctly, (N,) in [0, 1], over these keys.

        Raises:
            NotRun: When none is finished or has these keys.
        """
        try:
            return [mean_right(out, keys) for out in self.outcomes(net, part).values()]
        except BadInput as error:
            raise NotRun(f"{net.label} of {self.model} was {error}") from None

    def spread(self, part: str, keys: Sequence[str]) -> Spread:
        """The spread over seeds of an accuracy of this architecture.

        Pooled over every method that has several seeds, and over lengths of fine-tuning: a long one mostly has one seed.
        """
        at = (self.model, part, "+".join(keys))
        if at not in self._spreads:
            groups = []
            for index in (self.whole or self.index).by_schedule(self.model):
                case = self.at(self.model, self.same, index)
                for net in index.methods(self.model):
                    with suppress(NotRun):
                        groups.append(case.rows(net, part, keys))
            self._spreads[at] = Spread.pooled(groups)
        return self._spreads[at]

    def epochs(self) -> int:
        """The epochs of fine-tuning that this architecture's networks get here."""
        longest = self.index.tuned(self.model)
        return longest.finetuned if longest else 0

    def network(self) -> str:
        """The network, and whether the paper reports the claim for it."""
        name = NAMES.get(self.model, self.model)
        return name if not self.same or self.model in self.same else f"{name} (the paper: {self._papers()})"

    def setting(self) -> str:
        """The network and its schedule, and how far they are from those for which the paper reports the claim."""
        name, epochs = NAMES.get(self.model, self.model), f"{self.epochs()} epochs"
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
        """Whether this is the paper's own setting: one of its architectures, trained and fine-tuned as long."""
        longest = self.index.tuned(self.model)
        if longest is None or self.model not in self.same or self.index.embedded:
            return False
        wanted = self._papers_epochs()
        return longest.finetuned >= wanted and getattr(longest.net, "epochs", wanted) >= wanted


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
