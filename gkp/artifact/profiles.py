"""Profiles: each is a set of experiments that runs everything at one scale, the smallest first.

| profile | data | networks | fine-tuning | where it fits |
|---|---|---|---|---|
| `quick` | digits, shipped with scikit-learn | ResNet-20 | 2 epochs | minutes on 2 cores |
| `cifar10` | CIFAR-10 | ResNet-20, ResNet-56 | 3 epochs, 1 epoch | hours on 2 cores |
| `paper` | CIFAR-10, Tiny-ImageNet, ImageNet | ResNet-32/56/110, VGG-16; -56, -101; -50 | 300, 100 epochs | GPU cluster |

A profile is a dictionary of groups, the most important ones first; a group is a list of cells. A Python file is a profile too
if it defines `cells()`, which returns a list of cells; it may define kinds of cells of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gkp.artifact.experiments.cell import Cell, load_file
from gkp.artifact.experiments.kinds import (
    EvaluateCell,
    LatencyCell,
    Network,
    PretrainedCell,
    PruneCell,
    SpeedCell,
    TimingCell,
    TrainCell,
    evaluations,
)
from gkp.artifact.groups import (
    HIGH,
    LOG_EPOCHS,
    OFFICIAL,
    ONE_SHOT,
    PRECISE,
    RATE,
    RATED,
    RATES,
    SMALL,
    TENTH,
    TINY_IMAGENET,
    UNPRUNED,
    Groups,
    Scale,
    cascade,
    frequencies,
    imagenet,
    network_groups,
    published_log,
    tiny_imagenet,
    twenty_classes,
    under_autoattack,
)
from gkp.errors import BadInput
from gkp.files import one_line

# it trains adversarially to the end with its own schedule: fine-tuning on plain images would undo its robustness
RAP: dict[str, Any] = {"epochs": 6, "soft_epochs": 6, "schedule": "step", "weight_decay": 1e-4}
# as released: SGD without momentum, learning rate divided by ten every 75 epochs, no fine-tuning
OTO: dict[str, Any] = {
    "soft_epochs": 300,
    "lr": 0.1,
    "step_epochs": 75,
    "momentum": 0.0,
    "options": {"sparsity": 1e-3, "warm_up": 1 / 6, "deadline": 1.0},
}
_ONE_SHOT = "SR-GKP, one shot"
COMMITTED = "cifar10"  # the profile whose cells are in the repository, so that they are not computed again


def quick() -> Groups:
    """Everything end to end on digits: a test of the pipeline that says nothing about the paper."""
    limits: dict[str, Any] = {"time_limit": 600.0, "memory_limit": 6000.0}
    short: dict[str, Any] = {"schedule": "one-cycle", "split": "train+val", **limits}
    few = (UNPRUNED, "sr-gkp", "l1norm-b", "random-gkp")
    scale = Scale(
        finetune={"epochs": 2, "lr": 0.02, "log_examples": 50, **short},
        paper={"examples": 200, **limits},
        pixel={"examples": 64, "eps": ("8/255", "16/255"), **limits},
        cascade={"examples": 16, "attacks": (cascade("16/255", queries=100),), **limits},
        autoattack={"examples": 16, "attacks": ({"attack": "autoattack", "eps": "64/255"},), **limits},
        frequency={"examples": 200, **limits},
        timing={"seconds": 0.1, "clustered": 3, **limits},
        latency={"seconds": 0.2, **limits},
        speed={"rates": (7 / 16,), "batch_sizes": (1, 8), "rounds": 3, **limits},
        seeds=(1,),
        seeded=(UNPRUNED, "sr-gkp"),
        alphas=(0.75,),
        csbs=(0.5,),
        high=("sr-gkp", "l1norm-b"),
        strong=few,
        own={
            "dhp": {"epochs": 8, "soft_epochs": 4, "lr": 0.1, "weight_decay": 1e-4, "options": {"check_every": 10}},
            "nppm": {"options": {"steps": 300}},
            "otov2": {"epochs": 5, "soft_epochs": 3, "options": {"deadline": 0.8}},
            "otov2-scratch": {"epochs": 8, "soft_epochs": 6, "lr": 0.1},
            "rap-admm": {**RAP, "lr": 0.05, "options": {"attack_steps": 3}},
        },
    )
    baseline = TrainCell(dataset="digits", model="resnet20", epochs=12, threads=2, **short)
    return network_groups(baseline, scale)


def cifar10() -> Groups:
    """CIFAR-10 with short trainings: a ResNet-20 (50 epochs) and 3 epochs of fine-tuning; ResNet-56 with 0 and 1 epoch."""
    scale = Scale(
        finetune={"epochs": 3, "lr": 0.02, "schedule": "one-cycle", "log_examples": 2000},
        paper={"examples": None},
        pixel={"examples": 1000},
        cascade={"examples": 128, "attacks": (cascade("1/255", queries=1000),)},
        autoattack={"examples": 256, "attacks": ({"attack": "autoattack", "eps": "8/255"},)},
        frequency={"examples": 2000},
        timing={},
        latency={},
        speed={"threads": 2},
        seeded=None,
        own={  # epochs of search plus the fine-tuning of all methods; DHP starts from scratch
            "gal": {"epochs": 8, "soft_epochs": 5},
            "dhp": {
                "epochs": 9,
                "soft_epochs": 3,
                "batch_size": 128,
                "lr": 0.1,
                "weight_decay": 1e-4,
                "options": {"check_every": 25},
            },
            "otov2": {"epochs": 6, "soft_epochs": 3, "options": {"deadline": 0.8}},
            "otov2-scratch": {"epochs": 9, "soft_epochs": 6, "batch_size": 128, "lr": 0.1},
            "rap-admm": {**RAP, "lr": 0.05, "batch_size": 128, "options": {"attack_steps": 3}},
        },
    )
    # all other cells wait for this one, so it uses both cores; its bits depend on that.
    # All 50,000 images, because nothing is chosen by the 5,000 of "val": 91.51 % on the test set, against 90.59 % after 40
    # epochs of 45,000 without Nesterov's momentum
    recipe: dict[str, Any] = {"epochs": 50, "batch_size": 128, "lr": 0.2, "schedule": "one-cycle", "nesterov": True}
    baseline = TrainCell(dataset="cifar10", model="resnet20", split="train+val", threads=2, **recipe)
    groups = network_groups(baseline, scale)
    public = [PretrainedCell(dataset="cifar10", model=model, weights="akamaster") for model in ("resnet32", "resnet56")]
    groups["cost"] += [*public, *(TimingCell(net=net, **scale.timing) for net in public)]
    groups["cost"].append(SpeedCell(net=public[-1], **scale.speed))
    theirs: list[Network | PruneCell] = [OFFICIAL, PruneCell(net=OFFICIAL, epochs=0)]  # compared with the published code
    groups["reference"] = [*theirs, *evaluations(theirs, protocol="paper", true_labels=True, **scale.paper)]
    large = public[-1]
    nets: list[Network | PruneCell] = [large]
    for methods, epochs in ((ONE_SHOT, 0), (HIGH, 1)):
        nets += scale.pruned(large, methods, epochs=epochs, log_examples=0)
    groups["public"] = [*nets, *scale.evaluated(nets), *frequencies([large], scale)]
    groups |= _longer(baseline, scale)
    seeded = [cell for cell in _precise(groups["seeds"]) if cell.seed]
    nets = [baseline, *_pruned(groups["main"]), *seeded, *_pruned(groups["tenth"])]
    groups["precision"] = _precision(nets, groups["main"], engine="fast")
    groups["log"] = published_log(scale, log_epochs=LOG_EPOCHS)
    groups["tiny"] = twenty_classes(scale)
    timed = [replace(cell, engine="fast") for cell in groups["strong"] if isinstance(cell, LatencyCell)]
    groups["strong"] += timed
    groups["board"] += timed
    on_board = {cell.hash for cell in groups["board"]}
    groups["board"] += [cell for cell in groups["precision"] if isinstance(cell, EvaluateCell) and cell.net.hash in on_board]
    return groups


def _longer(baseline: TrainCell, scale: Scale) -> Groups:
    """Networks fine-tuned for a tenth of the paper's epochs, and networks at several rates."""
    tenth = scale.pruned(baseline, TENTH, rate=RATE, epochs=30, lr=0.01, schedule="step", step_epochs=10)
    rates = [cell for rate in RATES for cell in scale.pruned(baseline, RATED, rate=rate)]
    return {"tenth": scale.rows(tenth), "rates": scale.rows(rates)}


def _pruned(cells: list[Cell]) -> list[PruneCell]:
    return [cell for cell in cells if isinstance(cell, PruneCell)]


def _precise(cells: list[Cell]) -> list[PruneCell]:
    """The rows of `PRECISE` without their shapes trained from scratch."""
    return [cell for cell in _pruned(cells) if cell.method in PRECISE and not cell.scratch]


def _precision(nets: list[Network | PruneCell], main: list[Cell], **fields: Any) -> list[Cell]:
    """Networks with their evaluations at SMALL on all test images, and those of the rows of `PRECISE` under AutoAttack."""
    return [*nets, *evaluations(nets, eps=SMALL, purpose="precision", **fields), *under_autoattack(_precise(main), **fields)]


def paper() -> Groups:
    """The paper's protocol to the letter (p. 7 to 9, 17): 300 epochs, each scored on the whole test set; for GPUs.

    The group "half-hour" is for a GPU that is lent for a time, as by `gkp run --profile paper --group half-hour --for 25min`:
    the published log and its controls, then a ResNet-56 from public weights, so far as they get; the same command goes on.
    """
    gpu: dict[str, Any] = {"threads": 0}
    schedule: dict[str, Any] = {"epochs": 300, "log_examples": 10_000, **gpu}
    scale = Scale(
        finetune=schedule,
        paper={"examples": None, **gpu},
        pixel={"examples": None, **gpu},
        cascade={"examples": 1000, "attacks": (cascade("1/255", queries=5000),), **gpu},
        autoattack={"examples": 1000, "attacks": ({"attack": "autoattack", "eps": "8/255"},), **gpu},
        frequency={"examples": None, **gpu},
        timing=gpu,
        latency=gpu,
        speed=gpu,
        own={
            "dhp": {"soft_epochs": 100, "lr": 0.1, "weight_decay": 1e-4, "options": {"sparsity": 3e-4}},
            "nppm": {"options": {"steps": 4000}},
            "otov2": OTO,
            "otov2-scratch": OTO,
            "rap-admm": {**RAP, "epochs": 300, "soft_epochs": 300, "step_epochs": 300, "batch_size": 128},
        },
    )
    groups: Groups = {}
    for model in ("resnet32", "resnet56", "resnet110", "vgg16_bn"):
        baseline = TrainCell(dataset="cifar10", model=model, **schedule)
        found = network_groups(baseline, scale)
        nets: list[Network | PruneCell] = [baseline, *_pruned(found["main"])]
        found["precision"] = _precision(nets, found["main"], **gpu)
        for name, cells in found.items():
            if model != "vgg16_bn" or name == "main":  # the paper has only Table 12 for VGG-16
                groups[f"{model}-{name}"] = cells
    for model in TINY_IMAGENET:
        groups[f"{model}-tiny"] = tiny_imagenet(model, scale)
    groups |= {f"resnet50-{name}": cells for name, cells in imagenet(scale).items()}
    groups["resnet20-log"] = published_log(scale, **gpu)  # scored after each epoch, as in their log
    groups["resnet56-public"] = _from_public_weights(scale)
    groups["half-hour"] = [*groups["resnet20-log"], *groups["resnet56-public"]]
    return groups


def _from_public_weights(scale: Scale) -> list[Cell]:
    """The paper's schedule from a public ResNet-56, the most important rows first."""
    net = PretrainedCell(dataset="cifar10", model="resnet56", weights="akamaster")
    rows = scale.pruned(net, (UNPRUNED, "sr-gkp", "l2-gkp", "l1norm-b"), rate=RATE)
    rows += scale.pruned(net, ("tmi-gkp",), rate=RATE, options={"grouping": "kpca"})  # no trace of its training is public
    rows += scale.pruned(net, ("cc", "fpgm", "random-gkp"), rate=RATE)
    return scale.rows(rows)


def start_here(profile: str) -> dict[str, EvaluateCell]:
    """The evaluations of the first notebook: one network unpruned, pruned by SR-GKP in one shot, and fine-tuned.

    Args:
        profile: A name, or the path of a Python file. Its own networks are taken where it has a group "main"; otherwise public
            weights, without the fine-tuned network.

    Returns:
        Name of the network -> evaluation.

    Raises:
        BadInput: The profile is not known.
    """
    check_profile(profile)
    return _start_here(PROFILES[profile]() if profile in PROFILES else {})


def _start_here(found: Groups) -> dict[str, EvaluateCell]:
    """The evaluations of the first notebook from the groups of a profile."""
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


PROFILES: dict[str, Callable[[], Groups]] = {"quick": quick, "cifar10": cifar10, "paper": paper}


def check_profile(profile: str) -> None:
    """Raise BadInput unless `profile` is a known name or the path of a Python file."""
    if profile not in PROFILES and not (profile.endswith(".py") and Path(profile).is_file()):
        raise BadInput(
            f"unknown profile {profile!r}; known: {', '.join(PROFILES)}, or the path of a file with a function cells()"
        )


def groups(profile: str) -> Groups:
    """The groups of a profile by name; a Python file has one group, "all". BadInput for an unknown profile."""
    check_profile(profile)
    if profile not in PROFILES:
        return {"all": _cells_of_file(Path(profile))}
    found = PROFILES[profile]()
    start = _start_here(found).values()
    return {**found, "start": [*(cell.net for cell in start), *start]}


def cells(profile: str, *wanted: str) -> list[Cell]:
    """The cells of a profile or of some of its groups, each once.

    Args:
        profile: A name, or the path of a Python file.
        wanted: Groups; none for all. In the profile "paper", "main" stands for "resnet32-main", "resnet56-main" and so on.

    Raises:
        BadInput: The profile or a group is not known.
    """
    found = groups(profile)
    chosen = list(found.values()) if not wanted else []
    for group in wanted:
        members = [
            cells for name, cells in found.items() if group in {name, name.partition("-")[2] if profile == "paper" else name}
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
    except (Exception, SystemExit) as error:  # the file of a user may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise BadInput(f"{path}: {reason}; a profile defines a function cells() that returns a list of cells") from error
    if strangers := [item for item in found if not isinstance(item, Cell)]:
        raise BadInput(f"{path}: cells() returned a {type(strangers[0]).__name__} among its cells; return cells only")
    return found
