"""The comparison of networks: paired statistics between outcome matrices, and attacks that are carried over.

Networks are compared image by image, on the very same images under the very same attack: what counts is
on how many images only one of two is right. `compare` tests all pairs, `rank_groups` says who cannot be told apart,
`common_accuracy` looks at the images that all classify correctly, `transfer` attacks one network and asks the others.

Cost: milliseconds, except for `transfer`: one attack for each network, and a forward pass for each pair.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gkp.attacks.network import evaluating, logits_of
from gkp.attacks.options import ATTACKS
from gkp.data.dataset import Dataset
from gkp.errors import BadInput
from gkp.evaluation.attacked import adversarial
from gkp.evaluation.outcomes import AttackSpec, Outcomes, differing
from gkp.evaluation.statistics import discordant, holm, mcnemar, mean_rank, paired_interval, share
from gkp.evaluation.subject import (
    as_dataset,
    check_behaviour,
    check_fit,
    check_sizes,
    chosen_images,
    images_home,
    on_device,
)

_WINDOW = 10  # batches of images attacked in one call
_IMAGES = ("protocol", "dataset", "split", "data_sha256")  # what outcomes must share, beside indices, to be paired


def compare(
    outcomes: Mapping[str, Outcomes], key: str, *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> pd.DataFrame:
    """Compare the accuracies of all pairs of networks, image by image.

    Args:
        outcomes: Name to outcome matrix.
        key: A row of `Outcomes.rows`, e.g. "clean" or "worst-case-1/255".
        seed: Of the bootstrap.
        resamples: Number of bootstrap samples, at least 100.
        confidence: Of the interval.

    Returns:
        One row for each pair: a, b; difference, the accuracy of a minus that of b, as a fraction, and its paired bootstrap
        interval low, high; p of the exact McNemar test, two-sided, and p_holm after Holm's correction for all pairs; n images;
        only_a, only_b, the images on which only that one is right.

    Raises:
        BadInput: Fewer than two outcomes, or they are of different images or attacks.
    """
    right = _paired(outcomes, key)
    rows: list[dict[str, Any]] = []
    for a, b in combinations(right, 2):
        n, (only_a, only_b) = len(right[a]), discordant(right[a], right[b])
        low, high = paired_interval(only_a, only_b, n, seed=seed, resamples=resamples, confidence=confidence)
        p = mcnemar(only_a, only_b)
        rows.append({"a": a, "b": b, "difference": (only_a - only_b) / n, "low": low, "high": high, "p": p,
                     "p_holm": p, "n": n, "only_a": only_a, "only_b": only_b})  # fmt: skip
    frame = pd.DataFrame(rows)
    frame["p_holm"] = holm(frame["p"])
    return frame


def rank_groups(outcomes: Mapping[str, Outcomes], key: str, *, alpha: float = 0.05) -> pd.DataFrame:
    """Rank networks by accuracy, and say which cannot be told apart.

    Two networks are told apart when the exact McNemar test, Holm-corrected for all pairs, has p < alpha.

    Args:
        outcomes: Name to outcome matrix.
        key: A row of `Outcomes.rows`.
        alpha: Level of the tests, in (0, 1).

    Returns:
        One row for each network (index "network"), by accuracy and then by name: accuracy, low and high (Wilson), n; rank,
        1 + the number of networks that are more accurate and told apart from it; groups, letters with spaces between. Two
        networks share a letter if and only if they cannot be told apart (a compact letter display); "A" has the best.

    Raises:
        BadInput: As `compare`, and for an alpha out of range.
    """
    if not 0 < alpha < 1:
        raise BadInput(f"alpha must lie between 0 and 1, not {alpha}; the usual is 0.05")
    pairs = compare(outcomes, key, resamples=100)
    accuracy = {name: out.accuracy()[key] for name, out in outcomes.items()}
    order = sorted(accuracy, key=lambda name: (-accuracy[name], name))
    apart = {frozenset(pair) for *pair, p in pairs[["a", "b", "p_holm"]].itertuples(index=False) if p < alpha}
    groups = _groups(order, apart)
    letters = [chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "") for i in range(len(groups))]
    rows = []
    for name in order:
        better = [other for other in order if accuracy[other] > accuracy[name] and frozenset((name, other)) in apart]
        mine = " ".join(letter for letter, group in zip(letters, groups, strict=True) if name in group)
        low, high = outcomes[name].interval()[key]
        rows.append((name, accuracy[name], low, high, outcomes[name].n, 1 + len(better), mine))
    columns = ["network", "accuracy", "low", "high", "n", "rank", "groups"]
    return pd.DataFrame(rows, columns=columns).set_index("network")


def _groups(order: Sequence[str], apart: set[frozenset[str]]) -> list[list[str]]:
    """The maximal sets of names in which no two are apart, as insert-and-absorb gives them (Piepho 2004)."""
    groups = {frozenset(order)}
    for pair in combinations(order, 2):
        if frozenset(pair) in apart:
            broken = {group for group in groups if group.issuperset(pair)}
            groups = (groups - broken) | {group - {name} for group in broken for name in pair}
            groups = {group for group in groups if not any(group < other for other in groups)}
    members = ([name for name in order if name in group] for group in groups)
    return sorted(members, key=lambda group: [order.index(name) for name in group])


def mean_ranks(outcomes: Mapping[str, Outcomes], keys: Sequence[str], *, ties: str = "min") -> pd.Series:
    """The mean rank of each network by accuracy, 1 being the best: the rule of Table 20.

    Any difference counts, however small; see `rank_groups` for which are significant.

    Args:
        outcomes: Name to outcome matrix.
        keys: Rows of `Outcomes.rows`: it is ranked in each.
        ties: What equal accuracies get, as in pandas: "min" as published, "average" or "max".

    Raises:
        BadInput: The outcomes are of different images or attacks.
    """
    table = pd.DataFrame({key: {name: row.mean() for name, row in _paired(outcomes, key).items()} for key in keys})
    return mean_rank(table, ties=ties)["mean rank"]


def common_accuracy(
    outcomes: Mapping[str, Outcomes], keys: Sequence[str] | None = None, *, confidence: float = 0.95
) -> pd.DataFrame:
    """Accuracy among the images that all networks classify correctly without attack.

    It takes the difference in clean accuracy out of the comparison.

    Args:
        outcomes: Name to outcome matrix.
        keys: Rows of `Outcomes.rows`; by default those that all have, but for "clean", which is 1.
        confidence: Of the interval.

    Returns:
        One row for each network and attack: network, attack, accuracy, low and high (Wilson), n.

    Raises:
        BadInput: The outcomes are of different images or attacks, or there is no such image.
    """
    common = np.logical_and.reduce(list(_paired(outcomes, "clean").values()))
    n = int(common.sum())
    if not n:
        raise BadInput("no image is classified correctly by all networks; leave out the weakest, or evaluate more images")
    first = next(iter(outcomes.values()))
    shared = [key for key in first.rows() if key != "clean" and all(key in out.rows() for out in outcomes.values())]
    rows = []
    for key in shared if keys is None else keys:
        for name, right in _paired(outcomes, key).items():
            kept = int(right[common].sum())
            rows.append({"network": name, "attack": key, **share(kept, n, confidence)})
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class Transfer:
    """The outcomes of networks on images that were made to fool another.

    Attributes:
        names: The networks, which are sources and targets in this order.
        right: Whether a target is right without attack and on the image made on the source, (sources, targets, N) bool.
        clean: Whether a target is right without attack, (targets, N) bool.
        attack: What the images were made by.
        dataset: Its name.
        seed: Of the attack.
    """

    names: tuple[str, ...]
    right: np.ndarray
    clean: np.ndarray
    attack: AttackSpec
    dataset: str
    seed: int

    def to_frame(self, *, common: bool = False, confidence: float = 0.95) -> pd.DataFrame:
        """One row for each pair: source, target, accuracy of the target, low, high (Wilson), n.

        common: among the images that all networks classify correctly without attack. Raises BadInput when there are none.
        """
        among = self.clean.all(axis=0) if common else np.ones(self.clean.shape[1], dtype=bool)
        n = int(among.sum())
        if not n:
            raise BadInput("no image is classified correctly by all networks; leave out the weakest, or take more images")
        rows = []
        for source, row in zip(self.names, self.right, strict=True):
            for target, right in zip(self.names, row, strict=True):
                kept = int(right[among].sum())
                rows.append({"source": source, "target": target, **share(kept, n, confidence)})
        return pd.DataFrame(rows)

    def matrix(self, *, common: bool = False) -> pd.DataFrame:
        """Accuracy of each target (column) on images made on each source (row), as fractions; the diagonal is white-box."""
        table = self.to_frame(common=common).pivot(index="source", columns="target", values="accuracy")
        return table.loc[list(self.names), list(self.names)]


def transfer(
    networks: Mapping[str, nn.Module],
    dataset: str | Dataset = "cifar10",
    *,
    attack: str = "pgd",
    eps: float | str = 8 / 255,
    options: Mapping[str, Any] | None = None,
    n_examples: int | None = None,
    seed: int = 0,
    batch_size: int = 200,
    device: str | torch.device | None = None,
) -> Transfer:
    """Attack each network and ask every other: do images made on a dense network fool the pruned one, and back?

    An attack that can make all its steps does (drop_fallen=False, unless `options` say otherwise): an image that stops as soon
    as it fools its own network hardly fools another.

    Args:
        networks: Name to module from images (N, C, H, W), floats in [0, 1], to logits; evaluated in eval mode.
        dataset: A name, for its test split, or a Dataset.
        attack: A key of `gkp.attacks.ATTACKS`. It knows the true labels.
        eps: Its radius in pixels, a number or a string such as "8/255".
        options: Options of the attack.
        n_examples: The first so many images; all by default.
        seed: Of the attack.
        batch_size: Images in one pass.
        device: Where to compute; networks elsewhere are copied.

    Raises:
        BadInput: Fewer than two networks, or what `gkp.benchmark` refuses.
    """
    if len(networks) < 2:
        raise BadInput(f"transfer needs two networks or more, not {len(networks)}; give a dict of name and module")
    data = as_dataset(dataset)
    check_sizes(batch_size, seed)
    indices = torch.from_numpy(chosen_images(data, n_examples))
    run = _Carrier(_spec(attack, eps, options or {}), data, int(seed), batch_size)
    with torch.inference_mode(False), ExitStack() as stack:
        nets = {}
        for name, model in networks.items():
            stack.enter_context(evaluating(model))
            nets[name] = stack.enter_context(on_device(model, device))
            check_fit(nets[name], data)
            check_behaviour(nets[name], data)
        windows = [indices] if run.spec.together else indices.split(_WINDOW * batch_size)
        parts = [run.window(list(nets.values()), window) for window in windows]
    clean, right = (torch.cat(part, dim=-1).numpy() for part in zip(*parts, strict=True))
    return Transfer(tuple(networks), right & clean, clean, run.spec, data.name, int(seed))


@dataclass
class _Carrier:
    """Attacks windows of images on one network after the other, and asks all of them."""

    spec: AttackSpec
    data: Dataset
    seed: int
    batch_size: int

    def window(self, nets: list[nn.Module], where: Tensor) -> tuple[Tensor, Tensor]:
        """clean (networks, n) and right (networks, networks, n) bool, on the CPU."""
        clean = torch.stack([self._right(net, self._pixels(net, where), where) for net in nets])
        rows = []
        for net in nets:
            x, y = self._pixels(net, where), self.data.labels[where].to(images_home(net)[0])
            found = adversarial(
                net, x, y, self.spec, seed=self.seed, ids=where, bounds=(0.0, 1.0), batch_size=self.batch_size
            ).cpu()
            rows.append(torch.stack([self._right(other, found.to(*images_home(other)), where) for other in nets]))
        return clean, torch.stack(rows)

    def _pixels(self, net: nn.Module, where: Tensor) -> Tensor:
        device, dtype = images_home(net)
        return self.data.pixels(where, device).to(dtype)

    def _right(self, net: nn.Module, x: Tensor, where: Tensor) -> Tensor:
        predicted = torch.cat([logits_of(net, part).argmax(1) for part in x.split(self.batch_size)])
        return predicted.cpu() == self.data.labels[where].cpu()


def _spec(attack: str, eps: float | str, options: Mapping[str, Any]) -> AttackSpec:
    AttackSpec(attack, eps)  # type: ignore[arg-type]  # refuses an unknown attack
    whole = {"drop_fallen": False} if "drop_fallen" in inspect.signature(ATTACKS[attack]).parameters else {}
    return AttackSpec(attack, eps, options={**whole, **options})  # type: ignore[arg-type]


def _paired(outcomes: Mapping[str, Outcomes], key: str) -> dict[str, np.ndarray]:
    """Name -> (N,) bool, all of the same images under the same attack; BadInput otherwise."""
    if len(outcomes) < 2:
        raise BadInput(f"a comparison needs two outcome matrices or more, not {len(outcomes)}")
    (first, one), *others = outcomes.items()
    for name, out in outcomes.items():
        if key not in out.rows():
            raise BadInput(f"{name} has no outcomes under {key!r}; it has: {', '.join(out.rows())}")
    for name, out in others:
        if difference := differing(*({field: getattr(o, field) for field in _IMAGES} for o in (one, out))):
            raise BadInput(f"{first} and {name} were evaluated on different images: {difference}; evaluate one of them again")
        if not np.array_equal(one.indices, out.indices) or not np.array_equal(one.labels, out.labels):
            raise BadInput(f"{first} ({one.n} images) and {name} ({out.n}) were evaluated on different images of {one.dataset}")
        if difference := differing(_behind(one, key), _behind(out, key)):
            raise BadInput(f"{key} is not the same in {first} and {name}: {difference}; evaluate both under the same attacks")
    return {name: out.rows()[key] for name, out in outcomes.items()}


def _behind(out: Outcomes, key: str) -> dict[str, Any]:
    """The attacks that a row rests on, by name: one, or all of a radius for a worst case."""
    return {spec.key: asdict(spec) for spec in out.attacks if key in (spec.key, f"worst-case-{spec.radius}")}
