"""Measure the `Evidence` for the checks.

Cost: about 14 attacks, nearly all of an audit. An image that is never misclassified takes, at the default effort, about 230
gradients for PGD, its variants and its ladder, 200 for both APGD and 1,000 forward passes for Square; one that is misclassified
at once takes a few. Attacks in the caller's `outcomes` are not run again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gkp.attacks.network import ordinary_tensors
from gkp.attacks.options import ATTACKS
from gkp.data.dataset import Dataset
from gkp.errors import BadInput
from gkp.evaluation.audit.evidence import BLACK, MIXED, WHITE, Evidence, Row
from gkp.evaluation.audit.probing import (
    Subject,
    changed_images,
    conduct_of,
    gradients,
    input_path,
    right_of,
)
from gkp.evaluation.benchmark import benchmark, predict
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.evaluation.subject import indices_sha256
from gkp.networks.fingerprint import state_sha256

TOP_EPS = 0.5  # every image can become the same grey, so no network is robust
LADDER = (0.25, 0.5, 2, 4)  # multiples of the audited radius
LEAD = 5.0  # of the largest logit: softmax is then neither saturated (in float32 from about 17 on) nor too flat
GRADIENT_FREE, COMPOSITE = ("square",), ("cascade", "autoattack")
_NOISE = {"steps": 1, "step": 1e-12}  # PGD that stays at its random starts: noise, uniform in the ball


@dataclass(frozen=True)
class Effort:
    """The effort of an audit.

    Attributes:
        steps, apgd_steps: Steps of PGD and APGD.
        queries: Queries of Square.
        draws: Draws of random noise.
        probes: Images for `Probe`.
    """

    steps: int = 20
    apgd_steps: int = 100
    queries: int = 1000
    draws: int = 10
    probes: int = 16


class Scaled(nn.Module):
    """A network with its logits multiplied by a factor: the same decisions, another softmax.

    Args:
        net: The network.
        factor: The factor.
    """

    def __init__(self, net: nn.Module, factor: float):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K), scaled."""
        return self.net(x) * self.factor


def planned(eps: float, effort: Effort) -> dict[str, AttackSpec]:
    """Name in the checks -> attack, of the attacks on the network itself."""
    steps, apgd = {"steps": effort.steps}, {"steps": effort.apgd_steps}
    return {
        "fgsm": AttackSpec("fgsm", eps),
        "pgd": AttackSpec("pgd", eps, options=steps),
        "pgd-2x-steps": AttackSpec("pgd", eps, options={"steps": 2 * effort.steps}),
        "pgd-2x-restarts": AttackSpec("pgd", eps, options={**steps, "restarts": 2}),
        "apgd-ce": AttackSpec("apgd-ce", eps, options=apgd),
        "apgd-dlr": AttackSpec("apgd-dlr", eps, options=apgd),
        "square": AttackSpec("square", eps, options={"queries": effort.queries}),
        "noise": AttackSpec("pgd", eps, options={**_NOISE, "restarts": effort.draws}),
    }


@ordinary_tensors()
def gather(
    model: nn.Module,
    data: Dataset,
    *,
    n_examples: int | None,
    eps: float,
    seed: int = 0,
    effort: Effort | None = None,
    parent: nn.Module | None = None,
    reference_accuracy: float | None = None,
    outcomes: Outcomes | None = None,
    selection: str | None = None,
    self_test: Mapping[str, tuple[int, ...]] | None = None,
    batch_size: int = 200,
    progress: bool | None = None,
) -> Evidence:
    """Measure the evidence for an audit.

    Args:
        model: A network from images (N, C, H, W) in [0, 1] to logits (N, K).
        data: The data set.
        n_examples: The number of images, the first ones; None for all.
        eps: The radius, in the units of pixels in [0, 1].
        seed: The seed of random starts and noise.
        effort: How hard to try; None for `Effort()`.
        parent: The dense network that `model` was pruned from; None without one.
        reference_accuracy: The known accuracy without attack, a fraction; None if not given.
        outcomes: Outcomes of `benchmark` for this network, data set and seed, whose attacks are not run again.
        selection: How the checkpoint was chosen; None if not stated.
        self_test: The result of `gkp.evaluation.audit.planted.self_test`; None to leave it out.
        batch_size: Images in one pass.
        progress: Whether to show a bar on stderr; None for only on a terminal.

    Raises:
        BadInput: The network does not take the images, or its logits are not finite.
    """
    effort, before = effort or Effort(), state_sha256(model)
    clean = benchmark(  # warns once about a network that is not deterministic
        model, data, attacks=[], n_examples=n_examples, seed=seed, batch_size=batch_size, allow_nondeterministic=True,
        progress=False,
    )  # fmt: skip
    right, subject = clean.right[0], Subject(model, data, data.first(clean.n), seed, batch_size, progress)
    logits = predict(model, subject.data, batch_size=batch_size)
    scale = _logit_scale(logits, right)
    rows, ladder, matrices, missing = _attacked(subject, eps, effort, outcomes)
    rows |= _scaled(subject, planned(eps, effort)["pgd"], scale, missing)
    rows |= _transferred(subject, parent, right, eps, effort, missing)
    changed = changed_images(subject, missing)
    probes, unstable, probed = conduct_of(subject, right, rows, effort.probes)
    evidence = Evidence(
        threat=_threat(clean, eps), clean=right, rows=rows, ladder={0.0: right, **ladder}, matrices=(clean, *matrices),
        probes=probes, states=(before, before), unstable=unstable, probed=probed,
        path=input_path(subject, logits, reference_accuracy), gradients=gradients(subject, np.flatnonzero(right)),
        logit_scale=scale, reported=0.0, changed=changed,
        parent_clean=None if parent is None else right_of(predict(parent, subject.data, batch_size=batch_size), subject.data),
        self_test=self_test or {}, selection=selection, missing=missing,
    )  # fmt: skip
    return replace(evidence, states=(before, state_sha256(model)), reported=int(evidence.survivors().sum()) / clean.n)


def _attacked(
    subject: Subject, eps: float, effort: Effort, given: Outcomes | None
) -> tuple[dict[str, Row], dict[float, np.ndarray], list[Outcomes], dict[str, str]]:
    """Rows at the audited radius, outcomes of PGD at other radii, the matrices of both, and why rows are missing."""
    specs = planned(eps, effort)
    radii = sorted({TOP_EPS, *(r for r in (factor * eps for factor in LADDER) if r < TOP_EPS)})
    ladder = {f"ladder-{radius:.9g}": AttackSpec("pgd", radius, options={"steps": effort.steps}) for radius in radii}
    known, extra = _known(given, len(subject.data), eps, specs)
    matrices, missing = [] if given is None else [given], dict[str, str]()
    found = {name: known[_identity(spec)] for name, spec in {**specs, **ladder}.items() if _identity(spec) in known}
    wanted = {name: spec for name, spec in {**specs, **ladder}.items() if name not in found}
    for matrix, names in _each(subject.outcomes, wanted, missing):
        matrices.append(matrix)
        found |= dict(zip(names, matrix.right[1:], strict=True))
    rows = {name: Row(found[name], spec, _kind(spec)) for name, spec in specs.items() if name in found}
    climbed = {spec.eps: found[name] for name, spec in {**ladder, "pgd": specs["pgd"]}.items() if name in found}
    return {**rows, **extra}, dict(sorted(climbed.items())), matrices, missing


def _known(
    given: Outcomes | None, n: int, eps: float, specs: Mapping[str, AttackSpec]
) -> tuple[dict[Any, np.ndarray], dict[str, Row]]:
    """Outcomes that need not be run, by `_identity`, and further rows of the caller at the audited radius."""
    if given is None or given.protocol != "pixel":
        return {}, {}
    known = {_identity(spec): row[:n] for spec, row in zip(given.attacks, given.right[1:], strict=True)}
    ours = [_identity(spec) for spec in specs.values()]
    others = [spec for spec in given.attacks if spec.norm == "linf" and spec.eps == eps and _identity(spec) not in ours]
    return known, {f"given {spec.key}": Row(known[_identity(spec)], spec, _kind(spec)) for spec in others}


def _each(
    run: Callable[[Sequence[AttackSpec]], Outcomes], specs: Mapping[str, AttackSpec], missing: dict[str, str]
) -> list[tuple[Outcomes, list[str]]]:
    """All attacks in one matrix; if one of them refuses the network, a matrix for each, with the reason in `missing`."""
    if not specs:
        return []
    try:
        return [(run([replace(spec, key=name) for name, spec in specs.items()]), list(specs))]
    except BadInput as error:
        if len(specs) == 1:
            missing[next(iter(specs))] = str(error)
            return []
        return [pair for name, spec in specs.items() for pair in _each(run, {name: spec}, missing)]


def _scaled(subject: Subject, spec: AttackSpec, scale: float, missing: dict[str, str]) -> dict[str, Row]:
    """PGD on the network with scaled logits, which has gradients where a saturated softmax has none."""
    attacked = partial(subject.outcomes, model=Scaled(subject.model, scale))
    found = _each(attacked, {"pgd-scaled": spec}, missing)
    return {name: Row(matrix.right[1], spec, WHITE, "scaled logits") for matrix, (name,) in found}


def _transferred(
    subject: Subject, parent: nn.Module | None, clean: np.ndarray, eps: float, effort: Effort, missing: dict[str, str]
) -> dict[str, Row]:
    """Images attacked for the parent, classified by the network. PGD makes all steps, for first successes barely transfer."""
    whole = {"steps": effort.steps, "drop_fallen": False}
    rows = {}
    for spec in (AttackSpec("fgsm", eps), AttackSpec("pgd", eps, options=whole)):
        name = f"transfer-{spec.attack}"
        if parent is None:
            missing[name] = "no parent was given"
            continue
        right, attacked = np.zeros_like(clean), np.flatnonzero(clean)
        right[attacked] = subject.transferred(parent, spec, attacked)
        rows[name] = Row(right, spec, BLACK, "parent")
    return rows


def _identity(spec: AttackSpec) -> tuple[Any, ...]:
    """All that an outcome depends on besides seed and image: attack, radius, labels and options, including defaults."""
    known = {name: p.default for name, p in list(inspect.signature(ATTACKS[spec.attack]).parameters.items())[3:]}
    settled = {**known, **spec.options}
    for name in ("eps", "seed", "ids", "bounds"):
        settled.pop(name, None)
    if not spec.together:
        settled.pop("batch_size", None)
    return spec.attack, spec.eps, spec.labels, repr(sorted(settled.items()))


def _kind(spec: AttackSpec) -> str:
    if spec.attack in COMPOSITE:
        return MIXED
    blind = spec.attack in GRADIENT_FREE or {**spec.options, **_NOISE} == dict(spec.options)
    return BLACK if blind else WHITE


def _threat(clean: Outcomes, eps: float) -> dict[str, Any]:
    return {
        "norm": "linf", "eps": eps, "eps_text": AttackSpec("fgsm", eps).radius, "space": "[0, 1] pixels, normalised inside",
        "bounds": list(clean.bounds), "labels": "true", "dataset": clean.dataset, "split": clean.split, "n": clean.n,
        "indices_sha256": indices_sha256(clean.indices), "data_sha256": clean.data_sha256,
        "model_sha256": clean.model_sha256, "seed": clean.seed, "versions": dict(clean.versions),
    }  # fmt: skip


def _logit_scale(logits: Tensor, right: np.ndarray) -> float:
    """The factor that brings the median lead of the correct class over the runner-up to LEAD."""
    lead = logits.topk(2, dim=1).values.diff(dim=1).neg().flatten()[torch.tensor(right)]
    median = lead.median().item() if len(lead) else 0.0
    return LEAD / median if median > 0 else 1.0
