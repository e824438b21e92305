"""Prune a network: `prune` in one shot, `train_pruned` by a method that prunes while it trains.

Either way the method only decides what stays, a `Plan`; masks, budget and the check of both are the same for all methods. A
one-shot method has `plan(net, convs)`. A training-time method has `callback(convs)`, which acts on the training of the dense
network and whose `plan(net)` then says what stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from gkp.data.dataset import Dataset, check_fit
from gkp.errors import BadInput
from gkp.networks.classifier import eval_mode
from gkp.networks.copies import copy_of
from gkp.networks.wrappers import unwrapped
from gkp.pruning.arguments import check_arguments, checked_layers, checked_shape
from gkp.pruning.budget import TOLERANCE, check_budget, grouped_kernel_macs
from gkp.pruning.callback import PruningCallback
from gkp.pruning.cost import cost
from gkp.pruning.exact import TIME_LIMIT, difference, sound_layers
from gkp.pruning.layers import Chosen, Kinds, Layers, choose_block_layers, choose_filter_layers, choose_layers, whole_kernels
from gkp.pruning.plan import Plan, pruned_part
from gkp.pruning.probe import find_input_shape, known_shape, network_to_prune, settled
from gkp.pruning.registry import MethodInfo, make_method, method_info
from gkp.pruning.twin import PrunedModel
from gkp.training.callback import Callback
from gkp.training.loop import TrainingLog, train
from gkp.training.recipe import Recipe


class Method(Protocol):
    """A one-shot pruning method, as `prune` calls it."""

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """What stays of `net` when its layers `convs` are pruned."""


class TrainingMethod(Protocol):
    """A training-time method, as `train_pruned` calls it."""

    def callback(self, convs: Mapping[str, nn.Conv2d]) -> PruningCallback:
        """The callback that prunes the layers of these names."""

    # A method may also have `network(net) -> nn.Module`: what is trained in place of `net`, with its names of layers.


@settled()
def prune(
    net: nn.Module,
    method: str = "sr-gkp",
    *,
    rate: float = 7 / 16,
    groups: int = 8,
    seed: int = 0,
    layers: Layers = None,
    data: Dataset | None = None,
    input_shape: Sequence[int] | None = None,
    budget: float | None = None,
    time_limit: float = TIME_LIMIT,
    **options: Any,
) -> PrunedModel:
    """Prune a network in one shot; `net` itself is left as it was.

    What is returned was checked: on random images, the compact network computes what the masked twin does. A layer where it
    does not is left out with the reason.

    Args:
        net: A trained network: one of ours, or any other made of ungrouped convolutions. Wrappers (DataParallel, compiled,
            averaged) are taken off.
        method: One of `gkp.methods()` whose procedure is "one-shot".
        rate: For grouped kernel methods the share of kernels removed in every pruned layer. For all others the same budget:
            they match, within 1 %, the paper_macs that grouped kernel pruning at this rate leaves of `net`.
        groups: Number of equal filter groups of grouped kernel methods, n in the paper.
        seed: For methods that draw at random.
        layers: None for the paper's layers (our networks) or every ungrouped convolution whose filters divide by `groups`,
            except the image layer (any other network); for filter methods, every convolution whose filters can go whole without
            touching a residual stream. Or names of layers, or a predicate (name, conv) -> bool: the budget is then what grouped
            kernel pruning of those layers would leave.
        data: A training split, for methods that look at images (`gkp.methods()` says which).
        input_shape: (C, H, W) of the images, if it is not a usual one.
        budget: Other paper_macs to match, or, below 1, a fraction of the dense network's. Not for grouped kernel methods.
        time_limit: Seconds that finding the layers that cannot be pruned exactly may take; what is not tried then is left out.
        options: The method's own, e.g. alpha, beam_width, check_every and beta for sr-gkp; round_to=8 for filter methods.

    Returns:
        The masked dense twin, to be fine-tuned and attacked; `.plan` says what stays, `.left_out` which layers were not pruned
        and why, `.compact()` gives the small network.

    Raises:
        BadInput: Unknown method or option, a rate or groups that do not fit a layer, no layer, NaN or Inf weights, missing
            data, a budget that the method cannot reach or does not keep, or a layer that was asked for and cannot be pruned
            exactly.
    """
    info = _info_for(net, method)
    net = network_to_prune(net)
    net = copy_of(net) if any(p.is_inference() for p in net.parameters()) else net
    if info.procedure != "one-shot":
        raise BadInput(f"{method} prunes while it trains ({info.procedure}); use gkp.pruning.prune.train_pruned")
    check_arguments(rate, seed, budget, groups=groups, time_limit=time_limit)
    layers = checked_layers(layers)
    shape = known_shape(net, input_shape)
    convs, left_out = layers_for(info, net, layers, groups, shape, time_limit)
    if info.family == "grouped kernel":
        convs, left_out = whole_kernels(convs, left_out, rate, layers)
    shared = {"rate": rate, "groups": groups, "seed": seed, "data": data, "input_shape": shape}
    while True:
        target = target_macs(info, net, convs, layers, rate, budget, shape)
        shared |= {"budget": target} if info.family != "grouped kernel" or budget is not None else {}
        fitting = {k: v for k, v in shared.items() if k in info.options or (k == "budget" and budget is not None)}
        planner = make_method(method, **fitting, **options)
        check_inputs(info, net, convs, data)
        pruned = PrunedModel(net, planner.plan(net, convs), left_out)
        faulty = faulty_layers(pruned, net, shape, time_limit)
        if not faulty:
            break
        if layers is not None or len(faulty) == len(pruned.plan):
            raise BadInput(f"{_first(faulty)}; leave it out with layers=, or prune another kind of network")
        left_out |= faulty
        convs = {name: conv for name, conv in convs.items() if name not in faulty}
    _check_kept(pruned, planner, target, shape, method)
    return planner.initialise(pruned) if hasattr(planner, "initialise") else pruned


def faulty_layers(pruned: PrunedModel, net: nn.Module, shape: tuple[int, ...] | None, seconds: float) -> dict[str, str]:
    """The layers to leave out, with the reason, so that the compact network computes the same as the masked twin.

    Args:
        pruned: The masked twin.
        net: The dense network that it was made from.
        shape: (C, H, W) of the images; None for a usual one, and if none is known each layer is compared by itself.
        seconds: As in `gkp.pruning.exact.sound_layers`.
    """
    if shape is None:
        with contextlib.suppress(BadInput):
            shape = find_input_shape(net)
    if not (reason := difference(pruned, shape)):
        return {}

    def trial(names: Sequence[str]) -> PrunedModel:
        return PrunedModel(net, Plan({name: pruned.plan[name] for name in names}, pruned.plan.input_shape))

    faulty = sound_layers(pruned.plan, trial, shape, seconds=seconds)[1]
    return faulty or dict.fromkeys(pruned.plan, f"is not pruned exactly: {reason}")


@settled()
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
    until: float | None = None,
    **options: Any,
) -> tuple[PrunedModel, TrainingLog]:
    """Prune a network by a method that works while it trains; `net` itself is left as it was.

    Args:
        net: The dense network, trained or new.
        method: One of `gkp.methods()` whose procedure is not "one-shot".
        train_set: The images and labels.
        recipe: How to train, as in `gkp.training.loop.train`.
        rate, layers, input_shape, budget: As in `gkp.prune`.
        seed: Of everything random.
        callbacks: Others beside the method's own.
        evaluate: Called after each epoch with the dense network, in which the method may just have zeroed weights.
        checkpoint, progress, device, until: As in `gkp.training.loop.train`.
        options: The method's own.

    Returns:
        The masked dense twin, to be fine-tuned like any other, and the log of the training.

    Raises:
        BadInput: A one-shot method, or as `gkp.prune` and `gkp.training.loop.train`.
        OutOfTime: As `gkp.training.loop.train`.
    """
    info = _info_for(net, method)
    net = network_to_prune(net)
    if info.procedure == "one-shot":
        raise BadInput(f"{method} prunes in one shot; use gkp.prune, then gkp.training.loop.train")
    check_arguments(rate, seed, budget)
    layers = checked_layers(layers)
    shape = checked_shape(input_shape) if input_shape is not None else None
    trained = copy_of(net)
    convs, left_out = layers_for(info, trained, layers, input_shape=shape)
    target = target_macs(info, trained, convs, layers, rate, budget, shape)
    shared = {"rate": rate, "seed": seed, "input_shape": shape, "budget": target}
    planner = make_method(method, **{k: v for k, v in shared.items() if k in info.options}, **options)
    check_inputs(info, trained, convs, train_set)
    if hasattr(planner, "network"):
        trained = planner.network(trained)
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
        until=until,
    )
    plan = pruning.plan(trained)
    pruned = PrunedModel(trained, plan, {name: reason for name, reason in left_out.items() if name not in plan})
    if reason := difference(pruned, shape or find_input_shape(trained)):
        raise BadInput(f"{method} does not prune {type(net).__name__} exactly: {reason}; leave layers out with layers=")
    _check_kept(pruned, planner, target, shape, method)
    return pruned, log


def layers_for(
    info: MethodInfo,
    net: nn.Module,
    layers: Layers,
    groups: int = 8,
    input_shape: tuple[int, ...] | None = None,
    time_limit: float = TIME_LIMIT,
) -> Chosen:
    """The convolutions that this method prunes, and the others with the reason; see `prune`."""
    if info.family == "filter":
        chosen = choose_filter_layers(net, layers, input_shape, time_limit=time_limit)
    elif info.family == "residual block":
        chosen = choose_block_layers(net, layers, input_shape)
    else:
        kinds: Kinds = "plain" if info.family == "channel" else "exact"
        chosen = choose_layers(net, layers, groups if "groups" in info.options else 1, input_shape, kinds=kinds)
    return chosen


def target_macs(
    info: MethodInfo,
    net: nn.Module,
    convs: Mapping[str, nn.Conv2d],
    layers: Layers,
    rate: float,
    budget: float | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> float | None:
    """The paper_macs that every method keeps at this rate; see `prune`.

    None for a grouped kernel method on a network of which no usual image size is known: its rate is a budget in itself.
    """
    grouped = info.family == "grouped kernel"
    try:
        shape = input_shape or find_input_shape(net)
    except BadInput:
        if grouped:
            return None
        raise
    if budget is not None:
        return budget if budget >= 1 else budget * cost(net, input_shape=shape).paper_macs
    same = convs if grouped or layers is not None else _grouped_layers(net, shape)
    return grouped_kernel_macs(net, same, rate, input_shape=shape)


def _grouped_layers(net: nn.Module, shape: tuple[int, ...]) -> Mapping[str, nn.Conv2d]:
    """The layers that grouped kernel pruning would prune; all ungrouped ones if there are none."""
    with contextlib.suppress(BadInput):
        return choose_layers(net, None, 1, shape)[0]
    return choose_layers(net, None, 1, shape, kinds="any")[0]


def _first(faulty: Mapping[str, str]) -> str:
    return next(f"{name} {reason}" for name, reason in faulty.items())


def check_inputs(info: MethodInfo, net: nn.Module, convs: Mapping[str, nn.Conv2d], data: Dataset | None) -> None:
    """Raise BadInput for NaN or Inf weights, and for data that this method needs and that is missing or does not fit."""
    for name, conv in convs.items():
        if not bool(conv.weight.isfinite().all()):
            raise BadInput(f"{name} has NaN or Inf weights; load a sound checkpoint before pruning")
    if "data" in info.needs and data is None:
        raise BadInput(f'{info.name} looks at images; give data=, a training split such as load_dataset("digits", "train")')
    if data is None or not {"data", "training"} & set(info.needs):
        return
    if not isinstance(data, Dataset):
        raise BadInput(f"{info.name} takes images and labels in a gkp.Dataset, not a {type(data).__name__}")
    if info.labels and data.num_classes > 1 and data.labels.min() == data.labels.max():
        raise BadInput(
            f"{info.name} learns from labels, and all {len(data)} images of {data.name!r} have the label "
            f"{int(data.labels[0])}; give a labelled training split"
        )
    if "data" in info.needs:
        check_fit(net, data)
    if {"data", "gradients"} <= set(info.needs):
        with eval_mode(net), torch.enable_grad():
            images = data.pixels(slice(0, 1)).to(next(net.parameters()).device).requires_grad_()
            if not net(images.clone()).requires_grad:
                raise BadInput(f"{info.name} takes gradients, and the logits of this {type(net).__name__} have none")


def _info_for(net: nn.Module, method: str) -> MethodInfo:
    if isinstance(net, nn.Module) and isinstance(unwrapped(net), PrunedModel):
        raise BadInput("this network is pruned already; prune its `.net`, or the network it was made from")
    if isinstance(net, nn.Module) and (part := pruned_part(unwrapped(net))) is not None:
        raise BadInput(f"{part or 'this network'} is pruned already; prune the network it was made from")
    return method_info(method)


def _check_kept(pruned: PrunedModel, planner: Any, target: float | None, shape: tuple[int, ...] | None, method: str) -> None:
    """Raise BadInput if the method keeps more than the budget; note in `pruned` if it keeps so much less that it shows."""
    if target is not None:
        found = cost(pruned, input_shape=shape or find_input_shape(pruned.net))
        tolerance = getattr(planner, "tolerance", TOLERANCE)
        check_budget(found, target, tolerance=tolerance, who=method)
        off = found.paper_macs / target - 1
        pruned.off_budget = off if abs(off) > tolerance else None
