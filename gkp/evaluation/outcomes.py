"""The outcome matrix: which image is classified correctly under which attack.

Every figure is derived from it: accuracy, Wilson interval, worst case per image, curves over eps; `gkp.evaluation.compare`
has what takes several. On disk it is a folder of two files, `outcomes.npz` (the arrays, no pickle) and `outcomes.json` (what
was attacked, how, with which versions; and the sha256 of both, so that a truncated or edited folder is refused). For one
network, data set and seed the npz has the same bytes each time.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gkp.attacks.options import check_options, parse_eps
from gkp.errors import BadInput
from gkp.evaluation.statistics import wilson
from gkp.files import json_sha256, replace_files

FORMAT = 1
ARRAYS = ("right", "indices", "labels", "predictions")
TOGETHER = ("autoattack",)  # attacks whose outcome for an image depends on which images share its batch


@dataclass(frozen=True)
class AttackSpec:
    """One row of the outcome matrix: an attack of `gkp.attacks.options.ATTACKS` and what determines it beside seed and images.

    Attributes:
        attack: A key of `gkp.attacks.ATTACKS`.
        eps: Radius in the protocol's units; a string such as "8/255" is understood.
        labels: "true", or "predicted" for the paper's FGSM, which is given the network's own predictions.
        options: The attack's own, e.g. {"steps": 20}.
        key: Its name in `Outcomes.accuracy()`; by default the attack and its radius, "pgd-8/255" or "pgd-l2-0.5".

    Raises:
        BadInput: An unknown attack, option or radius, or options that JSON cannot hold.
    """

    attack: str
    eps: float
    labels: str = "true"
    options: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""

    def __post_init__(self) -> None:
        reserved = ("ids", "bounds") if self.together else ("ids", "bounds", "batch_size")
        check_options(self.attack, self.options, reserved=reserved)
        if self.labels not in ("true", "predicted"):
            raise BadInput(f'labels of {self.attack} must be "true" or "predicted", not {self.labels!r}')
        try:
            options = json.loads(json.dumps(dict(self.options), allow_nan=False))  # as they will be read back
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"options of {self.attack} are no plain values ({error}); give numbers, strings and lists"
            ) from error
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "eps", parse_eps(self.eps, norm=self.norm))
        object.__setattr__(self, "key", self.key or f"{self.attack}-{self.radius}")

    @property
    def norm(self) -> str:
        """ "linf" or "l2"."""
        return str(self.options.get("norm", "linf"))

    @property
    def radius(self) -> str:
        """The radius as tables print it: "0.25/255", "8/255", "l2-0.5"."""
        return f"{self.eps * 255:.6g}/255" if self.norm == "linf" else f"{self.norm}-{self.eps:.6g}"

    @property
    def family(self) -> str:
        """The key without the radius: rows of one family are the points of one curve. "fgsm-true" for "fgsm-0.1-true"."""
        for radius in (f"-{self.radius}", f"-{self.eps}"):
            if radius in self.key:
                return self.key.replace(radius, "", 1)
        return self.key

    @property
    def together(self) -> bool:
        """Whether an image's outcome depends on the images it is attacked with; then batch_size is one of the options."""
        parts = self.options.get("attacks")  # of a cascade
        parts = parts if isinstance(parts, list | tuple) else []
        parts = [part.get("attack") if isinstance(part, Mapping) else part for part in parts]
        return any(name in TOGETHER for name in (self.attack, *parts))


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The outcome of every image under every attack, and all that is needed to evaluate again.

    Attributes:
        right: Whether each image is classified correctly, (1 + attacks, N) bool: row 0 without attack, row 1 + i under
            `attacks[i]`.
        indices: Positions of the images in the split, (N,).
        labels: True classes (N,).
        predictions: Predicted classes without attack, (N,).
        attacks: What the rows after the first were attacked by.
        protocol: "pixel" or "paper".
        bounds: Least and largest value of an image, in the protocol's units.
        dataset: Its name.
        split: Of the data set.
        data_sha256: Of the whole split.
        model_sha256: Of the network's state, see `gkp.networks.fingerprint.state_sha256`.
        seed: Of the attacks.
        versions: Versions of what the outcomes rest on.
        seconds: Of the call that made them, without what a checkpoint had kept.
    """

    right: np.ndarray
    indices: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    attacks: tuple[AttackSpec, ...]
    protocol: str
    bounds: tuple[float, float]
    dataset: str
    split: str
    data_sha256: str
    model_sha256: str
    seed: int
    versions: Mapping[str, str]
    seconds: float

    def __post_init__(self) -> None:
        n = len(self.indices)
        fits = self.right.dtype == bool and self.right.shape == (1 + len(self.attacks), n) and n > 0
        if not fits or not all(array.shape == (n,) for array in (self.indices, self.labels, self.predictions)):
            wanted = (1 + len(self.attacks), n)
            raise BadInput(f"the outcome matrix has the shape {self.right.shape} instead of {wanted}; evaluate again")
        if not np.array_equal(self.right[0], self.labels == self.predictions):
            raise BadInput("the outcome matrix contradicts its own labels and predictions; evaluate again")
        for name in ARRAYS:
            getattr(self, name).setflags(write=False)

    @property
    def engine(self) -> str:
        """The engine that computed them: "torch" or "fast", see `gkp.benchmark`."""
        return self.versions.get("engine", "torch")

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.indices)

    def rows(self) -> dict[str, np.ndarray]:
        """(N,) bool per key: "clean", one for each attack, and in the pixel protocol "worst-case-RADIUS".

        The worst case is taken per image: right without attack and under every attack of that norm and radius.
        """
        rows = {"clean": self.right[0], **{spec.key: row for spec, row in zip(self.attacks, self.right[1:], strict=True)}}
        if self.protocol == "pixel":
            for spec in self.attacks:
                key = f"worst-case-{spec.radius}"
                rows[key] = rows.get(key, self.right[0]) & rows[spec.key]
        return rows

    def accuracy(self) -> dict[str, float]:
        """Fraction of images classified correctly, per key of `rows`."""
        return {key: int(row.sum()) / self.n for key, row in self.rows().items()}

    def interval(self, confidence: float = 0.95) -> dict[str, tuple[float, float]]:
        """Wilson score interval (low, high) of each accuracy, as fractions: the images are a sample of all possible ones.

        Raises BadInput for a confidence outside (0, 1).
        """
        return {key: wilson(int(row.sum()), self.n, confidence) for key, row in self.rows().items()}

    def curve(self, attack: str, *, norm: str = "linf", confidence: float = 0.95) -> pd.DataFrame:
        """Accuracy against radius.

        Args:
            attack: "pgd" for the rows "pgd-1/255", "pgd-2/255" and so on (`AttackSpec.family`), or "worst-case" in the pixel
                protocol.
            norm: "linf" or "l2".
            confidence: Of the intervals.

        Returns:
            By growing radius, columns eps (0 is the clean row), accuracy, low, high (Wilson) and n.

        Raises:
            BadInput: There is no such row; the message names those that there are.
        """
        specs = [spec for spec in self.attacks if spec.norm == norm]
        keys = {spec.eps: spec.key for spec in specs if spec.family == attack}
        if attack == "worst-case" and self.protocol == "pixel":
            keys = {spec.eps: f"worst-case-{spec.radius}" for spec in specs}
        if not keys:
            known = dict.fromkeys(spec.family for spec in specs)
            raise BadInput(f"no {norm} rows of {attack!r}; there are: {', '.join(known) or 'none'}")
        frame = self.to_frame(confidence)
        points = [(eps, *frame.loc[key]) for eps, key in sorted({0.0: "clean", **keys}.items())]
        return pd.DataFrame(points, columns=["eps", *frame.columns]).astype({"n": int})

    def merge(self, *others: Outcomes) -> Outcomes:
        """The rows and images of all of them in one matrix: more attacks on the same images, or more images under the same.

        Images are sorted by position, attacks stay in order of appearance, seconds are added. Raises BadInput, naming what
        differs, for outcomes of another network, data set, protocol, seed or version, for outcomes that contradict each other,
        and when the union leaves an image without its outcome under some attack.
        """
        parts = (self, *others)
        specs: dict[str, AttackSpec] = {}
        for part in parts:
            if difference := differing(self._identity(), part._identity()):
                raise BadInput(f"outcomes of different evaluations cannot be merged: {difference}; evaluate one of them again")
            for spec in part.attacks:
                if difference := differing(asdict(specs.setdefault(spec.key, spec)), asdict(spec)):
                    raise BadInput(f"{spec.key} is not the same attack in both: {difference}; give one of them another key")
        for spec in specs.values():
            if spec.together and len({part.indices.tobytes() for part in parts if spec in part.attacks}) > 1:
                raise BadInput(f"{spec.key} depends on which images are attacked together; evaluate all of them in one call")
        return replace(self, **_union(parts, tuple(specs.values())), seconds=round(sum(part.seconds for part in parts), 3))

    def _identity(self) -> dict[str, Any]:
        """The fields that outcomes of one evaluation share."""
        names = ("model_sha256", "dataset", "split", "data_sha256", "protocol", "bounds", "seed")
        return {**{name: getattr(self, name) for name in names}, **self.versions}

    def to_frame(self, confidence: float = 0.95) -> pd.DataFrame:
        """One row per key (index "attack"): accuracy, low, high (fractions), n."""
        intervals = self.interval(confidence)
        table = [(key, accuracy, *intervals[key], self.n) for key, accuracy in self.accuracy().items()]
        return pd.DataFrame(table, columns=["attack", "accuracy", "low", "high", "n"]).set_index("attack")

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, as plain JSON types; accuracy included for people who read the file."""
        attacks = [asdict(spec) for spec in self.attacks]
        facts = ("protocol", "bounds", "dataset", "split", "data_sha256", "model_sha256", "seed", "versions", "seconds")
        fields = {name: getattr(self, name) for name in facts}
        return {**fields, "bounds": list(self.bounds), "n": self.n, "accuracy": self.accuracy(), "attacks": attacks}

    def save(self, folder: str | Path) -> Path:
        """The folder, now holding `outcomes.npz` and `outcomes.json`, each written beside and renamed.

        Raises BadInput when it cannot be written, nothing being left half done.
        """
        folder, buffer = Path(folder), io.BytesIO()
        np.savez_compressed(buffer, **{name: getattr(self, name) for name in ARRAYS})
        header = {"format": FORMAT, **self.to_json(), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        header["header_sha256"] = json_sha256(header)
        contents = {"outcomes.npz": buffer.getvalue(), "outcomes.json": json.dumps(header, indent=1).encode()}
        return replace_files(folder, contents, "outcomes")

    @classmethod
    def load(cls, folder: str | Path) -> Outcomes:
        """The outcomes that `save` wrote there. Raises BadInput for files that are missing, truncated or tampered with."""
        folder = Path(folder)
        header = _read_header(folder / "outcomes.json")
        data = _read(folder / "outcomes.npz")
        if hashlib.sha256(data).hexdigest() != header["sha256"]:
            raise BadInput(f"{folder / 'outcomes.npz'} is truncated or tampered with (sha256); evaluate again")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in ARRAYS}
            attacks = tuple(AttackSpec(**spec) for spec in header["attacks"])
            facts = {name: header[name] for name in ("protocol", "dataset", "split", "data_sha256", "model_sha256", "seed")}
            return cls(
                **arrays,
                attacks=attacks,
                bounds=tuple(header["bounds"]),
                **facts,
                versions=header["versions"],
                seconds=header["seconds"],
            )
        except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise BadInput(f"{folder} does not hold saved outcomes ({error}); evaluate again") from error


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first field in which they differ with both values, e.g. "seed is 0 in one, 1 in the other"; "" if none does."""
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            first, second = (" ".join(repr(fields.get(name)).split()) for fields in (one, other))
            return f"{name} is {first:.60} in one, {second:.60} in the other"
    return ""


def _union(parts: Sequence[Outcomes], specs: tuple[AttackSpec, ...]) -> dict[str, Any]:
    """The fields of the merged outcomes that are not the same in all parts."""
    indices = np.unique(np.concatenate([part.indices for part in parts]))
    known = np.zeros((1 + len(specs), len(indices)), dtype=bool)
    right, labels, predictions = known.copy(), np.zeros_like(indices), np.zeros_like(indices)
    for part in parts:
        columns = np.searchsorted(indices, part.indices)
        there = np.ix_(np.array([0, *(1 + specs.index(spec) for spec in part.attacks)]), columns)
        again = known[0, columns]
        if not np.array_equal(predictions[columns][again], part.predictions[again]):
            raise BadInput("the network predicts other classes for the same images in one of them; it is another network")
        if (known[there] & (right[there] != part.right)).any():
            raise BadInput("outcomes of the same image under the same attack contradict each other; evaluate again")
        known[there], right[there], labels[columns], predictions[columns] = True, part.right, part.labels, part.predictions
    if not known.all():
        row = int(np.flatnonzero(~known.all(axis=1))[0])
        raise BadInput(
            f"{int((~known[row]).sum())} of {len(indices)} images have no outcome under {specs[row - 1].key}; "
            "merge outcomes that have the same images or the same attacks"
        )
    return {"right": right, "indices": indices, "labels": labels, "predictions": predictions, "attacks": specs}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); give a folder that Outcomes.save wrote") from error


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(_read(path))
        sound = header.pop("header_sha256") == json_sha256(header) and header["format"] == FORMAT
    except BadInput:
        raise
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadInput(f"{path} is truncated or no outcome file ({type(error).__name__}); evaluate again") from error
    if not sound:
        raise BadInput(f"{path} was tampered with, or written in another format than {FORMAT}; evaluate again")
    return header
