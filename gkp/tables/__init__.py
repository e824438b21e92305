"""Tables for notebooks: every number with its n and interval, accuracies in percent, saved as CSV in fractions."""

from gkp.tables.accuracy import (
    accuracies,
    high_frequency,
    load_networks,
    load_outcomes,
    mean_ranks,
    methods_table,
    row_name,
    strong_attacks,
)
from gkp.tables.board import leaderboard
from gkp.tables.checklist import method_checklist
from gkp.tables.cost import costs, grouping_times, latencies, published_counts
from gkp.tables.foot import provenance
from gkp.tables.kept import kept_kernels
from gkp.tables.protocol import epoch_choice, label_choice, seed_spread, space_choice
from gkp.tables.table import Table

__all__ = [
    "Table",
    "accuracies",
    "costs",
    "epoch_choice",
    "grouping_times",
    "high_frequency",
    "kept_kernels",
    "label_choice",
    "latencies",
    "leaderboard",
    "load_networks",
    "load_outcomes",
    "mean_ranks",
    "method_checklist",
    "methods_table",
    "provenance",
    "published_counts",
    "row_name",
    "seed_spread",
    "space_choice",
    "strong_attacks",
]
