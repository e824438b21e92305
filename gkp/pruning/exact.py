"""Is the compact network the same function as its masked twin? Asked on random images, layer by layer where it is not.

Both are copied, put into float64, where rounding hides nothing, and given a little noise on every weight, so that a scale of
zero hides nothing either. A network that does not compute in float64 is asked in its own type. ResNet-56: 250 ms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from gkp.attacks.network import home
from gkp.errors import reason_of
from gkp.networks.classifier import Classifier
from gkp.networks.copies import copy_of
from gkp.pruning.masks import MaskedLayer, unmasked
from gkp.pruning.plan import Plan
from gkp.pruning.probe import undisturbed
from gkp.pruning.twin import PrunedModel
from gkp.pruning.watched import FAILURES, Turn, Watched, in_mode, turns

TIME_LIMIT = 60.0  # seconds that the search for layers that cannot go exactly may take
_VALUES = 1000  # of the output of a layer
_FLOOR = 1e-6  # below it a layer's output is rounding
_NOISE = 0.1  # of a parameter's root mean square
# How far apart logits may be, as a fraction of the largest: rounding in this type, with room
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}


def difference(pruned: PrunedModel, shape: Sequence[int] | None) -> str:
    """The reason why the compact network of `pruned` is another function than the masked twin; "" if it is the same.

    Compared are what both return, and what each layer returns that is as wide in both: an output such as the largest class
    would hide much. A network that reads numbers of its tensors is asked again with each turned (`gkp.pruning.watched`).

    Args:
        pruned: The masked twin; it is not changed, nor are the global generators.
        shape: (C, H, W) of the images; None to compare the pruned layers one by one, each on images of its own.
    """
    problem, foreign = "", not isinstance(pruned.net, Classifier)
    device, own = home(pruned)
    for dtype in (torch.float64, own):
        for n in (2, 1) if foreign else (2,):  # some take one image at a time
            with undisturbed(), torch.inference_mode(False), torch.no_grad():
                twin = in_mode(copy_of(pruned))
                twin = twin.to(dtype) if dtype != own else twin  # which may have parts of another type
                _shake(twin)
                twin.apply_masks()  # type: ignore[operator]  # for hooks, which read weights outside of a forward pass
                try:
                    small = in_mode(twin.compact())  # type: ignore[operator]
                except Exception as error:  # whatever cutting says of a foreign layer
                    return f"cannot be made small: {reason_of(error)}"
                ordinary = [unmasked(twin.net)] if foreign else []  # type: ignore[arg-type]  # ours ask no layer for its type
                before = _places(twin, *ordinary)
                forms = [(twin, small, *ordinary)] if shape is not None else _layers(twin, small, pruned.plan)
                for one, *others in forms:
                    images = torch.rand((n, *(shape or (_inputs(one), 33, 33))), dtype=dtype, device=device)
                    pruned_layers = list(pruned.plan) if foreign and shape is not None else None
                    problem, reason = _compared(one, others, images, pruned_layers)
                    if reason:
                        return reason
                    if written := [name for name, place in _places(twin, *ordinary).items() if place != before[name]]:
                        return f"its forward pass writes into {written[0]}, which a mask would not see"
                    if problem:
                        break
                else:
                    return _in_training(twin, small, images) if shape is not None and foreign and pruned._cuts else ""
    return f"cannot be asked: {problem}"


def _compared(one: nn.Module, others: Sequence[nn.Module], images: Tensor, pruned: list[str] | None) -> tuple[str, str]:
    """Why `one` cannot be asked, and why another form is not the same; empty strings if it can and all are.

    pruned: The names of the pruned layers, to compare layers too, and the ways that other images may take; None for neither.
    """
    types = {images.dtype, *(p.dtype for p in one.parameters() if p.is_floating_point())}
    tolerance, exact = max(_TOLERANCE.get(dtype, 1e-4) for dtype in types), images.dtype == torch.float64
    within = pruned is not None
    layers = [*(pruned or ()), *(_leaves(one) if within and exact else ())]
    expected = _asked(one, images, layers=layers, watched=within)
    if expected.problem:
        return expected.problem, ""
    ways: Iterator[Turn | None] = iter((None, *turns(expected.read)))
    for turn in ways:
        if turn is not None:
            expected = _asked(one, images, layers=layers, turn=turn)
        for other in others if not expected.problem else ():  # asked as often as the twin: a network may count
            found = _asked(other, images, layers=layers, turn=turn, watched=within)
            if reason := _apart(expected, found, tolerance=tolerance) or _held_elsewhere(expected, found, pruned or ()):
                return "", reason
    return "", ""


def _in_training(twin: nn.Module, small: nn.Module, images: Tensor) -> str:
    """The reason why the two are not the same in training mode, where they may have other heads, or an empty string."""
    expected = _asked(in_mode(twin, training=True), images)
    if expected.problem:  # it may want labels
        return ""
    reason = _apart(expected, _asked(in_mode(small, training=True), images), tolerance=1e-3)
    if "differ" in reason:  # in what is drawn at random?
        again = _asked(twin, images, seed=1).outputs
        reason = reason if all(map(torch.equal, expected.outputs, again)) else ""
    return f"in training, {reason}" if reason else ""


def sound_layers(
    names: Iterable[str],
    trial: Callable[[Sequence[str]], PrunedModel],
    shape: Sequence[int] | None,
    *,
    seconds: float = TIME_LIMIT,
) -> tuple[list[str], dict[str, str]]:
    """The layers that can be pruned together and stay one function, masked and compact; and the others with the reason.

    They are tried all at once, then by halves, always with those found sound before.

    Args:
        names: The layers, in the order of the network.
        trial: From names to the twin in which these layers are pruned.
        shape: As in `difference`.
        seconds: When they are over, what has not been tried yet is left out.
    """
    end = time.monotonic() + seconds
    sound: list[str] = []
    faulty: dict[str, str] = {}
    waiting = [list(names)]
    while waiting:
        some = waiting.pop()
        if time.monotonic() > end:
            late = f"was not checked within the time limit of {seconds:g} seconds; give more with time_limit="
            faulty.update(dict.fromkeys(some, late))
            continue
        try:
            reason = difference(trial([*sound, *some]), shape)
        except Exception as error:  # whatever pruning says of a foreign layer
            reason = reason_of(error)
        if not reason:
            sound += some
        elif len(some) == 1:
            faulty[some[0]] = f"is not pruned exactly: {reason}"
        else:
            half = len(some) // 2
            waiting += [some[half:], some[:half]]
    return sound, faulty


@dataclass
class _Answer:
    """The answer of a network to images: its outputs, those of its layers, the numbers it read, or why there is no answer."""

    outputs: list[Tensor] = field(default_factory=list)
    layers: dict[str, list[Tensor]] = field(default_factory=dict)
    read: list[bool | int | float] = field(default_factory=list)
    problem: str = ""


def _asked(
    net: nn.Module,
    images: Tensor,
    *,
    seed: int = 0,
    layers: Iterable[str] = (),
    turn: Turn | None = None,
    watched: bool = True,
) -> _Answer:
    """All tensors that the network and these layers of it return."""
    answer, watching = _Answer(), Watched(turn)
    answer.read = watching.read
    inside = dict(getattr(net, "net", net).named_modules()) if isinstance(net, PrunedModel) else dict(net.named_modules())

    def listen(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: answer.layers.setdefault(name, []).extend(map(_some_values, _tensors(output)))

    hooks = [inside[name].register_forward_hook(listen(name)) for name in dict.fromkeys(layers) if name in inside]
    try:
        with undisturbed(seed), watching if watched else contextlib.nullcontext():  # what is drawn is the same in both forms
            answer.outputs = _tensors(net(images.clone()))
    except FAILURES as error:  # whatever a foreign forward says
        answer.problem = reason_of(error)
    finally:
        for hook in hooks:
            hook.remove()
    if not (answer.outputs or answer.problem):
        answer.problem = "it returns no tensors"
    return answer


def _leaves(twin: nn.Module) -> list[str]:
    """Names of the layers whose outputs can be listened to."""
    named = (twin.net if isinstance(twin, PrunedModel) else twin).named_modules()
    return [name for name, module in named if name and not any(module.children()) and not isinstance(module, ScriptModule)]


def _some_values(output: Tensor) -> Tensor:
    """About a thousand values, evenly spaced, of what a layer returns; their number tells how wide it is."""
    values = output.detach().flatten()
    some = values[:: len(values) // _VALUES + 1].clone()
    some._gkp_shape = output.shape  # type: ignore[attr-defined]
    return some


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        value = vars(value)
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for one in values for tensor in _tensors(one)]


def _apart(expected: _Answer, found: _Answer, *, tolerance: float) -> str:
    """The reason why these answers are not the same, or an empty string."""
    if found.problem:
        return f"the compact network fails: {found.problem}"
    if [t.shape for t in expected.outputs] != [t.shape for t in found.outputs]:
        return "the compact network returns other shapes"
    for one, other in zip(expected.outputs, found.outputs, strict=True):
        if not torch.equal(one.isfinite(), other.isfinite()):
            return "the compact network gives NaN or Inf elsewhere"
        if (share := _share(one, other)) > tolerance:
            return f"masked and compact differ by {share:.1g} of the largest output"
    for name, outputs in expected.layers.items():
        if len(outputs) != len(others := found.layers.get(name, ())):
            continue  # it is called less often where a part of a block is gone, and calls cannot be paired
        for one, other in zip(outputs, others, strict=True):
            if one._gkp_shape == other._gkp_shape and (share := _share(one, other, _FLOOR)) > tolerance:  # type: ignore[attr-defined]
                return f"masked and compact differ in {name} by {share:.1g} of its largest output"
    return ""


def _held_elsewhere(expected: _Answer, found: _Answer, pruned: Iterable[str]) -> str:
    """The reason why a pruned layer was not exchanged everywhere, or an empty string."""
    calls = ((name, *(len(answer.layers.get(name, ())) for answer in (expected, found))) for name in pruned)
    lost = next((name for name, before, now in calls if before != now), None)
    return "" if lost is None else f"the network holds {lost} in an object of its own, where it cannot be exchanged"


def _share(one: Tensor, other: Tensor, floor: float = 1e-300) -> float:
    """How far apart finite values are, as a fraction of the largest, or of `floor`."""
    both = one.isfinite() & other.isfinite()
    one, other = (t[both].to(torch.complex128 if t.is_complex() else torch.float64) for t in (one, other))
    return float((one - other).abs().max() / one.abs().max().clamp(min=floor)) if len(one) else 0.0


@torch.no_grad()
def _shake(net: nn.Module) -> None:
    for parameter in net.parameters():
        if parameter.is_floating_point() and parameter.numel():
            size = parameter.double().square().mean().sqrt().item()
            noise = torch.randn(parameter.shape, dtype=torch.float32).to(parameter)
            parameter.add_(noise, alpha=_NOISE * (size or 1.0))


def _places(twin: nn.Module, *ordinary: nn.Module) -> dict[str, tuple[int, int]]:
    """Where the parameters of pruned layers are in the unmasked network, and how often they were written to."""
    masked = [name for name, module in twin.net.named_modules() if isinstance(module, MaskedLayer)]  # type: ignore[union-attr]
    found = [
        (f"{name}.{own}", p) for net in ordinary for name in masked for own, p in net.get_submodule(name).named_parameters()
    ]
    return {name: (parameter.data_ptr(), parameter._version) for name, parameter in found}


def _layers(twin: nn.Module, small: nn.Module, plan: Plan) -> list[tuple[nn.Module, ...]]:
    return [(twin.net.get_submodule(name), small.get_submodule(name)) for name in plan]  # type: ignore[union-attr]


def _inputs(layer: nn.Module) -> int:
    """The number of channels that a pruned layer reads, whatever form it has."""
    first = next(module for module in layer.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels
