"""Table 8, the properties of all methods in the paper and here; and which kernels each method keeps."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gkp.artifact.experiments.kinds import PruneCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import published
from gkp.artifact.results import load_networks, net_seed, of_one_network, paper_name, row_name
from gkp.artifact.tables.table import Table, by_method, not_run, percent, titled
from gkp.errors import BadInput
from gkp.pruning.overlap import overlap
from gkp.pruning.plan import plan_of
from gkp.pruning.registry import MethodInfo, methods


def method_checklist() -> Table:
    """Table 8: type, procedure and needs of every method, as printed and as registered; further methods of ours below."""
    printed, known = published(8), methods()
    rows = [
        {
            "method": row["method"],
            "type, published": row["type"],
            "procedure, published": row["procedure"],
            "set-up, published": row["special_setup"],
            **_registered(known.get(row["name_here"])),
        }
        for row in printed.to_dict("records")
    ]
    rows += [{"method": name, **_registered(known[name])} for name in sorted(set(known) - set(printed["name_here"]))]
    columns = [f"{name}, {where}" for name in ("type", "procedure") for where in ("published", "here")]
    columns = ["method", *columns, "set-up, published", "needs, here", "fidelity"]
    frame = pd.DataFrame(rows).fillna("")[columns]
    return Table("Table 8 · method checklist, published and here", frame.set_index("method").rename(index=paper_name), frame)


def _registered(info: MethodInfo | None) -> dict[str, str]:
    """The columns of the checklist that come from the registry."""
    if info is None:
        return {"type, here": "not implemented"}
    needs = ", ".join(info.needs)
    return {"type, here": info.family, "procedure, here": info.procedure, "needs, here": needs, "fidelity": info.fidelity}


def kept_kernels(results: Sequence[Result], *, against: str = "sr-gkp") -> Table:
    """The filters of each network that keep other kernels than those of one network, and the share of kernels in common.

    Args:
        results: Finished networks, of which those pruned by grouped kernels at the same rate are shown, one seed of each.
        against: The `row_name` of the network to compare with.

    Returns:
        A table whose points have "filters", "differing" and "share" (see `gkp.pruning.overlap`), n and seed.
    """
    results, alone = of_one_network(results)
    title = titled(f"Filters that keep other kernels than by {paper_name(against)}", alone)
    pruned = [(result, result.cell) for result in results if isinstance(result.cell, PruneCell)]
    rate = next((cell.rate for _, cell in pruned if row_name(cell) == against), None)
    pruned = [(result, cell) for result, cell in pruned if cell.rate == rate]
    seeds = {row_name(cell): net_seed(cell) for _, cell in reversed(pruned)}
    names = list(dict.fromkeys(row_name(cell) for _, cell in pruned))
    plans = {name: plan_of(net) for name, net in load_networks([result for result, _ in pruned], *names).items()}
    points = []
    for name in names:
        try:
            found = overlap(plans[against], plans[name])
        except BadInput:  # it removes whole filters, or nothing
            continue
        facts = {"filters": found.filters, "differing": found.differing, "share": found.share, "n": found.filters}
        points.append({"method": name, **facts, "seed": seeds[name]})
    if rate is None or not points:
        return not_run(title)
    frame = pd.DataFrame(points)
    others = [f"{differing} of {n}" for differing, n in zip(frame["differing"], frame["filters"], strict=True)]
    shown = {"filters that keep others": others, "kernels in common": percent(frame["share"], "{:.1f} %")}
    by_chance = f"{100 * (1 - rate):.0f} % of the kernels would be common by chance"
    return Table(f"{title} · n = {points[0]['n']:,} filters, {by_chance}", by_method(shown, frame["method"]), frame)
