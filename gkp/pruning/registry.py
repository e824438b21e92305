"""The registry of pruning methods.

A method is a frozen dataclass of hyper-parameters, in a file of its own. A one-shot method has `plan(net, convs) -> Plan`: it
decides what stays of the convolutions `convs` and does nothing else. Fields called rate, groups, seed, data, input_shape and
budget are filled by `gkp.prune`. A method that scores filters inherits all of that from
`gkp.pruning.methods.filter_method.FilterMethod` and overrides `scores` only. A training-time method ends in a plan too: see
`gkp.pruning.prune`. A control that also sets the weights the twin starts from has `initialise(pruned) -> PrunedModel`. A class
attribute `fitted` names the options that fit a search to the length of its training: a value of theirs makes no variant of the
method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gkp.errors import BadInput
from gkp.pruning.arguments import checked_options

M = TypeVar("M", bound=type)
PROCEDURES = ("one-shot", "soft", "sparse training", "while training")
FAMILIES = ("grouped kernel", "filter", "channel", "residual block")
NEEDS = ("weights", "data", "gradients", "training", "training snapshots", "initialisation", "unlabelled images")


@dataclass(frozen=True)
class MethodInfo:
    """An entry of the registry.

    Attributes:
        name: Of the method.
        reference: Its publication, or "control".
        family: What it removes: "grouped kernel", "filter", "channel" or "residual block".
        needs: What it looks at: "weights", "data", ...
        procedure: "one-shot" (before fine-tuning, by `gkp.prune`), or while training (by `gkp.pruning.prune.train_pruned`):
            "soft" (zeroed filters may come back), "sparse training" (a penalty, then one cut), or "while training" (with an
            objective, weights or an update rule of its own).
        fidelity: "faithful", or "adapted: " with what differs and why.
        options: Its hyper-parameters and their defaults.
        cls: Its class.
        adversarial: Whether it trains on adversarial images, so that its robustness is not to be compared with that of methods
            that do not.
    """

    name: str
    reference: str
    family: str
    needs: tuple[str, ...]
    procedure: str
    fidelity: str
    options: Mapping[str, Any]
    cls: type[Any] = dataclasses.field(repr=False)
    adversarial: bool = False

    @property
    def fitted(self) -> tuple[str, ...]:
        """The options that fit its search to the length of its training: a value of theirs makes no variant of it."""
        return getattr(self.cls, "fitted", ())

    @property
    def labels(self) -> bool:
        """Whether it learns from the labels of images."""
        return bool({"training", "gradients"} & set(self.needs)) and "unlabelled images" not in self.needs

    def to_json(self) -> dict[str, Any]:
        """All fields but the class, as plain types."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("cls", "options")} | {
            "needs": list(self.needs),
            "options": dict(self.options),
        }


_REGISTRY: dict[str, MethodInfo] = {}


def register(
    name: str,
    *,
    reference: str,
    family: str,
    needs: tuple[str, ...],
    fidelity: str,
    procedure: str = "one-shot",
    adversarial: bool = False,
) -> Callable[[M], M]:
    """Register a pruning method: a decorator for a frozen dataclass of its hyper-parameters.

    Args:
        name: By which `gkp.prune` knows it.
        reference: Authors, venue and year.
        family: What is removed: "grouped kernel", "filter", "channel" or "residual block".
        needs: What it looks at, of `NEEDS`; what is needed and missing is refused.
        fidelity: "faithful", or "adapted: " and what differs from the published method, and why.
        procedure: "one-shot", or when else it prunes.
        adversarial: Whether it trains the network to be robust, so that it is marked in every table.

    Returns:
        The decorator, which returns the class itself.

    Raises:
        BadInput: The name is taken by another class, the class is no dataclass, a procedure, family or need is unknown, or
            `fidelity` is neither "faithful" nor "adapted: ...".
    """
    for what, given, known in (("procedure", procedure, PROCEDURES), ("family", family, FAMILIES)):
        if given not in known:
            raise BadInput(f"{what} of {name} must be one of {', '.join(known)}, not {given!r}")
    if isinstance(needs, str) or set(needs) - set(NEEDS):
        raise BadInput(f"needs of {name} must be a tuple of some of {', '.join(NEEDS)}, not {needs!r}")
    if fidelity != "faithful" and not fidelity.startswith("adapted: "):
        raise BadInput(f'fidelity of {name} must be "faithful" or "adapted: what differs and why", not {fidelity!r}')

    def add(cls: M) -> M:
        if not dataclasses.is_dataclass(cls):
            raise BadInput(f"{cls.__name__} is no dataclass; put @dataclass(frozen=True) below @register")
        taken = _REGISTRY.get(name)
        if taken is not None and taken.cls.__qualname__ != cls.__qualname__:
            raise BadInput(f"a method called {name!r} is registered already ({taken.cls.__qualname__}); choose another name")
        options = {field.name: _default(field) for field in dataclasses.fields(cls)}
        _REGISTRY[name] = MethodInfo(name, reference, family, needs, procedure, fidelity, options, cls, adversarial)
        return cls

    return add


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, None if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def methods() -> dict[str, MethodInfo]:
    """Every registered pruning method by name, in alphabetical order."""
    return dict(sorted(_REGISTRY.items()))


def make_method(name: str, **options: Any) -> Any:
    """The method `name` with these hyper-parameters. Raises BadInput for an unknown name or option."""
    info = method_info(name)
    unknown = sorted(set(options) - set(info.options))
    if "round_to" in unknown and info.family == "grouped kernel":
        raise BadInput(
            f"{name} has no option round_to: grouped kernel pruning leaves every layer as wide as it was, and how many inputs "
            "each group reads follows from rate; leave it out, or take a filter or channel method"
        )
    if unknown:
        raise BadInput(f"{name} has no option {', '.join(unknown)}; it has {', '.join(info.options)}")
    return info.cls(**checked_options(name, info.cls, options))


def method_info(name: str) -> MethodInfo:
    """The registry's entry of the method `name`. Raises BadInput for an unknown one."""
    if name not in _REGISTRY:
        raise BadInput(f"unknown method {name!r}; known: {', '.join(methods())}")
    return _REGISTRY[name]
