"""Table 8: what the paper says of its methods, and what the registry says of ours."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gkp.artifact.experiments.kinds import PruneCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import published
from gkp.artifact.results import load_networks, net_seed, row_name
from gkp.artifact.tables.table import Table, not_run
from gkp.errors import BadInput
from gkp.pruning.overlap import overlap
from gkp.pruning.plan import plan_of
from gkp.pruning.registry import methods


def method_checklist() -> Table:
    """Table 8, as published and as the registry has it: type, procedure and needs of every method, ours added below."""
    printed = published(8)
    known = methods()
    rows = []
    for row in printed.to_dict("records"):
        info = known.get(row["name_here"])
        rows.append(
            {
                "method": row["method"],
                "type, published": row["type"],
                "type, here": info.family if info else "not implemented",
                "procedure, published": row["procedure"],
                "procedure, here": info.procedure if info else "",
                "set-up, published": row["special_setup"],
                "needs, here": ", ".join(info.needs) if info else "",
                "fidelity": info.fidelity if info else "",
            }
        )
    for name in sorted(set(known) - set(printed["name_here"])):
        info = known[name]
        rows.append(
            {
                "method": name,
                "type, here": info.family,
                "procedure, here": info.procedure,
                "needs, here": ", ".join(info.needs),
                "fidelity": info.fidelity,
            }
        )
    frame = pd.DataFrame(rows).fillna("")
    return Table("Table 8 · method checklist, published and here", frame.set_index("method"), frame)


def kept_kernels(results: Sequence[Result], *, against: str = "sr-gkp") -> Table:
    """Filter by filter, how many networks keep other kernels than the one that tables call `against`, and how many in common.

    results: finished networks, of which those pruned by grouped kernels at its rate are shown (of several seeds the first).
    What fine-tuning does has no part in it. points: "filters", "differing", "share" of `gkp.pruning.overlap`, n and seed.
    """
    title = f"Filters that keep other kernels than by {against}"
    cells = [result.cell for result in results if isinstance(result.cell, PruneCell)]
    rates = {row_name(cell): cell.rate for cell in reversed(cells)}
    names = [name for name in dict.fromkeys(map(row_name, cells)) if rates[name] == rates.get(against)]
    plans = {name: plan_of(net) for name, net in load_networks(results, *names).items()}
    points = []
    for name in names if against in names else ():
        try:
            found = overlap(plans[against], plans[name])
        except BadInput:  # whole filters go from that one, or nothing does
            continue
        facts = {"filters": found.filters, "differing": found.differing, "share": found.share, "n": found.filters}
        points.append({"method": name, **facts, "seed": next(net_seed(cell) for cell in cells if row_name(cell) == name)})
    if not points:
        return not_run(title)
    frame = pd.DataFrame(points)
    shown = pd.DataFrame(
        {
            "method": frame["method"],
            "filters that keep others": [f"{row.differing} of {row.filters}" for row in frame.itertuples()],
            "kernels in common": (100 * frame["share"]).map("{:.1f} %".format),
        }
    )
    by_chance = f"{100 * (1 - rates[against]):.0f} % of the kernels would be common by chance"
    return Table(f"{title} · n = {points[0]['n']:,} filters, {by_chance}", shown.set_index("method"), frame)
