"""AutoAttack (Croce & Hein, ICML 2020) through pyautoattack, with its traps fenced off.

It reseeds the global generators, ends whatever is tracing, reports to a logger that prints, and counts suspicious calls of one
network against the next. Here all of that is as it was before. One thing cannot be mended from outside: it draws one stream of
random numbers for a whole batch, so **the batch size is part of the result**. The same seed, batch size and images give the
same bytes; another batch size, or fewer images, gives other outcomes, all of them equally valid.

Cost for ResNet-20 on one core: 0.6 s an image that falls at once, about 34 s one that survives. That is hours for a thousand
images, so what is finished can be kept (`remembered`): every part of the suite starts its own stream anew for each batch, and
one that was killed goes on after the last batch of the last part, to the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gkp.attacks.balls import Bounds
from gkp.attacks.network import Model, asked, probe
from gkp.attacks.options import known_norm
from gkp.errors import BadInput, ModelWarning, need_extra

VERSIONS = ("standard", "custom")
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
BATCH_SIZE = 250  # pyautoattack's own default
_TARGETED = ("apgd-dlr", "apgd-t", "fab-t")  # these look at up to the fourth largest logit
_SETTINGS = ("norm", "eps", "seed", "loss", "targeted", "n_restarts", "n_iter", "n_target_classes", "n_queries")


class Memory(Protocol):
    """A place for finished batches: a dict, or something that outlives the process."""

    def get(self, key: str, /) -> Tensor | None:
        """The images kept under this key, or None."""

    def __setitem__(self, key: str, found: Tensor, /) -> None:
        """Keeps these images (n, C, H, W)."""


_MEMORY: ContextVar[Memory | None] = ContextVar("finished batches of AutoAttack", default=None)


@contextmanager
def remembered(memory: Memory) -> Iterator[None]:
    """Within, AutoAttack keeps in `memory` what each of its parts finds for each batch, and asks it before it computes.

    Args:
        memory: Of one network: a key tells the part, its settings and the images, but not what is attacked.
    """
    before = _MEMORY.set(memory)
    try:
        yield
    finally:
        _MEMORY.reset(before)


def autoattack(
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
    version: str = "standard",
    attacks_to_run: Sequence[str] | None = None,
) -> Tensor:
    """AutoAttack as pyautoattack runs it. What it would log as a warning is given as a `ModelWarning`, each message once.

    Args:
        model: Images (N, C, H, W) to logits (N, K), in eval mode.
        x: Images (N, C, H, W), float32 in [0, 1].
        y: Labels (N,).
        eps: Radius of the ball, in the units of `x`.
        norm: "linf" or "l2".
        seed: Of pyautoattack's one stream of random numbers.
        ids: Not used. It is here so that all attacks are called alike.
        bounds: (0, 1) only.
        batch_size: Images in one pass, 250 by default. It is part of the result: see above.
        version: "standard" (APGD-CE, APGD-T, FAB-T and Square, which RobustBench runs) or "custom".
        attacks_to_run: For "custom": some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t and square, in the order they run in, with
            pyautoattack's settings (5 restarts of apgd-ce, apgd-dlr and fab). Below 10 classes, so many targets fewer.

    Returns:
        Images of the same shape; one that never falls is returned as it is.

    Raises:
        BadInput: Other bounds, images that are not float32, an option out of range, or too few classes.
    """
    known_norm(norm)
    check_version(version, attacks_to_run)
    if tuple(bounds) != (0.0, 1.0):
        raise BadInput(f'autoattack works on pixels in [0, 1], not in {tuple(bounds)}; use protocol "pixel", or another attack')
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise BadInput(f"batch_size of autoattack must be a whole number of 1 or more, not {batch_size!r}")
    if x.dtype != torch.float32:
        raise BadInput(f"autoattack computes in float32, the images are {x.dtype}; give x.float() and a float32 network")
    if not len(x) or eps == 0:
        return x.clone()
    with torch.inference_mode(False), torch.enable_grad(), fenced():
        inputs, labels = x.detach().clone(), y.clone()  # not made in inference mode, which autograd refuses
        attack = build(
            model, probe(model, inputs), eps=eps, norm=norm, seed=seed, version=version, attacks=attacks_to_run, device=x.device
        )
        if (memory := _MEMORY.get()) is not None:
            for part in (attack.apgd, attack.apgd_targeted, attack.fab, attack.square):
                part.perturb = partial(_perturb, part, part.perturb, memory)
        found, _ = attack.run_standard_evaluation(inputs, labels, batch_size=batch_size or BATCH_SIZE)
    return found.detach()


def check_version(version: str, attacks_to_run: Sequence[str] | None) -> None:
    """Raises BadInput unless `version` is known and comes with attacks_to_run where, and only where, it needs them."""
    if version not in VERSIONS:
        raise BadInput(f"unknown version {version!r} of autoattack; known: {', '.join(VERSIONS)}")
    if version == "standard" and attacks_to_run is not None:
        raise BadInput(
            'version "standard" of autoattack has its own attacks; leave attacks_to_run out or take version="custom"'
        )
    if version == "custom":
        known = ", ".join(PARTS)
        if isinstance(attacks_to_run, str) or not attacks_to_run:
            raise BadInput(f'version "custom" of autoattack needs attacks_to_run, a list of some of {known}')
        if unknown := [name for name in attacks_to_run if name not in PARTS]:
            raise BadInput(f"autoattack has no part {unknown[0]!r}; known: {known}")


def build(
    model: Model,
    classes: int,
    *,
    eps: float,
    norm: str,
    seed: int | None,
    version: str = "standard",
    attacks: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """A `pyautoattack.AutoAttack` that fits a network of so many classes; norm as here, "linf" or "l2".

    Raises BadInput for fewer classes than its losses look at.
    """
    need_extra("attacks", "pyautoattack")
    from pyautoattack import AutoAttack

    chosen = None if attacks is None else list(attacks)
    attack = AutoAttack(
        partial(asked, model),
        norm={"linf": "Linf", "l2": "L2"}[norm],
        eps=eps,
        seed=seed,
        version=version,
        attacks=chosen,
        device=device,
    )
    targeted = [name for name in attack.attacks_to_run if name in _TARGETED]
    if classes < 4 and targeted:
        raise BadInput(
            f"{targeted[0]} of autoattack needs 4 classes, the network has {classes}; "
            'use version="custom" with attacks_to_run=["apgd-ce", "square"]'
        )
    for part in (attack.apgd_targeted, attack.fab):
        part.n_target_classes = min(part.n_target_classes, classes - 1)
    return attack


def _perturb(part: Any, compute: Callable[[Tensor, Tensor], Tensor], memory: Memory, x: Tensor, y: Tensor) -> Tensor:
    """`compute(x, y)`, or what it gave when this part met these images before."""
    settings = {name: getattr(part, name) for name in _SETTINGS if hasattr(part, name)}
    told = hashlib.sha256(repr((type(part).__name__, sorted(settings.items()), tuple(x.shape))).encode())
    for tensor in (x, y):
        told.update(tensor.detach().cpu().numpy().tobytes())
    key = told.hexdigest()
    found = memory.get(key)
    if found is None:
        found = memory[key] = compute(x, y)
    return found.to(x)


class _Messages(logging.Handler):
    """Keeps what pyautoattack warns of, each message once, and prints nothing."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.texts[record.getMessage().removesuffix(" See flags_doc.md for details.")] = None


@contextmanager
def fenced() -> Iterator[None]:
    """Within, pyautoattack may do as it does; afterwards generators, tracing, its logger and its counts are as before.

    What it logged as a warning is warned of at the end.
    """
    need_extra("attacks", "pyautoattack")
    from pyautoattack import checks

    logger, messages = logging.getLogger("auto-attack"), _Messages()
    logs = logger.handlers[:], logger.propagate, logger.level
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (the global one is what is saved)
    tracing, counts = sys.gettrace(), dict(checks.funcs)
    checks.funcs.update(dict.fromkeys(counts, 0))
    logger.handlers, logger.propagate = [messages], False
    logger.setLevel(logging.WARNING)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices=list(gpus)):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        logger.handlers, logger.propagate = logs[:2]
        logger.setLevel(logs[2])
        checks.funcs.update(counts)
        sys.settrace(tracing)
    for text in messages.texts:
        warnings.warn(f"AutoAttack: {text}", ModelWarning, stacklevel=4)
