"""From the latents of DHP to widths: a threshold on |z|, and the threshold that meets a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gkp.errors import BadInput
from gkp.pruning.filters import FilterSpec
from gkp.pruning.plan import Plan

Kept = dict[str, Tensor]  # masks by name of latent


def above(latents: Mapping[str, Tensor], threshold: float, at_least: int) -> Kept:
    """True for the entries of magnitude `threshold` or more, and for the largest `at_least` of each latent."""
    kept = {}
    for name, latent in latents.items():
        kept[name] = latent.detach().abs() >= threshold
        kept[name][_largest(latent, at_least)] = True
    return kept


def plan_for(kept: Kept, wiring: Mapping[str, tuple[str, str]], input_shape: tuple[int, ...] | None = None) -> Plan:
    """The plan that keeps these channels: every convolution that makes them loses the same filters.

    Args:
        kept: Masks of the latents that are pruned.
        wiring: See `gkp.pruning.methods.dhp.hypernetwork.wiring`.
        input_shape: As in `gkp.prune`.
    """
    layers = {name: FilterSpec(kept[out].nonzero().flatten().cpu()) for name, (_, out) in wiring.items() if out in kept}
    return Plan(layers, input_shape)


@dataclass(frozen=True)
class Budget:
    """A budget of MACs and how to count them.

    Args:
        macs: Counts a choice of channels.
        goal: What is to be left.
        tolerance: Allowed deviation, as a fraction of the goal.
        at_least: Entries of each latent that stay.
        who: The method, for messages.
    """

    macs: Callable[[Kept], int]
    goal: float
    tolerance: float
    at_least: int
    who: str = "dhp"

    def check(self, latents: Mapping[str, Tensor]) -> None:
        """Raise BadInput if the budget prunes nothing, or if too much is left with `at_least` entries of each latent."""
        dense = self.macs({name: torch.ones(len(z), dtype=torch.bool) for name, z in latents.items()})
        if self.goal >= dense:
            raise BadInput(
                f"the budget must lie below the {dense:,} paper MACs of the network that {self.who} prunes, "
                f"not {self.goal:,.0f}"
            )
        least = self.macs(above(latents, float("inf"), self.at_least))
        if least > self.goal * (1 + self.tolerance):
            raise BadInput(
                f"{self.who} keeps {self.at_least} channels of every width, which is {least:,} paper MACs or more, and the "
                f"budget is {self.goal:,.0f}; ask for {least:,} or more, or give a lower at_least="
            )

    def meet(self, latents: Mapping[str, Tensor]) -> tuple[Kept, float]:
        """The channels that a threshold on |z| keeps within the budget, and that threshold.

        One channel of a stream may cost more than the tolerance: the one at the threshold that would undercut the budget
        stays, and the next ones go in its place.

        Raises:
            BadInput: Nothing comes within the tolerance.
        """
        order = self._order(latents)
        low, high = 0, len(order)  # more than the goal is left without the first `low`, and not without the first `high`
        while high - low > 1:
            middle = (low + high) // 2
            over = self.macs(_without(latents, order[:middle])) > self.goal
            low, high = (middle, high) if over else (low, middle)
        threshold = float(latents[order[high - 1][0]][order[high - 1][1]].detach().abs())
        found = min((_without(latents, order[:count]) for count in (low, high)), key=self._miss)
        if self._miss(found) > self.tolerance / 4:
            found = min(found, self._passed_over(latents, order, low), key=self._miss)
        if self._miss(found) > self.tolerance:
            raise BadInput(
                f"the nearest that {self.who} comes to {self.goal:,.0f} paper MACs is {self.macs(found):,}; ask for that, or "
                f"allow tolerance={self._miss(found) + 0.001:.3f}"
            )
        return found, threshold

    def _passed_over(self, latents: Mapping[str, Tensor], order: list[tuple[str, int]], low: int) -> Kept:
        """Go on from the first `low` entries, without those that would undercut the budget."""
        gone = order[:low]
        for entry in order[low:]:
            kept = _without(latents, [*gone, entry])
            if self.macs(kept) >= self.goal * (1 - self.tolerance / 4):
                gone.append(entry)
                if self._miss(kept) <= self.tolerance / 4:
                    break
        return _without(latents, gone)

    def _miss(self, kept: Kept) -> float:
        return abs(self.macs(kept) / self.goal - 1)

    def _order(self, latents: Mapping[str, Tensor]) -> list[tuple[str, int]]:
        """The entries that may go, smallest magnitude first; of equals the later one of a latent goes first."""
        entries = []
        for place, (name, latent) in enumerate(latents.items()):
            stay = set(_largest(latent, self.at_least).tolist())
            magnitude = latent.detach().abs().tolist()
            entries += [(value, place, -index, name) for index, value in enumerate(magnitude) if index not in stay]
        return [(name, -index) for _, _, index, name in sorted(entries)]


def _largest(latent: Tensor, count: int) -> Tensor:
    return torch.argsort(latent.detach().abs(), descending=True, stable=True)[:count]


def _without(latents: Mapping[str, Tensor], gone: Iterable[tuple[str, int]]) -> Kept:
    kept = {name: torch.ones(len(z), dtype=torch.bool) for name, z in latents.items()}
    for name, index in gone:
        kept[name][index] = False
    return kept
