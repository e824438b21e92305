"""What every method shares that removes filters or channels: from scores and shares to the plan that meets the budget."""

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
    """What the methods share that search for widths: the budget, and how near it they have to come.

    rate, budget, input_shape: as in `gkp.prune`. round_to: widths in multiples of it (8 makes narrow networks fast); 1 is
    exact. tolerance: how far from the budget, as a fraction of it; steps of 8 filters need more than the 1 % of single ones.
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

        layers: whose grouped kernels the budget is reckoned by, where only a rate is given.
        """
        goal = self.budget
        if goal is None:
            goal = grouped_kernel_macs(net, layers, self.rate, input_shape=self.input_shape)
        return match_macs(net, make, goal, tolerance=self.tolerance, published=published, input_shape=self.input_shape)


@dataclass(frozen=True)
class FilterMethod(Budgeted, ABC):
    """A method that gives every filter a score; the lowest go, until the budget is met. A new one overrides `scores`.

    The fields are those of `Budgeted`. one_ranking: whether the filters of all layers are ranked together, against one
    threshold, instead of each layer's by themselves.
    """

    one_ranking: ClassVar[bool] = False

    @abstractmethod
    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Mapping[str, Tensor]:
        """Layer name -> one score for each filter `(C_out,)`; the lowest are pruned."""

    def shares(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Mapping[str, float]:
        """Layer name -> the share of its filters that goes at factor 1 of the budget's search, 0 for layers that are skipped.

        Not asked for where there is one ranking.
        """
        return dict.fromkeys(convs, 1.0)

    def published(self, net: nn.Module) -> bool:
        """Whether `shares` were published for this network, to be kept as they are where they meet the budget."""
        return False

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """The filters that stay, their number such that the budget is met. Raises BadInput if it cannot be."""
        scores = self.scores(net, convs)
        for name, conv in convs.items():
            if scores[name].shape != (conv.out_channels,) or not bool(scores[name].isfinite().all()):
                raise BadInput(f"{type(self).__name__} owes {name} {conv.out_channels} finite scores, one for each filter")
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
    """The plan without the lowest-scored `removed` filters of each layer, a number that need not be whole: `kept_width`.

    Of equal scores the later filter goes first.
    """
    layers = {}
    for place, (name, score) in enumerate(scores.items()):
        keep = kept_width(len(score), removed[name], place, round_to=round_to)
        layers[name] = FilterSpec(torch.argsort(score.cpu(), descending=True, stable=True)[:keep].sort().values)
    return Plan(layers, input_shape)


def kept_width(width: int, removed: float, place: int, *, round_to: int = 1) -> int:
    """How many of `width` stay, all or a multiple of `round_to`, when `removed`, which need not be whole, are to go.

    It is rounded up at some places and down at others, evenly spread and the same for every method, so that a budget is met to
    the filter: all at once would move a narrow network's MACs in steps of several percent.
    """
    offset = (place * GOLDEN + 0.5) % 1
    gone = math.floor(removed / round_to + offset + 1e-9) if removed > 0 else 0
    return min(width, round_to * max(1, math.ceil(width / round_to) - gone))


def lowest_of_all(scores: Mapping[str, Tensor], share: float) -> dict[str, float]:
    """How many filters of each layer are among the lowest `share` of all, as slimming's one threshold has it.

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
