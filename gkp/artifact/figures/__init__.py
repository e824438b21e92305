"""Figures in one style, each with the points it was drawn from.

A drawing returns a `Figure`: show it in a notebook, or `save` it as SVG + PNG + CSV, with its question and answer as text.
Colours: seaborn's colour-blind palette; error bars are always shown where there is an interval.
"""

from gkp.artifact.figures.effects import forest, trade_off
from gkp.artifact.figures.explained import explained
from gkp.artifact.figures.figure import PALETTE, Figure, method_colour
from gkp.artifact.figures.frequency import reconstructions
from gkp.artifact.figures.mechanism import beam, granularities, snaking
from gkp.artifact.figures.protocol import order_by_epochs, protocols, rates
from gkp.artifact.figures.results import (
    frequency_dots,
    latency_dots,
    method_dots,
    pareto,
    robustness_curves,
    superscore_dots,
)
from gkp.artifact.figures.speed import speed_lines
from gkp.artifact.figures.training_log import published_log

__all__ = [
    "PALETTE",
    "Figure",
    "beam",
    "explained",
    "forest",
    "frequency_dots",
    "granularities",
    "latency_dots",
    "method_colour",
    "method_dots",
    "order_by_epochs",
    "pareto",
    "protocols",
    "published_log",
    "rates",
    "reconstructions",
    "robustness_curves",
    "snaking",
    "speed_lines",
    "superscore_dots",
    "trade_off",
]
