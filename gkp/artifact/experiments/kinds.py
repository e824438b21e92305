"""The kinds of cells of this project: public checkpoints, baselines, pruned networks, evaluations, and measured times.

Their stages are in `gkp.artifact.experiments.stages`, which planning does not import. Raise the revision of a kind when its
stage computes something else than before; declare a field with `later(default)` once cells of the kind have been computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gkp.artifact.experiments.cell import Cell, later, not_hashed
from gkp.artifact.experiments.work import SIZE, evaluation_work, training_work
from gkp.data.pinned import data_hashes
from gkp.data.variants import parse_variant
from gkp.engine.names import check_engine
from gkp.errors import BadInput
from gkp.training.recipe import Hyperparameters


@dataclass(frozen=True, kw_only=True)
class Network(Cell):
    """A cell that writes a network into its folder `model`.

    Attributes:
        dataset: The data set that the network is for.
        model: Its architecture, a name of `gkp.networks.build`.
    """

    dataset: str = "cifar10"
    model: str = "resnet20"


@dataclass(frozen=True, kw_only=True)
class PretrainedCell(Network):
    """A public checkpoint, as `gkp.load_model(model, weights=weights)` loads it.

    Attributes:
        weights: The name of the public weights.
    """

    stage = "pretrained"
    revision = 1
    weights: str = "akamaster"

    @property
    def label(self) -> str:
        return f"{self.dataset}-{self.model}-{self.weights}"


@dataclass(frozen=True, kw_only=True)
class Training(Hyperparameters):
    """The fields of a training: those of `gkp.training.recipe.Recipe`, and the following.

    Attributes:
        split: The part of the data set that is trained on.
        log_examples: How many test images, the first ones, are scored in the paper's protocol after an epoch. The scores are
            for tables that show the effect of choosing the best epoch on the test set; nothing is chosen by them here.
        log_epochs: The epochs after which they are scored; None for all. Epochs in which a method searches always are.
        seed: The seed of the order of images, of augmentation, and of a method or initialisation.
    """

    resumable = True
    split: str = "train"
    log_examples: int = 0
    log_epochs: tuple[int, ...] | None = later(None)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.log_epochs is not None and not (self.log_examples and {*self.log_epochs} <= {*range(1, self.epochs + 1)}):
            raise BadInput(
                f"log_epochs {self.log_epochs} of a training of {self.epochs} epochs, log_examples {self.log_examples}: give "
                "epochs from 1 to the last, and how many images are scored"
            )

    @property
    def data(self) -> dict[str, str]:
        """As `Cell.data`: the part that is trained on, and the test set where it is scored."""
        cell: Any = self  # `dataset` and `model` are fields of a baseline, and those of the network that is pruned
        return data_hashes(f"{cell.dataset}/{self.split}", *([f"{cell.dataset}/test"] if self.log_examples else []))

    @property
    def work(self) -> float:
        """As `Cell.work`."""
        cell: Any = self
        return training_work(cell.dataset, cell.model, self.epochs, len(self.log_epochs or ()) * self.log_examples)


@dataclass(frozen=True, kw_only=True)
class TrainCell(Training, Network):
    """A network trained from scratch, the baseline that methods prune.

    Attributes:
        lr: The learning rate at the start.
    """

    stage = "train"
    revision = 1
    lr: float = 0.1

    @property
    def label(self) -> str:
        return f"{self.dataset}-{self.model}-baseline-e{self.epochs}-s{self.seed}"


@dataclass(frozen=True, kw_only=True)
class PruneCell(Training, Cell):
    """A network that is pruned by one method and then fine-tuned; with epochs=0 only pruned, by one-shot methods.

    It writes the compact network into its folder `compact`, or an unpruned network into `model`.

    Attributes:
        net: The network to prune.
        method: A name of `gkp.methods()`, or "none" for the unpruned network under the same fine-tuning.
        rate, groups: As in `gkp.prune`.
        options: Options of the method.
        soft_epochs: How many of the epochs are given to a method that prunes while it trains; the others are fine-tuning. None
            for half of them, rounded up, or for all where the method trains on adversarial images.
        scratch: Whether to train the pruned shape from new weights instead of fine-tuning it.
    """

    stage = "prune"
    revision = 2
    net: Network
    method: str = "sr-gkp"
    rate: float = 7 / 16
    groups: int = 8
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    soft_epochs: int | None = later(None)
    scratch: bool = later(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = self.options.items() if isinstance(self.options, Mapping) else self.options
        object.__setattr__(self, "options", tuple(sorted((str(name), value) for name, value in pairs)))

    @property
    def finetuned(self) -> int:
        """The epochs of fine-tuning: all but `soft_epochs`."""
        return self.epochs - (self.soft_epochs or 0)

    @property
    def dataset(self) -> str:
        """The data set that the pruned network is for."""
        return self.net.dataset

    @property
    def model(self) -> str:
        """The architecture of the network that is pruned."""
        return self.net.model

    @property
    def label(self) -> str:
        options = "".join(f"-{name}-{value}" for name, value in dict(self.options).items())
        rate = "" if self.method == "none" else f"-r{self.rate:g}"
        scratch = "-scratch" if self.scratch else ""
        return f"{self.dataset}-{self.model}-{self.method}{options}{scratch}{rate}-e{self.epochs}-s{self.seed}"


@dataclass(frozen=True, kw_only=True)
class EvaluateCell(Cell):
    """The outcome matrix of a network, as `gkp.benchmark` computes it.

    Attributes:
        net: The cell of the network.
        protocol: "paper" or "pixel".
        examples: The number of test images; None for all.
        seed: The seed of random starts.
        batch_size: Images in one pass; it matters for attacks whose outcome depends on the batch.
        eps: Radii; None for those of the protocol.
        attacks: Names, or dictionaries of the fields of `gkp.evaluation.outcomes.AttackSpec`; None for those of the protocol.
        true_labels: Whether the paper's protocol also has FGSM with true labels.
        variant: A changed test set, a name of `gkp.data.variants` such as "high-frequency-0.3"; "" for the plain one.
        engine: "torch", or "fast" for `gkp.compile`.
        purpose: A word for the id.
    """

    stage = "evaluate"
    revision = 2
    resumable = True
    net: Network | PruneCell
    protocol: str = "pixel"
    examples: int | None = None
    seed: int = 0
    batch_size: int = 200
    eps: tuple[str, ...] | None = None
    attacks: tuple[str | Mapping[str, Any], ...] | None = None
    true_labels: bool = False
    variant: str = later("")
    engine: str = later("torch")
    purpose: str = not_hashed("")

    def __post_init__(self) -> None:
        if self.variant:
            parse_variant(self.variant)  # to refuse a misspelt name now instead of hours later in a worker
        check_engine(self.engine, " of an evaluation")

    @property
    def part(self) -> str:
        """The role of the evaluation in tables and claims.

        For the attacks of a protocol: `purpose` ("start"), or the protocol where there is none. For given attacks: `purpose`,
        or their names where there is none ("cascade"). Without attack, on the plain test set or its high frequencies:
        "frequency". On another changed test set: its name. "-fast" is appended for `engine` "fast", except to a purpose.
        """
        return self._asked if self.engine == "torch" or self._asked == self.purpose else f"{self._asked}-{self.engine}"

    @property
    def _asked(self) -> str:
        if self.variant and (self.attacks != () or not self.variant.startswith("high-frequency-")):
            return self.variant
        if self.attacks is None:
            return self.purpose or self.protocol
        named = "+".join(item if isinstance(item, str) else item["attack"] for item in self.attacks)
        return (self.purpose or named) if self.attacks else "frequency"

    @property
    def label(self) -> str:
        n = "" if self.examples is None else f"-n{self.examples}"
        what = self.purpose or self.protocol
        changed = f"-{self.variant}" if self.variant not in ("", what) else ""
        return f"{self.net.label}-{what}{changed}{n}" + ("" if self.engine == "torch" else f"-{self.engine}")

    @property
    def data(self) -> dict[str, str]:
        return data_hashes(f"{self.net.dataset}/test")

    @property
    def work(self) -> float:
        return evaluation_work(self.net.dataset, self.net.model, self.examples, self.protocol, self.engine)


@dataclass(frozen=True, kw_only=True)
class TimingCell(Cell):
    """The measured seconds of grouping and pruning a network, and its latency.

    Attributes:
        net: The network whose layers are grouped, pruned and run.
        rate, groups: As in `gkp.prune`.
        seconds: How long each latency is measured.
        clustered: How many layers, the first ones, are clustered by TMI-GKP; None for all.
        batch_sizes: Images per forward pass.
    """

    stage = "timing"
    revision = 1
    net: Network
    rate: float = 7 / 16
    groups: int = 8
    seconds: float = 2.0
    clustered: int | None = None
    batch_sizes: tuple[int, ...] = (1, 128)

    @property
    def label(self) -> str:
        return f"{self.net.label}-timing"

    @property
    def work(self) -> float:
        return SIZE.get(self.net.model, 1.0)


@dataclass(frozen=True, kw_only=True)
class LatencyCell(Cell):
    """The measured latency of a pruned network and of the dense one; only their ratio can be compared between machines.

    Attributes:
        net: A pruned network.
        seconds: How long each of the two is measured at each batch size.
        batch_sizes: Images per forward pass.
        engine: What runs both, "torch" or "fast" for `gkp.compile`.
    """

    stage = "latency"
    revision = 1
    net: PruneCell
    seconds: float = 2.0
    batch_sizes: tuple[int, ...] = (1, 128)
    engine: str = later("torch")

    def __post_init__(self) -> None:
        check_engine(self.engine, " of a latency")

    @property
    def label(self) -> str:
        return f"{self.net.label}-latency" + ("" if self.engine == "torch" else f"-{self.engine}")

    @property
    def work(self) -> float:
        return self.seconds * len(self.batch_sizes)


@dataclass(frozen=True, kw_only=True)
class SpeedCell(Cell):
    """Measured speed of a network, dense and pruned, in stock engines and `gkp.compile`; compare only ratios between machines.

    Attributes:
        net: The network that is run and pruned.
        rates: Shares of kernels removed; filters are removed to the same MACs.
        groups: Number of filter groups.
        batch_sizes: Images per forward pass.
        rounds: Measurements of each form in each engine.
    """

    stage = "speed"
    revision = 1
    net: Network
    rates: tuple[float, ...] = (7 / 16, 10 / 16)
    groups: int = 8
    batch_sizes: tuple[int, ...] = (1, 32, 128)
    rounds: int = 7

    @property
    def label(self) -> str:
        return f"{self.net.label}-speed"

    @property
    def work(self) -> float:
        return SIZE.get(self.net.model, 1.0) * self.rounds * sum(self.batch_sizes) * (1 + 2 * len(self.rates))


def evaluations(nets: Iterable[Network | PruneCell], **options: Any) -> list[EvaluateCell]:
    """One evaluation with these options for each network."""
    return [EvaluateCell(net=net, **options) for net in nets]
