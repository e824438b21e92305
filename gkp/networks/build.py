"""Architectures by name, and newly initialised networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.networks.classifier import Architecture, CifarResNet, Classifier, Vgg16Bn
from gkp.networks.draws import drawn_from


def _bottleneck(architecture: Architecture, blocks: Sequence[int], small_images: bool) -> Classifier:
    from gkp.networks.bottleneck import BottleneckResNet  # late: torchvision takes a second to import, and few runs need it

    return BottleneckResNet(architecture, blocks, small_images)


BUILDERS: dict[str, Callable[[Architecture], Classifier]] = {
    **{f"resnet{6 * n + 2}": lambda a, n=n: CifarResNet(a, n) for n in (3, 5, 7, 9, 18)},  # type: ignore[misc]
    "vgg16_bn": Vgg16Bn,
    "resnet101": lambda a: _bottleneck(a, (3, 4, 23, 3), small_images=True),
    "resnet50": lambda a: _bottleneck(a, (3, 4, 6, 3), small_images=False),
}
INPUT_SIDE = {"resnet101": 64, "resnet50": 224}  # pixels, where it is not 32


def build(architecture: Architecture) -> Classifier:
    """Build the network that `architecture` describes, with torch's default initialisation.

    Raises:
        BadInput: unknown architecture name.
    """
    if architecture.name not in BUILDERS:
        raise BadInput(f"unknown model {architecture.name!r}; known: {', '.join(BUILDERS)}")
    return BUILDERS[architecture.name](architecture)


def build_model(name: str, *, seed: int = 0, **fields: Any) -> Classifier:
    """Build a newly initialised network in training mode; the global generator is left as it was.

    Convolutions and the classifier get Kaiming normal weights (He et al. 2015), BatchNorm 1 and 0.

    Args:
        name: One of `BUILDERS`, e.g. "resnet20".
        seed: Of the initialisation.
        fields: Those of `Architecture`: num_classes, shortcut, mean, std.

    Raises:
        BadInput: Unknown name or field.
    """
    return initialised(describe(name, **fields), seed)


def describe(name: str, **fields: Any) -> Architecture:
    """The description of a network. Raises BadInput for an unknown field or one of the wrong type."""
    try:
        return Architecture(name, **fields)
    except TypeError as error:
        raise BadInput(f"{error} of {name}; fields are num_classes, shortcut, mean, std") from error


def initialised(architecture: Architecture, seed: int) -> Classifier:
    """Build the network that `architecture` describes with weights drawn from `seed`, see `build_model`."""
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise BadInput(f"seed is {seed!r}; give a whole number of at most 64 bits")
    with drawn_from(seed):
        net = build(architecture)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return net


def check_as_built(net: Classifier) -> None:
    """Raises BadInput unless the network has the layers that its architecture says."""
    with torch.device("meta"):
        usual = build(net.architecture)
    if repr(usual) != repr(net):
        what = f"this {type(net).__name__} has other layers than {net.architecture.name} has"
        raise BadInput(f"{what}, and new weights would be those of a {net.architecture.name}; give one as gkp builds it")


def check_built(architecture: Architecture, net: nn.Module, state: Mapping[str, Tensor], *, whole: bool) -> None:
    """Raise BadInput where a network is not what `architecture` builds any more, as which it would be loaded.

    Args:
        architecture: The description that it carries.
        net: The network.
        state: Its state dict.
        whole: Whether nothing was pruned; of a pruned network only the number of classes and its parts without weights are held
            against it.
    """
    with torch.device("meta"):
        usual = build(architecture)
    built = {name: tuple(tensor.shape) for name, tensor in usual.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if not whole:
        built = {name: shape[:1] for name, shape in built.items() if len(shape) == 2}
        found = {name: found[name][:1] for name in built if name in found}
    for name in built | found:
        if (wanted := built.get(name)) != (shape := found.get(name)):
            what = "is new" if wanted is None else "is gone" if shape is None else f"has the shape {shape}, not {wanted}"
            raise BadInput(
                f"{name} {what}, so that this is no {architecture.name} with {architecture.num_classes} classes any more; "
                "save its state_dict() instead, or build it with the num_classes that it is to have"
            )
    parts, others = _computations(usual, whole), _computations(net, whole)
    if changed := [name for name, how in parts.items() if others.get(name, None if whole else how) != how]:
        raise BadInput(
            f"{f'{changed[0]} of this {architecture.name}' if changed[0] else f'this {type(net).__name__}'} computes otherwise "
            f"than {architecture.name} does, as which it would be loaded; save its state_dict() instead"
        )


def _computations(net: nn.Module, whole: bool) -> dict[str, tuple[Any, ...]]:
    """What the network itself and its modules compute, by name; of a pruned one, only those modules that have no weights."""
    found = {}
    for name, module in net.named_modules():
        if whole or module is net or not any(True for _ in module.parameters()):
            kind = nn.BatchNorm2d if isinstance(module, nn.SyncBatchNorm) else getattr(module, "unmasked", type(module))
            how = (vars(module).get("forward", kind.forward), getattr(kind, "from_normalised", None))
            shortcut = [getattr(module, field, None) for field in ("padding", "stride")]
            settings: Any = "" if module is net else module.extra_repr().replace("inplace=True", "")
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # not the momentum: no output depends on it
                settings = (module.eps, module.affine, module.track_running_stats)
            found[name.replace("._orig_mod", "")] = (*how, *shortcut, settings)  # what is compiled stands for its wrapper
    return found
