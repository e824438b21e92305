"""The outcomes of the images of one evaluation: what the checkpoint has, then window by window everything else."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gkp.attacks.autoattack import remembered
from gkp.attacks.balls import Bounds
from gkp.attacks.gradient import single_step
from gkp.attacks.network import Model, logits_and_gradient, logits_of
from gkp.attacks.options import ATTACKS
from gkp.data.dataset import Dataset
from gkp.evaluation.outcomes import AttackSpec
from gkp.evaluation.protocols import Space, asks_often
from gkp.evaluation.resume import Pieces

_WINDOW = 10  # batches of images held at once, so that a batch of survivors can be refilled from them
# With a checkpoint a window is kept when it is finished. It grows from _FEWEST images (smaller batches cost as much, see
# `gkp.attacks.network.MIN_ROWS`; the dearest attack, Square, takes 17 s an image) to what takes about _SECONDS.
_FEWEST, _SECONDS = 16, 60


def adversarial(
    model: Model, x: Tensor, labels: Tensor, spec: AttackSpec, *, seed: int, ids: Tensor, bounds: Bounds, batch_size: int
) -> Tensor:
    """Images after the attack that a row of an outcome matrix describes.

    Args:
        model: Images (N, C, H, W) to logits (N, K), in eval mode.
        x: Images (N, C, H, W) within `bounds`.
        labels: What the attack leads away from, (N,).
        spec: The row: attack, radius and options.
        seed: Of the attack, where it draws.
        ids: Who each image is, (N,) integers >= 0.
        bounds: Least and largest value of a pixel.
        batch_size: Images in one pass at most.
    """
    function = ATTACKS[spec.attack]
    shared = {"seed": seed, "ids": ids, "bounds": bounds, "batch_size": batch_size}
    taken = {name: value for name, value in shared.items() if name in inspect.signature(function).parameters}
    return function(model, x, labels, eps=spec.eps, **{**taken, **spec.options})


@dataclass
class Run:
    """One evaluation: a space, the images, the rows of the matrix after the clean one; and the matrix as far as it is known.

    Attributes:
        space: Where the protocol attacks.
        data: The images.
        specs: The rows after the clean one.
        seed: Of the attacks.
        batch_size: Images in one pass.
        home: Device and type of the images.
        indices: Positions of the images in `data`, (n,).
        bar: Counts images, once for each row.
        pieces: The checkpoint, None without one.
        right: Whether each image is classified correctly, (1 + rows, n) bool, row 0 without attack.
        predictions: Without attack, (n,).
        done: What is known already, (1 + rows, n) bool.
    """

    space: Space
    data: Dataset
    specs: tuple[AttackSpec, ...]
    seed: int
    batch_size: int
    home: tuple[torch.device, torch.dtype]
    indices: np.ndarray
    bar: tqdm
    pieces: Pieces | None
    right: np.ndarray = field(init=False)
    predictions: np.ndarray = field(init=False)
    done: np.ndarray = field(init=False)

    def finish(self) -> None:
        """Fills `right` and `predictions`: what the checkpoint has, then everything else."""
        n = len(self.indices)
        self.right, self.predictions = np.zeros((1 + len(self.specs), n), dtype=bool), np.zeros(n, dtype=np.int64)
        self.done = self.right.copy()
        kept = {} if self.pieces is None else self.pieces.load()
        fgsm = [row for row, spec in enumerate(self.specs, start=1) if spec.attack == "fgsm"]
        self._recall([0, *fgsm], kept.get(0, []))
        for columns in self._windows(np.flatnonzero(~self.done[0])):
            self._enter([0, *fgsm], columns, *self._clean_and_fgsm(columns, fgsm))
        for row, spec in enumerate(self.specs, start=1):
            if row not in fgsm:
                if not self.space.attacks_all:
                    self._mark([row], np.flatnonzero(~self.right[0]))  # wrong under every attack
                self._recall([row], kept.get(row, []))
                missing = np.flatnonzero(~self.done[row])
                if not spec.together:
                    for columns in self._windows(missing):
                        self._enter([row], columns, self._attack(spec, columns)[None])
                elif len(missing):
                    self._attack_together(row, spec, missing)

    def _recall(self, rows: list[int], pieces: list[dict[str, np.ndarray]]) -> None:
        """Enters what the checkpoint has of these rows; of attacks on all images together, only the very same images."""
        together = rows[0] > 0 and self.specs[rows[0] - 1].together
        for piece in pieces:
            here = np.isin(piece["indices"], self.indices)
            columns = np.searchsorted(self.indices, piece["indices"][here])
            if together and not (here.all() and np.array_equal(columns, np.flatnonzero(~self.done[rows[0]]))):
                continue
            self.right[_at(rows, columns)] = piece["right"][:, here]
            if rows[0] == 0:
                self.predictions[columns] = piece["predictions"][here]
            self._mark(rows, columns)

    def _enter(self, rows: list[int], columns: np.ndarray, right: np.ndarray, predictions: np.ndarray | None = None) -> None:
        """Enters new outcomes (rows, columns), and keeps them in the checkpoint."""
        self.right[_at(rows, columns)] = right
        arrays = {"indices": self.indices[columns], "right": right}
        if predictions is not None:
            self.predictions[columns] = arrays["predictions"] = predictions
        if self.pieces is not None:
            self.pieces.save(rows[0], **arrays)
        self._mark(rows, columns)

    def _mark(self, rows: list[int], columns: np.ndarray) -> None:
        there = _at(rows, columns)
        self.bar.update(int((~self.done[there]).sum()))
        self.done[there] = True

    def _windows(self, columns: np.ndarray) -> Iterator[np.ndarray]:
        """The columns in parts; with a checkpoint in parts that take about a minute each, going by the part before."""
        most = _WINDOW * self.batch_size
        size = most if self.pieces is None else min(most, _FEWEST)
        while len(columns):
            began = time.perf_counter()
            yield columns[:size]
            columns = columns[size:]
            if self.pieces is not None:
                in_time = int(size * _SECONDS / max(time.perf_counter() - began, 1e-6))
                size = min(most, 2 * size, max(_FEWEST, in_time))  # twice: images that fall at once are no measure

    def _images(self, columns: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images in the protocol's space and their true labels."""
        device, dtype = self.home
        where = torch.from_numpy(self.indices[columns])
        return (
            self.space.of_pixels(self.data.pixels(where, device).to(dtype)),
            self.data.labels[where].to(device),
        )

    def _clean_and_fgsm(self, columns: np.ndarray, fgsm: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """right (1 + FGSM's rows, n), and the clean predictions (n,)."""
        images, labels = self._images(columns)
        parts = zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)
        found = [self._clean_and_fgsm_of(x, y, [self.specs[row - 1] for row in fgsm]) for x, y in parts]
        right, predictions = (torch.cat(part, dim=-1).cpu().numpy() for part in zip(*found, strict=True))
        return right, predictions

    def _clean_and_fgsm_of(self, x: Tensor, y: Tensor, fgsm: list[AttackSpec]) -> tuple[Tensor, Tensor]:
        """The same for one batch, all eps from one gradient.

        That gradient is taken for the predicted labels: of an image that is classified correctly they are the true ones.
        """
        model = self.space.model
        logits, gradient = logits_and_gradient(model, x, None) if fgsm else (logits_of(model, x), torch.zeros_like(x))
        predictions = logits.argmax(1)
        correct = predictions == y
        gradients = {"predicted": gradient, "true": gradient}
        if self.space.attacks_all and not correct.all() and any(spec.labels == "true" for spec in fgsm):
            gradients["true"] = gradient.clone()
            gradients["true"][~correct] = logits_and_gradient(model, x[~correct], y[~correct])[1]
        attacked = torch.ones_like(correct) if self.space.attacks_all else correct
        right = torch.zeros(1 + len(fgsm), len(x), dtype=torch.bool, device=x.device)
        right[0] = correct
        for row, spec in enumerate(fgsm, start=1):
            if attacked.any():
                along = gradients[spec.labels][attacked]
                found = single_step(x[attacked], along, eps=spec.eps, norm=spec.norm, bounds=self.space.bounds)
                right[row, attacked] = self._right(found, y[attacked])
        return right, predictions

    def _attack(self, spec: AttackSpec, columns: np.ndarray) -> np.ndarray:
        """(n,) bool: which of these images are right under this attack."""
        x, y = self._images(columns)
        labels = y if spec.labels == "true" else torch.from_numpy(self.predictions[columns]).to(y.device)
        ids = torch.from_numpy(self.indices[columns])
        model, twin = self.space.model, self.space.twin if asks_often(spec) else None
        options: dict[str, Any] = {"seed": self.seed, "bounds": self.space.bounds, "batch_size": self.batch_size}
        found = adversarial(model if twin is None else twin, x, labels, spec, ids=ids, **options)
        right = self._right(found, y)
        if twin is not None and right.any():
            # rounding alone brought down what only the twin gets wrong: the attack goes on where it stopped too early
            early = right.clone()
            early[right] = ~self._right(found[right], y[right], twin)
            if early.any():
                found = adversarial(model, x[early], labels[early], spec, ids=ids[early.cpu()], **options)
                right[early] = self._right(found, y[early])
        return right.cpu().numpy()

    def _attack_together(self, row: int, spec: AttackSpec, columns: np.ndarray) -> None:
        """Attacks all these images as one piece, of which the checkpoint keeps the finished parts until it is whole."""
        parts = None if self.pieces is None else self.pieces.parts(row)
        with nullcontext() if parts is None else remembered(parts):
            right = self._attack(spec, columns)
        self._enter([row], columns, right[None])
        if parts is not None:
            parts.clear()

    def _right(self, x: Tensor, y: Tensor, model: Model | None = None) -> Tensor:
        model = self.space.model if model is None else model
        parts = zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)
        return torch.cat([logits_of(model, images).argmax(1) == labels for images, labels in parts])


def _at(rows: list[int], columns: np.ndarray) -> tuple[np.ndarray, ...]:
    return np.ix_(np.array(rows), columns)
