"""Profiles: functions that return the cells of one way to run everything, smallest first.

| profile | data | networks | fine-tuning | where it fits |
|---|---|---|---|---|
| `quick` | digits, shipped with scikit-learn | ResNet-20 | 2 epochs | minutes on 2 cores |
| `cifar10` | CIFAR-10 | ResNet-20, ResNet-56 | 3 epochs, 1 epoch | hours on 2 cores |
| `paper` | the paper's, as far as `gkp.data.sources` has them | ResNet-32/56/110, VGG-16 | 300 epochs | GPU cluster |

Each profile is a dictionary of groups, in the order in which they are worth having; a group is a list of cells. A file of
your own is a profile too: it defines `cells()`, which returns a list of cells, and registers stages of its own if it has any.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gkp.artifact.experiments.cell import Cell, load_file
from gkp.artifact.experiments.kinds import (
    EvaluateCell,
    LatencyCell,
    Network,
    PretrainedCell,
    PruneCell,
    TimingCell,
    TrainCell,
    evaluations,
)
from gkp.errors import BadInput

RATE, HIGH_RATE = 7 / 16, 10 / 16  # of the paper's tables, by their MACs and parameters
UNPRUNED = "none"  # the unpruned network under the same fine-tuning: a row of every table
METHODS = (  # every built-in method that can be given what it needs: written down, so that planning needs no torch
    *("cc", "chip", "depgraph", "depgraph-one-shot", "fpgm", "fpgm-one-shot", "greedy-gkp", "hrank", "l1norm-a", "l1norm-b"),
    *("l2", "l2-gkp", "least-smooth-gkp", "lrf", "random", "random-gkp", "sfp", "sfp-smooth", "slimming", "sr-gkp"),
    *("taylor-fo", "tmi-gkp"),
)
SEEDED = (UNPRUNED, "sr-gkp", "l2-gkp", "random-gkp", "l1norm-b")  # the rows that get three seeds
HIGH = (UNPRUNED, "sr-gkp", "l2-gkp", "l1norm-b", "fpgm", "sfp", "hrank")
ONE_SHOT = ("sr-gkp", "l2-gkp", "l1norm-b", "fpgm-one-shot", "hrank")  # of these; FPGM and SFP prune while they train
ALPHAS = (0.1, 0.25, 0.5, 0.75)  # Tables 14-16, beside the default 0.9
ABLATED = ("tmi-gkp", "greedy-gkp", "least-smooth-gkp", "l2-gkp", "random-gkp", "sr-gkp")  # Tables 4 and 5, and controls
CSBS = (0.5, 0.75)  # Table 6, beside the default 0.9
THETAS = (0.3, 0.5, 0.7)  # Table 1
_ONE_SHOT = "SR-GKP, one shot"
GIVEN = {"weights", "training snapshots", "data", "gradients", "training"}  # what a cell can give a method
COMMITTED = "cifar10"  # the profile whose measured cells are in the repository: they are shown, not computed again
Groups = dict[str, list[Cell]]


@dataclass(frozen=True)
class Scale:
    """What a profile spends: the fine-tuning of each network, how it is evaluated, and which rows each table gets.

    finetune: fields of PruneCell; paper, pixel, cascade, autoattack, frequency: fields of EvaluateCell for the paper's
    protocol, the field's, the worst case of strong attacks, AutoAttack, and the high-frequency test sets of Table 1; timing,
    latency: fields of the cells that measure seconds.
    strong: the methods whose networks meet the strong attacks, None for all; seeds: beyond seed 0, for the methods `seeded`,
    None for all.
    """

    finetune: dict[str, Any]
    paper: dict[str, Any]
    pixel: dict[str, Any]
    cascade: dict[str, Any]
    autoattack: dict[str, Any]
    frequency: dict[str, Any]
    timing: dict[str, Any]
    latency: dict[str, Any]
    seeds: tuple[int, ...] = (1, 2)
    seeded: tuple[str, ...] | None = SEEDED
    alphas: tuple[float, ...] = ALPHAS
    csbs: tuple[float, ...] = CSBS
    high: tuple[str, ...] = HIGH
    strong: tuple[str, ...] | None = None

    def pruned(self, net: Network, methods: Iterable[str], **fields: Any) -> list[PruneCell]:
        """The network pruned by each of these methods that is registered, in this order."""
        known = {UNPRUNED, *_registered()}
        return [PruneCell(net=net, method=method, **{**self.finetune, **fields}) for method in methods if method in known]

    def evaluated(self, nets: Iterable[Network | PruneCell]) -> list[EvaluateCell]:
        """Both protocols for each network."""
        nets = list(nets)
        return [
            *evaluations(nets, protocol="paper", true_labels=True, **self.paper),
            *evaluations(nets, protocol="pixel", **self.pixel),
        ]


def quick() -> Groups:
    """Everything end to end on the digits: it shows that the pipeline works, and says nothing about the paper."""
    limits: dict[str, Any] = {"time_limit": 600.0, "memory_limit": 6000.0}
    short: dict[str, Any] = {"schedule": "one-cycle", "split": "train+val", **limits}
    few = (UNPRUNED, "sr-gkp", "l1norm-b", "random-gkp")
    scale = Scale(
        finetune={"epochs": 2, "lr": 0.02, "log_examples": 50, **short},
        paper={"examples": 200, **limits},
        pixel={"examples": 64, "eps": ("8/255", "16/255"), **limits},
        cascade={"examples": 16, "attacks": (_cascade("16/255", queries=100),), **limits},
        autoattack={"examples": 16, "attacks": ({"attack": "autoattack", "eps": "64/255"},), **limits},
        frequency={"examples": 200, **limits},
        timing={"seconds": 0.1, "clustered": 3, **limits},
        latency={"seconds": 0.2, **limits},
        seeds=(1,),
        seeded=(UNPRUNED, "sr-gkp"),
        alphas=(0.75,),
        csbs=(0.5,),
        high=("sr-gkp", "l1norm-b"),
        strong=few,
    )
    baseline = TrainCell(dataset="digits", model="resnet20", epochs=12, threads=2, **short)
    return _groups(baseline, scale)


def cifar10() -> Groups:
    """CIFAR-10 scaled down: a ResNet-20 trained here (50 epochs) and 3 epochs of fine-tuning; ResNet-56 for 0 and 1 epoch."""
    scale = Scale(
        finetune={"epochs": 3, "lr": 0.02, "schedule": "one-cycle", "log_examples": 2000},
        paper={"examples": None},
        pixel={"examples": 1000},
        cascade={"examples": 128, "attacks": (_cascade("1/255", queries=1000),)},
        autoattack={"examples": 256, "attacks": ({"attack": "autoattack", "eps": "8/255"},)},
        frequency={"examples": 2000},
        timing={},
        latency={},
        seeded=None,
    )
    # the one cell that everything waits for may use both cores; its bits depend on that, so it is part of the cell.
    # All 50,000 images, for nothing here chooses by the 5,000 of "val": 91.51 % on the test set, and 90.59 % after 40 epochs
    # of 45,000 without Nesterov's momentum
    recipe: dict[str, Any] = {"epochs": 50, "batch_size": 128, "lr": 0.2, "schedule": "one-cycle", "nesterov": True}
    baseline = TrainCell(dataset="cifar10", model="resnet20", split="train+val", threads=2, **recipe)
    groups = _groups(baseline, scale)
    public = [PretrainedCell(dataset="cifar10", model=model, weights="akamaster") for model in ("resnet32", "resnet56")]
    groups["cost"] += [*public, *(TimingCell(net=net, **scale.timing) for net in public)]
    official = PretrainedCell(dataset="cifar10", model="resnet20", weights="srgkp-official")
    theirs: list[Network | PruneCell] = [official, PruneCell(net=official, epochs=0)]  # what the published code's log gives
    groups["reference"] = [*theirs, *evaluations(theirs, protocol="paper", true_labels=True, **scale.paper)]
    large = public[-1]
    nets: list[Network | PruneCell] = [large]
    for methods, epochs in ((ONE_SHOT, 0), (HIGH, 1)):
        nets += scale.pruned(large, methods, epochs=epochs, log_examples=0)
    groups["public"] = [*nets, *scale.evaluated(nets), *_frequencies([large], scale)]
    return groups


def paper() -> Groups:
    """The paper's protocol to the letter (p. 7 to 9, 17): 300 epochs, each scored on the whole test set; for GPUs."""
    gpu: dict[str, Any] = {"threads": 0}
    schedule: dict[str, Any] = {"epochs": 300, "log_examples": 10_000, **gpu}
    scale = Scale(
        finetune=schedule,
        paper={"examples": None, **gpu},
        pixel={"examples": None, **gpu},
        cascade={"examples": 1000, "attacks": (_cascade("1/255", queries=5000),), **gpu},
        autoattack={"examples": 1000, "attacks": ({"attack": "autoattack", "eps": "8/255"},), **gpu},
        frequency={"examples": None, **gpu},
        timing=gpu,
        latency=gpu,
    )
    groups: Groups = {}
    for model in ("resnet32", "resnet56", "resnet110", "vgg16_bn"):
        baseline = TrainCell(dataset="cifar10", model=model, **schedule)
        for name, cells in _groups(baseline, scale).items():
            if model != "vgg16_bn" or name == "main":  # Table 12 is all the paper has of VGG-16
                groups[f"{model}-{name}"] = cells
    return groups


def start_here(profile: str) -> dict[str, EvaluateCell]:
    """Name -> evaluation for the first notebook: one network unpruned, and pruned by SR-GKP in one shot and with fine-tuning.

    They are the networks of the other tables where they are trained here; `paper`, which has several, takes public weights.
    """
    check_profile(profile)
    return _start_here(PROFILES[profile]() if profile in PROFILES else {})


def _start_here(found: Groups) -> dict[str, EvaluateCell]:
    """The same from the groups of a profile."""
    nets: dict[str, Network | PruneCell] = {}
    if "main" in found:
        baseline: Network = next(cell for cell in found["main"] if isinstance(cell, TrainCell))
        tuned = next(cell for cell in found["main"] if isinstance(cell, PruneCell) and cell.method == "sr-gkp")
        nets = {"unpruned": baseline, _ONE_SHOT: PruneCell(net=baseline, epochs=0), "SR-GKP, fine-tuned": tuned}
    else:
        baseline = PretrainedCell(dataset="cifar10", model="resnet20", weights="akamaster")
        nets = {"unpruned": baseline, _ONE_SHOT: PruneCell(net=baseline, epochs=0)}
    radii = (
        ("2/255", "4/255", "8/255", "16/255")
        if baseline.dataset == "digits"
        else ("0.25/255", "0.5/255", "1/255", "2/255", "4/255")
    )
    cells = evaluations(nets.values(), examples=200, eps=radii, purpose="start")
    return dict(zip(nets, cells, strict=True))


def _groups(baseline: TrainCell, scale: Scale) -> Groups:
    """What the paper does with one network, and what it leaves out: a group for each notebook.

    A group has the rows that its tables compare with, so cells stand in several; a cell is computed once all the same.
    """
    main = scale.pruned(baseline, [UNPRUNED, *_registered()], rate=RATE)
    scratch = [replace(cell, scratch=True) for cell in main if cell.method == "sr-gkp"]  # is it the weights, or the shape?

    def rows(methods: Iterable[str] | None) -> list[PruneCell]:
        return [cell for cell in main if methods is None or cell.method in methods]

    seeds = [replace(cell, seed=s) for s in (0, *scale.seeds) for cell in rows(scale.seeded)]
    variants = [cell for alpha in scale.alphas for cell in scale.pruned(baseline, ["sr-gkp"], options={"alpha": alpha})]
    variants += scale.pruned(baseline, ["sr-gkp"], options={"beta": "paper"})
    variants += scale.pruned(baseline, ["tmi-gkp"], options={"grouping": "random"})  # does grouping matter at all?
    transfer = [cell for csb in scale.csbs for cell in scale.pruned(baseline, ["sfp-smooth"], options={"csb": csb})]
    high = [cell for cell in scale.pruned(baseline, scale.high, rate=HIGH_RATE) if cell.method != UNPRUNED]
    strong: list[Network | PruneCell] = [baseline, *rows(scale.strong)]

    def table(nets: Iterable[PruneCell]) -> list[Cell]:
        compared: list[Network | PruneCell] = [baseline, *nets]
        return [*compared, *scale.evaluated(compared)]

    return {
        "main": table([*main, *scratch]),
        "seeds": table(seeds),
        "ablations": table([*rows([UNPRUNED, *ABLATED]), *variants]),
        "transfer": table([*rows([UNPRUNED, "sfp", "sfp-smooth"]), *transfer]),
        "frequency": [*strong, *_frequencies(strong, scale)],
        "strong": [
            *strong,
            *evaluations(strong, purpose="cascade", **scale.cascade),
            *evaluations(strong, purpose="autoattack", **scale.autoattack),
            *(
                LatencyCell(net=cell, **scale.latency)
                for cell in strong
                if isinstance(cell, PruneCell) and cell.method != UNPRUNED
            ),
        ],
        "cost": [baseline, TimingCell(net=baseline, **scale.timing)],
        "high-rate": table([*rows([UNPRUNED]), *high]),
        # networks that others trained; `cifar10` alone has some, and the notebooks ask every profile
        "public": [],
        "reference": [],
    }


def _frequencies(nets: Iterable[Network | PruneCell], scale: Scale) -> list[EvaluateCell]:
    """Accuracy without attack on the test set and on what is left of it above each cut of Table 1."""
    nets = list(nets)
    variants = ("", *(f"high-frequency-{theta}" for theta in THETAS))
    return [
        cell
        for variant in variants
        for cell in evaluations(nets, attacks=(), variant=variant, purpose=variant or "frequency", **scale.frequency)
    ]


def _cascade(eps: str, *, queries: int) -> dict[str, Any]:
    """Strong attacks one after the other on whatever still stands: the best estimate of the worst case that fits."""
    attacks = ("apgd-ce", {"attack": "apgd-t", "targets": 3}, {"attack": "square", "queries": queries})
    return {"attack": "cascade", "eps": eps, "options": {"attacks": attacks}}


def _registered() -> list[str]:
    """The names of METHODS and of those that a caller has registered, in alphabetical order."""
    registry = sys.modules.get("gkp.pruning.registry")  # not imported for this: torch comes with it
    own = registry.methods().items() if registry else ()
    return sorted({*METHODS, *(name for name, method in own if GIVEN.issuperset(method.needs))})


PROFILES: dict[str, Callable[[], Groups]] = {"quick": quick, "cifar10": cifar10, "paper": paper}


def check_profile(profile: str) -> None:
    """Raises BadInput unless `profile` is a known name or the path of a Python file."""
    if profile not in PROFILES and not (profile.endswith(".py") and Path(profile).is_file()):
        raise BadInput(
            f"unknown profile {profile!r}; known: {', '.join(PROFILES)}, or the path of a file with a function cells()"
        )


def groups(profile: str) -> Groups:
    """The groups of a profile by name; a file of the user's own has one, "all"."""
    check_profile(profile)
    if profile not in PROFILES:
        return {"all": _cells_of_file(Path(profile))}
    found = PROFILES[profile]()
    start = _start_here(found).values()
    return {**found, "start": [*(cell.net for cell in start), *start]}


def cells(profile: str, *wanted: str) -> list[Cell]:
    """The cells of a profile, or of these of its groups, each once. Raises BadInput for an unknown profile or group.

    In a profile of several networks, "main" stands for "resnet32-main", "resnet56-main" and so on.
    """
    found = groups(profile)
    chosen = list(found.values()) if not wanted else []
    for group in wanted:
        members = [
            cells for name, cells in found.items() if group in (name, name.partition("-")[2] if profile == "paper" else "")
        ]
        if not members:
            raise BadInput(f"profile {profile} has no group {group!r}; it has {', '.join(found)}")
        chosen += members
    return list({cell.hash: cell for members in chosen for cell in members}.values())


def _cells_of_file(path: Path) -> list[Cell]:
    path = path.resolve()
    name = f"gkp_profile_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    try:
        found = list(load_file(name, path).cells())
    except BadInput:
        raise
    except Exception as error:  # whatever a user's file may do wrong
        raise BadInput(
            f"{path}: {type(error).__name__}: {error}; a profile defines a function cells() that returns a list of cells"
        ) from error
    if strangers := [item for item in found if not isinstance(item, Cell)]:
        raise BadInput(f"{path}: cells() returned a {type(strangers[0]).__name__} among its cells; return cells only")
    return found
