"""The registry of pruning methods, and `prune`, the one way to use them.

A method is a frozen dataclass of hyper-parameters with `plan(net, convs) -> Plan`: it decides what stays and does nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import nn

from gkp.errors import BadInput
from gkp.plans import Plan, PrunedModel


class Method(Protocol):
    """What `prune` asks of a pruning method."""

    def plan(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> Plan:
        """What stays of `net` when its layers `convs` are pruned."""


M = TypeVar("M", bound=type)
Layers = Iterable[str] | Callable[[str, nn.Conv2d], bool] | None


@dataclass(frozen=True)
class MethodInfo:
    """What the registry knows of a method.

    reference: where it was published, or "control". family: what it removes ("grouped kernel", "filter", "channel").
    needs: what it looks at ("weights", "data", ...). fidelity: "faithful", or "adapted: " with what differs and why.
    """

    name: str
    reference: str
    family: str
    needs: tuple[str, ...]
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


def register(name: str, *, reference: str, family: str, needs: tuple[str, ...], fidelity: str) -> Callable[[M], M]:
    """A class decorator that puts a frozen dataclass of hyper-parameters into the registry under `name`.

    Raises BadInput if the name is taken by another class or `fidelity` is neither "faithful" nor "adapted: ...".
    """
    if fidelity != "faithful" and not fidelity.startswith("adapted: "):
        raise BadInput(f'fidelity of {name} must be "faithful" or "adapted: what differs and why", not {fidelity!r}')

    def add(cls: M) -> M:
        taken = _REGISTRY.get(name)
        if taken is not None and taken.cls.__qualname__ != cls.__qualname__:
            raise BadInput(f"a method called {name!r} is registered already ({taken.cls.__qualname__}); choose another name")
        options = {field.name: field.default for field in dataclasses.fields(cls)}
        _REGISTRY[name] = MethodInfo(name, reference, family, needs, fidelity, options, cls)
        return cls

    return add


def methods() -> dict[str, MethodInfo]:
    """Every registered pruning method by name, in alphabetical order."""
    return dict(sorted(_REGISTRY.items()))


def make_method(name: str, **options: Any) -> Method:
    """The method `name` with its hyper-parameters set. Raises BadInput for an unknown name or option."""
    if name not in _REGISTRY:
        raise BadInput(f"unknown method {name!r}; known: {', '.join(methods())}")
    info = _REGISTRY[name]
    unknown = sorted(set(options) - set(info.options))
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
    **options: Any,
) -> PrunedModel:
    """The masked dense twin of `net` after one-shot pruning by `method`; `net` itself is left as it was.

    rate: share of (grouped) kernels removed in every pruned layer. groups: n, the equal filter groups. seed: for methods that
    draw. layers: None for the paper's layers (our networks) or every ungrouped convolution whose filters divide by `groups`,
    except the image layer (any other network; what was left out is listed in `.left_out`); or layer names; or a predicate
    (name, conv) -> bool. options: the method's own, e.g. alpha, beam_width, check_every, beta for sr-gkp.
    Raises BadInput for an unknown method or option, a rate or groups that do not fit a layer, no layer, NaN or Inf weights.
    """
    if isinstance(net, PrunedModel):
        raise BadInput("this network is pruned already; prune its `.net`, or the network it was made from")
    known = _REGISTRY[method].options if method in _REGISTRY else {}
    shared = {"rate": rate, "groups": groups, "seed": seed}
    planner = make_method(method, **{k: v for k, v in shared.items() if k in known}, **options)
    convs, left_out = choose_layers(net, layers, groups)
    for name, conv in convs.items():
        if not bool(conv.weight.isfinite().all()):
            raise BadInput(f"{name} has NaN or Inf weights; load a sound checkpoint before pruning")
    return PrunedModel(net, planner.plan(net, convs), left_out)


def choose_layers(net: nn.Module, layers: Layers, groups: int) -> tuple[dict[str, nn.Conv2d], dict[str, str]]:
    """The convolutions of `net` to prune, and the ones left out with the reason. `layers`, `groups` as in `prune`."""
    every = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    if layers is None and (by_paper := getattr(net, "prunable", None)) is None:
        left_out = {name: reason for name, conv in every.items() if (reason := _unfit(name, conv, every, groups))}
        chosen = [name for name in every if name not in left_out]
    else:
        chosen = _named(every, by_paper if layers is None else layers)
        left_out = {name: "not asked for" for name in every if name not in chosen}
        for name in chosen:
            if reason := _unfit(name, every[name], {}, groups):
                raise BadInput(f"{name} {reason}; use groups that divide its filters, or leave it out with layers=")
    if not chosen:
        raise BadInput(f"no layer to prune in {type(net).__name__}; its convolutions: {', '.join(every) or 'none'}")
    return {name: every[name] for name in chosen}, left_out


def _named(every: Mapping[str, nn.Conv2d], layers: Iterable[str] | Callable[[str, nn.Conv2d], bool]) -> list[str]:
    """The layer names that a list of names or a predicate chooses. Raises BadInput for a name that is no convolution."""
    if callable(layers):
        return [name for name, conv in every.items() if layers(name, conv)]
    wanted = [layers] if isinstance(layers, str) else list(layers)
    missing = [name for name in wanted if name not in every]
    if missing:
        raise BadInput(f"no convolution called {', '.join(missing)}; there are {', '.join(every) or 'none'}")
    return wanted


def _unfit(name: str, conv: nn.Conv2d, every: Mapping[str, nn.Conv2d], groups: int) -> str:
    """Why `conv` cannot be pruned, or an empty string. The first convolution of `every` is the image layer."""
    if conv.groups != 1:
        return f"is a grouped convolution already (groups={conv.groups})"
    if every and name == next(iter(every)):
        return "is the image layer"
    if groups < 1 or conv.out_channels % groups:
        return f"has {conv.out_channels} filters, which do not divide by {groups} groups"
    return ""
