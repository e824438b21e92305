"""Probes of a network: how attacks behave on it, whether it normalises its input, its gradients, and changed images.

Cost: a few short attacks on 16 images, and one gradient and about 16 forward passes for each image.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.attacks.network import HALF, asked, evaluating, home, logits_of
from gkp.data.dataset import Dataset
from gkp.data.shifts import gaussian_noise, rotate, shift
from gkp.errors import ModelWarning
from gkp.evaluation.attacked import adversarial
from gkp.evaluation.audit.evidence import Gradients, InputPath, Probe, Row
from gkp.evaluation.benchmark import benchmark, predict
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.evaluation.subject import images_home
from gkp.networks.wrappers import unwrapped

_SHORT = {"steps": 3, "queries": 10, "restarts": 2}  # the largest options of a short run


@dataclass(frozen=True)
class Subject:
    """The audited network, the images, and the options of every pass over them.

    Attributes:
        model: The network.
        split: The whole data set, whose hash is recorded in outcome matrices.
        data: Its first images.
        seed: The seed of random starts.
        batch_size: Images in one pass.
        progress: As in `gkp.benchmark`.
    """

    model: nn.Module
    split: Dataset
    data: Dataset
    seed: int
    batch_size: int
    progress: bool | None

    def outcomes(
        self, specs: Sequence[AttackSpec], *, model: nn.Module | None = None, positions: np.ndarray | None = None
    ) -> Outcomes:
        """The outcomes under some attacks. A network that is not deterministic causes no warning, because check 4 reports it.

        Args:
            specs: The attacks.
            model: The network to attack; None for the audited one.
            positions: Positions of images (n,); None for all.
        """
        chosen = self.split.leading(len(self.data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ModelWarning)
            return benchmark(
                model or self.model, self.split, attacks=list(specs), seed=self.seed, batch_size=self.batch_size,
                indices=chosen if positions is None else chosen[positions], progress=self.progress,
                allow_nondeterministic=True,
            )  # fmt: skip

    def attacked(
        self, spec: AttackSpec, x: Tensor, y: Tensor, ids: Tensor, *, model: nn.Module | None = None, batch_size: int = 0
    ) -> Tensor:
        """Attack some images.

        Args:
            spec: The attack.
            x: Images (n, C, H, W).
            y: Labels (n,).
            ids: Ids of the images (n,), which decide their random starts.
            model: The network to attack; None for the audited one.
            batch_size: Images in one pass; 0 for that of the subject.

        Returns:
            Attacked images (n, C, H, W).
        """
        model = model or self.model
        with evaluating(model):
            return adversarial(
                model, x, y, spec, seed=self.seed, ids=ids, bounds=(0.0, 1.0), batch_size=batch_size or self.batch_size
            )

    def right(self, x: Tensor, y: Tensor) -> np.ndarray:
        """Whether the network classifies each image as its label, (n,) bool."""
        with evaluating(self.model):
            return (logits_of(self.model, x).argmax(1) == y).cpu().numpy()

    def transferred(self, parent: nn.Module, spec: AttackSpec, positions: np.ndarray) -> np.ndarray:
        """Whether the network classifies images correctly that were attacked for another network.

        Args:
            parent: The network that is attacked.
            spec: The attack.
            positions: Positions of images (n,).

        Returns:
            (n,) bool.
        """
        right, theirs = [np.zeros(0, dtype=bool)], images_home(parent)
        for part in self.batches(positions):
            x, y, ids = self.images(part)
            found = self.attacked(spec, x.to(*theirs), y.to(theirs[0]), ids, model=parent)
            right.append(self.right(found.to(x), y))
        return np.concatenate(right)

    def images(self, positions: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Images in [0, 1] on the device and in the precision of the network, their labels, and their ids."""
        (device, dtype), ids = images_home(self.model), torch.from_numpy(positions)
        return self.data.pixels(ids).to(device, dtype), self.data.labels[ids].to(device), ids

    def batches(self, positions: np.ndarray) -> list[np.ndarray]:
        """The positions in batches."""
        return [positions[i : i + self.batch_size] for i in range(0, len(positions), self.batch_size)]


def right_of(logits: Tensor, data: Dataset) -> np.ndarray:
    """Whether the largest logit is that of the label, (N,) bool."""
    return (logits.argmax(1) == data.labels.cpu()).numpy()


def _images(wrong: Tensor) -> int:
    """The number of images with any True entry."""
    return int(wrong.flatten(1).any(1).sum())


def conduct_of(subject: Subject, clean: np.ndarray, rows: Mapping[str, Row], images: int) -> tuple[dict[str, Probe], int, int]:
    """Probe every attack, and whether the network is deterministic.

    Args:
        subject: The network and its images.
        clean: Outcomes without attack, (N,) bool.
        rows: The attacks.
        images: The number of correctly classified images to use, the first ones.

    Returns:
        Name of an attack -> its probe; the number of images whose logits change in a second pass or whose class changes in a
        batch of three; the number of images tried.
    """
    chosen = np.flatnonzero(clean)[:images]
    x, y, ids = subject.images(chosen if len(chosen) else np.arange(min(images, len(subject.data))))
    with evaluating(subject.model):
        first, again = (logits_of(subject.model, x) for _ in range(2))
        apart = torch.cat([logits_of(subject.model, part) for part in x.split(3)])
    moved = ~first.isclose(again, rtol=1e-5, atol=1e-6).all(1) | (first.argmax(1) != apart.argmax(1))
    tried = {name: row.spec for name, row in rows.items() if row.source == "network" and not row.spec.together}
    probes = {name: _probe(subject, spec, x, y, ids) for name, spec in tried.items()} if len(chosen) else {}
    return probes, int(moved.sum()), len(x)


def _probe(subject: Subject, spec: AttackSpec, x: Tensor, y: Tensor, ids: Tensor) -> Probe:
    options = {key: min(value, _SHORT[key]) if key in _SHORT else value for key, value in spec.options.items()}
    short, late = replace(spec, options=options), slice(len(x) // 2, None)
    at_zero = subject.attacked(replace(short, eps=0.0), x, y, ids, batch_size=len(x))
    found = subject.attacked(short, x, y, ids, batch_size=len(x))
    apart = subject.attacked(short, x[late], y[late], ids[late], batch_size=3)
    return Probe(
        n=len(x),
        moved_at_zero=_images(at_zero != x),
        farthest=(found - x).abs().max().item(),
        outside=_images((found < 0) | (found > 1)),
        not_finite=_images(~found.isfinite()),
        otherwise=int((subject.right(found[late], y[late]) != subject.right(apart, y[late])).sum()),
    )


def input_path(subject: Subject, logits: Tensor, reference: float | None) -> InputPath:
    """Measure whether the network normalises its input itself.

    Images normalised by the mean and std of the data set are given to the network as if they were pixels. Images normalised by
    the mean and std of the network, as a loader computes it, are given to its `from_normalised`; not in half precision, whose
    rounding is larger than what the check is to see.

    Args:
        subject: The network and its images.
        logits: Logits of the plain images (N, K).
        reference: The known accuracy without attack, a fraction; None if not given.
    """
    data, model, difference = subject.data, subject.model, None
    known = model if hasattr(model, "from_normalised") else unwrapped(model)
    inside, mean, std = (getattr(known, name, None) for name in ("from_normalised", "mean", "std"))
    right = np.zeros(len(data), dtype=bool)
    with evaluating(model):
        for positions in subject.batches(np.arange(len(data))):
            x, y, _ = subject.images(positions)
            right[positions] = (logits_of(model, _normalised(x, data.mean, data.std)).argmax(1) == y).cpu().numpy()
            if callable(inside) and isinstance(mean, Tensor) and isinstance(std, Tensor) and home(model)[1] not in HALF:
                z = _normalised(x, mean.flatten().tolist(), std.flatten().tolist())
                apart = (logits_of(inside, z).cpu() - logits[positions]).abs().max() / logits.abs().max().clamp_min(1)
                difference = max(difference or 0.0, apart.item())
    return InputPath(right, difference, reference)


def _normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    channels = [(x[:, c].double() - m) / s for c, (m, s) in enumerate(zip(mean, std, strict=True))]
    return torch.stack(channels, dim=1).to(x.dtype)


def gradients(subject: Subject, positions: np.ndarray) -> Gradients:
    """Probe the input gradients; not by the function of the attacks, which refuses gradients that are not finite."""
    zero = not_finite = 0
    with evaluating(subject.model), torch.inference_mode(False), torch.enable_grad():
        for part in subject.batches(positions):
            x, y, _ = subject.images(part)
            loss = F.cross_entropy(asked(subject.model, x.requires_grad_(True)), y, reduction="sum")
            gradient = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
            gradient = torch.zeros_like(x) if gradient is None else gradient
            zero, not_finite = zero + len(x) - _images(gradient != 0), not_finite + _images(~gradient.isfinite())
    return Gradients(len(positions), zero, not_finite)


def changed_images(subject: Subject, missing: dict[str, str]) -> dict[str, np.ndarray]:
    """Outcomes on images changed without knowledge of the network: noise, shifts, rotations.

    Args:
        subject: The network and its images.
        missing: As in `Evidence`; gets the reason where images are too small.

    Returns:
        Name of the change -> outcomes (N,) bool.
    """
    data = subject.data
    if min(data.images.shape[2:]) < 3:
        missing["changed"] = "images of fewer than 3 pixels a side cannot be shifted by two"
        return {}
    sets = {f"gaussian noise {sigma:g}": gaussian_noise(data, sigma, seed=subject.seed) for sigma in (0.01, 0.02, 0.04, 0.08)}
    sets |= {f"shift {dx:+d},{dy:+d}": shift(data, dx, dy) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (2, 2), (-2, -2))}
    sets |= {f"rotation {degrees:+d}": rotate(data, degrees) for degrees in (-15, -5, 5, 15)}
    return {name: right_of(predict(subject.model, part, batch_size=subject.batch_size), data) for name, part in sets.items()}
