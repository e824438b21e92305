"""Tables for notebooks: every number with n and interval. Accuracies are shown in percent and saved as CSV in fractions."""

from gkp.artifact.results import load_networks, load_outcomes, row_name
from gkp.artifact.tables.accuracy import accuracies, high_frequency, mean_ranks, methods_table, strong_attacks
from gkp.artifact.tables.cost import (
    accelerations,
    costs,
    grouping_times,
    latencies,
    published_counts,
    same_function,
    speeds,
)
from gkp.artifact.tables.explained import explained
from gkp.artifact.tables.methods import kept_kernels, method_checklist
from gkp.artifact.tables.protocol import epoch_choice, label_choice, seed_spread, space_choice, transferred
from gkp.artifact.tables.table import Table, provenance
from gkp.artifact.tables.training_log import published_log

__all__ = [
    "Table",
    "accelerations",
    "accuracies",
    "costs",
    "epoch_choice",
    "explained",
    "grouping_times",
    "high_frequency",
    "kept_kernels",
    "label_choice",
    "latencies",
    "load_networks",
    "load_outcomes",
    "mean_ranks",
    "method_checklist",
    "methods_table",
    "provenance",
    "published_counts",
    "published_log",
    "row_name",
    "same_function",
    "seed_spread",
    "space_choice",
    "speeds",
    "strong_attacks",
    "transferred",
]
