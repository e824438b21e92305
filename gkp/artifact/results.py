"""TODO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import Network, PruneCell, network_in
from gkp.artifact.experiments.report import Result
from gkp.checkpoints import load_model
from gkp.evaluation.outcomes import Outcomes


def load_outcomes(cells: Mapping[str, Cell], results: Sequence[Result]) -> dict[str, Outcomes]:
    """Name -> outcome matrix, for those of the named evaluation cells that are finished."""
    by_hash = {result.cell.hash: result for result in results}
    return {name: Outcomes.load(by_hash[cell.hash].folder) for name, cell in cells.items() if cell.hash in by_hash}


def load_networks(results: Sequence[Result], *names: str) -> dict[str, nn.Module]:
    """Name -> network, for those of the finished networks among `results` that tables call by these names (seed 0 first).

    The compact network where there is one: it is the same function as the masked twin. Names that are not there are left out.
    """
    found: dict[str, nn.Module] = {}
    for result in results:
        cell = result.cell
        if isinstance(cell, Network | PruneCell) and row_name(cell) in names and row_name(cell) not in found:
            found[row_name(cell)] = load_model(result.file(network_in(result.folder))).eval()
    return found


def row_name(net: Network | PruneCell) -> str:
    """How a table calls a network: "unpruned", "unpruned, continued", or the method with its options.

    One that was not fine-tuned is called "one shot".
    """
    if not isinstance(net, PruneCell):
        return "unpruned"
    if net.method == "none":
        return "unpruned, continued"
    options = ", ".join(f"{name} {value}" for name, value in dict(net.options).items())
    scratch = " shape from scratch" if net.scratch else ""
    return net.method + scratch + (f" ({options})" if options else "") + ("" if net.epochs else ", one shot")


def net_seed(net: Network | PruneCell) -> int:
    """The seed a network was trained with; 0 for public weights."""
    return getattr(net, "seed", 0)


def with_interval(accuracy: float, low: float, high: float) -> str:
    """A fraction and its interval in percent, as every table prints them."""
    return f"{100 * accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
