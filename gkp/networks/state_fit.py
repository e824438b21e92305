"""Which tensors of a state dict are those of a network: prefixes, the names of other code, and what the difference is.

Names fit where that is certain: every layer of the network has one of its name and shape, behind one prefix ("module.",
"model.", "backbone." or any other), and nothing is left over that could be a layer. The names that other code has for the same
layers are known by name; that shapes come in the same order proves nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shapes = Mapping[str, Sequence[int]]
Pair = tuple[tuple[float, ...], tuple[float, ...]]

_WRAPPERS = frozenset("module _orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module".split())  # noqa: SIM905
_SAME = {"conv_1_3x3": "conv1", "bn_1": "bn1", "conv_a": "conv1", "conv_b": "conv2", "bn_a": "bn1", "bn_b": "bn2"}
_PATTERNS = (
    (r"\bstage_(\d)\b", r"layer\1"),
    (r"\bshortcut\.(conv|0)\.", "downsample.0."),
    (r"\bshortcut\.(bn|1)\.", "downsample.1."),
)
_COUNTERS = frozenset("num_batches_tracked n_averaged total_ops total_params".split())  # noqa: SIM905
_BESIDE = frozenset("criterion loss loss_fn metric metrics optimizer momentum callback".split())  # noqa: SIM905
_MAIN = frozenset("state_dict model_state_dict net_state_dict model_state model net network weights params".split())  # noqa: SIM905
_OF_METRICS = ("train_", "val_", "valid_", "test_")  # as Lightning's loops name them
_MEANS = {"mean": "std", "new_mean": "new_std"}


@dataclass(frozen=True)
class Fit:
    """A part of a file that is a network, every layer of it.

    Attributes:
        part: Where it is: the keys that lead to the state dict, then the prefix of its names, joined by "/".
        tensors: By the names of the network; without counters that the file does not have, and without its normalisation.
        normalisation: Mean and standard deviation per channel that stand beside it or in it, or None.
        classifier: What the file calls the last layer, or "" where it has the network's own name for it.
        beside: Names of tensors that could be layers, and stand outside of the part.
    """

    part: str
    tensors: dict[str, Tensor]
    normalisation: Pair | None
    classifier: str
    beside: tuple[str, ...]

    @property
    def is_main(self) -> bool:
        """Whether the part has the usual name of a network, not that of an average or a teacher."""
        return all(word in _MAIN for word in re.split(r"[/.]", self.part) if word not in ("", "module", "backbone"))

    @property
    def unclear_normalisation(self) -> tuple[str, ...]:
        """What stands beside the part and seems to be a normalisation, but not one of three channels, or not the only one."""
        ends = {*_MEANS, *_MEANS.values()}
        return tuple(name for name in self.beside if name.rpartition(".")[2] in ends and self.normalisation is None)

    def is_called(self, key: str) -> bool:
        """Whether the user may call the part so: as a whole, or by one of the keys and the prefix."""
        return key.strip("./") in (self.part, *self.part.split("/"))

    def equals(self, other: Fit) -> bool:
        """Whether both are the same network, of which one may be without its counters."""
        both = self.tensors.keys() & other.tensors.keys()
        return self.normalisation == other.normalisation and all(torch.equal(self.tensors[k], other.tensors[k]) for k in both)


def find_fits(own: Shapes, state: Mapping[str, Tensor], place: str = "") -> list[Fit]:
    """The parts of a state dict that are the network.

    Args:
        own: Shapes by name, as of the network's state dict; its normalisation is left out of the comparison.
        state: The state dict.
        place: Where it is in its file.
    """
    layers, there = _Names(own), _Names(_without_masks(state))
    found = {prefix: names for prefix in there.prefixes(layers) if (names := there.full(layers, prefix)) is not None}
    every = {name for names in found.values() for name in names.values()}
    pairs = there.pairs()
    fits = []
    for prefix, names in found.items():
        pair = pairs.get(prefix) or (next(iter(pairs.values())) if len(set(pairs.values())) == 1 else None)
        known = every | ({name for name in there.tensors if there.is_of_pair(name)} if layers.normalised and pair else set())
        beside = tuple(name for name in there.tensors if name not in known and not _is_no_layer(name))
        if any(there.canonical[name].startswith(prefix) for name in beside):
            continue  # a part of a larger network
        classifier = names.get(f"{layers.classifier}.weight", "").rpartition(".")[0]
        called = classifier.rpartition(".")[2]
        part = "/".join(filter(None, (place, prefix.rstrip("."))))
        tensors = {layer: there.tensors[name] for layer, name in names.items()}
        fits.append(Fit(part, tensors, pair, "" if called == layers.classifier else called, beside))
    return fits


def with_classes(own: Shapes, state: Mapping[str, Tensor]) -> Shapes:
    """The shapes of the network with as many classes as the state dict has, where that can be seen."""
    name = _Names(own).classifier
    if not name:
        return own
    columns = own[f"{name}.weight"][1]
    rows = {tensor.shape[0] for tensor in state.values() if tensor.ndim == 2 and tensor.shape[1] == columns}
    if len(rows) != 1:
        return own
    (n,) = rows
    return {**own, f"{name}.weight": (n, columns), **({f"{name}.bias": (n,)} if f"{name}.bias" in own else {})}


def differences(own: Shapes, state: Mapping[str, Tensor]) -> tuple[int, list[str]]:
    """How many tensors fit behind the likeliest prefix, -1 if no name does; and one line for each layer that does not."""
    layers, there = _Names(own), _Names(_without_masks(state))
    if not (prefixes := there.prefixes(layers)):
        return -1, []
    prefix = prefixes[0]
    lines: dict[str, str] = {}
    for name in layers.required():
        layer, found = name.rpartition(".")[0], there.tensors.get(there.by_canonical.get(prefix + layers.canonical[name], ""))
        if found is None:
            lines.setdefault(layer, f"{layer or name} is missing")
        elif tuple(found.shape) != tuple(own[name]):
            lines.setdefault(layer, f"{name} is {tuple(found.shape)}, not {tuple(own[name])}")
    expected = {prefix + name for name in layers.canonical.values()}
    for name in there.tensors:
        if there.canonical[name] not in expected and not _is_no_layer(name) and not there.is_of_pair(name):
            layer = name.rpartition(".")[0]
            lines.setdefault(layer, f"{layer or name} has no place in it")
    return there.matches(layers, prefix), list(lines.values())


class _Names:
    """The names of a state dict in a form that different code for the same layers shares, unless that makes two one."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)  # or their shapes
        self.canonical = {name: _canonical(name) for name in tensors}
        if len(set(self.canonical.values())) < len(self.canonical):
            self.canonical = {name: name for name in tensors}
        self.by_canonical = {canonical: name for name, canonical in self.canonical.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        value = self.tensors[name]
        return tuple(value.shape if isinstance(value, Tensor) else value)

    @property
    def normalised(self) -> bool:
        """Whether a network normalises its images itself, as ours do."""
        return all(name in self.tensors and math.prod(self.shape(name)) == 3 for name in ("mean", "std"))

    @property
    def classifier(self) -> str:
        """The name of the only linear layer, or ""."""
        flat = [name for name in self.tensors if name.endswith(".weight") and len(self.shape(name)) == 2]
        return flat[0].removesuffix(".weight") if len(flat) == 1 else ""

    def required(self) -> list[str]:
        """Names that a file must have: all but counters, and the normalisation of our networks."""
        inside = ("mean", "std") if self.normalised else ()
        return [name for name in self.tensors if name not in inside and name.rpartition(".")[2] not in _COUNTERS]

    def prefixes(self, layers: _Names) -> list[str]:
        """What may stand before the names of `layers`, the most frequent first."""
        wanted = {layers.canonical[name] for name in layers.required()}
        found: Counter[str] = Counter()
        for name in self.canonical.values():
            starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
            found.update(name[:start] for start in starts if name[start:] in wanted)
        return [prefix for prefix, _ in found.most_common()]

    def matches(self, layers: _Names, prefix: str) -> int:
        """How many tensors of `layers` are here behind this prefix, in the same shape."""
        there = ((name, self.by_canonical.get(prefix + layers.canonical[name])) for name in layers.required())
        return sum(found is not None and self.shape(found) == layers.shape(name) for name, found in there)

    def full(self, layers: _Names, prefix: str) -> dict[str, str] | None:
        """Name of the network -> name here, if every one has its tensor behind this prefix; else None."""
        names = {name: self.by_canonical.get(prefix + layers.canonical[name]) for name in layers.tensors}
        found = {name: there for name, there in names.items() if there is not None}
        missing = [name for name in layers.required() if name not in found]
        if missing:
            renamed = self._classifier_of(layers, missing, found.values())
            if renamed is None:
                return None
            found |= renamed
        required = layers.required()
        if any(self.shape(found[name]) != layers.shape(name) for name in required):
            return None
        return {name: found[name] for name in layers.tensors if name in found and (name in required or _is_no_layer(name))}

    def _classifier_of(self, layers: _Names, missing: list[str], used: Iterable[str]) -> dict[str, str] | None:
        """The last layer under another name: certain if nothing else is missing, and it is the only linear layer left."""
        ours = layers.classifier
        if not ours or {name.rpartition(".")[0] for name in missing} != {ours}:
            return None
        left = set(self.tensors) - set(used)
        flat = [name for name in left if name.endswith(".weight") and len(self.shape(name)) == 2]
        if len(flat) != 1 or len(missing) != sum(name.rpartition(".")[0] == ours for name in layers.tensors):
            return None
        theirs = flat[0].removesuffix(".weight")
        renamed = {name: theirs + name.removeprefix(ours) for name in missing}
        same = {name for name in left if name.rpartition(".")[0] == theirs} == set(renamed.values())
        return renamed if same else None

    def is_of_pair(self, name: str) -> bool:
        """Whether a tensor is the mean or the standard deviation of three channels, and the other one is here too."""
        parent, _, word = name.rpartition(".")
        partner = _MEANS.get(word) or {std: mean for mean, std in _MEANS.items()}.get(word)
        other = f"{parent}.{partner}" if parent else str(partner)
        return partner is not None and other in self.tensors and self.tensors[name].numel() == self.tensors[other].numel() == 3

    def pairs(self) -> dict[str, Pair]:
        """Mean and standard deviation of the channels, by the prefix of their names."""
        found = {}
        for name in self.tensors:
            word = name.rpartition(".")[2]
            if word in _MEANS and self.is_of_pair(name):
                std = name.removesuffix(word) + _MEANS[word]
                found[self.canonical[name].removesuffix(word)] = (_floats(self.tensors[name]), _floats(self.tensors[std]))
        return found


def _canonical(name: str) -> str:
    name = ".".join(_SAME.get(word, word) for word in name.split(".") if word not in _WRAPPERS)
    for pattern, replacement in _PATTERNS:
        name = re.sub(pattern, replacement, name)
    return name


def _is_no_layer(name: str) -> bool:
    words = name.split(".")
    return words[-1] in _COUNTERS or words[0] in _BESIDE or words[0].startswith(_OF_METRICS)


def _without_masks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that torch.nn.utils.prune computes with: `weight_orig` times `weight_mask`."""
    masked = {name.removesuffix("_orig") for name in state if name.endswith("_orig") and f"{name[:-5]}_mask" in state}
    kept = {name: tensor for name, tensor in state.items() if name.removesuffix("_orig").removesuffix("_mask") not in masked}
    return {**kept, **{name: state[f"{name}_orig"] * state[f"{name}_mask"] for name in sorted(masked)}}


def _floats(values: Tensor) -> tuple[float, ...]:
    """As the shortest decimals that are the same in float32; NaN for what are no numbers of this kind."""
    if values.is_meta or not values.is_floating_point():
        return (math.nan,) * values.numel()
    return tuple(float(str(value)) for value in values.to_dense().float().reshape(-1).numpy())
