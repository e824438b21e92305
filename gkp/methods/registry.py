"""The registry of pruning methods, and `prune`, the one way to use those that prune in one shot.

A method is a frozen dataclass of hyper-parameters, one file each. A one-shot method has `plan(net, convs) -> Plan`: it decides
what stays of the convolutions `convs` and does nothing else. Fields called rate, groups, seed, data, input_shape and budget are
filled by `prune`. A method that scores filters inherits all of that from `gkp.methods.FilterMethod` and only says its score. A
training-time method ends in a plan too: see `gkp.methods.training_time`. A control that also says which weights the twin starts
from has `initialise(pruned) -> PrunedModel`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from gkp.budget import TOLERANCE, check_budget, grouped_kernel_macs
from gkp.cost import cost
from gkp.datasets import Dataset
from gkp.errors import BadInput
from gkp.methods._layers import Chosen, Layers, choose_filter_layers, choose_layers
from gkp.plans import Plan, PrunedModel, find_input_shape, plan_of


class Method(Protocol):
    """What `prune` asks of a one-shot pruning method."""

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """What stays of `net` when its layers `convs` are pruned."""


M = TypeVar("M", bound=type)
PROCEDURES = ("one-shot", "soft", "sparse training")


@dataclass(frozen=True)
class MethodInfo:
    """What the registry knows of a method.

    reference: where it was published, or "control". family: what it removes ("grouped kernel", "filter", "channel").
    needs: what it looks at ("weights", "data", ...). procedure: "one-shot" (before fine-tuning; `gkp.prune`), or while training
    (`gkp.methods.train_pruned`): "soft" (what is zeroed may come back) or "sparse training" (a penalty, then one cut).
    fidelity: "faithful", or "adapted: " with what differs and why.
    """

    name: str
    reference: str
    family: str
    needs: tuple[str, ...]
    procedure: str
    fidelity: str
    options: Mapping[str, Any]
    cls: type[Any] = dataclasses.field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """All but the class, as plain types."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("cls", "options")} | {
            "needs": list(self.needs),
            "options": dict(self.options),
        }


_REGISTRY: dict[str, MethodInfo] = {}


def register(
    name: str, *, reference: str, family: str, needs: tuple[str, ...], fidelity: str, procedure: str = "one-shot"
) -> Callable[[M], M]:
    """A class decorator that puts a frozen dataclass of hyper-parameters into the registry under `name`.

    Raises BadInput if the name is taken by another class, the procedure is unknown, or `fidelity` is neither "faithful" nor
    "adapted: ...".
    """
    if procedure not in PROCEDURES:
        raise BadInput(f"procedure of {name} must be one of {', '.join(PROCEDURES)}, not {procedure!r}")
    if fidelity != "faithful" and not fidelity.startswith("adapted: "):
        raise BadInput(f'fidelity of {name} must be "faithful" or "adapted: what differs and why", not {fidelity!r}')

    def add(cls: M) -> M:
        taken = _REGISTRY.get(name)
        if taken is not None and taken.cls.__qualname__ != cls.__qualname__:
            raise BadInput(f"a method called {name!r} is registered already ({taken.cls.__qualname__}); choose another name")
        options = {field.name: field.default for field in dataclasses.fields(cls)}
        _REGISTRY[name] = MethodInfo(name, reference, family, needs, procedure, fidelity, options, cls)
        return cls

    return add


def methods() -> dict[str, MethodInfo]:
    """Every registered pruning method by name, in alphabetical order."""
    return dict(sorted(_REGISTRY.items()))


def make_method(name: str, **options: Any) -> Any:
    """The method `name` with its hyper-parameters set. Raises BadInput for an unknown name or option."""
    info = method_info(name)
    unknown = sorted(set(options) - set(info.options))
    if "round_to" in unknown and info.family == "grouped kernel":
        raise BadInput(
            f"{name} has no option round_to: grouped kernel pruning leaves every layer as wide as it was, and how many inputs "
            "each group reads follows from rate; leave it out, or take a filter or channel method"
        )
    if unknown:
        raise BadInput(f"{name} has no option {', '.join(unknown)}; it has {', '.join(info.options)}")
    return info.cls(**options)


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
    **options: Any,
) -> PrunedModel:
    """The masked dense twin of `net` after one-shot pruning by `method`; `net` itself is left as it was.

    rate: for grouped kernel methods the share of kernels removed in every pruned layer; for all others the same budget: they
    match, within 1 %, the paper_macs that grouped kernel pruning at this rate leaves of `net`. budget: other paper_macs to
    match, or, below 1, a fraction of the dense network's (not for grouped kernel methods). groups: n, the equal filter groups.
    seed: for methods that draw. data: for methods that look at images (`gkp.methods()` says which need it): a training split.
    layers: None for the paper's layers (our networks) or every ungrouped convolution whose filters divide by `groups`, except
    the image layer (any other network), and for filter methods every convolution whose filters can go whole without touching a
    residual stream; what was left out is listed in `.left_out`. Or layer names; or a predicate (name, conv) -> bool: the budget
    is then what grouped kernel pruning of those layers would leave. input_shape: (C, H, W) of the images, if not a usual one.
    options: the method's own, e.g. alpha, beam_width, check_every, beta for sr-gkp; round_to=8 for filter and channel methods.
    Raises BadInput for an unknown method or option, a rate or groups that do not fit a layer, no layer, NaN or Inf weights,
    missing data, a budget that the method cannot reach or does not keep.
    """
    if isinstance(net, PrunedModel):
        raise BadInput("this network is pruned already; prune its `.net`, or the network it was made from")
    info = method_info(method)
    if info.procedure != "one-shot":
        raise BadInput(f"{method} prunes while it trains ({info.procedure}); use gkp.methods.train_pruned")
    shape = tuple(input_shape) if input_shape is not None else None
    convs, left_out = layers_for(info, net, layers, groups, shape)
    target = target_macs(info, net, convs, layers, rate, budget, shape)
    shared = {"rate": rate, "groups": groups, "seed": seed, "data": data, "input_shape": shape}
    shared |= {"budget": target} if info.family != "grouped kernel" or budget is not None else {}
    fitting = {k: v for k, v in shared.items() if k in info.options or (k == "budget" and budget is not None)}
    planner = make_method(method, **fitting, **options)
    check_inputs(info, net, convs, data)
    pruned = PrunedModel(net, planner.plan(net, convs), left_out)
    if target is not None:
        within = getattr(planner, "tolerance", TOLERANCE)
        check_budget(cost(pruned, input_shape=shape or find_input_shape(net)), target, tolerance=within, who=method)
    return planner.initialise(pruned) if hasattr(planner, "initialise") else pruned


def method_info(name: str) -> MethodInfo:
    """What the registry knows of the method `name`. Raises BadInput for an unknown one."""
    if name not in _REGISTRY:
        raise BadInput(f"unknown method {name!r}; known: {', '.join(methods())}")
    return _REGISTRY[name]


def layers_for(
    info: MethodInfo, net: nn.Module, layers: Layers, groups: int = 8, input_shape: tuple[int, ...] | None = None
) -> Chosen:
    """The convolutions that this method prunes, and the others with the reason; see `prune`."""
    if info.family == "filter":
        chosen = choose_filter_layers(net, layers, input_shape)
    else:
        chosen = choose_layers(net, layers, groups if "groups" in info.options else 1)
    if plan_of(net):
        raise BadInput("this network is pruned already; prune the network it was made from")
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
    same = convs if grouped or layers is not None else choose_layers(net, None, 1)[0]
    return grouped_kernel_macs(net, same, rate, input_shape=shape)


def check_inputs(info: MethodInfo, net: nn.Module, convs: Mapping[str, nn.Conv2d], data: Dataset | None) -> None:
    """Raises BadInput for NaN or Inf weights, and for data that this method needs and that is missing or does not fit."""
    for name, conv in convs.items():
        if not bool(conv.weight.isfinite().all()):
            raise BadInput(f"{name} has NaN or Inf weights; load a sound checkpoint before pruning")
    if "data" not in info.needs:
        return
    if data is None:
        raise BadInput(f'{info.name} looks at images; give data=, a training split such as load_dataset("digits", "train")')
    was_training = net.training
    try:
        with torch.no_grad():
            logits = net.eval()(data.pixels(slice(0, 1)).to(next(net.parameters()).device))
    except RuntimeError as error:
        shape, problem = tuple(data.images.shape[1:]), str(error).splitlines()[0]
        raise BadInput(f"images of {data.name}, {shape}, do not pass through {type(net).__name__}: {problem}") from error
    finally:
        net.train(was_training)
    if logits.ndim != 2 or logits.shape[1] < data.num_classes:
        raise BadInput(f"{data.name} has {data.num_classes} classes, the network {logits.shape[-1]}; give data it was made for")
