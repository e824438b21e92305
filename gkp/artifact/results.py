"""Finished experiments by their role, and the names that people read: what every table, figure and claim goes by.

`plays` is the one filter: tables select with it among results, claims among the cells of a profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import EvaluateCell, Network, PruneCell, network_in
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import ATTACKED
from gkp.checkpoints import load_model
from gkp.data.dataset import Dataset
from gkp.data.sources import is_here, load_dataset
from gkp.errors import BadInput
from gkp.evaluation.outcomes import Outcomes
from gkp.pruning.registry import methods

STRONG = "strong"  # the part of every evaluation under attacks of its own choice: cascades, AutoAttack
BASELINE, CONTINUED = "unpruned", "unpruned, fine-tuned"  # the network that methods start from; the same, trained as they are
ROBUST = "adversarially trained"  # the mark of methods that are trained for robustness
NAMES = {  # a method's identifier -> its name in the paper, or one formed alike
    "cc": "CC",
    "chip": "CHIP",
    "depgraph": "DepGraph",
    "depgraph-one-shot": "DepGraph-One-Shot",
    "dhp": "DHP",
    "fpgm": "FPGM",
    "fpgm-one-shot": "FPGM-One-Shot",
    "gal": "GAL",
    "greedy-gkp": "Greedy-GKP",
    "hrank": "HRank",
    "l1norm-a": "L1Norm-A",
    "l1norm-b": "L1Norm-B",
    "l2": "L2Norm",
    "l2-gkp": "L2-GKP",
    "least-smooth-gkp": "Least-Smooth-GKP",
    "lrf": "LRF",
    "none": CONTINUED,
    "nppm": "NPPM",
    "otov2": "OTOv2 (post train)",
    "otov2-scratch": "OTOv2 (from scratch)",
    "random": "Random",
    "random-gkp": "Random-GKP",
    "rap-admm": "RAP-ADMM",
    "scratch": "Scratch",
    "sfp": "SFP",
    "sfp-smooth": "SFP-Smooth",
    "slimming": "Slimming",
    "sr-gkp": "SR-GKP",
    "taylor-fo": "Taylor-FO",
    "tmi-gkp": "TMI-GKP",
}


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation. network: the result of the network it is of, None where that is not among the results."""

    cell: EvaluateCell
    result: Result
    network: Result | None

    @property
    def net(self) -> Network | PruneCell:
        """The cell of the network."""
        return self.cell.net

    @property
    def facts(self) -> dict[str, Any]:
        """Columns of every table of evaluations: method (see `row_name`), seed and n."""
        return {"method": row_name(self.net), "seed": net_seed(self.net), "n": self.result["n"]}

    @property
    def accuracies(self) -> Iterator[dict[str, Any]]:
        """For each attack its columns: attack, accuracy, low, high, as fractions."""
        for attack, value in self.result["accuracy"].items():
            low, high = self.result["interval"][attack]
            yield {"attack": attack, "accuracy": value, "low": low, "high": high}


def plays(cell: Cell, part: str) -> bool:
    """Whether a cell is an evaluation in this role: one of `EvaluateCell.part`, the name of a changed test set, or STRONG."""
    if not isinstance(cell, EvaluateCell):
        return False
    return bool(cell.attacks and not cell.variant) if part == STRONG else part in (cell.part, cell.variant or cell.part)


def evaluations(results: Sequence[Result], part: str) -> list[Evaluation]:
    """The evaluations in this role among finished experiments, in their order. part: as in `plays`."""
    networks = {result.cell.hash: result for result in results if isinstance(result.cell, Network | PruneCell)}
    return [
        Evaluation(cell, result, networks.get(cell.net.hash))
        for result in results
        if isinstance(cell := result.cell, EvaluateCell) and plays(cell, part)
    ]


def load_outcomes(cells: Mapping[str, Cell], results: Sequence[Result]) -> dict[str, Outcomes]:
    """Name -> outcome matrix, for those of the named evaluation cells that are finished."""
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
    """Name -> network, for those of the finished networks whose `row_name` is among `names`; seed 0 first, others left out.

    The compact network where there is one: it computes the same function as the masked twin.
    """
    found: dict[str, nn.Module] = {}
    for result in results:
        cell = result.cell
        if isinstance(cell, Network | PruneCell) and row_name(cell) in names and row_name(cell) not in found:
            found[row_name(cell)] = load_model(result.file(network_in(result.folder))).eval()
    return found


def row_name(net: Network | PruneCell) -> str:
    """The key of a network in the CSV of every table: "unpruned", "unpruned, fine-tuned", or the method with its options.

    One that was not fine-tuned is called "one shot". `paper_name` turns the key into what people read.
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
    """A row as the paper would call it: "SR-GKP (alpha 0.5), one shot" for "sr-gkp (alpha 0.5), one shot".

    A method that is trained for robustness says so wherever its name is read.
    """
    method = method_of(row)
    mark = f" [{ROBUST}]" if trained_for_robustness(method) else ""
    return NAMES.get(method, method) + row.removeprefix(method) + mark


def trained_for_robustness(method: str) -> bool:
    """Whether this method trains on adversarial images: what it gains by that is no merit of what it prunes."""
    info = methods().get(method)
    return info is not None and info.adversarial


def attack_name(attack: str, protocol: str) -> str:
    """A key of an outcome matrix as people read it: "(b) FGSM .1" in the paper's protocol, "Worst case 1/255" in pixels."""
    if protocol == "paper" and attack in ATTACKED:
        return dict(zip(ATTACKED, ("Benign", "(a) FGSM .01", "(b) FGSM .1", "(c) PGD 8/255"), strict=True))[attack]
    if attack == "clean":
        return "Benign"
    name, _, eps = attack.removesuffix("-true").rpartition("-")
    named = {"worst-case": "Worst case", "cascade": "Cascade", "autoattack": "AutoAttack"}.get(name, name.upper())
    return f"{named} {eps}" + (", true labels" if attack.endswith("-true") else "")


def method_of(row: str) -> str:
    """The method's identifier in a `row_name`."""
    return row.partition(" (")[0].partition(" shape")[0].removesuffix(", one shot")


def in_brackets(options: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> str:
    """Options of a method after its name: " (alpha 0.5)", nothing where there are none."""
    told = ", ".join(f"{name} {value}" for name, value in dict(options).items())
    return f" ({told})" if told else ""


def net_seed(net: Network | PruneCell) -> int:
    """The seed a network was trained with; 0 for public weights."""
    return getattr(net, "seed", 0)


def test_images(dataset: str, n: int | None = None) -> Dataset | None:
    """The first test images of a data set, all by default; None where showing them would take a download.

    What is committed is rendered anywhere: a notebook that cannot show images says so in one line and goes on.
    """
    if not is_here(dataset):
        return None
    found = load_dataset(dataset, "test")
    return found if n is None else found.first(n)


def images(points: Mapping[str, Iterable[int]]) -> str:
    """The numbers of images of some points, by their column "n": "n = 10,000", further ones after it."""
    return f"n = {', '.join(f'{n:,}' for n in dict.fromkeys(points['n']))}"


def without_images(what: str, dataset: str) -> str:
    """The placeholder of what needs images that are not here."""
    return f"{what} · needs the images of {dataset}, which are in no folder of GKP_DATA; the committed notebook shows it"


def not_run_yet(what: str) -> str:
    """The placeholder of every table and figure without finished experiments."""
    return f"{what} · not run: none of its experiments is finished"
