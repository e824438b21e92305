"""The measured time of a forward pass against the share of kernels removed, in every engine."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from gkp.artifact.figures.figure import FAMILIES, Figure, finish, log_ticks, not_run, panels
from gkp.artifact.published import ARCHITECTURES
from gkp.artifact.tables.cost import made_dense

_ENGINES: dict[str, tuple[str, Literal["-", "--", ":"]]] = {
    "gkp": ("gkp.compile", "-"),
    "ONNX Runtime": ("ONNX Runtime", "--"),
    "OpenVINO": ("OpenVINO", ":"),
}
_FORMS = {"grouped": FAMILIES["grouped kernel"], "filters": FAMILIES["filter"]}
_TICKS = (0.25, 0.35, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6)


def speed_lines(points: pd.DataFrame, model: str = "resnet56") -> Figure:
    """Time of a forward pass on one thread against the share of kernels removed, a panel for each batch size.

    Args:
        points: The points of `gkp.artifact.tables.speeds`: ratios to the dense network in the best stock engine.
        model: The architecture; where it was not measured, the first one that was.
    """
    question = "Is the small network faster?"
    if points.empty:
        return not_run(question)
    model = model if model in set(points["model"]) else points["model"].iloc[0]
    every = points[(points["model"] == model) & (points["threads"] == 1) & ~made_dense(points)]
    every = every.assign(form=every["form"].str.partition(",")[0], removed=every["form"].map(_removed))
    shown = every[every["engine"].isin(_ENGINES)]
    network = ARCHITECTURES.get(model, model)
    sizes = [size for size in (1, 128) if size in set(shown["batch_size"])] or sorted(set(shown["batch_size"]))[:1]
    drawing, axes = panels(1, len(sizes), 1.5 + 4 * len(sizes), 4.2, sharey=True)
    for ax, size in zip(axes, sizes, strict=True):
        _panel(ax, shown[shown["batch_size"] == size])
        ax.set_title(f"{network}, {'1 image' if size == 1 else f'{size} images'}")
    axes[0].set_ylabel("Time, dense in stock engines = 1")
    entries = [Line2D([], [], color=colour, marker="o", label=f"{form} removed") for form, colour in _FORMS.items()]
    entries[0].set_label("grouped kernels removed")
    entries += [Line2D([], [], color="#555555", linestyle=style, label=name) for name, style in _ENGINES.values()]
    drawing.legend(handles=entries, loc="outside lower center", ncols=3, frameon=False)
    return finish(drawing, shown, question, f"{network}: {_answer(every, sizes)}")


def _removed(form: str) -> float:
    share = form.partition(", ")[2]
    return float(Fraction(share)) if share else 0.0


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    ax.axhline(1, color="#777777", linewidth=1)
    for engine, (_, style) in _ENGINES.items():
        mine = rows[rows["engine"] == engine]
        for form, colour in _FORMS.items():
            line = mine[mine["form"].isin(["dense", form])].sort_values("removed")
            if len(line) > 1:
                ax.plot(line["removed"], line["ratio"], style, color=colour, marker="o", markersize=4)
    ticks = sorted(set(rows["removed"]))
    ax.set_xticks(ticks, [f"{16 * tick:g}/16" if tick else "dense" for tick in ticks])
    low, high = 0.9 * rows["ratio"].min(), 1.1 * rows["ratio"].max()
    ax.set(xlabel="Kernels removed; filters at the same multiply-accumulates", yscale="log", ylim=(low, high))
    log_ticks(ax.yaxis, _TICKS, low, high)
    ax.grid(axis="y", color="#eeeeee")
    sns.despine(ax=ax)


def _answer(every: pd.DataFrame, sizes: list[int]) -> str:
    """The answer, with the stock engines that are not drawn too, but for those that make grouped kernels dense."""
    rows = every[every["batch_size"].isin(sizes)]
    least = rows["removed"][rows["removed"] > 0].min()
    rows = rows[rows["removed"] == least]

    def span(form: str, stock: bool) -> str:
        mine = rows[(rows["form"] == form) & ((rows["engine"] != "gkp") == stock)]
        best = mine.groupby("batch_size")["ratio"].min()
        return f"{best.min():.2f} to {best.max():.2f}" if len(best) else "not measured"

    share = f"{16 * least:g}/16"
    return (
        f"with {share} of the kernels removed, grouped kernels take {span('grouped', True)} times the dense network's time in "
        f"the best stock engine that keeps them grouped and {span('grouped', False)} in gkp.compile; filters at the same "
        f"multiply-accumulates "
        f"{span('filters', True)} and {span('filters', False)}. One thread, medians of rounds in turn."
    )
