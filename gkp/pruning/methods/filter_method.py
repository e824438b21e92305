"""The base of methods that remove filters or channels: from scores and shares to the plan that meets the budget."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.pruning.budget import TOLERANCE, grouped_kernel_macs, match_macs
from gkp.pruning.filters import FilterSpec
from gkp.pruning.layers import choose_layers
from gkp.pruning.plan import Plan

GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples fill [0, 1) most evenly


@dataclass(frozen=True)
class Budgeted:
    """A method that searches for widths until the budget is met.

    Args:
        rate, budget, input_shape: As in `gkp.prune`.
        round_to: Widths are multiples of it (8 makes narrow networks fast); 1 is exact.
        tolerance: Allowed deviation from the budget, as a fraction of it; steps of 8 filters need more than 1 %.
    """

    rate: float = 7 / 16
    budget: float | None = None
    round_to: int = 1
    tolerance: float = TOLERANCE
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.round_to < 1:
            raise BadInput(f"round_to must be 1 or more, not {self.round_to}")

    def match(self, net: nn.Module, make: Callable[[float], Plan], layers: Iterable[str], *, published: bool = False) -> Plan:
        """The plan `make(factor)` that meets the budget; see `gkp.pruning.budget.match_macs`.

        layers: Where only a rate is given, the budget is that of grouped kernel pruning of these.
        """
        goal = self.budget
        if goal is None:
            goal = grouped_kernel_macs(net, layers, self.rate, input_shape=self.input_shape)
        return match_macs(net, make, goal, tolerance=self.tolerance, published=published, input_shape=self.input_shape)


@dataclass(frozen=True)
class FilterMethod(Budgeted, ABC):
    """A method that gives every filter a score; the lowest go, until the budget is met. A new one overrides `scores`.

    The fields are those of `Budgeted`.

    Attributes:
        one_ranking: Whether the filters of all layers are ranked together, against one threshold, instead of layer by layer.
    """

    one_ranking: ClassVar[bool] = False

    @abstractmethod
    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Mapping[str, Tensor]:
        """Scores `(C_out,)` by layer name; the filters of the lowest are pruned."""

    def shares(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Mapping[str, float]:
        """The share of filters that goes at factor 1 of the search, by layer name; 0 for layers that are skipped.

        Not used with `one_ranking`.
        """
        return dict.fromkeys(convs, 1.0)

    def published(self, net: nn.Module) -> bool:
        """Whether `shares` were published for this network, to be kept as they are if they meet the budget."""
        return False

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """The filters that stay, so many that the budget is met. Raises BadInput if it cannot be."""
        scores = self.scores(net, convs)
        for name, conv in convs.items():
            if scores[name].shape != (conv.out_channels,) or not bool(scores[name].isfinite().all()):
                got = f"{tuple(scores[name].shape)} of which {int(scores[name].isfinite().sum())} are finite"
                raise BadInput(
                    f"{type(self).__name__}.scores must return {conv.out_channels} finite scores for {name}, got {got}"
                )
        shares = {} if self.one_ranking else self.shares(net, convs)

        def make(factor: float) -> Plan:
            if self.one_ranking:
                removed = lowest_of_all(scores, factor)
            else:
                removed = {name: shares[name] * factor * len(scores[name]) for name in convs}
            return filter_plan(scores, removed, round_to=self.round_to, input_shape=self.input_shape)

        layers = choose_layers(net, None, 1)[0] if self.budget is None else {}
        return self.match(net, make, layers, published=self.published(net))


def filter_plan(
    scores: Mapping[str, Tensor],
    removed: Mapping[str, float],
    *,
    round_to: int = 1,
    input_shape: tuple[int, ...] | None = None,
) -> Plan:
    """The plan that removes the filters of lowest score; of equal scores the later filter goes first.

    Args:
        scores: `(C_out,)` by layer name.
        removed: How many filters go, by layer name; it need not be a whole number, see `kept_width`.
        round_to: Widths are multiples of it.
        input_shape: As in `gkp.prune`.
    """
    layers = {}
    for place, (name, score) in enumerate(scores.items()):
        keep = kept_width(len(score), removed[name], place, round_to=round_to)
        layers[name] = FilterSpec(torch.argsort(score.cpu(), descending=True, stable=True)[:keep].sort().values)
    return Plan(layers, input_shape)


def kept_width(width: int, removed: float, place: int, *, round_to: int = 1) -> int:
    """The number of filters of `width` that stay, all or a multiple of `round_to`.

    `removed` need not be whole. It is rounded up at some places and down at others, evenly spread and the same for every
    method, so that a budget is met to the filter: all at once would move a narrow network's MACs in steps of several percent.
    """
    offset = (place * GOLDEN + 0.5) % 1
    gone = math.floor(removed / round_to + offset + 1e-9) if removed > 0 else 0
    return min(width, round_to * max(1, math.ceil(width / round_to) - gone))


def lowest_of_all(scores: Mapping[str, Tensor], share: float) -> dict[str, float]:
    """The number of filters of each layer that are among the lowest `share` of all, as by slimming's one threshold.

    A layer whose filters would all go keeps its best one, and the next in line elsewhere goes instead.
    """
    sizes = [len(score) for score in scores.values()]
    spared = torch.cat([score.double().cpu().masked_fill(_is_best(score), torch.inf) for score in scores.values()])
    count = min(int(share * sum(sizes)), sum(sizes) - len(sizes))
    gone = torch.zeros(sum(sizes), dtype=torch.bool)
    gone[torch.argsort(spared, stable=True)[:count]] = True
    starts = [0, *accumulate(sizes)]
    return {name: float(gone[start : start + size].sum()) for name, start, size in zip(scores, starts, sizes, strict=False)}


def _is_best(score: Tensor) -> Tensor:
    best = torch.zeros(len(score), dtype=torch.bool)
    best[int(score.argmax())] = True
    return best
