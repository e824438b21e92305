"""`benchmark`: the outcome of every image under every attack, in the paper's protocol or in the field's.

`gkp.evaluation.protocols` says what a protocol attacks and where, `gkp.evaluation.outcomes` what comes of it.

Cost: FGSM takes one gradient and one forward pass an image for each eps, the gradient being shared by all eps and its logits
being the clean ones; PGD drops an image once it has fallen. ResNet-20 on one core: 10,000 images in the paper protocol take
about 2 minutes. Longer attacks are run on a twin without BatchNorm (`gkp.evaluation.folding`), which is faster, and judged
by the network itself. Outcomes do not depend on the batch size (see `gkp.attacks`), nor on whether the evaluation was
interrupted: with a checkpoint, what a kill costs is the images of the last minutes.

The exception is `autoattack`, whose outcomes depend on which images share a batch: it gets all images
that are to be attacked in one call, the batch size is one of its options in the outcome matrix, and a kill costs the call.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gkp.attacks.network import evaluating, logits_of
from gkp.data.dataset import Dataset
from gkp.engine.compile import Compiled, compile_all
from gkp.engine.names import check_engine
from gkp.evaluation.attacked import Run
from gkp.evaluation.outcomes import Outcomes
from gkp.evaluation.protocols import (
    Attacks,
    Radii,
    asks_often,
    attack_rows,
    space_of,
)
from gkp.evaluation.resume import Pieces
from gkp.evaluation.subject import (
    as_dataset,
    check_behaviour,
    check_fit,
    check_sizes,
    chosen_images,
    images_home,
    on_device,
)
from gkp.networks.fingerprint import state_sha256


def benchmark(
    model: nn.Module,
    dataset: str | Dataset = "cifar10",
    *,
    protocol: str = "pixel",
    n_examples: int | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    batch_size: int = 200,
    eps: Radii | None = None,
    attacks: Attacks | None = None,
    true_labels: bool = False,
    pgd_random_start: bool = False,
    checkpoint: str | Path | None = None,
    allow_nondeterministic: bool = False,
    device: str | torch.device | None = None,
    progress: bool | None = None,
    engine: str = "torch",
) -> Outcomes:
    """Evaluate a network under attack, image by image.

    The network is evaluated in eval mode and left as it was.

    Args:
        model: From images (N, C, H, W), floats in [0, 1], to logits (N, K).
        dataset: A name, for its test split, or a Dataset.
        protocol: "pixel", the field's: attacks in pixels, by true labels, of images that are classified correctly. Or "paper":
            attacks in normalised units, FGSM by predicted labels, of all images (pages 7 to 9 of the paper).
        n_examples: The first so many images; all by default.
        indices: These images instead, by position.
        seed: Of random starts and proposals; an image's own depend on it and on the image alone.
        batch_size: Images in one pass. It changes speed and memory only, save for autoattack.
        eps: In "pixel", the radii, numbers or strings such as "8/255" or "4/255,8/255". By default
            `gkp.evaluation.protocols.PIXEL_EPS`, and 0.5 in L2.
        attacks: In "pixel", names such as "fgsm,pgd" (the default), run at every radius; or `AttackSpec`s and dicts of their
            fields, run at their own radius if they have one. In "paper", some of the paper's rows; all by default.
        true_labels: In "paper", whether to add FGSM by true labels, as the rows "fgsm-0.01-true" and "fgsm-0.1-true".
        pgd_random_start: In "paper", whether PGD starts inside the ball, which the paper leaves open.
        checkpoint: A folder that keeps what is finished: the same call continues from it and gives the same bytes on the same
            machine, whatever the batch size. It may be deleted once the outcomes are saved.
        allow_nondeterministic: Whether to evaluate a network whose logits change from pass to pass; its outcomes are one draw.
        device: Where to compute; a network elsewhere is copied.
        progress: Whether to show a bar on stderr; None: only when that is a terminal.
        engine: "torch", or "fast" for `gkp.compile` on the CPU. That rounds otherwise: a few images in a thousand, at a tie
            of a ReLU or of two classes, may come out differently. `Outcomes.versions` records it.

    Returns:
        The outcome of every image without attack and under every attack.

    Raises:
        BadInput: Network, images, attacks, radii or folder do not fit; the message says which and how to mend it.

    Warns:
        ModelWarning: The network returns probabilities instead of logits.
    """
    began = time.perf_counter()
    data = as_dataset(dataset)
    chosen = chosen_images(data, n_examples, indices)
    check_sizes(batch_size, seed)
    specs = attack_rows(
        protocol,
        eps=eps,
        attacks=attacks,
        true_labels=true_labels,
        pgd_random_start=pgd_random_start,
        batch_size=int(batch_size),
        dataset=data.name,
    )
    if isinstance(model, Compiled):  # its network, by the engine that runs it
        engine = "torch" if "network" in model.fallbacks else "fast"
        model = model.compiled_from
    check_engine(engine)
    with torch.inference_mode(False), evaluating(model), on_device(model, device) as given:
        net = compile_all(given) if engine == "fast" else given
        check_fit(net, data)
        logits = check_behaviour(net, data, allow_nondeterministic=allow_nondeterministic)
        fold = engine == "torch" and not allow_nondeterministic and any(asks_often(spec) for spec in specs)
        space = space_of(net, data, protocol, fold=fold)
        facts: dict[str, Any] = {
            "protocol": protocol, "bounds": space.bounds, "dataset": data.name, "split": data.split,
            "data_sha256": data.sha256, "model_sha256": state_sha256(given), "seed": int(seed), "versions": _versions(engine),
        }  # fmt: skip
        pieces = None
        if checkpoint is not None:
            rows = {f"row {spec.key}": asdict(spec) for spec in specs}
            options = {"device": images_home(net)[0].type, "allow_nondeterministic": allow_nondeterministic}
            space_is = {"mean": list(data.mean), "std": list(data.std)} if protocol == "paper" else {}
            identity = {**facts, **space_is, "rows": [spec.key for spec in specs], **rows, **options}
            pieces = Pieces(checkpoint, identity, np.zeros(0) if allow_nondeterministic else logits.flatten().numpy())
        with tqdm(
            total=len(chosen) * (1 + len(specs)),
            unit="image",
            desc=f"{data.name} {protocol}",
            disable=None if progress is None else not progress,
        ) as bar:
            run = Run(space, data, specs, int(seed), int(batch_size), images_home(net), chosen, bar, pieces)
            run.finish()
    labels = data.labels[torch.from_numpy(chosen)].cpu().numpy().copy()
    seconds = round(time.perf_counter() - began, 3)
    return Outcomes(
        right=run.right, indices=chosen, labels=labels, predictions=run.predictions, attacks=specs, **facts, seconds=seconds
    )


def predict(model: nn.Module, dataset: str | Dataset, *, batch_size: int = 500) -> Tensor:
    """Logits (N, K) of every image, on the CPU.

    Args:
        model: From images (N, C, H, W), floats in [0, 1], to logits; evaluated in eval mode and left as it was.
        dataset: A name, for its test split, or a Dataset.
        batch_size: Images in one pass.

    Raises:
        BadInput: The network does not take these images.
    """
    data = as_dataset(dataset)
    check_sizes(batch_size, seed=0)
    with evaluating(model), on_device(model, None) as net:
        check_fit(net, data)
        device, dtype = images_home(net)
        batches = data.batches(batch_size, device=device)
        return torch.cat([logits_of(net, x.to(dtype)).cpu() for x, _ in batches])


def accuracy(model: nn.Module, dataset: str | Dataset, *, batch_size: int = 500) -> float:
    """The fraction of images classified correctly, without attack; see `predict`."""
    data = as_dataset(dataset)
    return (predict(model, data, batch_size=batch_size).argmax(1) == data.labels.cpu()).double().mean().item()


def _versions(engine: str) -> dict[str, str]:
    """Of what outcomes rest on."""
    fast = {} if engine == "torch" else {"engine": engine, "numba": version("numba")}
    known = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return known | {name: version(name) for name in ("pyautoattack",) if find_spec(name)} | fast
