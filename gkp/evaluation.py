"""`benchmark`: the outcome of every image under every attack, in the paper's protocol or in the field's.

`paper` (PAPER A4; EVALUATION 1): attacks work on normalised images with one clip box for all channels; FGSM at 0.01 and 0.1,
for which the labels are the network's own predictions; PGD at 8/255 in 3 steps of 2/255 with true labels; all in normalised
units. Misclassified images are attacked too, and count when the attack makes them right.

`pixel` (RobustBench; EVALUATION 2): images in [0, 1], true labels, FGSM and PGD-20 at k/255. An image that is misclassified
without attack is wrong under every attack.

Cost: FGSM takes one gradient and one forward pass an image for each eps, the gradient being shared by all eps and its logits
being the clean ones; PGD drops an image once it has fallen. ResNet-20 on one core: 10,000 images in the paper protocol take
about 2 minutes. Outcomes do not depend on the batch size: see `gkp.attacks`.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gkp.attacks import (
    ATTACKS,
    Bounds,
    Model,
    check_options,
    evaluating,
    logits_and_gradient,
    logits_of,
    parse_eps,
    probe,
    single_step,
)
from gkp.datasets import Dataset, load_dataset, to_unit
from gkp.errors import BadInput
from gkp.outcomes import AttackSpec, Outcomes

__all__ = ["PIXEL_EPS", "PROTOCOLS", "AttackSpec", "Outcomes", "accuracy", "benchmark", "predict", "state_sha256"]

PROTOCOLS = ("paper", "pixel")
PIXEL_EPS = tuple(k / 255 for k in (0.25, 0.5, 1, 2, 4, 8))  # naturally trained networks are told apart below 8 / 255
PAPER_BOX = {"cifar10": (-2.4291, 2.7537)}  # as the paper's code has it, in four decimals; computed for other data sets
_WINDOW = 10  # batches of images held at once, so that a batch of survivors can be refilled from them


def benchmark(
    model: nn.Module,
    dataset: str | Dataset = "cifar10",
    *,
    protocol: str = "pixel",
    n_examples: int | None = None,
    seed: int = 0,
    batch_size: int = 200,
    eps: Sequence[float | str] | float | str | None = None,
    attacks: Sequence[str | AttackSpec] | None = None,
    true_labels: bool = False,
    pgd_random_start: bool = False,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> Outcomes:
    """The outcome of the first `n_examples` images (all by default) under every attack of `protocol`.

    model: takes float [0, 1] NCHW, returns logits; evaluated in eval mode and left as it was. dataset: a name, for its test
    split, or a Dataset.
    protocol "pixel": eps: radii in pixel units, numbers or strings such as "8/255"; attacks: names, run at every eps
    (default: fgsm and pgd), or `AttackSpec`s, taken as they are.
    protocol "paper": the attacks are the paper's (attacks: only these of its rows); true_labels adds rows "fgsm-0.01-true" and
    "fgsm-0.1-true"; pgd_random_start
    starts PGD inside the ball, which the paper leaves open.
    seed: of random starts, which depend on it and on the image alone. batch_size: images in one pass (speed and memory only).
    device: where to compute; a network elsewhere is copied. progress: a bar on stderr; None: only when that is a terminal.
    Raises BadInput for whatever does not fit: see the message.
    """
    began = time.perf_counter()
    data = _dataset(dataset)
    n = _checked_count(n_examples, data)
    _checked_sizes(batch_size, seed)
    specs = _attacks(protocol, eps, attacks, true_labels, pgd_random_start)
    with torch.inference_mode(False), evaluating(model), _on(model, device) as net:
        _check_fit(net, data)
        digest = state_sha256(net)
        space = _space(net, data, protocol)
        with tqdm(
            total=n * (1 + len(specs)),
            unit="image",
            desc=f"{data.name} {protocol}",
            disable=None if progress is None else not progress,
        ) as bar:
            run = _Run(space, data, specs, int(seed), batch_size, _home(net), bar)
            parts = [run.window(indices) for indices in torch.arange(n).split(_WINDOW * batch_size)]
    right, predictions = (torch.cat(part, dim=-1).numpy() for part in zip(*parts, strict=True))
    return Outcomes(
        right=right, indices=np.arange(n), labels=data.labels[:n].cpu().numpy().copy(), predictions=predictions, attacks=specs,
        protocol=protocol, bounds=space.bounds, dataset=data.name, split=data.split, data_sha256=data.sha256,
        model_sha256=digest, seed=int(seed), versions=_versions(), seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip


def predict(model: nn.Module, dataset: str | Dataset, *, batch_size: int = 500) -> Tensor:
    """Logits (N, K) of every image, on the CPU; the network is evaluated in eval mode and left as it was.

    dataset: a name, for its test split, or a Dataset. Raises BadInput for a network that does not take its images.
    """
    data = _dataset(dataset)
    _checked_sizes(batch_size, seed=0)
    with evaluating(model), _on(model, None) as net:
        _check_fit(net, data)
        device, dtype = _home(net)
        batches = data.batches(batch_size, device=device)
        return torch.cat([logits_of(net, x.to(dtype)).cpu() for x, _ in batches])


def accuracy(model: nn.Module, dataset: str | Dataset, *, batch_size: int = 500) -> float:
    """The fraction of images classified correctly, without attack; see `predict`."""
    data = _dataset(dataset)
    return (predict(model, data, batch_size=batch_size).argmax(1) == data.labels.cpu()).double().mean().item()


def state_sha256(model: nn.Module) -> str:
    """sha256 (hex) of the network's parameters and buffers: names, types, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {value!r}\n".encode())
    return digest.hexdigest()


# --- protocols ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Space:
    """Where a protocol attacks: how it gets there from pixels, the network seen from there, and the clip box.

    attacks_all: also images that are misclassified without attack, counting them if the attack makes them right.
    """

    of_pixels: Callable[[Tensor], Tensor]
    model: Model
    bounds: Bounds
    attacks_all: bool


def _space(net: nn.Module, data: Dataset, protocol: str) -> _Space:
    """EVALUATION section 1. The paper's loader normalises by the data set's mean and std, in float32 as torchvision does."""
    if protocol == "pixel":
        return _Space(lambda x: x, net, (0.0, 1.0), attacks_all=False)
    device, dtype = _home(net)
    mean, std = (torch.tensor(numbers, device=device, dtype=dtype).view(1, -1, 1, 1) for numbers in (data.mean, data.std))
    lows = [(0 - m) / s for m, s in zip(data.mean, data.std, strict=True)]
    highs = [(1 - m) / s for m, s in zip(data.mean, data.std, strict=True)]
    bounds = PAPER_BOX.get(data.name, (min(lows), max(highs)))
    inside = getattr(net, "from_normalised", None)
    if inside is not None and _same(getattr(net, "mean", None), mean) and _same(getattr(net, "std", None), std):
        model: Model = inside  # the paper's path, bit for bit
    else:

        def model(z: Tensor) -> Tensor:
            return net(z * std + mean)

    return _Space(lambda x: (x - mean) / std, model, bounds, attacks_all=True)


def _attacks(
    protocol: str,
    eps: Sequence[float | str] | float | str | None,
    attacks: Sequence[str | AttackSpec] | None,
    true_labels: bool,
    pgd_random_start: bool,
) -> tuple[AttackSpec, ...]:
    """The rows of the outcome matrix after the clean one."""
    if protocol not in PROTOCOLS:
        raise BadInput(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    if protocol == "paper":
        known = {spec.key: spec for spec in _paper_attacks(true_labels, pgd_random_start)}
        wanted = list(known) if attacks is None else [attacks] if isinstance(attacks, str | AttackSpec) else list(attacks)
        if eps is not None or any(isinstance(key, AttackSpec) or key not in known for key in wanted):
            rows = ", ".join(known)
            raise BadInput(f'protocol "paper" has its own attacks and eps; choose among {rows}, or use protocol "pixel"')
        return tuple(known[str(key)] for key in dict.fromkeys(wanted))
    if true_labels or pgd_random_start:
        raise BadInput('true_labels and pgd_random_start belong to protocol "paper": "pixel" always has both')
    specs: list[AttackSpec] = []
    for item in ("fgsm", "pgd") if attacks is None else [attacks] if isinstance(attacks, str | AttackSpec) else attacks:
        if isinstance(item, AttackSpec):
            specs.append(item)
            continue
        check_options(str(item), {})
        radii = PIXEL_EPS if eps is None else [eps] if isinstance(eps, str | int | float) else eps
        specs += [AttackSpec(str(item), parse_eps(radius)) for radius in radii]
    keys = [spec.key for spec in specs]
    if repeated := {key for key in keys if keys.count(key) > 1 or key == "clean"}:
        raise BadInput(f"two rows would be called {min(repeated)!r}; give each AttackSpec a key of its own, each eps once")
    if predicted := [spec.key for spec in specs if spec.labels != "true"]:
        raise BadInput(f'{predicted[0]} asks for predicted labels, which only protocol "paper" has')
    return tuple(specs)


def _paper_attacks(true_labels: bool, pgd_random_start: bool) -> tuple[AttackSpec, ...]:
    """PAPER A4, all radii in normalised units. PGD makes all its steps, as the library that the paper used does."""
    fgsm = [AttackSpec("fgsm", e, labels="predicted", key=f"fgsm-{e}") for e in (0.01, 0.1)]
    steps = {"step": 2 / 255, "steps": 3, "random_start": pgd_random_start, "drop_fallen": False}
    true = [AttackSpec("fgsm", e, key=f"fgsm-{e}-true") for e in (0.01, 0.1)] if true_labels else []
    return (*fgsm, AttackSpec("pgd", 8 / 255, options=steps), *true)


# --- running --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """One evaluation: a space, the images, the rows of the matrix after the clean one."""

    space: _Space
    data: Dataset
    specs: tuple[AttackSpec, ...]
    seed: int
    batch_size: int
    home: tuple[torch.device, torch.dtype]
    bar: tqdm

    def window(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """right (1 + attacks, n) bool and clean predictions (n,) of the images at these positions."""
        device, dtype = self.home
        x = self.space.of_pixels(to_unit(self.data.images[indices].to(device)).to(dtype))
        y = self.data.labels[indices].to(device)
        right = torch.zeros(1 + len(self.specs), len(x), dtype=torch.bool, device=device)
        predictions = torch.empty_like(y)
        for rows in torch.arange(len(x), device=device).split(self.batch_size):
            right[:, rows], predictions[rows] = self._clean_and_fgsm(x[rows], y[rows])
        attacked = torch.arange(len(x), device=device) if self.space.attacks_all else right[0].nonzero().flatten()
        for row, spec in enumerate(self.specs, start=1):
            if spec.attack != "fgsm":
                labels = y if spec.labels == "true" else predictions
                if len(attacked):
                    found = self._attack(spec, x[attacked], labels[attacked], indices[attacked.cpu()])
                    right[row, attacked] = self._right(found, y[attacked])
                self.bar.update(len(x))
        return right.cpu(), predictions.cpu()

    def _clean_and_fgsm(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The clean row, the rows of FGSM (others stay False) and the predictions, all eps from one gradient.

        That gradient is taken for the predicted labels: of an image that is classified correctly they are the true ones.
        """
        model, fgsm = self.space.model, [(row, s) for row, s in enumerate(self.specs, start=1) if s.attack == "fgsm"]
        logits, gradient = logits_and_gradient(model, x, None) if fgsm else (logits_of(model, x), torch.zeros_like(x))
        predictions = logits.argmax(1)
        correct = predictions == y
        gradients = {"predicted": gradient, "true": gradient}
        if self.space.attacks_all and not correct.all() and any(s.labels == "true" for _, s in fgsm):
            gradients["true"] = gradient.clone()
            gradients["true"][~correct] = logits_and_gradient(model, x[~correct], y[~correct])[1]
        attacked = torch.ones_like(correct) if self.space.attacks_all else correct
        right = torch.zeros(1 + len(self.specs), len(x), dtype=torch.bool, device=x.device)
        right[0] = correct
        for row, spec in fgsm:
            if attacked.any():
                along = gradients[spec.labels][attacked]
                found = single_step(x[attacked], along, eps=spec.eps, norm=spec.norm, bounds=self.space.bounds)
                right[row, attacked] = self._right(found, y[attacked])
        self.bar.update(len(x) * (1 + len(fgsm)))
        return right, predictions

    def _attack(self, spec: AttackSpec, x: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        function = ATTACKS[spec.attack]
        shared = {"seed": self.seed, "ids": ids, "bounds": self.space.bounds, "batch_size": self.batch_size}
        taken = {name: value for name, value in shared.items() if name in inspect.signature(function).parameters}
        return function(self.space.model, x, labels, eps=spec.eps, **taken, **spec.options)

    def _right(self, x: Tensor, y: Tensor) -> Tensor:
        parts = zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)
        return torch.cat([logits_of(self.space.model, images).argmax(1) == labels for images, labels in parts])


# --- checks and surroundings ----------------------------------------------------------------------------------------


def _dataset(dataset: str | Dataset) -> Dataset:
    if isinstance(dataset, str):
        return load_dataset(dataset, "test")
    if not isinstance(dataset, Dataset):
        raise BadInput(f"dataset is a {type(dataset).__name__}; give a name such as 'cifar10', or a gkp.datasets.Dataset")
    return dataset


def _checked_count(n_examples: int | None, data: Dataset) -> int:
    n = len(data) if n_examples is None else n_examples
    if not _is_whole(n) or not 1 <= n <= len(data):
        raise BadInput(f"n_examples is {n!r}; give 1 to {len(data)}, the images in the {data.split} part of {data.name}")
    return int(n)


def _checked_sizes(batch_size: int, seed: int) -> None:
    if not _is_whole(batch_size) or batch_size < 1:
        raise BadInput(f"batch_size must be a whole number of 1 or more, not {batch_size!r}")
    if not _is_whole(seed) or not 0 <= seed < 2**64:
        raise BadInput(f"seed must be an integer in 0..2**64-1, not {seed!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_fit(net: nn.Module, data: Dataset) -> None:
    """Raises BadInput unless `net` takes the images and has the classes of `data`."""
    device, dtype = _home(net)
    classes = probe(net, to_unit(data.images[:1].to(device)).to(dtype))
    if classes != data.num_classes:
        raise BadInput(f"the network has {classes} logits, {data.name} {data.num_classes} classes; give a network made for it")


def _home(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the network lives and the floating-point type it computes in (CPU and float32 if it has no tensors)."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


@contextmanager
def _on(model: nn.Module, device: str | torch.device | None) -> Iterator[nn.Module]:
    """`model` itself if it is on `device`, otherwise a copy of it there."""
    here, _ = _home(model)
    try:
        wanted = here if device is None else torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInput(f"device {str(device)!r} cannot be used ({reason}); leave it out for the network's own") from error
    yield model if wanted == here else copy.deepcopy(model).to(wanted)


def _same(numbers: object, expected: Tensor) -> bool:
    return isinstance(numbers, Tensor) and torch.equal(numbers.flatten(), expected.flatten())


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
