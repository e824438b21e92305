"""`train_pruned`: the methods that prune while they train. They, too, decide what stays and leave the masking to others.

Such a method has `callback(convs)`, a `gkp.training.Callback` that acts on the training of the dense network (before training,
loss term, after step, after epoch, finish) and whose `plan(net)` then says what stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gkp.budget import TOLERANCE, check_budget
from gkp.cost import cost
from gkp.datasets import Dataset
from gkp.errors import BadInput
from gkp.methods._layers import Layers
from gkp.methods.registry import check_inputs, layers_for, make_method, method_info, target_macs
from gkp.plans import Plan, PrunedModel, find_input_shape
from gkp.training import Callback, Recipe, TrainingLog, train


class PruningCallback(Protocol):
    """A `gkp.training.Callback` that ends in a plan."""

    def before_training(self, net: nn.Module) -> None: ...

    def loss_term(self, net: nn.Module) -> Tensor | None: ...

    def after_step(self, net: nn.Module) -> None: ...

    def after_epoch(self, net: nn.Module, epoch: int) -> None: ...

    def finish(self, net: nn.Module) -> None: ...

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor]) -> None: ...

    def plan(self, net: nn.Module) -> Plan:
        """What stays of `net` after the last epoch."""


class TrainingMethod(Protocol):
    """What `train_pruned` asks of a training-time method."""

    def callback(self, convs: Mapping[str, nn.Conv2d]) -> PruningCallback:
        """The callback that prunes the layers of these names."""


def train_pruned(
    net: nn.Module,
    method: str,
    train_set: Dataset,
    recipe: Recipe,
    *,
    rate: float = 7 / 16,
    seed: int = 0,
    layers: Layers = None,
    input_shape: Sequence[int] | None = None,
    budget: float | None = None,
    callbacks: Sequence[Callback] = (),
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> tuple[PrunedModel, TrainingLog]:
    """The masked dense twin of `net` after it was trained and pruned by `method`, and the log of that training.

    `net` itself is left as it was; give it trained or new. rate, layers, input_shape, budget, options: as in `gkp.prune`.
    recipe, seed, evaluate, checkpoint, progress, device: as in `gkp.training.train`; what is evaluated is the dense net, zero
    where the method just zeroed it. callbacks: others beside the method's own. What comes back is fine-tuned like any other.
    Raises BadInput for a one-shot method, and as `gkp.prune` and `gkp.training.train` do.
    """
    if isinstance(net, PrunedModel):
        raise BadInput("this network is pruned already; prune its `.net`, or the network it was made from")
    info = method_info(method)
    if info.procedure == "one-shot":
        raise BadInput(f"{method} prunes in one shot; use gkp.prune, then gkp.training.train")
    shape = tuple(input_shape) if input_shape is not None else None
    trained = copy.deepcopy(net)
    convs, left_out = layers_for(info, trained, layers, input_shape=shape)
    target = target_macs(info, trained, convs, layers, rate, budget, shape)
    shared = {"rate": rate, "seed": seed, "input_shape": shape, "budget": target}
    planner = make_method(method, **{k: v for k, v in shared.items() if k in info.options}, **options)
    check_inputs(info, trained, convs, train_set)
    pruning = planner.callback(convs)
    log = train(
        trained,
        train_set,
        recipe,
        seed=seed,
        evaluate=evaluate,
        checkpoint=checkpoint,
        progress=progress,
        device=device,
        callbacks=(pruning, *callbacks),
    )
    pruned = PrunedModel(trained, pruning.plan(trained), left_out)
    if target is not None:
        within = getattr(planner, "tolerance", TOLERANCE)
        check_budget(cost(pruned, input_shape=shape or find_input_shape(net)), target, tolerance=within, who=method)
    return pruned, log
