"""Square: a random search that only asks for logits (Andriushchenko et al., ECCV 2020), Linf and L2.

It needs no gradient, so a network that merely hides its gradient does not stop it: the audit holds it against the white-box
attacks. Cost: one forward pass a query, up to `queries` an image; an image leaves as soon as it falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gkp.attacks.balls import Bounds
from gkp.attacks.network import Model, logits_of
from gkp.attacks.options import known_norm
from gkp.errors import BadInput

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which p is halved, of 10,000 (section 3.2 there)
_BLOCK = 256  # queries whose random numbers are drawn at once: a generator for each query would cost more than the query
_START, _STEPS = 1, 2  # which numbers: a word of the generator's counter that random starts of other attacks leave at 0


def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    seed: int = 0,
    ids: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int | None = None,
    queries: int = 5000,
    p: float = 0.8,
) -> Tensor:
    """Random search for a lower margin, the logit of the label minus the largest other one (Andriushchenko et al. 2020).

    The first query paints stripes (Linf) or tiles (L2). Each later one repaints a square window, and its change stays if the
    margin falls.

    Args:
        model: Images (N, C, H, W) to logits (N, K), in eval mode. No gradient is asked for.
        x: Images (N, C, H, W) within `bounds`.
        y: Labels (N,).
        eps: Radius of the ball, in the units of `x`.
        norm: "linf" or "l2".
        seed: Of the proposals. An image's own depend on seed and id alone.
        ids: Who each image is, (N,) integers >= 0; its position by default.
        bounds: Least and largest value of a pixel.
        batch_size: Images in one pass at most, refilled as images leave; all of them by default.
        queries: Number of forward passes for an image at most.
        p: Share of the image that the first window covers, in (0, 1]; it is halved on the published schedule (section 3.2
            there), stretched to `queries`.

    Returns:
        Images of the same shape: of each its first misclassified query or, if it stays right, that of lowest margin. One that
        is misclassified before the attack is returned as it is.

    Raises:
        BadInput: An option is out of range, or the network's logits are not finite.
    """
    _check(norm, queries, p, batch_size, x)
    if not len(x) or eps == 0:
        return x.clone()
    ids = torch.arange(len(x)) if ids is None else torch.as_tensor(ids)
    batch_size = batch_size or len(x)
    right = torch.cat([logits_of(model, part).argmax(1) for part in x.split(batch_size)]) == y
    found = x.clone()
    if bool(right.any()):
        search = _Search(norm, eps, bounds, int(seed), queries, _sides(x, norm, queries, p))
        found[right] = search.run(model, x[right], y[right], ids[right.to(ids.device)], batch_size)
    return found


class _Search(NamedTuple):
    """All that a search needs to know but the images. sides: (queries,) the window's side in pixels, after the first query."""

    norm: str
    eps: float
    bounds: Bounds
    seed: int
    queries: int
    sides: Tensor

    def run(self, model: Model, x: Tensor, y: Tensor, ids: Tensor, batch_size: int) -> Tensor:
        """The first misclassified query of each image, or its best. Images that leave make room for waiting ones."""
        start, propose, numbers = _MOVES[self.norm]
        found, waiting = x.clone(), 0
        rows = taken = torch.empty(0, dtype=torch.long, device=x.device)  # who is in the batch, and how many queries each made
        best, lowest, draws = x[:0], x.new_empty(0), x.new_empty(0, _BLOCK, numbers(x))
        while waiting < len(x) or len(rows):
            fresh = torch.arange(waiting, min(waiting + batch_size - len(rows), len(x)), device=x.device)
            if len(fresh):
                waiting += len(fresh)
                rows, taken = torch.cat([rows, fresh]), torch.cat([taken, fresh * 0])
                best = torch.cat([best, start(self, x[fresh], ids[fresh.to(ids.device)])])
                lowest = torch.cat([lowest, x.new_full((len(fresh),), math.inf)])
                draws = torch.cat([draws, draws.new_zeros(len(fresh), *draws.shape[1:])])
            self._redraw(draws, ids[rows.to(ids.device)], taken)
            u = draws[torch.arange(len(rows), device=x.device), (taken - 1) % _BLOCK]
            now = propose(self, x[rows], best, u, self.sides[taken - 1])
            if len(fresh):
                now[taken == 0] = best[taken == 0]
            margin, fallen = _margins(logits_of(model, now), y[rows])
            better = margin < lowest
            best = torch.where(better[:, None, None, None], now, best)
            lowest = torch.where(better, margin, lowest).to(x.dtype)
            taken = taken + 1
            leaving = fallen | (taken == self.queries)
            if bool(leaving.any()):
                found[rows[leaving]] = torch.where(fallen[:, None, None, None], now, best)[leaving]
                rows, taken, best, lowest, draws = (kept[~leaving] for kept in (rows, taken, best, lowest, draws))
        return found

    def _redraw(self, draws: Tensor, ids: Tensor, taken: Tensor) -> None:
        """New numbers, in place, for the images that have used up a block of them."""
        for row in ((taken - 1) % _BLOCK == 0).nonzero().flatten().tolist():
            block = (int(taken[row]) - 1) // _BLOCK
            draws[row] = self.uniform(int(ids[row]), _STEPS, block, draws.shape[1:]).to(draws.device)

    def uniform(self, identity: int, part: int, block: int, shape: tuple[int, ...]) -> Tensor:
        """Numbers in [0, 1) from a counter-based generator keyed by (seed; id, part, block)."""
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=(0, part, block, identity)))
        return torch.from_numpy(generator.random(shape, dtype=np.float32))

    def starts(self, x: Tensor, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        drawn = [self.uniform(identity, _START, 0, shape) for identity in ids.tolist()]
        return torch.stack(drawn).to(x.device, x.dtype)


def _margins(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logit of the label less the largest other one (N,), and who is misclassified (N,)."""
    others = logits.scatter(1, y[:, None], -math.inf).amax(1)
    return logits.gather(1, y[:, None])[:, 0] - others, logits.argmax(1) != y


def _sides(x: Tensor, norm: str, queries: int, p: float) -> Tensor:
    """(queries,) sides of the window, after the first query; for L2 odd and at least 3, so that it has a middle."""
    height, width = x.shape[2:]
    progress = np.arange(queries) * 10_000 / queries
    share = p / 2.0 ** np.searchsorted(HALVINGS, progress, side="left")
    sides = np.rint(np.sqrt(share * height * width)).astype(np.int64)
    if norm == "l2":
        sides = np.maximum(sides, 3) // 2 * 2 + 1
    return torch.from_numpy(sides.clip(1, min(height, width))).to(x.device)


def _sign(u: Tensor) -> Tensor:
    return torch.where(u < 0.5, -1.0, 1.0).to(u.dtype)


def _inside(x: Tensor, u: Tensor, sides: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Windows (N, H, W) placed uniformly by `u` (N, 2), and each pixel's row (N, H, 1) and column (N, 1, W) in its window."""
    height, width = x.shape[2:]
    room = torch.tensor([height, width], device=x.device) + 1 - sides[:, None]
    top, left = torch.minimum((u * room).long(), room - 1).T  # the product may round up to `room`
    row = (torch.arange(height, device=x.device) - top[:, None])[:, :, None]
    column = (torch.arange(width, device=x.device) - left[:, None])[:, None, :]
    side = sides[:, None, None]
    return (row >= 0) & (row < side) & (column >= 0) & (column < side), row, column


# --- Linf: algorithm 2 of the paper ---------------------------------------------------------------------------------


def _stripes(search: _Search, x: Tensor, ids: Tensor) -> Tensor:
    """Vertical stripes one pixel wide, of eps up or down in each channel."""
    channels, width = x.shape[1], x.shape[3]
    signs = _sign(search.starts(x, ids, (channels, width)))
    return (x + search.eps * signs[:, :, None, :]).clamp(*search.bounds)


def _squares(search: _Search, x: Tensor, best: Tensor, u: Tensor, sides: Tensor) -> Tensor:
    """`best` with one window set to eps up or down in each channel; the other way round where that would change nothing."""
    inside = _inside(x, u[:, :2], sides)[0][:, None]
    shift = search.eps * _sign(u[:, 2:])[:, :, None, None]
    now = torch.where(inside, (x + shift).clamp(*search.bounds), best)
    same = (now == best).flatten(1).all(1)
    if bool(same.any()):
        now[same] = torch.where(inside[same], (x[same] - shift[same]).clamp(*search.bounds), best[same])
    return now


# --- L2: algorithm 3 of the paper -----------------------------------------------------------------------------------


def _tiles(search: _Search, x: Tensor, ids: Tensor) -> Tensor:
    """A grid of five by five bumps, each up or down in each channel and standing or lying, at distance eps."""
    channels, height, width = x.shape[1:]
    side = min(height, width) // 5
    down, across = height // side, width // side
    u = search.starts(x, ids, (1 + channels, down, across)).repeat_interleave(side, 2).repeat_interleave(side, 3)
    up = _bump(side).to(x.device, x.dtype).repeat(down, across)
    lying = _bump(side).T.to(x.device, x.dtype).repeat(down, across)
    tiles = torch.where(u[:, :1] < 0.5, up, lying) * _sign(u[:, 1:])
    delta = torch.zeros_like(x)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = tiles
    return _at_distance(search, x, delta)


def _bumps(search: _Search, x: Tensor, best: Tensor, u: Tensor, sides: Tensor) -> Tensor:
    """`best` with the change in one window moved into another, where a bump is added to what is there."""
    channels = x.shape[1]
    first, row, column = _inside(x, u[:, :2], sides)
    second = _inside(x, u[:, 2:4], sides)[0][:, None]
    bump = _placed(first, row, column, sides, u[:, 4] < 0.5, x.dtype)[:, None] * _sign(u[:, 5:])[:, :, None, None]
    first = first[:, None]
    delta = best - x
    energy = delta.square()
    unused = (search.eps**2 - _total(energy).sum(1, keepdim=True)).clamp_min(0) / channels
    available = (_total(energy * (first | second)) + unused).sqrt()
    here = delta * first
    changed = bump + here / _total(energy * first).sqrt().clamp_min(1e-12)
    changed = changed * available / _total(changed.square()).sqrt().clamp_min(1e-12)
    return _at_distance(search, x, torch.where(first, changed, torch.where(second, 0, delta)))


def _total(v: Tensor) -> Tensor:
    """(N, C, 1, 1) sums over each channel: never one sum over a whole batch, whose order depends on the threads."""
    return v.sum((2, 3), keepdim=True)


def _at_distance(search: _Search, x: Tensor, delta: Tensor) -> Tensor:
    distance = _total(delta.square()).sum(1, keepdim=True).sqrt()
    return (x + delta * (search.eps / distance.clamp_min(1e-12))).clamp(*search.bounds)


def _placed(inside: Tensor, row: Tensor, column: Tensor, sides: Tensor, lying: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, H, W): in each window a bump of its size, lying or not; zero elsewhere."""
    row, column = row.expand_as(inside), column.expand_as(inside)
    canvas = torch.zeros(inside.shape, dtype=dtype, device=inside.device)
    for side in sides.unique().tolist():
        both = torch.stack([_bump(side), _bump(side).T]).to(inside.device, dtype)
        at = inside & (sides == side)[:, None, None]
        canvas[at] = both[lying[:, None, None].expand_as(inside)[at].long(), row[at], column[at]]
    return canvas


def _bump(side: int) -> Tensor:
    """(side, side): upper half a hill, lower half a hole, each of squares stacked around its middle; of unit length."""
    top = side // 2
    if not top:
        return torch.ones(1, 1)
    bump = torch.cat([_hill(top, side), -_hill(side - top, side)])
    return bump / bump.norm()


def _hill(height: int, width: int) -> Tensor:
    """(height, width): the sum over k of 1 / (k + 1)^2 on the square of radius k about the middle; of unit length."""
    radius = max(height, width) // 2
    steps = 1 / torch.arange(1, radius + 2, dtype=torch.float32).square()
    reach = steps.flip(0).cumsum(0).flip(0)  # of a pixel at distance d: all squares of radius d and more
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    hill = reach[torch.maximum(rows.abs()[:, None], columns.abs()[None, :])]
    return hill / hill.norm()


def _check(norm: str, queries: int, p: float, batch_size: int | None, x: Tensor) -> None:
    known_norm(norm)
    for name, value in (("queries", queries), ("batch_size", batch_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise BadInput(f"{name} of square must be a whole number of 1 or more, not {value!r}")
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p <= 1:
        raise BadInput(f"p of square must be a share of the image above 0 and at most 1, not {p!r}; the paper's is 0.8")
    if norm == "l2" and min(x.shape[2:]) < 5:
        raise BadInput(f"square in L2 starts from five by five tiles; images of {tuple(x.shape[2:])} pixels are too small")


# per norm: the first query, the following ones, and how many random numbers each of those takes
_MOVES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[[Tensor], int]]] = {
    "linf": (_stripes, _squares, lambda x: 2 + x.shape[1]),
    "l2": (_tiles, _bumps, lambda x: 5 + x.shape[1]),
}
