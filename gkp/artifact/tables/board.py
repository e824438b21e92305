"""A leaderboard of what a run evaluated: RobustBench entries, one HTML page, and the same rows as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from gkp.artifact.experiments.report import Result
from gkp.artifact.leaderboard import leaderboard as write_page
from gkp.artifact.results import STRONG, evaluations, load_networks, paper_name
from gkp.artifact.tables.table import Table, not_run
from gkp.evaluation.outcomes import Outcomes
from gkp.evaluation.robustbench.entry import entry, save_entry


def leaderboard(results: Sequence[Result]) -> Table:
    """Rank what was evaluated under attacks of its own choice, and write `build/leaderboard.html`.

    The entries themselves, in RobustBench's schema, are in `entries` beside the page; latency is not measured here (notebook
    05 does).

    Args:
        results: Finished networks and their evaluations.
    """
    entries, rows, folder = [], [], Path("build")
    for one in evaluations(results, STRONG):
        if one.network is None:
            continue
        row = one.facts["method"]
        made = entry(
            Outcomes.load(one.result.folder),
            load_networks([one.network], row)[row],
            name=paper_name(row),
            evaluated=one.network["model_sha256"],
            venue="this artifact",
            latency_seconds=None,
        )
        save_entry(made, folder / "entries", model_id=row)
        entries.append(made)
        rows.append(row)
    if not entries:
        return not_run("Leaderboard")
    write_page(entries, folder / "leaderboard.html")
    points = pd.DataFrame(
        [
            {
                "method": row,
                "eps": made["eps"],
                "clean": made["clean_acc"],
                "autoattack": made["autoattack_acc"],
                "best known": made.get("external", made["autoattack_acc"]),
                "MACs (M)": round(made["paper_macs"] / 1e6, 3),
                "params (M)": round(made["parameters"] / 1e6, 3),
                "n": made["n"],
                "seed": made["seed"],
            }
            for row, made in zip(rows, entries, strict=True)
        ]
    )
    shown = points.fillna("").set_index("method").rename(index=paper_name)
    shown = shown.sort_values(["eps", "best known"], ascending=[True, False])
    return Table("Leaderboard, accuracy in percent, best first at each eps", shown, points)
