"""Public checkpoints: whose they are, where they are found, and what shows that a file is one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkp.errors import BadInput
from gkp.files import fetch, locate, not_found
from gkp.networks.classifier import IMAGENET_MEAN, IMAGENET_STD

AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/d5489e8/pretrained_models/"


@dataclass(frozen=True)
class Public:
    """A public checkpoint.

    Args:
        stem: File name without suffix.
        fields: Those of its `Architecture`.
        url: Of the original file; "" where it cannot be downloaded.
        prefix: First digits of that file's sha256, as its name carries them.
        tensors: sha256 of the tensors under our names; "" where it has not been measured.
    """

    stem: str
    fields: Mapping[str, Any]
    url: str = ""
    prefix: str = ""
    tensors: str = ""


def _akamaster(stem: str, tensors: str = "") -> Public:
    fields = {"shortcut": "centre", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return Public(stem, fields, f"{AKAMASTER}{stem}.th", stem.rpartition("-")[2], tensors)


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
    ("resnet50", "torchvision"): Public(
        "resnet50-0676ba61",  # of 2015, 76.13 % as the paper reports it: IMAGENET1K_V1
        {"num_classes": 1000, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
        "0676ba61",
    ),
    ("resnet20", "srgkp-official"): Public(
        "srgkp_official_resnet20",
        {},
        tensors="37a1fa0621e8cc7828652238cd101c3e35a4f49935436fed6b3dcb4a25503996",
    ),
}


def why_absent(name: str, weights: str) -> str:
    """Why the public weights of an architecture are not here, in one line, where they cannot be downloaded; else ""."""
    public = PUBLIC.get((name, weights))
    try:
        if public is not None and not public.url:
            public_file(name, weights)
    except BadInput as reason:
        return str(reason)
    return ""


def public_file(name: str, weights: str) -> Path:
    """The file of public weights, downloaded where it is not here. Raises BadInput where it cannot be."""
    public = PUBLIC[name, weights]
    relative = f"checkpoints/{public.stem}.safetensors"
    what = f"the {weights} weights of {name}"
    if path := locate(relative):
        return path
    if public.url:
        return fetch(f"checkpoints/{public.stem}{Path(public.url).suffix}", url=public.url, sha256=public.prefix, what=what)
    source = "https://github.com/henryzhongsc/adv_robust_gkp (a pickled module without a licence, so not redistributed here)"
    raise BadInput(not_found(what, relative, source, command="export GKP_DATA=the folder that holds it, as safetensors"))
