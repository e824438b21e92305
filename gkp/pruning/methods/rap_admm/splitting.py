"""ADMM on filters: weights W, a copy Z of them with few filters, and the scaled dual U that makes the two agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gkp.pruning.methods.l2 import filter_norm

Weights = Mapping[str, Tensor]


def largest(weight: Tensor, keep: int) -> Tensor:
    """The `keep` filters `(keep,)` of `weight` `(C_out, ...)` of highest L2 norm, ascending; of equals the earlier."""
    return torch.argsort(filter_norm(weight).cpu(), descending=True, stable=True)[:keep].sort().values


def project(weight: Tensor, keep: int) -> Tensor:
    """The nearest tensor to `weight` `(C_out, ...)` in which at most `keep` filters are not zero."""
    near, kept = torch.zeros_like(weight), largest(weight, keep).to(weight.device)
    near[kept] = weight[kept]
    return near


@dataclass
class Splitting:
    """Z and U of some layers; W stays where it is.

    Args:
        keep: Number of filters that Z has in each layer, by name.
        in_graph: Whether U stays a function of W, as in the released code: the gradient of the penalty is then 1 + k times as
            long after k updates.

    Attributes:
        z, u: By layer name, of the shape of W.
        updates: How many there were.
    """

    keep: Mapping[str, int]
    in_graph: bool = False
    z: dict[str, Tensor] = field(default_factory=dict, init=False)
    u: dict[str, Tensor] = field(default_factory=dict, init=False)
    updates: int = field(default=0, init=False)

    @torch.no_grad()
    def start(self, weights: Weights) -> None:
        """Z = Proj(W), U = 0."""
        self.z = {name: project(weights[name].detach(), keep) for name, keep in self.keep.items()}
        self.u = {name: torch.zeros_like(z) for name, z in self.z.items()}
        self.updates = 0

    @torch.no_grad()
    def update(self, weights: Weights) -> None:
        """Z = Proj(W + U), then U = U + W - Z with the new Z."""
        for name, keep in self.keep.items():
            weight = weights[name].detach()
            self.z[name] = project(weight + self.u[name], keep)
            self.u[name] = self.u[name] + weight - self.z[name]
        self.updates += 1

    def penalty(self, weights: Weights, rho: float) -> Tensor:
        """sum over layers of rho / 2 * ||W - Z + U||^2, a scalar."""
        terms = []
        for name in self.keep:
            weight = weights[name]
            apart = weight - self.z[name] + self.u[name]
            if self.in_graph:  # zero, with as many gradients as W went into U
                apart = apart + self.updates * (weight - weight.detach())
            terms.append(apart.square().sum())
        return rho / 2 * torch.stack(terms).sum()

    def state(self) -> dict[str, Tensor]:
        """All that changes, as tensors."""
        both = {"z": self.z, "u": self.u}
        tensors = {f"{part}.{name}": tensor for part, named in both.items() for name, tensor in named.items()}
        return {**tensors, "updates": torch.tensor(self.updates)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned, in the memory format that it had."""
        for part, named in (("z", self.z), ("u", self.u)):
            for name, tensor in named.items():
                tensor.copy_(state[f"{part}.{name}"])
        self.updates = int(state["updates"])
