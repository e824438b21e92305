"""`benchmark`: the outcome of every image under every attack, in the paper's protocol or in the field's.

`gkp.evaluation.protocols` says what a protocol attacks and where, `gkp.evaluation.outcomes` what comes of it.

Cost: FGSM takes one gradient and one forward pass an image for each eps, the gradient being shared by all eps and its logits
being the clean ones; PGD drops an image once it has fallen. ResNet-20 on one core: 10,000 images in the paper protocol take
about 2 minutes. Longer attacks are run on a twin without BatchNorm (`gkp.evaluation.folding`), which is faster, and judged
by the network itself. Outcomes do not depend on the batch size (see `gkp.attacks`), nor on whether the evaluation was
interrupted: with a checkpoint, what a kill costs is the images of the last minutes.

The exception is `autoattack`, whose outcomes depend on which images share a batch: it gets all images
that are to be attacked in one call, the batch size is one of its options in the outcome matrix, and a kill costs the call.
"""

from __future__ import annotations

import inspect
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gkp.attacks.balls import Bounds
from gkp.attacks.gradient import single_step
from gkp.attacks.network import Model, evaluating, logits_and_gradient, logits_of
from gkp.attacks.options import ATTACKS
from gkp.data.dataset import Dataset, to_unit
from gkp.engine.compile import Compiled, compile_all
from gkp.errors import BadInput
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.evaluation.protocols import (
    Attacks,
    Radii,
    Space,
    asks_often,
    attack_rows,
    space_of,
)
from gkp.evaluation.resume import Pieces
from gkp.evaluation.subject import (
    as_dataset,
    check_behaviour,
    check_fit,
    check_sizes,
    chosen_images,
    images_home,
    on_device,
    state_sha256,
)

ENGINES = ("torch", "fast")
_WINDOW = 10  # batches of images held at once, so that a batch of survivors can be refilled from them
# With a checkpoint a window is kept when it is finished. It grows from _FEWEST images (smaller batches cost as much, see
# `gkp.attacks.network.MIN_ROWS`; the dearest attack, Square, takes 17 s an image) to what takes about _SECONDS.
_FEWEST, _SECONDS = 16, 60


def benchmark(
    model: nn.Module,
    dataset: str | Dataset = "cifar10",
    *,
    protocol: str = "pixel",
    n_examples: int | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    batch_size: int = 200,
    eps: Radii | None = None,
    attacks: Attacks | None = None,
    true_labels: bool = False,
    pgd_random_start: bool = False,
    checkpoint: str | Path | None = None,
    allow_nondeterministic: bool = False,
    device: str | torch.device | None = None,
    progress: bool | None = None,
    engine: str = "torch",
) -> Outcomes:
    """The outcome of the first `n_examples` images (all by default), or of `indices`, under every attack of `protocol`.

    model: takes float [0, 1] NCHW, returns logits; evaluated in eval mode and left as it was. dataset: a name, for its test
    split, or a Dataset.
    protocol "pixel": eps: radii in pixel units, numbers or strings such as "8/255" or "4/255,8/255"; attacks: names of
    `gkp.attacks.options.ATTACKS`, "fgsm,pgd" being two, run at every eps (default: fgsm and pgd); `AttackSpec`s, or dicts of
    their fields, are run at their own eps if they have one. Without eps: the radii of PIXEL_EPS, and 0.5 in L2.
    protocol "paper": the attacks are the paper's (attacks: only these of its rows); true_labels adds rows "fgsm-0.01-true" and
    "fgsm-0.1-true"; pgd_random_start starts PGD inside the ball, which the paper leaves open.
    seed: of random starts, which depend on it and on the image alone. batch_size: images in one pass (speed and memory only,
    save for autoattack).
    checkpoint: a folder that keeps what is finished; the same call goes on from there and gives the same bytes on the same
    machine, whatever the batch size. It may be deleted once the outcomes are saved.
    allow_nondeterministic: evaluate a network whose logits change from pass to pass: outcomes are then one draw.
    device: where to compute; a network elsewhere is copied. progress: a bar on stderr; None: only when that is a terminal.
    engine: "torch", or "fast" for `gkp.compile` (on the CPU), which rounds otherwise: a few images in a thousand, at a tie of a
    ReLU or of two classes, may come out differently. It is recorded in `versions`.
    Gives a ModelWarning for a network that returns probabilities. Raises BadInput for whatever does not fit: see the message.
    """
    began = time.perf_counter()
    data = as_dataset(dataset)
    chosen = chosen_images(data, n_examples, indices)
    check_sizes(batch_size, seed)
    specs = attack_rows(
        protocol,
        eps=eps,
        attacks=attacks,
        true_labels=true_labels,
        pgd_random_start=pgd_random_start,
        batch_size=int(batch_size),
        dataset=data.name,
    )
    if isinstance(model, Compiled):  # its network, by the engine that runs it
        engine = "torch" if "network" in model.fallbacks else "fast"
        model = model.compiled_from
    if engine not in ENGINES:
        raise BadInput(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    with torch.inference_mode(False), evaluating(model), on_device(model, device) as given:
        net = compile_all(given) if engine == "fast" else given
        check_fit(net, data)
        logits = check_behaviour(net, data, allow_nondeterministic=allow_nondeterministic)
        fold = engine == "torch" and not allow_nondeterministic and any(asks_often(spec) for spec in specs)
        space = space_of(net, data, protocol, fold=fold)
        facts: dict[str, Any] = {
            "protocol": protocol, "bounds": space.bounds, "dataset": data.name, "split": data.split,
            "data_sha256": data.sha256, "model_sha256": state_sha256(given), "seed": int(seed), "versions": _versions(engine),
        }  # fmt: skip
        pieces = None
        if checkpoint is not None:
            rows = {f"row {spec.key}": asdict(spec) for spec in specs}
            options = {"device": images_home(net)[0].type, "allow_nondeterministic": allow_nondeterministic}
            identity = {**facts, "rows": [spec.key for spec in specs], **rows, **options}
            pieces = Pieces(checkpoint, identity, np.zeros(0) if allow_nondeterministic else logits.flatten().numpy())
        with tqdm(
            total=len(chosen) * (1 + len(specs)),
            unit="image",
            desc=f"{data.name} {protocol}",
            disable=None if progress is None else not progress,
        ) as bar:
            run = _Run(space, data, specs, int(seed), int(batch_size), images_home(net), chosen, bar, pieces)
            run.finish()
    labels = data.labels[torch.from_numpy(chosen)].cpu().numpy().copy()
    seconds = round(time.perf_counter() - began, 3)
    return Outcomes(
        right=run.right, indices=chosen, labels=labels, predictions=run.predictions, attacks=specs, **facts, seconds=seconds
    )


def predict(model: nn.Module, dataset: str | Dataset, *, batch_size: int = 500) -> Tensor:
    """Logits (N, K) of every image, on the CPU; the network is evaluated in eval mode and left as it was.

    dataset: a name, for its test split, or a Dataset. Raises BadInput for a network that does not take its images.
    """
    data = as_dataset(dataset)
    check_sizes(batch_size, seed=0)
    with evaluating(model), on_device(model, None) as net:
        check_fit(net, data)
        device, dtype = images_home(net)
        batches = data.batches(batch_size, device=device)
        return torch.cat([logits_of(net, x.to(dtype)).cpu() for x, _ in batches])


def accuracy(model: nn.Module, dataset: str | Dataset, *, batch_size: int = 500) -> float:
    """The fraction of images classified correctly, without attack; see `predict`."""
    data = as_dataset(dataset)
    return (predict(model, data, batch_size=batch_size).argmax(1) == data.labels.cpu()).double().mean().item()


def adversarial(
    model: Model, x: Tensor, labels: Tensor, spec: AttackSpec, *, seed: int, ids: Tensor, bounds: Bounds, batch_size: int
) -> Tensor:
    """Images of the same shape as `x` after the attack that `spec` describes; the rest as in `gkp.attacks`, if it takes it."""
    function = ATTACKS[spec.attack]
    shared = {"seed": seed, "ids": ids, "bounds": bounds, "batch_size": batch_size}
    taken = {name: value for name, value in shared.items() if name in inspect.signature(function).parameters}
    return function(model, x, labels, eps=spec.eps, **{**taken, **spec.options})


@dataclass
class _Run:
    """One evaluation: a space, the images, the rows of the matrix after the clean one; and the matrix as far as it is known."""

    space: Space
    data: Dataset
    specs: tuple[AttackSpec, ...]
    seed: int
    batch_size: int
    home: tuple[torch.device, torch.dtype]
    indices: np.ndarray
    bar: tqdm
    pieces: Pieces | None
    right: np.ndarray = field(init=False)  # (1 + attacks, n) bool, row 0 without attack
    predictions: np.ndarray = field(init=False)  # (n,)
    done: np.ndarray = field(init=False)  # (1 + attacks, n) bool

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
                for columns in [missing] if spec.together and len(missing) else self._windows(missing):
                    self._enter([row], columns, self._attack(spec, columns)[None])

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
            self.space.of_pixels(to_unit(self.data.images[where].to(device)).to(dtype)),
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

    def _right(self, x: Tensor, y: Tensor, model: Model | None = None) -> Tensor:
        model = self.space.model if model is None else model
        parts = zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)
        return torch.cat([logits_of(model, images).argmax(1) == labels for images, labels in parts])


def _at(rows: list[int], columns: np.ndarray) -> tuple[np.ndarray, ...]:
    return np.ix_(np.array(rows), columns)


def _versions(engine: str) -> dict[str, str]:
    """Of what outcomes rest on."""
    fast = {} if engine == "torch" else {"engine": engine, "numba": version("numba")}
    known = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return known | {name: version(name) for name in ("pyautoattack",) if find_spec(name)} | fast
