"""The cost to a layer of losing an input channel or a rank of its weight (CC).

A layer's compression units are its input channels and the ranks of its weight. Losing them changes the weight W by dW, which is
taken to change the loss by sum (G dW)^2, G being the mean gradient. Weights are matrices here: `(O, C, A)` with A the kernel's
area, flattened to `(O, C A)` where ranks are meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gkp.pruning.methods.cc.spec import LowRankSpec

STEP = 0.01  # the share of a layer's units that go in one step, as in the released code
WIDE = 64  # filters above which the expected loss of a rank after a channel is taken without 64 decompositions


def channel_sensitivity(weight: Tensor, gradient: Tensor) -> Tensor:
    """The cost of losing each input channel `(C,)`, sum (G W)^2 over it, from weight and gradient `(O, C, ...)`."""
    return (gradient * weight).square().transpose(0, 1).flatten(1).sum(dim=1)


def rank_sensitivity(weight: Tensor, gradient: Tensor) -> Tensor:
    """The cost of losing each rank `(R,)`, sum (G (W_r - W))^2 with W_r lacking singular direction r, largest value first."""
    left, right = factors(weight.flatten(1))
    return _energy(gradient.flatten(1).square(), left, right)


def factors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Factors `(O, R)` and `(R, Q)` of `matrix` `(O, Q)`: left singular vectors, largest first, and their transpose times it.

    They are the eigenvectors of matrix matrix^T, which is faster than a decomposition and as good for all but vanishing ranks.
    """
    ranks = min(matrix.shape)
    left = torch.linalg.eigh(matrix @ matrix.mT).eigenvectors.flip(-1)[..., :ranks]
    return left, left.mT @ matrix


def saved_share(shape: tuple[int, int, int], channels: int, ranks: int, rank_used: bool) -> float:
    """The share of a convolution's MACs saved if so many channels and, with `rank_used`, ranks stay; shape (O, C, A)."""
    out, inputs, area = shape
    left = ranks * (channels * area + out) if rank_used else channels * area * out
    return 1 - left / (out * inputs * area)


@dataclass(frozen=True)
class Unit:
    """One compression unit: input channel `index`, or, with `is_rank`, singular direction `index`, largest first."""

    is_rank: bool
    index: int


class Removal:
    """The order in which a layer loses its units, computed as far as it is needed.

    At each step the units of smallest "cost now + gamma x expected cost after one more loss" go, until `spec_saving` is
    satisfied.

    Args:
        weight, gradient: `(O, C, k, k)`.
        gamma: Weight of the expected cost of the next loss.
        step: Share of all units that go in one step.
    """

    def __init__(self, weight: Tensor, gradient: Tensor, *, gamma: float = 0.9, step: float = STEP):
        self.weight = weight.detach().double().cpu().flatten(2)  # (O, C, A)
        self.shape = _shape(self.weight)
        self.importance = gradient.detach().double().cpu().flatten(2).square()
        self.gamma = gamma
        self.units: list[Unit] = []
        self._now = self.weight.clone()
        self._alive = torch.arange(self.shape[1])
        self._ranks = min(self.weight.flatten(1).shape)
        self._step = max(1, int(step * (self.shape[1] + self._ranks)))

    def spec_saving(self, share: float, *, round_to: int = 1) -> LowRankSpec:
        """The spec at the first point of the order that saves this share of the layer's MACs.

        If channels alone save as much before a low rank pays for its second convolution, the rank is left alone. At the end of
        the order, one channel of rank 1 is left, or `round_to` of each.

        Args:
            share: Of the layer's MACs.
            round_to: Inputs and rank are kept in multiples of it; the last to go are the first to come back.
        """
        out, inputs, area = self.shape
        full = min(out, inputs * area)
        gone: list[int] = []
        ranks = rank = full
        left = inputs
        for unit in self._every():
            ranks -= unit.is_rank
            gone += [] if unit.is_rank else [unit.index]
            rank, left = min(full, _up(ranks, round_to)), min(inputs, _up(inputs - len(gone), round_to))
            if rank < full and saved_share(self.shape, left, rank, True) >= share:
                break
            if left < inputs and saved_share(self.shape, left, rank, False) >= share:
                rank = full
                break
        kept = torch.ones(inputs, dtype=torch.bool)
        kept[gone[: inputs - left]] = False
        most = min(out, left * area)  # the other ranks went with the channels
        return LowRankSpec(kept.nonzero().flatten(), rank if rank < most else None)

    def _every(self) -> Iterator[Unit]:
        at = 0
        while at < len(self.units) or self._extend():
            yield self.units[at]
            at += 1

    def _extend(self) -> bool:
        """Compute the next step of units; False when one channel and one rank are left."""
        left, right = factors(self._now.flatten(1))
        left, right = left[:, : self._ranks], right[: self._ranks]
        costs, units = self._costs(left, right)
        before = len(self.units)
        gone_ranks: list[int] = []
        for at in torch.argsort(costs, stable=True).tolist():
            unit = units[at]
            if len(self.units) - before == self._step:
                break
            if unit.is_rank and self._ranks > 1:
                self._ranks -= 1
                gone_ranks.append(unit.index)
            elif not unit.is_rank and len(self._alive) > 1:
                self._alive = self._alive[self._alive != unit.index]
            else:
                continue
            self.units.append(unit)
        self._now -= (left[:, gone_ranks] @ right[gone_ranks]).view(self.shape)
        kept = torch.zeros(self.shape[1], dtype=torch.bool)
        kept[self._alive] = True
        self._now[:, ~kept] = 0
        return len(self.units) > before

    def _costs(self, left: Tensor, right: Tensor) -> tuple[Tensor, list[Unit]]:
        """The cost of losing each remaining unit, now and as expected later; the factors are of the weight as it is now."""
        others = len(self._alive) + self._ranks - 1
        channels = self._costs_of_channels(left, right)
        ranks = self._costs_of_ranks(left, right)
        cost = torch.cat([now + self.gamma * (now + later / max(others, 1)) for now, later in (channels, ranks)])
        units = [Unit(False, c) for c in self._alive.tolist()] + [Unit(True, r) for r in range(len(right))]
        return cost, units

    def _costs_of_channels(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """The cost sum (G dW)^2 of losing each remaining channel, and the sum that all other single losses after it would add.

        With D = dW and N the remaining weight, the sum over further losses d of (G (D + d))^2 - (G D)^2 is that of
        2 G^2 D d + G^2 d^2; the d of all channels sum up to -N, and so do those of all ranks.
        """
        g2, change, alive = self.importance, self._now - self.weight, self._alive

        def by_channel(terms: Tensor) -> Tensor:
            return terms.sum(dim=(0, 2))[alive]

        def all_but(terms: Tensor) -> Tensor:
            return terms.sum() - by_channel(terms)

        now = all_but(g2 * change.square()) + by_channel(g2 * self.weight.square())
        cross = -all_but(g2 * change * self._now)
        channels = all_but(g2 * self._now.square())
        ranks = self._energy_without_channel() if self.shape[0] <= WIDE else channels
        return now, 4 * cross + channels + ranks

    def _energy_without_channel(self) -> Tensor:
        """For each remaining channel `(C',)`, sum over r of sum (G X_r)^2 with X_r the ranks of the weight without it."""
        now = self._now.float()
        blocks = now[:, self._alive].transpose(0, 1)  # (C', O, A)
        gram = torch.einsum("oca,pca->op", now, now) - blocks @ blocks.mT  # (C', O, O)
        vectors = torch.linalg.eigh(gram).eigenvectors
        energy = (vectors.square().mT @ self.importance.float().flatten(1)) * (vectors.mT @ now.flatten(1)).square()
        by_channel = energy.view(len(self._alive), *vectors.shape[-1:], *self.shape[1:]).sum(dim=(1, 3))  # (C', C)
        own = by_channel[torch.arange(len(self._alive)), self._alive]
        return (by_channel.sum(dim=1) - own).double()

    def _costs_of_ranks(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """The same for losing each rank; the ranks of the remaining weight are then the others, unchanged."""
        g2, now = self.importance.flatten(1), self._now.flatten(1)
        change = now - self.weight.flatten(1)

        def along(matrix: Tensor) -> Tensor:  # sum (matrix X_r) for each rank r
            return ((left.mT @ matrix) * right).sum(dim=1)

        energy = _energy(g2, left, right)
        with_change, with_now = along(g2 * change), along(g2 * now)
        cost = (g2 * change.square()).sum() - 2 * with_change + energy
        cross = -(g2 * change * now).sum() + with_change + with_now - energy
        channels = (g2 * now.square()).sum() - 2 * with_now + energy
        return cost, 4 * cross + channels + energy.sum() - energy


def _energy(importance: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sum (G X_r)^2 `(R,)` for the rank-one matrices X_r = left[:, r] right[r]; importance is G^2 `(O, Q)`."""
    return ((left.square().mT @ importance) * right.square()).sum(dim=1)


def _up(number: int, round_to: int) -> int:
    return -(-number // round_to) * round_to


def _shape(weight: Tensor) -> tuple[int, int, int]:
    out, inputs, area = weight.shape
    return out, inputs, area


def redundancy_curve(weight: Tensor, gradient: Tensor, *, step: float = STEP) -> tuple[Tensor, Tensor]:
    """The redundancy curve of a layer that loses its units by sensitivity.

    Args:
        weight, gradient: `(O, C, k, k)`.
        step: Share of its units between two points.

    Returns:
        The share of MACs saved and sum (G dW)^2 relative to its largest, both `(P,)`, of the points that save something: a low
        rank costs a second convolution first.
    """
    w, g = (tensor.detach().double().cpu().flatten(2) for tensor in (weight, gradient))
    shape = _shape(w)
    channel, rank = channel_sensitivity(w, g), rank_sensitivity(w, g)
    units = [Unit(False, c) for c in range(len(channel))] + [Unit(True, r) for r in range(len(rank))]
    order = [units[at] for at in torch.argsort(torch.cat([channel, rank]), stable=True).tolist()]
    many = max(1, int(step * len(units)))
    now, gone, gone_ranks = w.clone(), 0, torch.zeros(len(rank), dtype=torch.bool)
    points = []
    for first in range(0, len(order), many):
        block = order[first : first + many]
        now = _without_ranks(now, gone_ranks, [unit.index for unit in block if unit.is_rank])
        channels = [unit.index for unit in block if not unit.is_rank]
        now[:, channels], gone = 0, gone + len(channels)
        ranks = int((~gone_ranks).sum())
        saved = saved_share(shape, shape[1] - gone, ranks, ranks < len(rank))
        points.append((saved, float((g * (now - w)).square().sum())))
    saved, metric = torch.tensor([point for point in sorted(points) if point[0] > 0], dtype=torch.float64).T
    return saved, metric / metric.max().clamp_min(1e-300)


def _without_ranks(now: Tensor, gone: Tensor, ranks: Sequence[int]) -> Tensor:
    """`now` `(O, C, A)` without these of the first weight's ranks, whose places among the remaining ones shift as others go."""
    if not ranks:
        return now
    left, right = factors(now.flatten(1))
    places = [rank - int(gone[:rank].sum()) for rank in ranks]
    gone[list(ranks)] = True
    return now - (left[:, places] @ right[places]).view_as(now)
