"""Saved networks and public weights.

A saved network is a folder of two files. `model.safetensors` holds the tensors; `model.json` the architecture, the form (dense,
masked, compact), the plan, the versions, and the sha256 of the tensors and of itself, so that a truncated or edited folder is
refused. Nothing is pickled. Public checkpoints are pinned by the sha256 of their tensors, whatever file format they come in.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.files import fetch, file_sha256, json_sha256, locate, not_found, read_tensors, replace_files
from gkp.networks.build import BUILDERS, build, build_model
from gkp.networks.classifier import IMAGENET_MEAN, IMAGENET_STD, Architecture, Classifier
from gkp.networks.wrappers import unwrapped
from gkp.pruning.plan import Plan, plan_of
from gkp.pruning.twin import PrunedModel

FORMAT = 1
AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/d5489e8/pretrained_models/"
SRGKP = (  # theirs -> ours, in the names of layers
    ("conv_1_3x3.", "conv1."),
    ("bn_1.", "bn1."),
    ("stage_", "layer"),
    (".conv_a.", ".conv1."),
    (".conv_b.", ".conv2."),
    (".bn_a.", ".bn1."),
    (".bn_b.", ".bn2."),
    ("classifier.", "fc."),
)


@dataclass(frozen=True)
class Public:
    """A public checkpoint.

    Args:
        stem: File name without suffix.
        fields: Those of its `Architecture`.
        rename: From the names of its tensors to ours.
        url: Of the original file; "" where it cannot be downloaded.
        prefix: First digits of that file's sha256, as its name carries them.
        tensors: sha256 of the tensors under our names; "" where it has not been measured.
    """

    stem: str
    fields: Mapping[str, Any]
    rename: Callable[[str], str]
    url: str = ""
    prefix: str = ""
    tensors: str = ""


def _from_akamaster(key: str) -> str:
    return key.removeprefix("module.").replace("linear.", "fc.")


def _from_srgkp(key: str) -> str:
    for theirs, ours in SRGKP:
        key = key.replace(theirs, ours)
    return key


def _akamaster(stem: str, tensors: str = "") -> Public:
    fields = {"shortcut": "centre", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return Public(stem, fields, _from_akamaster, f"{AKAMASTER}{stem}.th", stem.rpartition("-")[2], tensors)


PUBLIC: dict[tuple[str, str], Public] = {
    ("resnet20", "akamaster"): _akamaster(
        "resnet20-12fca82f", "123cee39150c45906490642e6b9c1674e7291ac8b782d18c67ccfc1ad95b3215"
    ),
    ("resnet32", "akamaster"): _akamaster(
        "resnet32-d509ac18", "e87d715256fc6f066447aed2a12fdf9782c48a516125f4e289c81e6179bff6c0"
    ),
    ("resnet44", "akamaster"): _akamaster("resnet44-014dd654"),
    ("resnet56", "akamaster"): _akamaster(
        "resnet56-4bfd9763", "373d0c2ca3de5627f2f438b56a504d14065bce47d603a129ee950496e6ab03ec"
    ),
    ("resnet110", "akamaster"): _akamaster("resnet110-1d1ed7c2"),
    ("resnet20", "srgkp-official"): Public(
        "srgkp_official_resnet20",
        {},
        _from_srgkp,
        tensors="37a1fa0621e8cc7828652238cd101c3e35a4f49935436fed6b3dcb4a25503996",
    ),
}


def load_model(
    source: str | Path, *, weights: str | Path | None = None, into: nn.Module | None = None, seed: int = 0, **fields: Any
) -> nn.Module:
    """Load a network, in eval mode; it takes [0, 1] images `(N, C, H, W)` and returns logits.

    Args:
        source: An architecture (`gkp.networks.build.BUILDERS`, e.g. "resnet20"), or a folder that `save_model` wrote.
        weights: For an architecture: "akamaster" (ResNet-20/32/44/56/110 by Yerlan Idelbayev), "srgkp-official" (ResNet-20 of
            the paper's authors), "gkp" (trained here, in data/checkpoints), a saved folder, or None for new weights.
        into: For a saved network that is not one of ours: a dense instance of it, to be filled.
        seed: Of new weights.
        fields: For new weights: num_classes, shortcut, mean, std, as in `gkp.networks.classifier.Architecture`.

    Raises:
        BadInput: Unknown name; a file that is missing, truncated, tampered with, or of another architecture.
    """
    if weights is not None and str(source) in BUILDERS:
        if (str(source), str(weights)) in PUBLIC:
            if fields:
                raise BadInput(f"{source} with weights {weights} has its {', '.join(fields)} already; leave them out")
            return _load_public(str(source), str(weights)).eval()
        if weights == "gkp" and (found := locate(f"checkpoints/{source}-gkp/model.json")):
            return _load_folder(found.parent, into, expected=str(source)).eval()
        if (Path(weights) / "model.json").is_file():
            return _load_folder(Path(weights), into, expected=str(source)).eval()
        known = [w for name, w in PUBLIC if name == source]
        raise BadInput(f"no weights {str(weights)!r} for {source}; known: {', '.join(known) or 'none'}, or a saved folder")
    if weights is None and str(source) in BUILDERS:
        return build_model(str(source), seed=seed, **fields).eval()
    if Path(source).is_dir():
        return _load_folder(Path(source), into).eval()
    raise BadInput(f"unknown model {str(source)!r}: neither a saved folder nor one of {', '.join(BUILDERS)}")


def save_model(net: nn.Module, folder: str | Path) -> Path:
    """Write a network (dense, masked twin or compact) as `model.safetensors` and `model.json`.

    Both are written beside and then renamed, so an interrupted save leaves the old network or none.

    Args:
        net: The network; of a wrapped one (compiled, DataParallel, averaged), that which is inside.
        folder: Where to; it is made if there is none.

    Returns:
        The folder, for `load_model`.

    Raises:
        BadInput: The folder cannot be written.
    """
    from safetensors.torch import save

    folder, net = Path(folder), unwrapped(net)
    dense = net.net if isinstance(net, PrunedModel) else net
    if isinstance(net, PrunedModel):
        net.apply_masks()
    data = save(_apart(dense.state_dict()))
    architecture = getattr(dense, "architecture", None)
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
    path = _public_file(name, weights, public)
    tensors = {public.rename(key): tensor for key, tensor in _read_tensors(path).items()}
    for key, tensor in net.state_dict().items():  # upstream does not have our normalisation and BatchNorm's counters
        if key in ("mean", "std") or key.endswith("num_batches_tracked"):
            tensors.setdefault(key, tensor)
    _fill(net, tensors, f"{path} for {name}")
    if public.tensors and tensors_sha256(net) != public.tensors:
        raise BadInput(f"{path} does not hold the {weights} {name} that was published; delete it and fetch it again")
    return net


def _public_file(name: str, weights: str, public: Public) -> Path:
    relative = f"checkpoints/{public.stem}.safetensors"
    what = f"the {weights} weights of {name}"
    if path := locate(relative):
        return path
    if public.url:
        return fetch(f"checkpoints/{public.stem}.th", url=public.url, sha256=public.prefix, what=what)
    source = "https://github.com/henryzhongsc/adv_robust_gkp (a pickled module without a licence, so not redistributed here)"
    raise BadInput(not_found(what, relative, source, command="export GKP_DATA=the folder that holds it, as safetensors"))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)[0]
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content.get("state_dict", content)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{path} is truncated or no checkpoint ({first_line}); delete it and fetch it again") from error


def _load_folder(folder: Path, into: nn.Module | None, expected: str | None = None) -> nn.Module:
    header = _read_header(folder)
    tensor_file = folder / "model.safetensors"
    try:
        intact = file_sha256(tensor_file) == header["sha256"]
    except OSError as error:
        raise BadInput(f"{tensor_file} cannot be read ({error.strerror}); save the model again") from error
    if not intact:
        raise BadInput(
            f"{tensor_file} is truncated or tampered with: its sha256 is not the one in model.json; save the model again"
        )
    name = header["architecture"]["name"]
    if expected is not None and name != expected:
        raise BadInput(f"{folder} holds a {name}, not a {expected}; load it as that, or give other weights")
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
    _fill(net.net if isinstance(net, PrunedModel) else net, read_tensors(tensor_file)[0], str(folder))
    return net


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    try:
        header = json.loads(path.read_text())
        sound = header.pop("header_sha256") == json_sha256(header) and header["format"] == FORMAT
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BadInput(
            f"{path} is missing, truncated or not a saved model ({type(error).__name__}); save the model again"
        ) from error
    if not sound:
        raise BadInput(f"{path} was tampered with, or written by another format than {FORMAT}; save the model again")
    return header


def _fill(net: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load `tensors` into `net`. Raises BadInput unless every name and shape fits and all values are finite."""
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise BadInput(f"{where} is of another architecture: {detail[:200]}") from error
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BadInput(f"{where} has NaN or Inf in {key}; use another checkpoint")


def tensors_sha256(net: nn.Module) -> str:
    """The sha256 (hex) of the parameters and floating-point buffers of `net`, names and shapes included."""
    digest = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _form(net: nn.Module) -> str:
    if isinstance(net, PrunedModel):
        return "masked"
    return "compact" if plan_of(net) else "dense"


def _class_name(net: nn.Module) -> str:
    return f"{type(net).__module__}.{type(net).__qualname__}"
