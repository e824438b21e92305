"""The weights of our networks from a file of somebody else's: which part of it, and which network it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp.errors import BadInput, ModelWarning
from gkp.networks.build import BUILDERS, INPUT_SIDE, build, describe
from gkp.networks.classifier import IMAGENET_MEAN, IMAGENET_STD, SHORTCUTS, Architecture, is_normalisation
from gkp.networks.state_file import read_states
from gkp.networks.state_fit import Fit, Shapes, differences, find_fits, with_classes

_NAMED = 3  # layers that an error names
States = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Form:
    """A form that a network can have: its shapes, and the fields of its `Architecture` that they follow from."""

    shapes: Shapes
    fields: Mapping[str, Any]


def read_network(name: str, path: Path, key: str | None, fields: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights of one of our networks from a file.

    Args:
        name: One of `gkp.networks.build.BUILDERS`.
        path: The file.
        key: The part of the file to take, where it has several.
        fields: Those of `Architecture` that the user gives.

    Returns:
        The tensors by our names, and the fields that the file tells: num_classes, mean and std if they are in it, and the
        shortcut if shapes or names give it away.

    Raises:
        BadInput: As `gkp.networks.state_file.read_states`; the file holds another network, or several; or it has another
            normalisation than the user gives.
    """
    states = read_states(path)
    found = _fits(_forms(name, fields), states)
    if not found:
        raise BadInput(
            f"{path} is of another architecture{_misfit(name, _forms(name, fields), states)}{_hint(name, states, fields)}"
        )
    if {"mean", "std"} <= fields.keys():  # then what the file may say of them need not be understood
        found = [(replace(fit, beside=tuple(set(fit.beside) - {*fit.unclear_normalisation})), form) for fit, form in found]
    fit = chosen([fit for fit, _ in found], name, path, key)
    if unclear := fit.unclear_normalisation:
        raise BadInput(f"{path} has a normalisation that is not clear ({', '.join(unclear[:_NAMED])}); give mean and std")
    told = dict(next(form.fields for other, form in found if other is fit))
    if "shortcut" in told and told["shortcut"] != "projection" and "shortcut" not in fields:
        # akamaster's names, whose shortcuts have no parameters that would tell them from the paper's
        told = told | ({"shortcut": "centre"} if fit.classifier == "linear" and fit.normalisation is None else {})
    for layer, tensor in fit.tensors.items():
        if not layer.endswith("num_batches_tracked"):
            _check_values(layer, tensor, True, f"{path} for {name}")
    if fit.normalisation:
        told |= {"mean": fit.normalisation[0], "std": fit.normalisation[1]}
        _check_normalisation(path, told, fields)
    return fit.tensors, told


def read_into(net: nn.Module, path: Path, key: str | None) -> dict[str, Tensor]:
    """Read the weights of any network from a file. Raises BadInput as `read_network`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    states, form = read_states(path), Form(shapes, {"num_classes": "its own"})
    name, found = type(net).__name__, [fit for fit, _ in _fits([form], states)]
    if not found:
        raise BadInput(f"{path} is of another architecture{_misfit(name, [form], states)}")
    fit = chosen(found, name, path, key)
    pair = dict(zip(("mean", "std"), map(torch.tensor, fit.normalisation or ()), strict=False))
    return fit.tensors | {name: value.view(shapes[name]) for name, value in pair.items() if name in shapes}


def names_of_fits(path: Path) -> str:
    """Our networks that a file has the weights of, joined by commas. Raises BadInput for a file without weights."""
    return " or ".join(_names_of_fits(read_states(path)))


def default_normalisation(name: str) -> dict[str, Any]:
    """The normalisation of weights whose file and user say nothing: ImageNet's for ResNet-50 and -101, else the paper's."""
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if name in INPUT_SIDE else {}


def fill(net: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load `tensors` into `net`, which keeps its own normalisation and counters where there are none.

    Raises:
        BadInput: A name or shape does not fit, or a tensor has no finite floating-point values where they are needed.
    """
    own = net.state_dict()
    kept = {name: tensor for name, tensor in own.items() if name in ("mean", "std") or name.endswith("num_batches_tracked")}
    for name, tensor in tensors.items():
        if name in own:
            _check_values(name, tensor, own[name].is_floating_point(), where)
    try:
        net.load_state_dict({**kept, **{name: t.to_dense() if t.layout != torch.strided else t for name, t in tensors.items()}})
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise BadInput(f"{where} is of another architecture: {detail[:200]}") from error
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BadInput(f"{where} has NaN or Inf in {name}; use another checkpoint")


def _check_values(name: str, tensor: Tensor, floating: bool, where: str) -> None:
    if tensor.is_meta or tensor.is_floating_point() != floating:
        kind = "has no values" if tensor.is_meta else f"is {str(tensor.dtype).removeprefix('torch.')}"
        raise BadInput(
            f"{where} cannot be used: {name} {kind}; give weights in {'floating point' if floating else 'whole numbers'}"
        )


def chosen(fits: Sequence[Fit], name: str, path: Path, key: str | None) -> Fit:
    """The one part of a file that is the network. Raises BadInput if none is, or if several are and none is the usual one."""
    if key is not None:
        called = [fit for fit in fits if fit.is_called(key)]
        if not called:
            raise BadInput(f"{path} has no {name} under key {key!r}; it has one under {_parts(fits)}")
        fits = called
    elif whole := [fit for fit in fits if not fit.beside]:
        fits = whole
    else:
        more = ", ".join(fits[0].beside[:_NAMED])
        if set(fits[0].beside) == {*fits[0].unclear_normalisation}:
            raise BadInput(f"{path} has a normalisation that is not clear ({more}); give mean and std")
        what = (
            f"key={fits[0].part!r} takes {fits[0].part} alone"
            if fits[0].part
            else "take them out, or load the network they are of"
        )
        raise BadInput(f"{path} has more than a {name} ({more}); {what}")
    different = [fit for i, fit in enumerate(fits) if not any(fit.equals(other) for other in fits[:i])]
    if len(different) == 1:
        return different[0]
    usual = [fit for fit in different if fit.is_main]
    if len(usual) != 1:
        raise BadInput(
            f"{path} has several of {name}, under {_parts(different)}; choose one with key, e.g. key={different[0].part!r}"
        )
    others = [fit for fit in different if fit is not usual[0]]
    warnings.warn(
        f"{path} has other weights under {_parts(others)}; {usual[0].part or 'those without a key'} is loaded, key chooses",
        ModelWarning,
        stacklevel=5,
    )
    return usual[0]


def _parts(fits: Sequence[Fit]) -> str:
    return ", ".join(fit.part or "no key" for fit in fits)


def _forms(name: str, fields: Mapping[str, Any]) -> list[Form]:
    """The forms that a network of ours can have under these fields."""
    shortcuts: Sequence[str] = (fields["shortcut"],) if "shortcut" in fields else (SHORTCUTS[0], "projection")
    if name in INPUT_SIDE or name.startswith("vgg"):
        return [Form(_shapes(describe(name, **fields)), {k: v for k, v in fields.items() if k == "num_classes"})]
    given = {key: value for key, value in fields.items() if key == "num_classes"}
    return [Form(_shapes(describe(name, **{**fields, "shortcut": s})), {**given, "shortcut": s}) for s in shortcuts]


def _shapes(architecture: Architecture) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(architecture).state_dict().items()}


def _fits(forms: Sequence[Form], states: States) -> list[tuple[Fit, Form]]:
    """The parts of a file that have one of these forms, which need not say how many classes there are."""
    return [pair for form in forms for place, state in states.items() for pair in _fits_in(form, place, state)]


def _fits_in(form: Form, place: str, state: Mapping[str, Tensor]) -> Iterator[tuple[Fit, Form]]:
    if "num_classes" not in form.fields:
        shapes = with_classes(form.shapes, state)
        classes = next(shape[0] for shape in shapes.values() if len(shape) == 2)
        form = Form(shapes, {**form.fields, "num_classes": classes})
    for fit in find_fits(form.shapes, state, place):
        yield fit, form


def _misfit(name: str, forms: Sequence[Form], states: States) -> str:
    """How the best part of a file differs from a network: the first layers, and how many more."""
    both = (
        differences(form.shapes if "num_classes" in form.fields else with_classes(form.shapes, state), state)
        for form in forms
        for state in states.values()
    )
    fitting, lines = max(both, key=lambda found: (found[0], -len(found[1])))
    if fitting < 0:
        there = [*max(states.values(), key=len)]
        return f" than {name}: it has {', '.join(there[:_NAMED])}{' ...' if len(there) > _NAMED else ''}"
    more = f" and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    return f" than {name}: {'; '.join(lines[:_NAMED])}{more}"


def _names_of_fits(states: States) -> dict[str, Mapping[str, Any]]:
    """Our networks that a file has the weights of -> the fields that it tells."""
    return {name: form.fields for name in BUILDERS for _, form in _fits(_forms(name, {}), states)}


def _hint(name: str, states: States, fields: Mapping[str, Any]) -> str:
    """What to do about a file that does not fit: which of our networks it is, with which fields."""
    known = _names_of_fits(states)
    if name in known:  # as it is, but not with the fields that were given
        wrong = [f"{field}={value!r}" for field, value in known[name].items() if field in fields and fields[field] != value]
        return f"; it fits {name} with {', '.join(wrong)}"
    if known:
        return f"; it fits {' or '.join(known)}: load it as that"
    if any(key.endswith((".gather", ".restore")) for state in states.values() for key in state):
        return "; it is a compact network: write it with gkp.save_model, and load the folder"
    return "; load it into the network it was made for"


def _check_normalisation(path: Path, told: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Raise BadInput for a normalisation of a file that is not of images in [0, 1], or is not what the user gives."""
    if not is_normalisation(told["mean"], told["std"]):
        raise BadInput(
            f"{path} normalises by {told['mean']} and {told['std']}, not of pixels in [0, 1]; take them out of the file"
        )
    for field in ("mean", "std"):
        given = fields.get(field)
        if given is not None and not torch.equal(torch.tensor(tuple(given)), torch.tensor(told[field])):
            raise BadInput(f"{path} has a {field} of its own, {told[field]}, not {tuple(given)}; leave {field} out")
