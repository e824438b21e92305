"""Entries of a leaderboard in RobustBench's JSON schema, made from an outcome matrix, with additional fields.

RobustBench's keys have their meaning there: accuracies are percent as text, eps is text, `autoattack_acc` is the accuracy under
standard AutoAttack, `external` the best known (lowest) robust accuracy if it is another one. Without standard AutoAttack,
`autoattack_acc` is null, the accuracy is in `external`, and the footnote says so.

Additional keys: threat_model, protocol, split, n, seed, interval (95 % Wilson, percent), parameters, macs, paper_macs, latency,
attacks, versions, and hashes of the data, of the positions of images and of the network.

Cost: milliseconds, and the seconds for measuring latency.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from gkp.attacks.options import parse_eps
from gkp.data.sources import dataset_names, load_dataset
from gkp.errors import BadInput
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.evaluation.robustbench.adapter import THREAT_MODELS
from gkp.evaluation.robustbench.schema import check_entry
from gkp.evaluation.subject import indices_sha256
from gkp.files import replace_file
from gkp.networks.classifier import Architecture
from gkp.networks.fingerprint import state_sha256
from gkp.networks.wrappers import unwrapped
from gkp.pruning.cost import cost, latency
from gkp.pruning.plan import plan_of
from gkp.pruning.twin import PrunedModel

_WORDS = {ours: theirs for theirs, ours in THREAT_MODELS.items()}
_SLACK = 0.002  # AutoAttack is called unreliable if other attacks break a larger share of images: its own threshold


def entry(
    outcomes: Outcomes,
    net: nn.Module,
    *,
    name: str,
    eps: float | str | None = None,
    norm: str = "linf",
    architecture: str | None = None,
    authors: str = "",
    venue: str = "",
    link: str = "",
    additional_data: bool = False,
    reported: float | None = None,
    unreliable: bool | None = None,
    footnote: str = "",
    evaluated: str | None = None,
    input_shape: Sequence[int] | None = None,
    latency_seconds: float | None = 1.0,
) -> dict[str, Any]:
    """Make the entry of a network at one radius.

    Args:
        outcomes: Its outcome matrix in the protocol "pixel".
        net: The network; parameters, MACs and latency of a masked twin are those of its compact network.
        name, architecture, authors, venue, link, additional_data: As on RobustBench.
        eps, norm: The radius; eps may be None if there is only one.
        reported: The robust accuracy that the authors report, a fraction.
        unreliable: Whether AutoAttack overestimates the accuracy, e.g. `Card.masked` of an audit; None: if the other attacks in
            `outcomes` lower it by more than 0.2 points.
        footnote: Text at the beginning of the footnote.
        evaluated: The hash of the evaluated network, if `net` is its compact form; None if `net` was evaluated.
        input_shape: (C, H, W) of an image; None for data sets that are known by name.
        latency_seconds: How long to measure the latency of one image on one thread; None not to measure it.

    Returns:
        The entry, as plain JSON types.

    Raises:
        BadInput: The outcomes are of another network or protocol, or do not have this radius.
    """
    _check_belong(outcomes, evaluated or state_sha256(net))
    specs = _at_radius(outcomes, eps, norm)
    shares = _shares(outcomes, specs)
    standard = shares.get("autoattack_acc")
    best = shares["best_known"]
    others = standard is None or best[0] < standard[0]
    if unreliable is None and standard is not None:
        unreliable = standard[0] - best[0] > _SLACK
    made = {
        "link": link,
        "name": name,
        "authors": authors,
        "additional_data": bool(additional_data),
        "number_forward_passes": 1,
        "dataset": outcomes.dataset,
        "venue": venue,
        "architecture": architecture or _architecture(net),
        "eps": specs[0].radius.removeprefix("l2-"),
        "clean_acc": _percent(shares["clean_acc"][0]),
        "reported": None if reported is None else _percent(reported),
        "autoattack_acc": None if standard is None else _percent(standard[0]),
        **({"external": _percent(best[0])} if others else {}),
        "unreliable": unreliable,
        "footnote": " ".join(filter(None, [footnote, _how(specs, standard is not None, others)])),
        "threat_model": _WORDS[specs[0].norm],
        **_facts(outcomes, specs, shares),
        **_efficiency(net, _shape(outcomes, input_shape), latency_seconds),
    }
    return check_entry(made, f"the entry of {name}")


def save_entry(entry: Mapping[str, Any], folder: str | Path, *, model_id: str | None = None) -> Path:
    """Write an entry to FOLDER/DATASET/THREAT_MODEL/MODEL_ID_EPS.json, laid out as RobustBench's model_info.

    Args:
        entry: As returned by `entry`.
        folder: The folder, which is made if it does not exist.
        model_id: The beginning of the file name; None to make it from the name.

    Returns:
        The file.

    Raises:
        BadInput: The entry does not fit the schema, the folder cannot be written, or the file has the entry of another network
            or data set.
    """
    sound = check_entry(entry, "the entry")
    file = f"{_slug(model_id or sound['name'])}_{_slug(sound['eps'])}.json"
    path = Path(folder) / _slug(sound["dataset"]) / sound["threat_model"] / file
    if path.is_file():
        there = _read(path)
        if any(there.get(key) != sound.get(key) for key in ("model_sha256", "data_sha256")):
            raise BadInput(f"{path} holds the entry of another network or data set; give a model_id of its own")
    text = json.dumps(sound, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return replace_file(path, text)


def load_entries(folders: str | Path | Sequence[str | Path]) -> list[dict[str, Any]]:
    """Read and check all entries below some folders, ours and RobustBench's, in order of their paths.

    Args:
        folders: One or several folders.

    Raises:
        BadInput: A folder is missing or has no entries, or a file is not an entry that fits the schema.
    """
    entries = []
    for folder in [folders] if isinstance(folders, str | Path) else folders:
        if not (paths := sorted(Path(folder).rglob("*.json"))):
            what = "holds no entries" if Path(folder).is_dir() else "is no folder"
            raise BadInput(f"{folder} {what}; give a folder with the JSON files that save_entry writes")
        entries += [check_entry(_read(path), str(path), threat_model=path.parent.name) for path in paths]
    return entries


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({type(error).__name__}); write the entry again") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} is a JSON {type(value).__name__} and not an entry; move it elsewhere")
    return value


def _check_belong(outcomes: Outcomes, network: str) -> None:
    if outcomes.protocol != "pixel":
        raise BadInput(f'the outcomes are of protocol {outcomes.protocol!r}; a leaderboard takes those of protocol "pixel"')
    if network != outcomes.model_sha256:
        raise BadInput("the outcomes are of another network (sha256); give the evaluated network, or evaluate this one")


def _at_radius(outcomes: Outcomes, eps: float | str | None, norm: str) -> list[AttackSpec]:
    """The attacks at the given radius, at least one."""
    radii = list(dict.fromkeys(spec.radius for spec in outcomes.attacks))
    if eps is None and len(radii) == 1:
        return list(outcomes.attacks)
    if eps is not None:
        value = parse_eps(eps, norm=norm)
        if specs := [s for s in outcomes.attacks if s.norm == norm and math.isclose(s.eps, value, rel_tol=1e-6)]:
            return specs
    asked = "no radius was given" if eps is None else f"there is no attack at {eps} in {norm}"
    raise BadInput(f"{asked}; the outcomes have {', '.join(radii) or 'no attack at all'}: give one of them as eps and norm")


def _shares(outcomes: Outcomes, specs: Sequence[AttackSpec]) -> dict[str, tuple[float, float, float]]:
    """clean_acc, best_known and, if it ran, autoattack_acc, each as (accuracy, low, high) in fractions."""
    accuracy, interval = outcomes.accuracy(), outcomes.interval()
    keys = {"clean_acc": "clean", "best_known": f"worst-case-{specs[0].radius}"}
    standard = [spec.key for spec in specs if _is_standard(spec)]
    if standard:
        keys["autoattack_acc"] = min(standard, key=lambda key: accuracy[key])
    return {name: (accuracy[key], *interval[key]) for name, key in keys.items()}


def _is_standard(spec: AttackSpec) -> bool:
    return spec.attack == "autoattack" and spec.options.get("version", "standard") == "standard"


def _how(specs: Sequence[AttackSpec], standard: bool, others: bool) -> str:
    """The footnote on the attacks behind the best known accuracy."""
    names = ", ".join(dict.fromkeys(spec.family for spec in specs))
    if not standard:
        return f"Not evaluated with standard AutoAttack; best known: per image the worst of {names}."
    return f"Best known: per image the worst of {names}." if others else ""


def _facts(outcomes: Outcomes, specs: Sequence[AttackSpec], shares: Mapping[str, tuple[float, float, float]]) -> dict[str, Any]:
    return {
        "protocol": outcomes.protocol,
        "split": outcomes.split,
        "n": outcomes.n,
        "seed": outcomes.seed,
        "interval": {name: [round(100 * low, 2), round(100 * high, 2)] for name, (_, low, high) in shares.items()},
        "attacks": [{**asdict(spec), "options": dict(spec.options)} for spec in specs],
        "versions": dict(outcomes.versions),
        "data_sha256": outcomes.data_sha256,
        "indices_sha256": indices_sha256(outcomes.indices),
        "model_sha256": outcomes.model_sha256,
    }


def _architecture(net: nn.Module) -> str:
    net = unwrapped(net)
    dense = net.net if isinstance(net, PrunedModel) else net
    known = getattr(dense, "architecture", None)
    return known.name if isinstance(known, Architecture) else type(dense).__name__


def _shape(outcomes: Outcomes, input_shape: Sequence[int] | None) -> tuple[int, ...]:
    if input_shape is not None:
        return tuple(int(size) for size in input_shape)
    if outcomes.dataset not in dataset_names():
        raise BadInput(f"gkp does not know the images of {outcomes.dataset!r}; give input_shape=(channels, height, width)")
    return load_dataset(outcomes.dataset, outcomes.split).shape


def _efficiency(net: nn.Module, input_shape: tuple[int, ...], seconds: float | None) -> dict[str, Any]:
    """Parameters, MACs and latency, all of the compact network."""
    costs = cost(net, input_shape=input_shape)
    numbers: dict[str, Any] = {"parameters": costs.params, "macs": costs.macs, "paper_macs": costs.paper_macs, "latency": None}
    if seconds is not None:
        inside = unwrapped(net)
        shipped = inside.compact() if isinstance(inside, PrunedModel) else net
        measured = latency(shipped, input_shape=input_shape, seconds=seconds)
        form = "compact" if plan_of(net) else "as evaluated"
        numbers["latency"] = {
            "seconds": measured.median, "iqr": measured.iqr, "runs": measured.runs, "threads": measured.threads,
            "batch_size": measured.batch_size, "input_shape": list(input_shape), "machine": platform.machine(),
            "how": f"median of {measured.runs} blocks of torch.utils.benchmark, network {form}",
        }  # fmt: skip
    return numbers


def _slug(text: str) -> str:
    """`text` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "unnamed"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
