"""Is the compact network the same function as its masked twin? Asked on random images, layer by layer where it is not.

Both are copied, put into float64, where rounding hides nothing, and given a little noise on every weight, so that a scale of
zero hides nothing either. A network that does not compute in float64 is asked in its own type. ResNet-56: 250 ms.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gkp.attacks.network import home
from gkp.networks.classifier import Classifier
from gkp.pruning.masks import unmasked
from gkp.pruning.plan import Plan
from gkp.pruning.probe import copy_of, reason_of, undisturbed
from gkp.pruning.twin import PrunedModel

TIME_LIMIT = 60.0  # seconds that the search for layers that cannot go exactly may take
_NOISE = 0.1  # of a parameter's root mean square
# How far apart logits may be, as a fraction of the largest: rounding in this type, with room
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}


def difference(pruned: PrunedModel, shape: Sequence[int] | None) -> str:
    """The reason why the compact network of `pruned` is another function than the masked twin; "" if it is the same.

    Args:
        pruned: The masked twin; it is not changed, nor are the global generators.
        shape: (C, H, W) of the images; None to compare the pruned layers one by one, each on images of its own.
    """
    problem, foreign = "", not isinstance(pruned.net, Classifier)
    for dtype in dict.fromkeys((torch.float64, home(pruned)[1])):
        with undisturbed(), torch.inference_mode(False), torch.no_grad():
            twin = copy_of(pruned).eval().to(dtype)
            _shake(twin)
            twin.apply_masks()  # type: ignore[operator]  # for hooks, which read weights outside of a forward pass
            try:
                small = twin.compact().eval()  # type: ignore[operator]
            except Exception as error:  # whatever cutting says of a foreign layer
                return f"cannot be made small: {reason_of(error)}"
            ordinary = [unmasked(twin.net)] if foreign else []  # type: ignore[arg-type]  # ours ask no layer for its type
            forms = [(twin, small, *ordinary)] if shape is not None else _layers(twin, small, pruned.plan)
            for one, *others in forms:
                batch = (2, *(shape or (_inputs(one), 33, 33)))
                images = torch.rand(batch, dtype=dtype, device=home(pruned)[0])
                expected, problem = _outputs(one, images)
                if problem:
                    break
                for other in others:  # each is asked once, as often as the twin: a network may count
                    if reason := _apart(expected, *_outputs(other, images), tolerance=_TOLERANCE.get(dtype, 1e-4)):
                        return reason
            else:
                return _in_training(twin, small, images) if shape is not None and foreign and pruned._cuts else ""
    return f"cannot be asked: {problem}"


def _in_training(twin: nn.Module, small: nn.Module, images: Tensor) -> str:
    """The reason why the two are not the same in training mode, where they may have other heads, or an empty string."""
    expected, problem = _outputs(twin.train(), images)
    if problem:  # it may want labels
        return ""
    reason = _apart(expected, *_outputs(small.train(), images), tolerance=1e-3)
    if "differ" in reason:  # in what is drawn at random?
        again = _outputs(twin, images, seed=1)[0]
        reason = reason if all(map(torch.equal, expected, again)) else ""
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


def _outputs(net: nn.Module, images: Tensor, seed: int = 0) -> tuple[list[Tensor], str]:
    """All tensors that the network returns, and the reason if it returns none."""
    try:
        with undisturbed(seed):  # noise that a network draws is the same in both forms
            found = _tensors(net(images.clone()))
    except Exception as error:  # whatever a foreign forward says
        return [], reason_of(error)
    return found, "" if found else "it returns no tensors"


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        value = vars(value)
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for one in values for tensor in _tensors(one)]


def _apart(expected: list[Tensor], found: list[Tensor], problem: str, *, tolerance: float) -> str:
    """The reason why these outputs are not the same, or an empty string."""
    if problem:
        return f"the compact network fails: {problem}"
    if [t.shape for t in expected] != [t.shape for t in found]:
        return "the compact network returns other shapes"
    for one, other in zip(expected, found, strict=True):
        both = one.isfinite() & other.isfinite()
        if not torch.equal(one.isfinite(), other.isfinite()):
            return "the compact network gives NaN or Inf elsewhere"
        apart = (one - other)[both].abs().double()
        if len(apart) and float(apart.max()) > tolerance * float(one[both].abs().max().double()):
            share = float(apart.max()) / float(one[both].abs().max().double() + 1e-300)
            return f"masked and compact differ by {share:.1g} of the largest output"
    return ""


@torch.no_grad()
def _shake(net: nn.Module) -> None:
    for parameter in net.parameters():
        if parameter.is_floating_point() and parameter.numel():
            size = parameter.double().square().mean().sqrt().item()
            noise = torch.randn(parameter.shape, dtype=torch.float32).to(parameter)
            parameter.add_(noise, alpha=_NOISE * (size or 1.0))


def _layers(twin: nn.Module, small: nn.Module, plan: Plan) -> list[tuple[nn.Module, ...]]:
    return [(twin.net.get_submodule(name), small.get_submodule(name)) for name in plan]  # type: ignore[union-attr]


def _inputs(layer: nn.Module) -> int:
    """The number of channels that a pruned layer reads, whatever form it has."""
    first = next(module for module in layer.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels
