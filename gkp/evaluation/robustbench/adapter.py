"""Run `robustbench.benchmark()` from PyPI on any network and any labelled images, offline.

robustbench 1.1.1 cannot be imported as installed: it needs a module `autoattack`, but depends on pyautoattack, whose
constructor differs. A stand-in is in `sys.modules` while robustbench is imported, and removed afterwards; an installed
`autoattack` is never shadowed. The images come from `gkp.load_dataset`.

Cost: importing robustbench takes seconds, once; then AutoAttack, see `gkp.attacks.autoattack`.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from gkp.attacks.autoattack import build, check_version, fenced
from gkp.attacks.network import Model, evaluating, logits_of
from gkp.attacks.options import parse_eps
from gkp.data.dataset import Dataset
from gkp.errors import BadInput, need_extra
from gkp.evaluation.subject import as_dataset, check_fit, check_sizes, chosen_images, images_home

THREAT_MODELS = {"Linf": "linf", "L2": "l2"}  # RobustBench's names and ours
_KNOWN_NAMES = ("cifar10", "cifar100", "imagenet")
# Warnings of other packages while robustbench 1.1.1 is imported, each by the beginning of its message.
_NOISE: tuple[tuple[str, type[Warning]], ...] = (
    ("pkg_resources is deprecated as an API", UserWarning),
    ("Importing from timm", DeprecationWarning),
    ("`torch.jit.interface` is deprecated", FutureWarning),
)


def robustbench_benchmark(
    model: nn.Module,
    *,
    dataset: str | Dataset = "cifar10",
    n_examples: int | None = None,
    eps: float | str = 8 / 255,
    threat_model: str = "Linf",
    batch_size: int = 32,
    seed: int = 0,
    version: str = "standard",
    attacks_to_run: Sequence[str] | None = None,
) -> tuple[float, float]:
    """Run `robustbench.benchmark()`, without output and files.

    Args:
        model: A network from float32 images (N, C, H, W) in [0, 1] to logits (N, K). It is evaluated in eval mode and left as
            it was.
        dataset: The name of a data set, of which the test split is taken, or a Dataset.
        n_examples: The number of images, the first ones; None for all.
        eps: The radius, in the units of pixels in [0, 1].
        threat_model: "Linf" or "L2".
        batch_size: Images in one pass, on which the result depends, see `gkp.attacks.autoattack`; RobustBench uses 32.
        seed: The seed of AutoAttack; RobustBench sets none, so that AutoAttack takes the clock.
        version, attacks_to_run: As in `gkp.attacks.autoattack.autoattack`; RobustBench runs "standard".

    Returns:
        Accuracy without attack and robust accuracy, as fractions.

    Raises:
        BadInput: An argument is out of range or does not fit the network, or robustbench cannot be imported.
    """
    if threat_model not in THREAT_MODELS:
        what = "; corrupted images are in gkp.evaluation.corruptions" if threat_model.startswith("corruptions") else ""
        raise BadInput(f"unknown threat model {threat_model!r}; known: {', '.join(THREAT_MODELS)}{what}")
    norm = THREAT_MODELS[threat_model]
    radius = parse_eps(eps, norm=norm)
    check_version(version, attacks_to_run)
    check_sizes(batch_size, seed)
    data = as_dataset(dataset)
    images = data.first(len(chosen_images(data, n_examples)))
    with torch.inference_mode(False), evaluating(model):
        check_fit(model, images)
        device, dtype = images_home(model)
        if dtype != torch.float32:
            raise BadInput(f"RobustBench computes in float32, the network in {dtype}; give net.float()")
        options = {"seed": int(seed), "version": version, "attacks_to_run": attacks_to_run}
        with fenced(), redirect_stdout(io.StringIO()), _robustbench(images, options) as benchmark:
            clean, robust = benchmark(
                model,
                n_examples=len(images),
                dataset=data.name if data.name in _KNOWN_NAMES else "cifar10",  # any known name, because the images are ours
                threat_model=threat_model,
                eps=radius,
                batch_size=int(batch_size),
                device=device,
            )
    return float(clean), float(robust)


class AutoAttack:
    """The constructor and method that robustbench calls, by pyautoattack, with the arguments of the original package."""

    def __init__(
        self, model: Model, norm: str = "Linf", eps: float = 0.3, seed: int | None = None, verbose: bool = False,
        attacks_to_run: Sequence[str] | None = None, version: str = "standard", is_tf_model: bool = False,
        device: torch.device | str = "cpu", log_path: str | None = None,
    ) -> None:  # fmt: skip
        self.model, self.norm, self.eps, self.seed, self.device = model, norm, eps, seed, device
        self.version, self.attacks_to_run = version, attacks_to_run or None

    def run_standard_evaluation(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, state_path: Path | None = None) -> Tensor:
        """Attack images.

        Args:
            x_orig: Images (N, C, H, W).
            y_orig: Labels (N,).
            bs: Images in one pass.
            state_path: A file of pyautoattack from which to resume; None for none.

        Returns:
            The attacked images.
        """
        with torch.enable_grad():
            attack = build(
                self.model,
                logits_of(self.model, x_orig[:1].to(self.device)).shape[1],
                eps=self.eps,
                norm=THREAT_MODELS[self.norm],
                seed=self.seed,
                version=self.version,
                attacks=self.attacks_to_run,
                device=self.device,
            )
            return attack.run_standard_evaluation(x_orig, y_orig, batch_size=bs, state_path=state_path)[0]


@contextmanager
def _robustbench(images: Dataset, options: dict[str, Any]) -> Iterator[Any]:
    """The `benchmark` of robustbench, which inside the block uses these images and runs AutoAttack with these options."""

    def load(*_: Any) -> tuple[Tensor, Tensor]:
        return images.pixels(), images.labels

    def adversary(model: Model, **given: Any) -> AutoAttack:
        return AutoAttack(model, **{**given, **options})

    module = _evaluation_module()
    with mock.patch.multiple(module, AutoAttack=adversary, load_clean_dataset=load):
        yield module.benchmark


def _evaluation_module() -> Any:
    """`robustbench.eval`, imported. Raises BadInput where that fails."""
    if "robustbench.eval" in sys.modules:
        return sys.modules["robustbench.eval"]
    need_extra("attacks", "robustbench", "pyautoattack")
    with _stand_ins(), warnings.catch_warnings():
        for message, category in _NOISE:
            warnings.filterwarnings("ignore", message=message, category=category)
        try:
            return import_module("robustbench.eval")
        except ImportError as error:
            raise BadInput(
                f"robustbench cannot be imported ({error}); install what requirements.lock names (setuptools below 81)"
            ) from error


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Make `autoattack` and `autoattack.state` importable inside the block, installed or not."""
    if "autoattack" in sys.modules or find_spec("autoattack") is not None:
        yield
        return
    from pyautoattack import state

    package = ModuleType("autoattack", "A stand-in on pyautoattack.")
    package.__path__ = []  # a package, so that its submodule can be imported
    package.AutoAttack, package.state = AutoAttack, state  # type: ignore[attr-defined]
    stand_ins = {"autoattack": package, "autoattack.state": state}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
