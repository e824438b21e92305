"""Saved networks and public weights.

A saved network is a folder of two files. `model.safetensors` holds the tensors; `model.json` the architecture, the form (dense,
masked, compact), the plan, the versions, and the sha256 of the tensors and of itself, so that a truncated or edited folder is
refused. Nothing is pickled. Public checkpoints are pinned by the sha256 of their tensors, whatever file format they come in.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.files import file_sha256, json_sha256, locate, problem_with, read_tensors, replace_files, user_path
from gkp.networks.build import BUILDERS, build, build_model, check_built
from gkp.networks.classifier import Architecture, Classifier
from gkp.networks.public import PUBLIC, public_file
from gkp.networks.weights import default_normalisation, fill, names_of_fits, read_into, read_network
from gkp.networks.wrappers import unwrapped
from gkp.pruning.plan import Plan, check_saved, plan_of
from gkp.pruning.twin import PrunedModel
from gkp.pruning.watched import in_mode

FORMAT = 1


def load_model(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    into: nn.Module | None = None,
    seed: int = 0,
    key: str | None = None,
    **fields: Any,
) -> nn.Module:
    """Load a network, in eval mode; it takes [0, 1] images `(N, C, H, W)`, normalises inside and returns logits.

        load_model("resnet56", weights="mine.pth", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    A file of weights may be by torch.save or safetensors, whatever its name ends in, with the state dict inside other entries
    ("state_dict", "model", ...) and behind prefixes ("module.", "backbone.", ...); nothing in it is ever run. The number of
    classes is that of the file. So is the normalisation, if it is there (mean and std of three channels); if it is not, it is
    what `mean` and `std` say, by default the paper's for CIFAR-10 (ImageNet's for resnet50 and resnet101). Shortcuts without
    parameters leave no trace in a file: they are what `shortcut` says, by default "append", the paper's, and "centre" for the
    names of layers that akamaster's code has. A public checkpoint is recognised, and gets what belongs to it.

    Args:
        source: An architecture (`gkp.networks.build.BUILDERS`, e.g. "resnet20"), or a folder that `save_model` wrote. With
            `into`, also a file of weights.
        weights: For an architecture: a file of weights, "akamaster" (ResNet-20/32/44/56/110 by Yerlan Idelbayev),
            "srgkp-official" (ResNet-20 of the paper's authors), "torchvision" (ResNet-50 on ImageNet), "gkp" (trained here, in
            data/checkpoints), a saved folder, or None for new weights.
        into: For a network that is not one of ours: a dense instance of it, to be filled.
        seed: Of new weights.
        key: The part of the file to take, where it has several that fit: an entry such as "ema", or a prefix such as "teacher".
        fields: For new weights and files of weights: num_classes, shortcut, mean, std, as in
            `gkp.networks.classifier.Architecture`.

    Raises:
        BadInput: Unknown name; a file that is missing, truncated, damaged, tampered with, not a state dict, or of another
            architecture, with the layers that differ and the name that fits.
    """
    _check_types(source, weights, into, key, fields)
    if str(source) in BUILDERS:
        if into is not None:
            raise BadInput(f"gkp builds {source} itself, so into= would not be filled; leave it out")
        if weights is None and key is not None:
            raise BadInput(f"key {key!r} is of a file of weights; give weights=FILE, or leave it out")
        if weights is None:
            return build_model(str(source), seed=seed, **fields).eval()
        return in_mode(_load_weights(str(source), weights, key, fields))
    path = user_path(source)
    is_folder = os.path.isdir(path)
    if (weights is not None or fields or (is_folder and key is not None)) and os.path.exists(path):
        given = ", ".join([*fields, *(["weights"] if weights is not None else []), *(["key"] if key is not None else [])])
        raise BadInput(f"{given} cannot be given with {path}; leave out, or give an architecture: {', '.join(BUILDERS)}")
    if is_folder:
        return in_mode(_load_folder(path, into))
    if not os.path.isfile(path):
        raise BadInput(f"unknown model {str(source)!r}: neither a saved folder nor one of {', '.join(BUILDERS)}")
    if into is None:
        known = names_of_fits(path)
        name = known.partition(" or ")[0] or "NAME"
        mend = f"load it as load_model({name!r}, weights={str(source)!r}), or --model {name} --weights {source}"
        raise BadInput(f"{path} is a file of weights{f' of {known}' if known else ''}; {mend}")
    net = unwrapped(into)
    fill(net, read_into(net, path, key), str(path))
    return in_mode(net)


def _check_types(source: object, weights: object, into: object, key: object, fields: Mapping[str, Any]) -> None:
    if not isinstance(source, str | os.PathLike):
        mend = "to fill a network of your own, load_model(folder, into=net)"
        raise BadInput(f"load_model takes the name of an architecture or a folder, not a {type(source).__name__}; {mend}")
    if into is not None and not isinstance(into, nn.Module):
        raise BadInput(f"into is a {type(into).__name__}; give an instance of the dense network, such as into=make_net()")
    if weights is not None and not isinstance(weights, str | os.PathLike):
        raise BadInput(f"weights is a {type(weights).__name__}; give a name, a file or a folder")
    if key is not None and not isinstance(key, str):
        raise BadInput(f"key is {key!r}; give the name of an entry, such as 'ema', or of a prefix")
    for field in ("mean", "std"):
        value = fields.get(field, (0.5,) * 3)
        if not isinstance(value, list | tuple) or not all(isinstance(number, int | float) for number in value):
            raise BadInput(f"{field} is {value!r}; give one number for each of 3 channels, e.g. {field}=(0.5, 0.5, 0.5)")


def _load_weights(name: str, weights: str | os.PathLike[str], key: str | None, fields: Mapping[str, Any]) -> nn.Module:
    """One of our networks, with weights by name, from a saved folder or from a file."""
    path = user_path(weights)
    if path.name == "model.safetensors" and os.path.isfile(path.with_name("model.json")):
        path = path.parent  # what a saved folder says about them is needed too
    folder = path if os.path.isfile(path / "model.json") else None
    if weights == "gkp" and (found := locate(f"checkpoints/{name}-gkp/model.json")):
        folder = found.parent
    if ((name, str(weights)) in PUBLIC or folder) and (fields or key):
        given = ", ".join([*fields, *(["key"] if key else [])])
        raise BadInput(f"{name} with weights {weights} has its {given} already; leave them out")
    if (name, str(weights)) in PUBLIC:
        return _load_public(name, str(weights))
    if folder is not None:
        return _load_folder(folder, None, expected=name)
    if not os.path.lexists(path):
        ours = ["gkp"] if locate(f"checkpoints/{name}-gkp/model.json") else []
        known = ", ".join([*(w for n, w in PUBLIC if n == name), *ours]) or "none"
        mend = "download it first" if "://" in str(weights) else "there is no such file either"
        raise BadInput(f"no weights {str(weights)!r} for {name}; known: {known}, a file of weights, or a saved folder; {mend}")
    tensors, told = read_network(name, path, key, fields)
    defaults = _published_fields(name, path, tensors, told) or default_normalisation(name)
    net = build_model(name, **{**told, **defaults, **{k: v for k, v in told.items() if k in ("mean", "std")}, **fields})
    fill(net, tensors, f"{path} for {name}")
    return net


def save_model(net: nn.Module, folder: str | Path) -> Path:
    """Write a network (dense, masked twin or compact) as `model.safetensors` and `model.json`.

    Both are written beside and then renamed, so an interrupted save leaves the old network or none.

    Args:
        net: The network; of a wrapped one (compiled, DataParallel, averaged), that which is inside.
        folder: Where to; it is made if there is none.

    Returns:
        The folder, for `load_model`.

    Raises:
        BadInput: The folder cannot be written, or the network is none that could be loaded from it.
    """
    from safetensors.torch import save

    folder, net = Path(folder), unwrapped(net)
    dense = unwrapped(net.net) if isinstance(net, PrunedModel) else net
    if isinstance(net, PrunedModel):
        net.apply_masks()
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in dense.state_dict().items()}  # of compiled parts
    check_saved(net, dense)
    architecture = getattr(dense, "architecture", None)
    if isinstance(architecture, Architecture):
        check_built(architecture, dense, state, whole=_form(net) == "dense")
    if odd := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise BadInput(f"{odd[0]} is no tensor but extra state, and a saved network holds tensors only; keep it elsewhere")
    data = save(_apart(state))
    header = {
        "format": FORMAT,
        "architecture": architecture.to_json() if isinstance(architecture, Architecture) else {"name": _class_name(dense)},
        "form": _form(net),
        "plan": plan_of(net).to_json(),
        "input_shape": plan_of(net).input_shape,
        "parameters": sum(t.numel() for t in dense.parameters()),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "torchvision": version("torchvision")},
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    header["header_sha256"] = json_sha256(header)
    return replace_files(folder, {"model.safetensors": data, "model.json": json.dumps(header, indent=1)}, "the network")


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, those that share memory as copies: tied weights are stored under each of their names."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    places = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    shared = {name for name, tensor in tensors.items() if places[tensor.untyped_storage().data_ptr()] > 1}
    return {name: tensor.clone() if name in shared else tensor for name, tensor in tensors.items()}


def _load_public(name: str, weights: str) -> Classifier:
    public = PUBLIC[name, weights]
    net = build_model(name, **public.fields)
    path = public_file(name, weights)
    fields = {"shortcut": "append", "num_classes": net.num_classes}
    fill(net, read_network(name, path, None, fields)[0], f"{path} for {name}")
    if public.tensors and tensors_sha256(net) != public.tensors:
        raise BadInput(f"{path} does not hold the {weights} {name} that was published; delete it and fetch it again")
    return net


def _published_fields(name: str, path: Path, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the public checkpoint that these tensors are; none if they are not one."""
    for public in (public for (n, _), public in PUBLIC.items() if n == name and public.tensors):
        net = build_model(name, **public.fields)
        if told["num_classes"] == net.num_classes and told["shortcut"] != "projection":
            fill(net, tensors, f"{path} for {name}")
            if tensors_sha256(net) == public.tensors:
                return public.fields
    return {}


def _load_folder(folder: Path, into: nn.Module | None, expected: str | None = None) -> nn.Module:
    header = _read_header(folder)
    tensor_file = folder / "model.safetensors"
    try:
        intact = file_sha256(tensor_file) == header["sha256"]
    except OSError as error:
        raise BadInput(f"{tensor_file} cannot be read ({error.strerror}); save the model again") from error
    if not intact and (problem := problem_with(tensor_file)):
        raise BadInput(f"{tensor_file} {problem}")
    if not intact:
        raise BadInput(
            f"{tensor_file} is truncated or tampered with: its sha256 is not the one in model.json; save the model again"
        )
    name = header["architecture"]["name"]
    if expected is not None and name != expected:
        raise BadInput(f"{folder} holds a {name}, not a {expected}; load it as that, or give other weights")
    if name in BUILDERS and into is not None:
        raise BadInput(f"{folder} holds a {name}, which gkp builds itself, so into= would not be filled; leave it out")
    if name in BUILDERS:
        net: nn.Module = build(Architecture.from_json(header["architecture"]))
    elif into is not None:
        net = unwrapped(into)
    else:
        raise BadInput(f"{folder} holds a {name}, which gkp cannot build; pass a dense instance: load_model(folder, into=net)")
    plan = Plan.from_json(header["plan"], header.get("input_shape"))
    if header["form"] == "compact":
        net = plan.compact(net)
    elif header["form"] == "masked":
        net = PrunedModel(net, plan)
    fill(net.net if isinstance(net, PrunedModel) else net, read_tensors(tensor_file)[0], str(folder))
    return net


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    try:
        header = json.loads(path.read_text())
        sound = header.pop("header_sha256") == json_sha256(header) and header["format"] == FORMAT
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if os.path.exists(path) and (problem := problem_with(path, text=True)):
            raise BadInput(f"{path} {problem}") from error
        raise BadInput(
            f"{path} is missing, truncated or not a saved model ({type(error).__name__}); save the model again"
        ) from error
    if not sound:
        raise BadInput(f"{path} was tampered with, or written by another format than {FORMAT}; save the model again")
    return header


def tensors_sha256(net: nn.Module) -> str:
    """The sha256 (hex) of the parameters and floating-point buffers of `net`, names and shapes included."""
    digest = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _form(net: nn.Module) -> str:
    if isinstance(net, PrunedModel):
        return "masked"
    return "compact" if plan_of(net) else "dense"


def _class_name(net: nn.Module) -> str:
    return f"{type(net).__module__}.{type(net).__qualname__}"
