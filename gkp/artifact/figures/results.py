"""Figures of measured results: bars, eps curves, seeds, accuracy against cost. One colour a family of methods, everywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from gkp.artifact.figures.figure import OWN, PALETTE, Figure, bars, families, method_colour, not_run, panels
from gkp.artifact.results import paper_name
from gkp.evaluation.outcomes import Outcomes


def robustness_curves(outcomes: Mapping[str, Outcomes], attack: str = "pgd") -> Figure:
    """Accuracy under an attack against eps, a line a network, with 95 % Wilson intervals; eps 0 is without attack.

    Args:
        outcomes: Name -> outcome matrix in the pixel protocol.
        attack: Its name before the radius.
    """
    if not outcomes:
        return not_run(f"accuracy under {attack.upper()}")
    frames = []
    for name, out in outcomes.items():
        frame = out.to_frame()
        radius = frame.index.to_series().str.extract(rf"^{re.escape(attack)}-([\d.]+)/255$")[0].astype(float)
        radius["clean"] = 0.0
        frame = frame.assign(network=name, **{"eps (of 255)": radius})[radius.notna()]
        frames.append(frame[["network", "eps (of 255)", "accuracy", "low", "high", "n"]])
    points = pd.concat(frames, ignore_index=True)
    drawing, (ax,) = panels(1, 1, 6.5, 4)
    for colour, (name, line) in zip(PALETTE, points.groupby("network", sort=False), strict=False):
        line = line.sort_values("eps (of 255)")
        style = {"color": colour, "marker": "o", "capsize": 3}
        ax.errorbar(line["eps (of 255)"], 100 * line["accuracy"], yerr=bars(line), label=paper_name(str(name)), **style)
    ax.set(xlabel="eps (of 255, $L_\\infty$)", ylabel="accuracy (%)", ylim=(0, 100))
    n = int(points["n"].iloc[0])
    ax.set_title(f"accuracy under {attack.upper()}, n = {n:,}, 95 % intervals")
    ax.legend(frameon=False)
    sns.despine(ax=ax)
    return Figure(drawing, points)


def method_bars(points: pd.DataFrame, *, attacks: Sequence[str] | None = None) -> Figure:
    """A panel for each attack, a bar for each method: accuracy at the last epoch with its 95 % Wilson interval (Figures 5-9).

    Every panel starts at 0 and has its own scale: 90 % without attack and 13 % under it leave little to see on a common one.

    Args:
        points: Those of `gkp.artifact.tables.methods_table`.
        attacks: The panels; by default all but those with true labels.
    """
    if points.empty:
        return not_run("accuracy of every method")
    attacks = attacks or [key for key in dict.fromkeys(points["attack"]) if not key.endswith("-true")]
    chosen = points[points["attack"].isin(attacks)]
    drawing, axes = panels(1, len(attacks), 3.2 * len(attacks), 0.26 * chosen["method"].nunique() + 1.4)
    for ax, attack in zip(axes, attacks, strict=True):
        shown = chosen[chosen["attack"] == attack].iloc[::-1]
        names, colours = shown["method"].map(paper_name), _colours(shown["method"])
        ax.barh(names, 100 * shown["accuracy"], xerr=bars(shown), color=colours, capsize=2)
        ax.set(title=attack, xlabel="accuracy (%)", ylim=(-0.7, len(shown) - 0.3))
        ax.tick_params(labelleft=ax is axes[0])
        sns.despine(ax=ax)
    n = int(chosen["n"].iloc[0])
    families(drawing, chosen["method"])
    drawing.suptitle(f"accuracy of every method at the last epoch, {chosen['protocol'].iloc[0]} protocol, n = {n:,}")
    return Figure(drawing, chosen.reset_index(drop=True))


def superscore_bars(points: pd.DataFrame) -> Figure:
    """The best epoch on the test set, as Figures 5-9 of the paper draw it, beside the last epoch, per method.

    Args:
        points: Those of `gkp.artifact.tables.epoch_choice`.
    """
    if points.empty:
        return not_run("best and last epoch")
    drawing, (ax,) = panels(1, 1, 8, 0.3 * len(points) + 1.4)
    shown = points.iloc[::-1]
    height, colours = np.arange(len(shown)), _colours(shown["method"])
    ends = bars(shown.rename(columns={"last": "accuracy", "last_low": "low", "last_high": "high"}))
    ax.barh(height, 100 * shown["last"], xerr=ends, color=colours, capsize=2)
    ax.barh(height, 100 * shown["gain"], left=100 * shown["last"], color=colours, alpha=0.4, hatch="//")
    ax.set_yticks(height, shown["method"].map(paper_name))
    ax.set(xlabel="accuracy (%)", ylim=(-0.7, len(shown) - 0.3))
    sns.despine(ax=ax)
    families(drawing, shown["method"])
    n = int(points["n"].iloc[0])
    drawing.suptitle(f"solid: the last epoch, n = {n:,}, 95 % intervals; hatched: what choosing the epoch on the test set adds")
    return Figure(drawing, points.reset_index(drop=True))


def pareto(points: pd.DataFrame, *, x: str, x_label: str) -> Figure:
    """Accuracy against a cost, a panel an attack, a dot a network with its 95 % interval; the line is the Pareto front.

    Named are the networks on the front, SR-GKP and the unpruned ones; the CSV names all.

    Args:
        points: One row a network and attack, with columns method, attack, accuracy, low, high, n and `x`; networks whose
            cost is NaN are left out.
        x: The column of the cost.
        x_label: The label of its axis, with the unit.
    """
    points = points.dropna(subset=[x]) if len(points) else points
    if points.empty:
        return not_run("accuracy against cost")
    attacks = [attack for attack in dict.fromkeys(points["attack"]) if attack != "clean"]
    drawing, axes = panels(1, len(attacks), 5 * len(attacks), 4)
    for ax, attack in zip(axes, attacks, strict=True):
        shown = points[points["attack"] == attack].sort_values(x)
        for row, bar, cost in zip(shown.itertuples(), bars(shown).T, shown[x], strict=True):
            ax.errorbar(cost, 100 * row.accuracy, yerr=bar[:, None], marker="o", color=method_colour(row.method), capsize=2)
        front = shown[shown["accuracy"] > shown["accuracy"].cummax().shift(fill_value=-1.0)]
        _label(ax, shown[shown["method"].isin({*front["method"], "sr-gkp"}) | shown["method"].str.startswith("unpruned")], x)
        ax.step(front[x], 100 * front["accuracy"], where="post", color="#999999", linewidth=1, zorder=0)
        counts = ", ".join(f"{n:,}" for n in dict.fromkeys(shown["n"]))
        ax.set(title=f"{attack}, n = {counts}", xlabel=x_label, ylabel="accuracy (%)")
        sns.despine(ax=ax)
    families(drawing, points["method"])
    drawing.suptitle("accuracy against cost, 95 % intervals")
    return Figure(drawing, points.reset_index(drop=True))


def latency_bars(points: pd.DataFrame) -> Figure:
    """Latency of each form of a network relative to the dense one (1), a panel a batch size.

    The bar ends at the median, and its line spans the quartile range.

    Args:
        points: Those of `gkp.artifact.tables.latencies`.
    """
    if points.empty:
        return not_run("latency")
    sizes = list(dict.fromkeys(points["batch_size"]))
    drawing, axes = panels(1, len(sizes), 5 * len(sizes), 3.5)
    forms = [form for form in dict.fromkeys(points["form"]) if form != "dense"]
    models = list(dict.fromkeys(points["model"]))
    for ax, size in zip(axes, sizes, strict=True):
        for i, (form, colour) in enumerate(zip(forms, (PALETTE[2], PALETTE[0]), strict=False)):
            shown = points[(points["batch_size"] == size) & (points["form"] == form)].set_index("model").loc[models]
            dense = shown["median"] / shown["ratio"]
            at = np.arange(len(models)) + 0.4 * (i - 0.5)
            ax.bar(at, shown["ratio"], 0.4, yerr=shown["iqr"] / dense / 2, color=colour, label=form, capsize=2)
        ax.axhline(1, color="#333333", linewidth=1)
        ax.set_xticks(range(len(models)), models)
        ax.set(title=f"batch of {size}", ylabel="time / dense")
        sns.despine(ax=ax)
    axes[0].legend(frameon=False)
    drawing.suptitle("measured latency on one thread; below 1 is faster than the dense network")
    return Figure(drawing, points.reset_index(drop=True))


def frequency_lines(points: pd.DataFrame) -> Figure:
    """Table 1 drawn: accuracy on what is left of the test set above each cut, a line a network, with 95 % intervals.

    Args:
        points: Those of `gkp.artifact.tables.high_frequency`.
    """
    if points.empty:
        return not_run("accuracy above a frequency")
    drawing, (ax,) = panels(1, 1, 7, 4.5)
    cuts = list(dict.fromkeys(points["cut"]))
    for method, line in points.groupby("method", sort=False):
        at = [cuts.index(cut) for cut in line["cut"]]
        accent = method in OWN
        ax.errorbar(
            at,
            100 * line["accuracy"],
            yerr=bars(line),
            label=paper_name(str(method)) if accent else None,
            color=method_colour(str(method)),
            linewidth=2 if accent else 0.8,
            zorder=3 if accent else 1,
            marker="o",
            capsize=2,
        )
    ax.set_xticks(range(len(cuts)), cuts)
    ax.set(xlabel="frequencies above", ylabel="accuracy (%)", title=f"n = {int(points['n'].iloc[0]):,}, 95 % intervals")
    ax.legend(frameon=False)
    sns.despine(ax=ax)
    return Figure(drawing, points.reset_index(drop=True))


def _label(ax: Axes, shown: pd.DataFrame, x: str) -> None:
    """Write the name of each dot beside it, those of similar cost spread so that none covers another."""
    low, high = ax.get_ylim()
    step, placed = 0.05 * (high - low), dict[int, float]()
    for row, cost in sorted(zip(shown.itertuples(), shown[x], strict=True), key=lambda pair: pair[0].accuracy):
        column = round(5 * float(np.log(cost)))  # within about 20 %: a name is as wide as that
        placed[column] = max(100 * row.accuracy, placed.get(column, low - step) + step)
        spot = (6, placed[column])
        style: dict[str, Any] = {"textcoords": ("offset points", "data"), "fontsize": 6, "va": "center"}
        ax.annotate(paper_name(row.method), (cost, 100 * row.accuracy), spot, **style)


def _colours(rows: Sequence[str]) -> list:
    return [method_colour(row) for row in rows]
