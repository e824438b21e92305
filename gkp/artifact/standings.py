"""The leaderboard of finished experiments: entries, HTML page, and table.

All networks of one radius were evaluated under the same attacks on the same images. The radii are small, because networks that
are not trained for robustness have no accuracy left at 8/255. Cost: a few seconds for 24 networks, which are loaded to count
their parameters.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from gkp.artifact.effects import UNPRUNED, radii_of
from gkp.artifact.experiments.entry import network_in
from gkp.artifact.experiments.kinds import LatencyCell, Network, PruneCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.figures.figure import FAMILIES, family_of
from gkp.artifact.leaderboard import grouped, leaderboard
from gkp.artifact.results import (
    STRONG,
    Evaluation,
    attack_name,
    evaluations,
    images,
    of_one_network,
    outcomes_of,
    paper_name,
    row_name,
    sentences,
)
from gkp.artifact.tables.table import Table, marked, not_run
from gkp.checkpoints import load_model
from gkp.evaluation.robustbench.entry import entry, save_entry
from gkp.networks.fingerprint import state_sha256

RADII = ("0.5/255", "1/255")
PARTS = ("precision", "pixel", STRONG)  # the roles of evaluations that may rank networks
_KINDS = ("nothing", *FAMILIES, "")  # what is removed, in the order of the table
_TITLE = "Leaderboard, accuracy in percent"


def of_results(results: Sequence[Result]) -> Table:
    """Rank finished networks at `RADII`, or at the two smallest radii evaluated, and write `build/leaderboard.html`.

    The entries, in RobustBench's schema, are written to `build/entries`. Results of stronger attacks on fewer images are in the
    footnotes of entries; the legend lists what was not run.

    Args:
        results: Finished networks, their evaluations and latencies; of several seeds the first is taken, and so is of several
            architectures.
    """
    results, alone = of_one_network(results)
    boards = {radius: found for radius in _radii(results) if len(found := _at(results, radius))}
    if not boards:
        return not_run(_TITLE)
    times, folder = _latencies(results), Path("build")
    nets = {one.net.hash: one.network for found in boards.values() for one in found.values() if one.network is not None}
    loaded = {key: load_model(net.file(network_in(net.folder))).eval() for key, net in nets.items()}
    entries = []
    for radius, found in boards.items():
        for row, one in found.items():
            facts = {"latency": times.get(one.net.hash), "removes": family_of(row) or "not known"}
            made = _entry(one, loaded[one.net.hash], radius, _stronger(results, one, radius)) | facts
            save_entry(made, folder / "entries", model_id=row)
            entries.append(made)
    note = sentences(alone, _note(results, boards))
    leaderboard(entries, folder / "leaderboard.html", title="The networks of this artifact under attack", note=note)
    rows = [row for found in boards.values() for row in found]
    points = pd.DataFrame([_point(made, row) for made, row in zip(entries, rows, strict=True)])
    return _table(points, _ranks(entries), note)


def _radii(results: Sequence[Result]) -> list[str]:
    there = radii_of(results, *PARTS)
    return [radius for radius in RADII if radius in there] or there[:2]


def _at(results: Sequence[Result], radius: str) -> dict[str, Evaluation]:
    """Row -> its evaluation at a radius, all of one role: the one with most networks, then with most images."""
    found: list[dict[str, Evaluation]] = []
    for part in PARTS:
        rows: dict[str, Evaluation] = {}
        for one in evaluations(results, part):
            if one.network is not None and f"worst-case-{radius}" in one.result["accuracy"]:
                rows.setdefault(one.facts["method"], one)
        found.append(rows)
    return max(found, key=lambda rows: (len(rows), min((one.facts["n"] for one in rows.values()), default=0)))


def _entry(one: Evaluation, net: nn.Module, radius: str, footnote: str) -> dict[str, Any]:
    assert one.network is not None  # ensured by `_at`
    out = outcomes_of(one.result)
    is_compact = out.model_sha256 == state_sha256(net)  # the fast engine runs grouped convolutions, PyTorch the masked twin
    return entry(
        out,
        net,
        eps=radius,
        name=paper_name(one.facts["method"]),
        evaluated=None if is_compact else one.network["model_sha256"],
        input_shape=one.network["input_shape"],
        venue="this artifact",
        footnote=footnote,
        latency_seconds=None,
    )


def _stronger(results: Sequence[Result], one: Evaluation, radius: str) -> str:
    """The accuracies under strong attacks at this radius, for the footnote."""
    key, told = f"worst-case-{radius}", []
    for other in _others(results, one, radius):
        low, high = (100 * end for end in other.result["interval"][key])
        accuracy = 100 * other.result["accuracy"][key]
        told.append(f"{_attacks(other, radius)} on {other.result['n']:,} images: {accuracy:.1f} [{low:.1f}, {high:.1f}].")
    return " ".join(told)


def _latencies(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Hash of a network -> latency for the smallest batch; unpruned networks get the median of all dense measurements."""
    found: dict[str, dict[str, Any]] = {}
    dense: list[float] = []
    for result in results:
        if isinstance(result.cell, LatencyCell) and result.cell.engine == "torch":
            row = min(result["latency"], key=lambda row: row["batch_size"])
            facts = {"threads": result["threads"], "batch_size": row["batch_size"]}
            how = f"median of {row['rounds']} rounds, in turn with the dense network"
            facts |= {"machine": result.run.get("hardware", {}).get("processor", ""), "how": how}
            found[result.cell.net.hash] = {"seconds": row["compact"], "relative": row["ratio"], **facts}
            dense.append(row["dense"])
    for result in results if dense else ():
        if isinstance(result.cell, Network | PruneCell) and row_name(result.cell) in UNPRUNED:
            facts = {**next(iter(found.values())), "how": f"median of {len(dense)} measurements of the dense network"}
            found.setdefault(result.cell.hash, {**facts, "seconds": statistics.median(dense), "relative": 1.0})
    return found


def _note(results: Sequence[Result], boards: Mapping[str, Mapping[str, Evaluation]]) -> str:
    """The legend: networks, attacks and images at each radius, how much lower stronger attacks are, and what was not run."""
    said = []
    for radius, found in boards.items():
        first = next(iter(found.values()))
        said.append(f"At {radius}: {len(found)} networks, {_attacks(first, radius)}, {first.facts['n']:,} images.")
        stronger: dict[str, list[float]] = {}
        for one in found.values():
            for other in _others(results, one, radius):
                stronger.setdefault(_attacks(other, radius), []).append(_lost(one, other, radius))
        for named, lost in stronger.items():
            mean, most = 100 * np.mean(lost), 100 * max(lost)
            said.append(
                f"{named}, which is stronger, leaves {mean:.1f} points less of the images that both saw, {most:.1f} at most "
                f"({len(lost)} of {len(found)} networks)."
            )
        if first.cell.part != "precision":
            there = {one.net.hash for one in evaluations(results, "precision")} & {one.net.hash for one in found.values()}
            said.append(f"On all test images: {f'finished for {len(there)} of {len(found)} networks' if there else 'not run'}.")
    met = any(f"autoattack-{radius}" in one.result["accuracy"] for radius in boards for one in evaluations(results, STRONG))
    return " ".join(said if met else [*said, "AutoAttack: not run at these radii."])


def _others(results: Sequence[Result], one: Evaluation, radius: str) -> list[Evaluation]:
    """Evaluations of the same network under strong attacks at this radius."""
    return [
        other
        for other in evaluations(results, STRONG)
        if other.net.hash == one.net.hash and other.cell != one.cell and f"worst-case-{radius}" in other.result["accuracy"]
    ]


def _lost(one: Evaluation, other: Evaluation, radius: str) -> float:
    """The loss of accuracy under the other attacks on the images of both evaluations, a fraction."""
    ours, theirs = (outcomes_of(each.result) for each in (one, other))
    both, here, there = np.intersect1d(ours.indices, theirs.indices, return_indices=True)
    key = f"worst-case-{radius}"
    return float(ours.rows()[key][here].mean() - theirs.rows()[key][there].mean()) if len(both) else 0.0


def _attacks(one: Evaluation, radius: str) -> str:
    keys = [key for key in one.result["accuracy"] if key.endswith(f"-{radius}") and not key.startswith("worst-case")]
    return " and ".join(attack_name(key, "pixel").removesuffix(f" {radius}") for key in keys)


def _ranks(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[int, int]]:
    """(name, eps) -> rank, and the best rank that is possible given the intervals."""
    return {(row.entry["name"], group.eps): (row.rank, row.best) for group in grouped(entries) for row in group.rows}


def _point(made: Mapping[str, Any], row: str) -> dict[str, Any]:
    best = made.get("external", made["autoattack_acc"])
    low, high = made["interval"]["best_known"]
    accuracies = {
        "clean": made["clean_acc"],
        "autoattack": made["autoattack_acc"],
        "best known": best,
        "low": low,
        "high": high,
    }
    millions = {"MACs (M)": made["paper_macs"], "params (M)": made["parameters"]}
    cost = {name: round(count / 1e6, 3) for name, count in millions.items()}
    time = {"time": (made["latency"] or {}).get("relative")}
    return {
        **{"method": row, "removes": made["removes"], "eps": made["eps"]},
        **{**accuracies, **cost, **time, "n": made["n"], "seed": made["seed"]},
    }


def _table(points: pd.DataFrame, ranks: Mapping[tuple[str, str], tuple[int, int]], note: str) -> Table:
    """The table: methods by what they remove, the most robust first, with the best two of each radius marked."""
    first = points.drop_duplicates("method").copy()
    first["kind"] = first["removes"].map(lambda kind: _KINDS.index(kind) if kind in _KINDS else len(_KINDS))
    first = first.assign(robust=first["best known"].astype(float)).sort_values(["kind", "robust"], ascending=[True, False])
    rows = first.set_index("method")
    shown = pd.DataFrame({"removes": rows["removes"], "Benign": rows["clean"]})
    for radius in points["eps"].unique():
        at = points[points["eps"] == radius].set_index("method")
        shown[f"Best known {radius}"] = [
            _marked(at.loc[row], *ranks[paper_name(row), radius]) if row in at.index else "not run" for row in rows.index
        ]
    shown["params (M)"], shown["MACs (M)"] = rows["params (M)"].map("{:.3f}".format), rows["MACs (M)"].map("{:.3f}".format)
    shown["time, dense = 1"] = ["not run" if pd.isna(time) else f"{time:.2f}" for time in rows["time"]]
    legend = f"**best**, _second best_, = no worse than the best as far as the intervals tell; [95 % intervals]. {note}"
    title = f"{_TITLE}, by what is removed · {images(points)}"
    return Table(title, shown.rename(index=paper_name), points, legend=legend, marked=True)


def _marked(point: pd.Series, rank: int, best: int) -> str:
    return marked(float(point["best known"]), point["low"], point["high"], rank=rank, tied=rank > 1 and best == 1)
