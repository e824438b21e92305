"""The computations of the built-in kinds of cells; only workers import this module.

Raise the revision of a kind (`gkp.artifact.experiments.kinds`) when its stage computes something else than before.

Every stage is a function `stage(params, parents, folder, context)`: the parameters of the cell, role -> folder of each finished
parent, the folder for its files, and a `gkp.artifact.experiments.compute.Context`. It returns the values of result.json.

Stages run on the GPU if there is one, in full precision, and attack in batches as large as its memory allows. They write
`model` and `compact` by `gkp.save_model`, and `outcomes.npz` and `outcomes.json` by `Outcomes.save`. Times go to run.json only,
so that the same cell gives the same bytes again on one machine.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gkp.artifact.experiments.entry import figures_of, network_in
from gkp.artifact.experiments.history import TRAINING
from gkp.artifact.experiments.speed import speed
from gkp.artifact.experiments.timing import latency_of, timing
from gkp.checkpoints import load_model, save_model
from gkp.data.dataset import Dataset
from gkp.data.pinned import PINNED
from gkp.data.sources import load_dataset
from gkp.data.variants import variant
from gkp.errors import BadInput
from gkp.evaluation.batches import attack_batch
from gkp.evaluation.benchmark import benchmark
from gkp.evaluation.protocols import attack_rows
from gkp.networks.build import INPUT_SIDE, build_model
from gkp.networks.fingerprint import state_sha256
from gkp.pruning.cost import cost
from gkp.pruning.methods.controls import scratch
from gkp.pruning.methods.tmi_gkp.trace import WeightTrace, snapshot_epochs
from gkp.pruning.plan import plan_of
from gkp.pruning.prune import prune, train_pruned
from gkp.pruning.registry import method_info
from gkp.pruning.twin import PrunedModel, masked_twin
from gkp.training.callback import Callback
from gkp.training.loop import TrainingLog, train
from gkp.training.recipe import Recipe

if TYPE_CHECKING:
    from gkp.artifact.experiments.compute import Context

TRACE = "trace.safetensors"  # how far each filter moved during training, by which TMI-GKP groups filters


def pretrained(params: Mapping[str, Any], parents: Mapping[str, Path], folder: Path, context: Context) -> dict[str, Any]:
    """Write a public checkpoint in our format; returns its cost and the hash of its state."""
    net = load_model(params["model"], weights=params["weights"])
    save_model(net, folder / "model")
    side = INPUT_SIDE.get(params["model"], 32)
    return _network_figures(net, params["dataset"], params["model"], (3, side, side))


def train_baseline(params: Mapping[str, Any], parents: Mapping[str, Path], folder: Path, context: Context) -> dict[str, Any]:
    """Train a network from its initialisation and trace its weights; returns the log of all epochs, its cost, seed and n."""
    data = load_pinned(params["dataset"], params["split"])
    net = build_model(params["model"], seed=params["seed"], num_classes=data.num_classes, mean=data.mean, std=data.std)
    trace = WeightTrace(snapshot_epochs(params["epochs"]))
    figures = _fit(net, params, params["dataset"], context, callbacks=[trace])
    trace.save(folder / TRACE)
    save_model(net.cpu(), folder / "model")
    return {**figures, **_network_figures(net, params["dataset"], params["model"], data.shape)}


def prune_and_finetune(
    params: Mapping[str, Any], parents: Mapping[str, Path], folder: Path, context: Context
) -> dict[str, Any]:
    """Prune and fine-tune the parent network.

    The masked twin is fine-tuned, or the compact network where only whole filters are removed (`Plan.only_cuts`): both compute
    the same function, and the faster one is taken. The compact network is written; `gkp.pruning.twin.masked_twin` makes the
    masked twin from it.

    Returns:
        The log of all epochs, the cost of the network, seed and n; "off_budget" (`PrunedModel.off_budget`, a fraction) where
        the method could not meet the budget. The seconds of pruning and fine-tuning go to run.json.
    """
    parent = figures_of(parents["net"])
    dataset, shape = parent["dataset"], tuple(parent["input_shape"])
    started = time.perf_counter()
    net, soft_rows = _pruned(load_model(parents["net"] / "model"), params, parent, parents["net"] / TRACE, context)
    off = getattr(net, "off_budget", None)
    missed = {} if off is None else {"off_budget": round(off, 4)}
    if isinstance(net, PrunedModel) and net.plan.only_cuts:
        net = net.compact()
    context.notes["prune_seconds"] = round(time.perf_counter() - started, 3)
    started = time.perf_counter()
    left = params["epochs"] - len(soft_rows)
    figures = _fit(net, {**params, "epochs": left}, dataset, context) if left else {"epochs": [], "seed": params["seed"]}
    context.notes["finetune_seconds"] = round(time.perf_counter() - started, 3)
    small = (net.compact() if isinstance(net, PrunedModel) else net).cpu().eval()
    save_model(small, folder / ("compact" if plan_of(small) else "model"))
    evaluated = masked_twin(small)
    return {**figures, "soft_epochs": soft_rows, **missed, **_network_figures(evaluated, dataset, parent["model"], shape)}


def _pruned(
    net: nn.Module, params: Mapping[str, Any], parent: Mapping[str, Any], trace: Path, context: Context
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The pruned network, and the rows of the epochs of the search (none for one-shot methods)."""
    if params["method"] == "none":
        return net, []
    info = method_info(params["method"])
    data = load_pinned(parent["dataset"], params["split"])
    options = {
        "rate": params["rate"],
        "seed": params["seed"],
        "input_shape": tuple(parent["input_shape"]),
        **dict(params["options"]),
    }
    rows: list[dict[str, Any]] = []
    if info.procedure == "one-shot":
        if "training snapshots" in info.needs and trace.exists():
            options.setdefault("trace", trace)
        if "checkpoint" in info.options:
            options["checkpoint"] = context.scratch / "pruning.pt"
        pruned = prune(net, info.name, groups=params["groups"], data=data if "data" in info.needs else None, **options)
    else:
        recipe = _recipe({**params, "epochs": _soft_epochs(params)})
        pruned, log = train_pruned(
            net,
            info.name,
            data,
            recipe,
            device=_device(),
            progress=False,
            evaluate=_scores(parent["dataset"], params["log_examples"]),
            checkpoint=context.scratch / "pruning.pt",
            until=context.deadline,
            **options,
        )
        rows = _rows(log, context)
    return (scratch(pruned, seed=params["seed"]) if params.get("scratch") else pruned), rows


def _soft_epochs(params: Mapping[str, Any]) -> int:
    given = params.get("soft_epochs")
    half = params["epochs"] if method_info(params["method"]).adversarial else math.ceil(params["epochs"] / 2)
    soft = half if given is None else given
    if not 1 <= soft <= params["epochs"]:
        raise BadInput(
            f"{params['method']} prunes while it trains: {soft} of {params['epochs']} epochs is not enough; give "
            "epochs of 1 or more, and soft_epochs from 1 to epochs"
        )
    if late := [epoch for epoch in params.get("log_epochs") or () if epoch > params["epochs"] - soft]:
        raise BadInput(
            f"log_epochs has {late[0]}, but after {soft} epochs of search there are {params['epochs'] - soft}, counted from 1"
        )
    return soft


def evaluate(params: Mapping[str, Any], parents: Mapping[str, Path], folder: Path, context: Context) -> dict[str, Any]:
    """Evaluate the parent network; returns accuracy and interval under each attack, as fractions, with n and seed."""
    net, engine = load_model(parents["net"] / network_in(parents["net"])), params.get("engine", "torch")
    data = variant(load_pinned(figures_of(parents["net"])["dataset"], "test"), params.get("variant", ""))
    device = "cpu" if engine == "fast" else _device()
    net = net if engine == "fast" else masked_twin(net)  # in torch, grouped convolutions are slower than dense ones
    outcomes = benchmark(
        net,
        data.to(device),
        protocol=params["protocol"],
        n_examples=params["examples"],
        seed=params["seed"],
        batch_size=_batch_size(net, data, params, device),
        eps=params["eps"],
        attacks=params["attacks"],
        true_labels=params["true_labels"],
        checkpoint=context.scratch / "outcomes",
        device=device,
        progress=False,
        engine=engine,
    )
    replace(outcomes, seconds=0.0).save(folder)  # seconds go to run.json
    return {
        "accuracy": outcomes.accuracy(),
        "interval": {key: list(ends) for key, ends in outcomes.interval().items()},
        "n": outcomes.n,
        "seed": outcomes.seed,
        "protocol": outcomes.protocol,
        "dataset": outcomes.dataset,
        "data_sha256": outcomes.data_sha256,
        "model_sha256": outcomes.model_sha256,
    }


def _batch_size(net: nn.Module, data: Dataset, params: Mapping[str, Any], device: str) -> int:
    """The batch size of the cell where an attack depends on it, else one that suits the device."""
    given = {name: params[name] for name in ("eps", "attacks", "true_labels")}
    rows = attack_rows(params["protocol"], dataset=data.name, **given)
    asked = params["batch_size"]
    return asked if any(row.together for row in rows) else attack_batch(net, data, device, at_least=asked)


def load_pinned(dataset: str, split: str) -> Dataset:
    """Load a split of a data set, once for each process.

    Args:
        dataset: The name of the data set.
        split: The split.

    Raises:
        BadInput: It is not the data set that its name stands for.
    """
    data, name = load_dataset(dataset, split), f"{dataset}/{split}"
    if name in PINNED and data.sha256 != PINNED[name][0]:
        labels = hashlib.sha256(data.labels.cpu().contiguous().numpy().data).hexdigest()
        if labels != PINNED[name][1]:
            raise BadInput(
                f"the {split} part of {dataset} found here has other labels than the set of that name; remove it "
                "from the folders of GKP_DATA and get it again"
            )
    return data


def _fit(
    net: nn.Module, params: Mapping[str, Any], dataset: str, context: Context, callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Train `net` in place by the parameters, continuing a stopped run; returns the values of the training."""
    data, started = load_pinned(dataset, params["split"]), time.perf_counter()
    score, some = _scores(dataset, params["log_examples"]), params.get("log_epochs")
    log = train(
        net,
        data,
        _recipe(params),
        seed=params["seed"],
        evaluate=score if some is None else None,
        checkpoint=context.scratch / TRAINING,
        progress=False,
        device=_device(),
        callbacks=[*callbacks, *([_AtEpochs(score, some)] if score and some is not None else [])],
        until=context.deadline,
    )
    context.notes["steps"] = log.steps
    spent, now = sum(row["seconds"] for row in log.rows), time.perf_counter() - started
    if spent > now:  # the least time of stopped runs
        context.notes["taken_over_seconds"] = max(round(spent - now, 3), context.notes.get("taken_over_seconds", 0.0))
    return {"epochs": _rows(log, context), "n": len(data), "seed": params["seed"], "data_sha256": data.sha256}


class _AtEpochs(Callback):
    """Scores the network after some epochs and adds the scores to their rows of the log."""

    def __init__(self, score: Callable[[nn.Module], dict[str, float]], epochs: Sequence[int]) -> None:
        self._score, self._epochs, self._found = score, frozenset(epochs), dict[str, float]()

    def after_epoch(self, net: nn.Module, epoch: int) -> None:
        self._found = self._score(net) if epoch in self._epochs else {}

    def figures(self) -> dict[str, float]:
        return self._found


def _recipe(params: Mapping[str, Any]) -> Recipe:
    return Recipe(**{f.name: params[f.name] for f in fields(Recipe)})


def _rows(log: TrainingLog, context: Context) -> list[dict[str, Any]]:
    """The rows of a training without seconds, which go to run.json."""
    context.notes.setdefault("epoch_seconds", []).extend(round(row["seconds"], 3) for row in log.rows)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in log.rows]


def _scores(dataset: str, examples: int) -> Callable[[nn.Module], dict[str, float]] | None:
    """The function that scores a network in the paper's protocol after an epoch; None where nothing is scored."""
    if not examples:
        return None
    device = _device()
    test = load_pinned(dataset, "test").first(examples).to(device)

    def scores(net: nn.Module) -> dict[str, float]:
        size = attack_batch(net, test, device)
        return benchmark(net, test, protocol="paper", batch_size=size, progress=False).accuracy()

    return scores


def _network_figures(net: nn.Module, dataset: str, model: str, shape: tuple[int, ...]) -> dict[str, Any]:
    counted = cost(net, input_shape=shape)
    return {
        "dataset": dataset,
        "model": model,
        "input_shape": list(shape),
        "params": counted.params,
        "macs": counted.macs,
        "paper_macs": counted.paper_macs,
        "model_sha256": state_sha256(net),
    }


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


STAGES: dict[str, Callable[..., Mapping[str, Any]]] = {  # of the kinds of cells in `gkp.artifact.experiments.kinds`
    "pretrained": pretrained,
    "train": train_baseline,
    "prune": prune_and_finetune,
    "evaluate": evaluate,
    "timing": timing,
    "latency": latency_of,
    "speed": speed,
}
