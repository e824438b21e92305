"""Figures in one style, each with the points it was drawn from.

A drawing returns a `Figure`: show it in a notebook, or `save` it as SVG + PNG + CSV, with its question and answer as text.
Colours: seaborn's colour-blind palette; error bars are always shown where there is an interval.
"""

from gkp.artifact.figures.effects import forest, trade_off
from gkp.artifact.figures.figure import PALETTE, Figure, method_colour
from gkp.artifact.figures.frequency import reconstructions
from gkp.artifact.figures.mechanism import beam, granularities, snaking
from gkp.artifact.figures.results import (
    frequency_lines,
    latency_bars,
    method_bars,
    pareto,
    robustness_curves,
    superscore_bars,
)

__all__ = [
    "PALETTE",
    "Figure",
    "beam",
    "forest",
    "frequency_lines",
    "granularities",
    "latency_bars",
    "method_bars",
    "method_colour",
    "pareto",
    "reconstructions",
    "robustness_curves",
    "snaking",
    "superscore_bars",
    "trade_off",
]
