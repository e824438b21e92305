"""Ask a network that is not ours: whether it passes, on a copy of its shapes where that works, and which images it takes.

Nothing here changes the network, its stored activations or the global generators of random numbers.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gkp.attacks.network import home, ordinary_tensors
from gkp.errors import BadInput, reason_of
from gkp.networks.build import INPUT_SIDE
from gkp.networks.classifier import Classifier, convolutions
from gkp.networks.copies import check_lazy, copy_of, shape_copy
from gkp.networks.wrappers import has_compiled, take_off_compiled, unwrapped
from gkp.pruning.arguments import checked_shape
from gkp.pruning.masks import unmasked
from gkp.pruning.outline import is_as_built, outline
from gkp.pruning.watched import FAILURES, Watched, in_mode

# Pixels a side to try on a network of unknown input; any that passes shows the same.
SIDES = (32, 64, 224, 28, 96, 128, 299, 256, 384, 16, 48, 112, 160, 192, 240, 320, 448, 512)
_CHANNELS = 8  # different numbers of image channels that are tried at most
_SEARCH = 10.0  # seconds after which no further size is tried, of one kind of copy


def network_to_prune(net: nn.Module) -> nn.Module:
    """The network inside wrappers, no part of it compiled and no layer masked.

    Raises:
        BadInput: No network, one that `gkp.compile` made, or one without weights yet.
    """
    check_lazy(net)
    if "compiled_from" in vars(net):
        raise BadInput("a compiled network has its weights compiled in; prune the network it was made from")
    if isinstance(net, torch.jit.ScriptModule):
        raise BadInput("a scripted or traced network (torch.jit) has no layers to prune; prune the network it was made from")
    if any(p.is_meta for p in net.parameters()):
        raise BadInput(f"{type(net).__name__} has weights on the meta device, without numbers; load a checkpoint first")
    net = unmasked(unwrapped(net))
    return take_off_compiled(copy_of(net)) if has_compiled(net) else net


def cheap_copy(net: nn.Module, shape: Sequence[int]) -> nn.Module:
    """A copy in eval mode without numbers in its weights, if images of this shape pass through it, or else an ordinary one.

    One of a network of ours shares its buffers, and images on the CPU pass through it once it is `stubbed`. Of any other, all
    tensors are on the meta device, whose first use takes a second.

    Raises:
        BadInput: Such images do not pass through the network at all.
    """
    if is_as_built(net):
        return outline(net)
    with contextlib.suppress(BadInput):  # a generator, say, has no copy without numbers
        found = in_mode(shape_copy(net))
        if isinstance(net, Classifier) or not problem_with(found, shape):  # ours are known to
            return found
    found = in_mode(copy_of(net))
    send(found, shape)
    return found


def problem_with(net: nn.Module, shape: Sequence[int]) -> str:
    """The reason why an image of this shape does not pass through `net`, in the mode that it is in; "" if it does."""
    try:
        send(net, shape)
    except BadInput as refused:
        return reason_of(refused.__cause__ or refused)
    return ""


def send(net: nn.Module, shape: Sequence[int], n: int = 1) -> Any:
    """What `net`, in the mode that it is in, returns for `n` grey images of this shape.

    Raises:
        BadInput: They do not pass through it.
    """
    shape = checked_shape(shape)
    who, images = type(net).__name__, f"images of shape {shape}"
    if isinstance(net, Classifier) and shape[0] != net.mean.shape[1]:  # its normalisation would broadcast them
        raise BadInput(f"{images} do not pass through {who}: it takes {net.mean.shape[1]} channels")
    try:
        with undisturbed(), torch.inference_mode(False), torch.no_grad(), _ending(net):
            return net(image_for(net, shape, n))
    except FAILURES as error:  # whatever a foreign forward says
        raise BadInput(f"{images} do not pass through {who}: {reason_of(error)}; give input_shape=(C, H, W)") from error


def image_for(net: nn.Module, shape: Sequence[int], n: int = 1) -> Tensor:
    """Grey images `(n, *shape)` of the type and on the device that `net` computes in."""
    device, dtype = home(net)
    device = net.mean.device if isinstance(net, Classifier) else device  # weights may have no numbers
    return torch.full((n, *shape), 0.5, device=device, dtype=dtype)


def find_input_shape(net: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of images that pass through `net`: those it was made for (our networks), or else the first of `SIDES`.

    Raises:
        BadInput: None does.
    """
    if isinstance(net, Classifier):
        side = INPUT_SIDE.get(net.architecture.name, 32)
        return 3, side, side
    first = [conv.in_channels for conv in convolutions(net).values()]
    channels = list(dict.fromkeys([*first[:1], 3, 1, *sorted(set(first))]))[:_CHANNELS]
    found: tuple[int, int, int] | str = ""
    for make in (shape_copy, copy_of):
        try:
            twin = in_mode(make(net))
        except BadInput:
            if make is copy_of:
                raise
            continue  # a generator, say, has no copy without numbers
        if isinstance(found := _first_that_passes(twin, channels), tuple):
            return found
    raise BadInput(
        f"no usual image size passes through {type(net).__name__} ({channels[0]}x{SIDES[0]}x{SIDES[0]}: {found}); "
        "give input_shape=(C, H, W), or take a grouped kernel method, which needs none"
    )


def _first_that_passes(twin: nn.Module, channels: Sequence[int]) -> tuple[int, int, int] | str:
    """The first usual shape of images that pass through `twin`, or why the very first do not."""
    first, end = "", time.monotonic() + _SEARCH
    for count in channels:
        for side in SIDES:
            problem = problem_with(twin, (count, side, side))
            if not problem:
                return count, side, side
            first = first or problem
            if time.monotonic() > end:
                return first if problem == first else f"{first}; nor do others that were tried in {_SEARCH:g} seconds"
    return first


def known_shape(net: nn.Module, given: Sequence[int] | None) -> tuple[int, ...] | None:
    """The shape of one image: as it is given, or as it is found for a network that is not ours; None if none is known.

    The images of our networks are known at any time. Raises BadInput for what is given and is no shape.
    """
    if given is not None:
        return checked_shape(given)
    with contextlib.suppress(BadInput):
        return None if isinstance(net, Classifier) else find_input_shape(net)
    return None


def _ending(net: nn.Module) -> AbstractContextManager[Any]:
    """Within, a pass through `net` is ended when it takes too long; ours are known to end."""
    return contextlib.nullcontext() if isinstance(net, Classifier) else Watched()


@contextmanager
def undisturbed(seed: int = 0) -> Iterator[None]:
    """Within, the global generators start from `seed`; afterwards they are where they were."""
    theirs = sys.modules.get("numpy.random")  # not loaded for this: a generator that nobody has used has no state to keep
    states = random.getstate(), theirs.get_state() if theirs else None
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(gpus)):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed cards that are not in use yet
            yield
    finally:
        random.setstate(states[0])
        if theirs:
            theirs.set_state(states[1])


@contextmanager
def settled() -> Iterator[None]:
    """Within, tensors hold numbers and learn, whatever context the caller is in, and nothing is cast."""
    with ExitStack() as stack:
        stack.enter_context(ordinary_tensors())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
