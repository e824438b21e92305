"""A leaderboard of what a run evaluated: RobustBench entries, one HTML page, and the same rows as a table."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gkp.artifact.experiments.kinds import EvaluateCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.leaderboard import leaderboard as write_page
from gkp.artifact.results import load_networks, row_name
from gkp.artifact.tables.table import Table, not_run
from gkp.evaluation.outcomes import Outcomes
from gkp.evaluation.robustbench.entry import entry, save_entry
from gkp.files import output_folder


def leaderboard(results: Sequence[Result]) -> Table:
    """What was evaluated under attacks of its own choice, ranked; `leaderboard.html` now stands in the output folder.

    results: networks and their evaluations. The entries themselves, in RobustBench's schema, are in `entries` beside the page;
    latency is not measured here (notebook 05 does).
    """
    entries = []
    networks = {result.cell.hash: result for result in results if not isinstance(result.cell, EvaluateCell)}
    folder = output_folder()
    for result in results:
        cell = result.cell
        if not isinstance(cell, EvaluateCell) or not cell.attacks or cell.net.hash not in networks:
            continue
        network, name = networks[cell.net.hash], row_name(cell.net)
        made = entry(
            Outcomes.load(result.folder),
            load_networks([network], name)[name],
            name=name,
            evaluated=network["model_sha256"],
            venue="this artifact",
            latency_seconds=None,
        )
        save_entry(made, folder / "entries")
        entries.append(made)
    if not entries:
        return not_run("Leaderboard")
    write_page(entries, folder / "leaderboard.html")
    points = pd.DataFrame(
        [
            {
                "method": made["name"],
                "eps": made["eps"],
                "clean": made["clean_acc"],
                "autoattack": made["autoattack_acc"],
                "best known": made.get("external", made["autoattack_acc"]),
                "MACs (M)": round(made["paper_macs"] / 1e6, 3),
                "params (M)": round(made["parameters"] / 1e6, 3),
                "n": made["n"],
                "seed": made["seed"],
            }
            for made in entries
        ]
    )
    shown = points.fillna("").set_index("method").sort_values(["eps", "best known"], ascending=[True, False])
    return Table("Leaderboard, accuracy in percent, best first at each eps", shown, points)
