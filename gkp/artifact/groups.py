"""Groups of cells: what is measured of one network, and at which cost (`Scale`); `gkp.artifact.profiles` combines them.

A group holds what one part of a notebook shows, including the rows that its tables compare with. A cell may be in several
groups; it is computed once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from gkp.artifact.experiments.cell import Cell
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

RATE, HIGH_RATE, TINY_RATE = 7 / 16, 10 / 16, 3 / 8  # of the paper's tables, by their MACs and parameters
UNPRUNED = "none"  # the unpruned network under the same fine-tuning: a row of every table
NAMES = {  # every built-in method -> its name in the paper, or a similar one; listed here, so that planning needs no torch
    "cc": "CC",
    "chip": "CHIP",
    "depgraph": "DepGraph",
    "depgraph-one-shot": "DepGraph-One-Shot",
    "dhp": "DHP",
    "fpgm": "FPGM",
    "fpgm-one-shot": "FPGM-One-Shot",
    "gal": "GAL",
    "greedy-gkp": "Greedy-GKP",
    "hrank": "HRank",
    "l1norm-a": "L1Norm-A",
    "l1norm-b": "L1Norm-B",
    "l2": "L2Norm",
    "l2-gkp": "L2-GKP",
    "least-smooth-gkp": "Least-Smooth-GKP",
    "lrf": "LRF",
    "nppm": "NPPM",
    "otov2": "OTOv2 (post train)",
    "otov2-scratch": "OTOv2 (from scratch)",
    "random": "Random",
    "random-gkp": "Random-GKP",
    "rap-admm": "RAP-ADMM",
    "scratch": "Scratch",
    "sfp": "SFP",
    "sfp-smooth": "SFP-Smooth",
    "slimming": "Slimming",
    "sr-gkp": "SR-GKP",
    "taylor-fo": "Taylor-FO",
    "tmi-gkp": "TMI-GKP",
}
SEEDED = (UNPRUNED, "sr-gkp", "l2-gkp", "random-gkp", "l1norm-b")  # the rows that get three seeds
HIGH = (UNPRUNED, "sr-gkp", "l2-gkp", "l1norm-b", "fpgm", "sfp", "hrank")
ONE_SHOT = ("sr-gkp", "l2-gkp", "l1norm-b", "fpgm-one-shot", "hrank")  # from HIGH; FPGM and SFP prune while they train
NOT_FOR = {"vgg16_bn": {"dhp"}}  # methods for residual networks only
SCRATCH = "scratch"  # not a row: `PruneCell.scratch` trains the shape that another method finds
METHODS = tuple(name for name in NAMES if name != SCRATCH)
TENTH = (  # rows with a tenth of the paper's epochs, the most important ones first
    *(UNPRUNED, "sr-gkp", "l2-gkp", "l1norm-b", "tmi-gkp", "fpgm", "cc", "hrank"),
    *("lrf", "sfp", "random-gkp", "gal", "dhp", "nppm", "rap-admm", "otov2"),
)
PRECISE = (UNPRUNED, "sr-gkp", "tmi-gkp", "l2-gkp", "l1norm-b")  # rows whose seeds are all evaluated on all test images
SMALL = ("0.5/255", "1/255")  # radii at which networks that were not trained for robustness keep some accuracy
RATED = ("sr-gkp", "l2-gkp", "random-gkp", "l1norm-b", "cc")  # rows of the curves of accuracy against MACs
RATES = (1 / 4, RATE, HIGH_RATE, 3 / 4)
ALPHAS = (0.1, 0.25, 0.5, 0.75)  # Tables 14-16, besides the default 0.9
ABLATED = ("tmi-gkp", "greedy-gkp", "least-smooth-gkp", "l2-gkp", "random-gkp", "sr-gkp")  # Tables 4 and 5, and controls
CSBS = (0.5, 0.75)  # Table 6, besides the default 0.9
THETAS = (0.3, 0.5, 0.7)  # Table 1
LOGGED = ("sr-gkp", UNPRUNED, "l2-gkp")  # the method of the one log that the authors published, and controls
LOG_LENGTH = 300  # epochs; LOG_EPOCHS are those after which a CPU scores a network
LOG_EPOCHS = tuple(sorted({*range(10, 301, 10), *range(98, 103), *range(198, 203), *range(291, 301)}))
OFFICIAL = PretrainedCell(dataset="cifar10", model="resnet20", weights="srgkp-official")  # where this log starts
GIVEN = {  # the needs of methods that a cell can meet
    *("weights", "initialisation", "training snapshots", "data", "unlabelled images", "gradients", "training"),
}
Groups = dict[str, list[Cell]]
TINY_IMAGENET: dict[str, tuple[dict[str, Any], float]] = {  # network -> its recipe, and the share of kernels removed
    "resnet56": ({"epochs": 300, "step_epochs": 100, "batch_size": 128, "weight_decay": 5e-4}, TINY_RATE),
    "resnet101": ({"epochs": 100, "step_epochs": 30, "batch_size": 128, "weight_decay": 1e-4}, 7 / 8),  # of 3x3 kernels only
}
IMAGENET: dict[str, Any] = {"epochs": 100, "step_epochs": 30, "batch_size": 256, "weight_decay": 1e-4}
IMAGENET_RATE = 3 / 4  # of 3x3 kernels only


@dataclass(frozen=True)
class Scale:
    """The scale of a profile: how long networks are fine-tuned, how they are evaluated, and which rows each table gets.

    Attributes:
        finetune: Fields of every PruneCell.
        paper, pixel: Fields of EvaluateCell for the two protocols.
        cascade, autoattack: Fields of EvaluateCell for the strong attacks.
        frequency: Fields of EvaluateCell for the high-frequency test sets of Table 1.
        timing, latency, speed: Fields of TimingCell, LatencyCell and SpeedCell.
        seeds: Seeds besides 0.
        seeded: The methods that get these seeds; None for all.
        alphas: Values of alpha for SR-GKP, besides the default.
        csbs: Values of csb for smoothness in SFP, besides the default.
        high: The methods at the high rate.
        own: Method -> fields of its PruneCell, such as epochs of search before the fine-tuning that all methods get.
        strong: The methods whose networks are evaluated under strong attacks; None for all.
    """

    finetune: dict[str, Any]
    paper: dict[str, Any]
    pixel: dict[str, Any]
    cascade: dict[str, Any]
    autoattack: dict[str, Any]
    frequency: dict[str, Any]
    timing: dict[str, Any]
    latency: dict[str, Any]
    speed: dict[str, Any]
    seeds: tuple[int, ...] = (1, 2)
    seeded: tuple[str, ...] | None = SEEDED
    alphas: tuple[float, ...] = ALPHAS
    csbs: tuple[float, ...] = CSBS
    high: tuple[str, ...] = HIGH
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    strong: tuple[str, ...] | None = None

    def pruned(self, net: Network, methods: Iterable[str], **fields: Any) -> list[PruneCell]:
        """The network pruned by several methods.

        Args:
            net: The network.
            methods: The methods, of which those that are registered and suit the network are taken, in this order.
            fields: Fields of PruneCell, which override those of the scale.
        """
        known = {UNPRUNED, *registered()} - NOT_FOR.get(net.model, set())
        return [
            PruneCell(net=net, method=method, **{**self.finetune, **self.own.get(method, {}), **fields})
            for method in methods
            if method in known
        ]

    def evaluated(self, nets: Iterable[Network | PruneCell]) -> list[EvaluateCell]:
        """The evaluations of networks in both protocols."""
        nets = list(nets)
        return [
            *evaluations(nets, protocol="paper", true_labels=True, **self.paper),
            *evaluations(nets, protocol="pixel", **self.pixel),
        ]

    def rows(self, nets: Iterable[Network | PruneCell]) -> list[Cell]:
        """Each network followed by its evaluations in both protocols, so that an unfinished run has complete rows."""
        return [cell for net in nets for cell in (net, *self.evaluated([net]))]


def network_groups(baseline: TrainCell, scale: Scale) -> Groups:
    """The groups of one architecture: the experiments of the paper and those that it lacks.

    Args:
        baseline: The network that is pruned.
        scale: The scale of the profile.
    """
    main = scale.pruned(baseline, [UNPRUNED, *registered()], rate=RATE)
    scratch = [replace(cell, scratch=True) for cell in main if cell.method == "sr-gkp"]  # tests whether weights or shape matter

    def rows(methods: Iterable[str] | None) -> list[PruneCell]:
        return [cell for cell in main if methods is None or cell.method in methods]

    seeds = [replace(cell, seed=s) for s in (0, *scale.seeds) for cell in rows(scale.seeded)]
    variants = [cell for alpha in scale.alphas for cell in scale.pruned(baseline, ["sr-gkp"], options={"alpha": alpha})]
    variants += scale.pruned(baseline, ["sr-gkp"], options={"beta": "paper"})
    variants += scale.pruned(baseline, ["tmi-gkp"], options={"grouping": "random"})  # tests whether grouping matters
    transfer = [cell for csb in scale.csbs for cell in scale.pruned(baseline, ["sfp-smooth"], options={"csb": csb})]
    high = [cell for cell in scale.pruned(baseline, scale.high, rate=HIGH_RATE) if cell.method != UNPRUNED]
    strong: list[Network | PruneCell] = [baseline, *rows(scale.strong)]
    latencies = [
        LatencyCell(net=cell, **scale.latency) for cell in strong if isinstance(cell, PruneCell) and cell.method != UNPRUNED
    ]

    def table(nets: Iterable[PruneCell]) -> list[Cell]:
        compared: list[Network | PruneCell] = [baseline, *nets]
        return [*compared, *scale.evaluated(compared)]

    return {
        "main": table([*main, *scratch]),
        "seeds": table(seeds),
        "ablations": table([*rows([UNPRUNED, *ABLATED]), *variants]),
        "transfer": table([*rows([UNPRUNED, "sfp", "sfp-smooth"]), *transfer]),
        "frequency": [*strong, *frequencies(strong, scale)],
        "strong": [
            *strong,
            *evaluations(strong, purpose="cascade", **scale.cascade),
            *evaluations(strong, purpose="autoattack", **scale.autoattack),
            *latencies,
        ],
        "board": [
            *strong,
            *evaluations(strong, protocol="pixel", **scale.pixel),
            *evaluations(strong, purpose="cascade", **scale.cascade),
            *latencies,
        ],
        "cost": [baseline, TimingCell(net=baseline, **scale.timing), SpeedCell(net=baseline, **scale.speed)],
        "high-rate": table([*rows([UNPRUNED]), *high]),
        # other profiles than `cifar10` have none of these; notebooks ask every profile for them
        "public": [],
        "reference": [],
        "tenth": [],
        "rates": [],
        "precision": [],
        "log": [],
        "tiny": [],
        "imagenet": [],
        "torchvision": [],
    }


def published_log(scale: Scale, **fields: Any) -> list[Cell]:
    """The fine-tuning whose log the authors published, and controls: their network and recipe, all 50,000 images.

    Args:
        scale: The evaluations after the last epoch.
        fields: Further fields of PruneCell.
    """
    recipe: dict[str, Any] = {"epochs": LOG_LENGTH, "split": "train+val", "log_examples": 10_000, **fields}
    nets = [PruneCell(net=OFFICIAL, method=method, rate=RATE, **recipe) for method in LOGGED]
    return scale.rows(nets)


def is_theirs(cell: Cell) -> TypeGuard[PretrainedCell]:
    """Whether a cell is the ResNet-20 that the authors published."""
    return isinstance(cell, PretrainedCell) and cell.weights == OFFICIAL.weights


def is_logged(cell: Cell) -> TypeGuard[PruneCell]:
    """Whether a cell is a fine-tuning of `published_log`, for a CPU or a GPU."""
    return isinstance(cell, PruneCell) and is_theirs(cell.net) and cell.epochs == LOG_LENGTH and cell.log_examples > 0


def twenty_classes(scale: Scale) -> list[Cell]:
    """Table 13 in miniature: a ResNet-56 on 20 classes of Tiny-ImageNet, 64x64 pixels, trained here and pruned at its rate.

    Once unpacked, Tiny-ImageNet has the images; its trace of weights is what TMI-GKP needs. About 5 hours on two cores.
    """
    recipe: dict[str, Any] = {"epochs": 20, "batch_size": 64, "lr": 0.1, "schedule": "one-cycle", "nesterov": True}
    baseline = TrainCell(dataset="tiny-imagenet-20", model="resnet56", threads=2, **recipe)
    return _rows_of(baseline, (UNPRUNED, "sr-gkp", "tmi-gkp", "l2-gkp"), scale, rate=TINY_RATE, log_examples=0)


def tiny_imagenet(model: str, scale: Scale) -> list[Cell]:
    """Table 13: ResNet-56 or ResNet-101 trained on Tiny-ImageNet, and pruned at the paper's rate for it (p. 17, 22)."""
    recipe, rate = TINY_IMAGENET[model]
    baseline = TrainCell(dataset="tiny-imagenet", model=model, **{**scale.finetune, **recipe, "lr": 0.1})
    return _rows_of(baseline, (UNPRUNED, "sr-gkp", "tmi-gkp"), scale, rate=rate, **recipe)


def imagenet(scale: Scale) -> Groups:
    """Table 3: ResNet-50 on ImageNet, trained as the pruned networks are, and from torchvision's weights (p. 9, 17).

    Which rate the paper has in each layer of torchvision's network is not printed; here it is that of its own network.
    """
    recipe = {**IMAGENET, "log_examples": 50_000}
    theirs = PretrainedCell(dataset="imagenet", model="resnet50", weights="torchvision")
    baseline = TrainCell(dataset="imagenet", model="resnet50", **{**scale.finetune, **recipe, "lr": 0.1})
    return {
        "imagenet": _rows_of(baseline, (UNPRUNED, "sr-gkp", "tmi-gkp"), scale, rate=IMAGENET_RATE, **recipe),
        "torchvision": _rows_of(theirs, (UNPRUNED, "sr-gkp", "fpgm", "sfp"), scale, rate=IMAGENET_RATE, **recipe),
    }


def _rows_of(net: Network, methods: Iterable[str], scale: Scale, **fields: Any) -> list[Cell]:
    """A network and its pruned networks, each followed by its evaluations."""
    return scale.rows([net, *scale.pruned(net, methods, **fields)])


def frequencies(nets: Iterable[Network | PruneCell], scale: Scale) -> list[EvaluateCell]:
    """Evaluations without attack on the test set and on its frequencies above each cut of Table 1."""
    nets = list(nets)
    variants = ("", *(f"high-frequency-{theta}" for theta in THETAS))
    return [
        cell
        for variant in variants
        for cell in evaluations(nets, attacks=(), variant=variant, purpose=variant or "frequency", **scale.frequency)
    ]


def under_autoattack(nets: Iterable[Network | PruneCell], **fields: Any) -> list[EvaluateCell]:
    """Evaluations of 1,000 images under AutoAttack at SMALL: an image that withstands takes 3 s on one core in the fast engine.

    Args:
        nets: The networks.
        fields: Further fields of EvaluateCell.
    """
    attacks = tuple({"attack": "autoattack", "eps": eps} for eps in SMALL)
    return evaluations(nets, attacks=attacks, examples=1000, purpose="autoattack-small", **fields)


def cascade(eps: str, *, queries: int) -> dict[str, Any]:
    """The attack of a cascade of APGD-CE, APGD-T and Square: the best affordable estimate of the worst case.

    Args:
        eps: The radius, "1/255".
        queries: The queries of Square.
    """
    attacks = ("apgd-ce", {"attack": "apgd-t", "targets": 3}, {"attack": "square", "queries": queries})
    return {"attack": "cascade", "eps": eps, "options": {"attacks": attacks}}


def registered() -> list[str]:
    """The names of METHODS and of methods that the caller has registered, in alphabetical order."""
    registry = sys.modules.get("gkp.pruning.registry")  # not imported here, because that would import torch
    own = registry.methods().items() if registry else ()
    return sorted({*METHODS, *(name for name, method in own if name != SCRATCH and GIVEN.issuperset(method.needs))})
