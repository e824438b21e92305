"""Select finished experiments by their role, and name them as tables and figures do.

`plays` decides the role: tables select results with it, and claims select the cells of a profile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.entry import network_in
from gkp.artifact.experiments.kinds import EvaluateCell, Network, PruneCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.groups import NAMES
from gkp.artifact.published import ARCHITECTURES, ATTACKED
from gkp.checkpoints import load_model
from gkp.data.dataset import Dataset
from gkp.data.sources import is_here, load_dataset
from gkp.errors import BadInput
from gkp.evaluation.outcomes import Outcomes
from gkp.pruning.registry import methods

STRONG = "strong"  # the role of all evaluations under given attacks: cascades, AutoAttack
BASELINE, CONTINUED = "unpruned", "unpruned, fine-tuned"  # the network that methods start from; the same with their fine-tuning
SR = "sr-gkp"  # the method of the paper
SAME_MACS = 0.01  # a relative difference up to which multiply-accumulates count as equal
ROBUST = "adversarially trained"  # the mark of methods that train on adversarial images


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        cell: Its cell.
        result: Its result.
        network: The result of the network that was evaluated; None where it is not among the results.
    """

    cell: EvaluateCell
    result: Result
    network: Result | None

    @property
    def net(self) -> Network | PruneCell:
        """The cell of the network that was evaluated."""
        return self.cell.net

    @property
    def facts(self) -> dict[str, Any]:
        """The columns of every table of evaluations: method (see `row_name`), seed and n."""
        return {"method": row_name(self.net), "seed": net_seed(self.net), "n": self.result["n"]}

    @property
    def accuracies(self) -> Iterator[dict[str, Any]]:
        """For each attack the columns attack, accuracy, low and high, as fractions."""
        for attack, value in self.result["accuracy"].items():
            low, high = self.result["interval"][attack]
            yield {"attack": attack, "accuracy": value, "low": low, "high": high}


def of_one_budget(macs: Collection[int]) -> bool:
    """Whether all of these multiply-accumulates, by the paper's counter, are within 1 % of one budget."""
    return not macs or max(macs) <= (1 + 2 * SAME_MACS) * min(macs)


def of_one_network(results: Iterable[Result]) -> tuple[list[Result], str]:
    """The results of the first unpruned network and of what was pruned from it; rows are methods, never of several networks.

    Returns:
        The results, in their order, and which networks they are of and not of: "" where there is one network only.
    """
    found: dict[str, list[Result]] = {}
    models: dict[str, str] = {}
    for result in results:
        source = result.cell
        while isinstance(net := getattr(source, "net", None), Cell):
            source = net
        found.setdefault(source.hash, []).append(result)
        models[source.hash] = getattr(source, "model", source.label)
    return next(iter(found.values()), []), alone(models.values())


def alone(models: Collection[str]) -> str:
    """The name of the first of several architectures, which is shown, and of the others; "" where there is only one."""
    names = [ARCHITECTURES.get(model, model) for model in models]
    return f"{names[0]} alone; not shown: {', '.join(names[1:])}" if len(names) > 1 else ""


def plays(cell: Cell, part: str) -> bool:
    """Whether a cell is an evaluation in this role.

    Args:
        cell: Any cell.
        part: A value of `EvaluateCell.part`, the name of a changed test set, or STRONG.
    """
    if not isinstance(cell, EvaluateCell):
        return False
    return bool(cell.attacks and not cell.variant) if part == STRONG else part in (cell.part, cell.variant or cell.part)


def evaluations(results: Sequence[Result], part: str) -> list[Evaluation]:
    """The evaluations in a role (see `plays`) among finished experiments, in their order."""
    networks = {result.cell.hash: result for result in results if isinstance(result.cell, Network | PruneCell)}
    return [
        Evaluation(cell, result, networks.get(cell.net.hash))
        for result in results
        if isinstance(cell := result.cell, EvaluateCell) and plays(cell, part)
    ]


def load_outcomes(cells: Mapping[str, Cell], results: Sequence[Result]) -> dict[str, Outcomes]:
    """Name -> outcome matrix, for the finished ones among some evaluation cells."""
    by_hash = {result.cell.hash: result for result in results}
    return {name: outcomes_of(by_hash[cell.hash]) for name, cell in cells.items() if cell.hash in by_hash}


def outcomes_of(result: Result) -> Outcomes:
    """The outcome matrix of a finished evaluation, read once a process. Raises BadInput where it was not kept."""
    file = result.folder / "outcomes.npz"
    return _read_outcomes(result.folder, file.stat().st_mtime_ns if file.exists() else 0)


@cache
def _read_outcomes(folder: Path, changed: int) -> Outcomes:
    return Outcomes.load(folder)


def mean_right(outcomes: Outcomes, keys: Sequence[str]) -> np.ndarray:
    """The share of some attacks under which each image is classified correctly.

    Args:
        outcomes: An outcome matrix of N images.
        keys: The attacks, keys of `Outcomes.rows`.

    Returns:
        Shares (N,) in [0, 1].

    Raises:
        BadInput: An attack is not in the matrix.
    """
    rows = outcomes.rows()
    if missing := [key for key in keys if key not in rows]:
        raise BadInput(f"not evaluated under {', '.join(missing)}")
    return np.mean([rows[key] for key in keys], axis=0)


def load_networks(results: Sequence[Result], *names: str) -> dict[str, nn.Module]:
    """Load finished networks; compact ones where something was pruned.

    Args:
        results: Finished networks.
        names: The networks to load, by `row_name`; of several seeds the first is taken.

    Returns:
        Name -> network in eval mode.
    """
    found: dict[str, nn.Module] = {}
    for result in results:
        cell = result.cell
        if isinstance(cell, Network | PruneCell) and row_name(cell) in names and row_name(cell) not in found:
            found[row_name(cell)] = load_model(result.file(network_in(result.folder))).eval()
    return found


def row_name(net: Network | PruneCell) -> str:
    """The key of a network in the CSV of every table: "unpruned", "unpruned, fine-tuned", or the method with its options.

    A network without fine-tuning has ", one shot" behind. `paper_name` gives the name that is shown.
    """
    if not isinstance(net, PruneCell):
        return BASELINE
    if net.method == "none":
        return CONTINUED
    scratch, untrained = " shape from scratch" if net.scratch else "", "" if net.epochs else ", one shot"
    return net.method + scratch + in_brackets(variant_of(net)) + untrained


def variant_of(net: PruneCell) -> dict[str, Any]:
    """The options that make a variant of its method, such as another alpha; those of `MethodInfo.fitted` make none."""
    info = methods().get(net.method)
    return {name: value for name, value in dict(net.options).items() if info is None or name not in info.fitted}


def paper_name(row: str) -> str:
    """The name of a row with the paper's name of its method: "SR-GKP (alpha 0.5), one shot".

    Methods that train on adversarial images are marked with `ROBUST`.
    """
    method = method_of(row)
    mark = f" [{ROBUST}]" if trained_for_robustness(method) else ""
    return NAMES.get(method, method) + row.removeprefix(method) + mark


def trained_for_robustness(method: str) -> bool:
    """Whether a method trains on adversarial images, so that its robustness does not come from what it prunes."""
    info = methods().get(method)
    return info is not None and info.adversarial


def attack_name(attack: str, protocol: str) -> str:
    """The shown name of a key of an outcome matrix: "(b) FGSM .1" in the paper's protocol, "Worst case 1/255" in pixels."""
    if attack.endswith("-true"):
        return f"{attack_name(attack.removesuffix('-true'), protocol)}, true labels"
    if protocol == "paper" and attack in ATTACKED:
        return dict(zip(ATTACKED, ("Benign", "(a) FGSM .01", "(b) FGSM .1", "(c) PGD 8/255"), strict=True))[attack]
    if attack == "clean":
        return "Benign"
    name, _, eps = attack.rpartition("-")
    named = {"worst-case": "Worst case", "cascade": "Cascade", "autoattack": "AutoAttack"}.get(name, name.upper())
    return f"{named} {eps}"


def method_of(row: str) -> str:
    """The method's identifier in a `row_name`."""
    return row.partition(" (")[0].partition(" shape")[0].removesuffix(", one shot")


def in_brackets(options: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> str:
    """Options of a method as they stand behind its name: " (alpha 0.5)"; "" without options."""
    told = ", ".join(f"{name} {value}" for name, value in dict(options).items())
    return f" ({told})" if told else ""


def net_seed(net: Network | PruneCell) -> int:
    """The seed a network was trained with; 0 for public weights."""
    return getattr(net, "seed", 0)


def test_images(dataset: str, n: int | None = None) -> Dataset | None:
    """The first n test images of a data set, None for all; None where they would have to be downloaded.

    Notebooks must render without downloads: where images are missing they show a line that says so.
    """
    if not is_here(dataset):
        return None
    found = load_dataset(dataset, "test")
    return found if n is None else found.first(n)


def sentences(*parts: str) -> str:
    """One text of several, a full stop after each; empty ones are left out."""
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts if part)


def seeds_of(numbers: Iterable[int]) -> str:
    """The numbers of seeds behind some points: "3 seeds", "1 to 3 seeds", "one seed"."""
    few, many = min(found := list(numbers)), max(found)
    return "one seed" if many == 1 else f"{many} seeds" if few == many else f"{few} to {many} seeds"


def images(points: Mapping[str, Iterable[int]]) -> str:
    """The numbers of images of some points, by their column "n": "n = 10,000", further ones after it."""
    return f"n = {', '.join(f'{n:,}' for n in dict.fromkeys(points['n']))}"


def without_images(what: str, dataset: str) -> str:
    """The placeholder for output that needs images of a data set that is not here."""
    return f"{what} · needs the images of {dataset}, which are in no folder of GKP_DATA; the committed notebook shows it"


def not_run_yet(what: str) -> str:
    """The placeholder for a table or figure without finished experiments."""
    return f"{what} · not run: none of its experiments is finished"
