"""The two helpers of NPPM's gates: a memory of architectures and their accuracies, and a predictor of the accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from gkp.networks.draws import drawn_from

WIDTH, HIDDEN = 128, 64  # of the vector of a layer; of the recurrent network in each direction
BINS = 10  # of equal width on the accuracies in the memory


class Predictor(nn.Module):
    """Predicts the accuracy of an architecture: a vector for each layer, a bidirectional GRU over layers, a sigmoid.

    Args:
        sizes: Filters of each layer.
        seed: Of the initialisation.
    """

    def __init__(self, sizes: Sequence[int], seed: int = 0):
        super().__init__()
        self.sizes = list(sizes)
        with drawn_from(seed):
            self.embed = nn.ModuleList(weight_norm(nn.Linear(size, WIDTH, bias=False)) for size in sizes)
            self.norm = nn.LayerNorm(WIDTH)
            self.gru = nn.GRU(WIDTH, HIDDEN, batch_first=True, bidirectional=True)
            self.out = nn.Linear(2 * HIDDEN, 1, bias=False)

    def forward(self, architectures: Tensor) -> Tensor:
        """Accuracies `(B, 1)` in (0, 1) of architectures `(B, G)` or `(G,)`, gates in [0, 1] of all layers in a row."""
        parts = architectures.view(-1, sum(self.sizes)).split(self.sizes, dim=1)
        layers = [F.relu(self.norm(embed(part))) for embed, part in zip(self.embed, parts, strict=True)]
        _, last = self.gru(torch.stack(layers, dim=1))
        return self.out(last.transpose(0, 1).flatten(1)).sigmoid()


class Memory:
    """Architectures and accuracies, means of `averaged` batches in a row each; a mean is stored with the next insertion.

    Once it is full, a new pair is averaged into the entry of the nearest accuracy.

    Args:
        gates: Length of an architecture.
        capacity: Number of entries.
        averaged: Number of batches that one entry is the mean of.
    """

    def __init__(self, gates: int, capacity: int = 500, averaged: int = 2):
        self.capacity, self.averaged = capacity, averaged
        self.architectures, self.accuracies = torch.zeros(0, gates), torch.zeros(0)
        self._waiting, self._scores = torch.zeros(0, gates), torch.zeros(0)

    def __len__(self) -> int:
        return len(self.accuracies)

    def insert(self, architecture: Tensor, accuracy: float) -> None:
        """Add what one batch said."""
        if len(self._scores) == self.averaged:
            self._store(self._waiting.mean(0), self._scores.mean())
            self._waiting, self._scores = self._waiting[:0], self._scores[:0]
        self._waiting = torch.cat([self._waiting, architecture.detach().cpu()[None]])
        self._scores = torch.cat([self._scores, torch.tensor([accuracy])])

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Architectures `(count, G)` and accuracies `(count,)`, drawn with replacement, every range of accuracies as likely."""
        chosen = torch.multinomial(self.weights(), count, replacement=True, generator=generator)
        return self.architectures[chosen], self.accuracies[chosen]

    def weights(self) -> Tensor:
        """The probability that each entry is drawn, not normalised: 1 / the number of entries in its bin."""
        low, high = self.accuracies.min(), self.accuracies.max()
        scaled = (self.accuracies - low) / (high - low) if high > low else torch.zeros_like(self.accuracies)
        bins = (scaled * BINS).long().clamp(max=BINS - 1)
        return 1 / bins.bincount(minlength=BINS)[bins].double()

    def state(self) -> dict[str, Tensor]:
        """All it holds."""
        held = {"architectures": self.architectures, "accuracies": self.accuracies}
        return held | {"waiting": self._waiting, "scores": self._scores}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        self.architectures, self.accuracies = state["architectures"], state["accuracies"]
        self._waiting, self._scores = state["waiting"], state["scores"]

    def _store(self, architecture: Tensor, accuracy: Tensor) -> None:
        if len(self) < self.capacity:
            self.architectures = torch.cat([self.architectures, architecture[None]])
            self.accuracies = torch.cat([self.accuracies, accuracy[None]])
            return
        nearest = int((self.accuracies - accuracy).abs().argmin())
        self.architectures[nearest] = (self.architectures[nearest] + architecture) / 2
        self.accuracies[nearest] = (self.accuracies[nearest] + accuracy) / 2
