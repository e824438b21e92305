"""Figures of measured results: dots with intervals for each method, curves over radii, latency, accuracy against cost.

Axes are limited to where most values lie; outliers are written at the edge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.lines import Line2D

from gkp.artifact.effects import UNPRUNED, over_seeds
from gkp.artifact.figures.figure import (
    PALETTE,
    Figure,
    bars,
    families,
    finish,
    label_dots,
    log_ticks,
    method_colour,
    near,
    not_run,
    panels,
)
from gkp.artifact.published import ARCHITECTURES
from gkp.artifact.results import CONTINUED, SR, alone, attack_name, images, paper_name, seeds_of, sentences
from gkp.errors import BadInput
from gkp.evaluation.outcomes import Outcomes
from gkp.evaluation.statistics import LEVEL

_FORMS = {"grouped": PALETTE[2], "filters removed": PALETTE[0]}


def robustness_curves(outcomes: Mapping[str, Outcomes], attack: str = "pgd") -> Figure:
    """Accuracy under an attack against eps, a line for each network, with 95 % Wilson intervals; eps 0 is without attack.

    Args:
        outcomes: Name -> outcome matrix in the pixel protocol.
        attack: The name of the attack, without its radius.
    """
    question = f"How does accuracy fall with the radius of {attack.upper()}?"
    if not outcomes:
        return not_run(question)
    frames = []
    for name, out in outcomes.items():
        frame = out.to_frame()
        radius = frame.index.to_series().str.extract(rf"^{re.escape(attack)}-([\d.]+)/255$")[0].astype(float)
        radius["clean"] = 0.0
        frame = frame.assign(network=name, **{"eps (of 255)": radius})[radius.notna()]
        frames.append(frame[["network", "eps (of 255)", "accuracy", "low", "high", "n"]])
    points = pd.concat(frames, ignore_index=True)
    drawing, (ax,) = panels(1, 1, 6.5, 4)
    told: list[str] = []
    used: list[Any] = []
    for name, line in points.groupby("network", sort=False):
        line = line.sort_values("eps (of 255)")
        used.append(method_colour(str(name).lower().removesuffix(", fine-tuned") if name != CONTINUED else CONTINUED))
        style: dict[str, Any] = {"color": used[-1], "marker": "o", "capsize": 3}
        style["linestyle"] = ("-", "--", ":", "-.")[(used.count(used[-1]) - 1) % 4]  # for networks of the same colour
        ax.errorbar(line["eps (of 255)"], 100 * line["accuracy"], yerr=bars(line), label=paper_name(str(name)), **style)
        gone = line[line["accuracy"] < line["accuracy"].iloc[0] / 2]["eps (of 255)"]
        told.append(f"{paper_name(str(name))} {f'at {gone.iloc[0]:g}/255' if len(gone) else 'at no radius shown'}")
    ax.set(xlabel="eps (of 255, $L_\\infty$)", ylabel="Accuracy (%)", ylim=(0, 100))
    ax.legend(frameon=False)
    sns.despine(ax=ax)
    answer = f"Less than half of the accuracy without attack is left: {'; '.join(told)}. {_bars_of(points)}"
    return finish(drawing, points, question, answer)


def method_dots(
    points: pd.DataFrame, *, attacks: Sequence[str] | None = None, question: str = "How accurate and how robust is each method?"
) -> Figure:
    """Accuracy at the last epoch with 95 % intervals, a panel for each attack and a dot for each method (Figures 5-9).

    Unpruned networks come first, then the methods by their mean accuracy under the attacks.

    Args:
        points: The points of `gkp.artifact.tables.methods_table`, of one rate and schedule; of several architectures the first
            is shown.
        attacks: The panels; None for all attacks without true labels.
        question: The title.

    Raises:
        BadInput: A method has several rates or schedules.
    """
    if points.empty:
        return not_run(question)
    models = list(dict.fromkeys(points["model"]))
    means = over_seeds(points[points["model"] == models[0]])
    if means.duplicated(["method", "attack"]).any():
        raise BadInput("each method has one dot, and there are several rates or schedules of one; give the points of one")
    chosen = list(attacks or [key for key in dict.fromkeys(means["attack"]) if not key.endswith("-true")])
    means = means[means["attack"].isin(chosen)]
    protocol = str(means["protocol"].iloc[0])
    drawing, _ = _grid_of_dots(means, "attack", {attack: attack_name(attack, protocol) for attack in chosen})
    return finish(drawing, means, question, sentences(_best_of(means, chosen), alone(models)))


def superscore_dots(points: pd.DataFrame) -> Figure:
    """The best epoch on the test set, as in Figures 5-9 of the paper, and the last epoch of each method, means over seeds.

    Args:
        points: The points of `gkp.artifact.tables.epoch_choice`.
    """
    question = "What does choosing the epoch on the test set add?"
    if points.empty:
        return not_run(question)
    tuned = points[~points["method"].str.endswith("shape from scratch")]  # which were not pruned
    renamed = tuned.rename(columns={"last": "accuracy", "last_low": "low", "last_high": "high"})
    grouped = renamed.groupby("method", sort=False)
    means = grouped[["accuracy", "low", "high", "best", "gain"]].mean()
    means = means.sort_values("accuracy", ascending=False, kind="stable")
    drawing, (ax,) = panels(1, 1, 7, 0.235 * len(means) + 1.8)
    heights = [-at for at in range(len(means))]
    ax.hlines(heights, 100 * means["accuracy"], 100 * means["best"], colors="#bbbbbb", zorder=0)
    _dots(ax, means, heights, whole=True)
    ax.scatter(100 * means["best"], heights, marker=">", s=22, c=[method_colour(row) for row in means.index], zorder=3)
    ends, tips = means[["accuracy", "low", "high"]].to_numpy(), means["best"]
    ax.set_xlim(100 * ends.min() - 0.4, 100 * max(ends.max(), tips.max()) + 0.4)
    ax.set_yticks(heights, [paper_name(row) for row in means.index])
    metric = attack_name(str(points["metric"].iloc[0]), "paper")
    ax.set(xlabel=f"{metric}, accuracy (%)", ylim=(0.7 - len(means), 0.7))
    best = Line2D([], [], color="#888888", marker=">", linestyle="", label="best epoch on the test set")
    families(drawing, means.index, best)
    gains = 100 * means["gain"]
    least, most = (f"{gains[row]:.1f} ({paper_name(str(row))})" for row in (gains.idxmin(), gains.idxmax()))
    agreed = means["accuracy"].corr(means["best"], method="spearman")
    answer = (
        f"Under {metric}, {gains.mean():.1f} points on average, between {least} and {most}; the orders by last and by best "
        f"epoch have rank correlation {agreed:+.2f}. Dot: last epoch, mean over {seeds_of(grouped.size())}. Bars: 95 %, of the "
        f"images alone, {images(points)}."
    )
    return finish(drawing, points, question, answer)


def pareto(points: pd.DataFrame, *, costs: Mapping[str, str], question: str = "What does robustness cost?") -> Figure:
    """Accuracy with 95 % intervals against costs, a panel for each attack and cost; the line is the Pareto front.

    Args:
        points: A row for each network and attack, with columns method, attack, accuracy, low, high, n and those of costs.
            Networks are left out where the cost is NaN, and attacks under which all accuracies are 0.
        costs: Column of a cost -> label of its axis, with the unit.
        question: The title.
    """
    every, points = points, points.dropna(subset=list(costs), how="all") if len(points) else points
    most = points.groupby("attack", sort=False)["accuracy"].max() if len(points) else {}
    attacks = [attack for attack, accuracy in dict(most).items() if attack != "clean" and accuracy > 0]
    chosen = {
        (attack, cost): shown.sort_values([cost, "accuracy"], ascending=[True, False])
        for attack in attacks
        for cost in costs
        if len(shown := points[points["attack"] == attack].dropna(subset=[cost]))
    }
    if not chosen:
        return not_run(question)
    drawing, axes = panels(1, len(chosen), max(7, 5.5 * len(chosen)), 5.2)
    fronts = {}
    for ax, (panel, shown) in zip(axes, chosen.items(), strict=True):
        attack, x = panel
        for row, bar, at in zip(shown.itertuples(), bars(shown).T, shown[x], strict=True):
            colour = method_colour(row.method)
            style: dict[str, Any] = {"marker": "o", "color": colour, "ecolor": (colour, 0.4), "elinewidth": 1}
            ax.errorbar(at, 100 * row.accuracy, yerr=bar[:, None], **style)
        front = fronts[panel] = shown[shown["accuracy"] > shown["accuracy"].cummax().shift(fill_value=-1.0)]
        ax.step(front[x], 100 * front["accuracy"], where="post", color="#999999", linewidth=1, zorder=0)
        title = f"{attack_name(attack, 'pixel')}, {images(shown)}"
        ax.set(title=title, xlabel=costs[x], ylabel="Accuracy (%)", xscale="log")
        log_ticks(ax.xaxis, (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100), shown[x].min(), shown[x].max())
        sns.despine(ax=ax)
    families(drawing, points["method"])
    told = []
    for (attack, x), front in fronts.items():
        of = f", {costs[x].partition(',')[0]}" if len(costs) > 1 else ""
        told.append(f"{attack_name(attack, 'pixel')}{of}: {', '.join(map(paper_name, front['method']))}")
    seeds = seeds_of(points.groupby("method")["seed"].nunique())
    answer = f"Not dominated, from the cheapest on: {'; '.join(told)}. The grey line is this front; bars: 95 %; {seeds}."
    lacking = every[every["attack"].isin(attacks)].groupby("method")[list(costs)].agg(lambda column: column.isna().all()).sum()
    missing = [f"{n} of {every['method'].nunique()} networks ({costs[x].partition(',')[0]})" for x, n in lacking.items() if n]
    answer += f" Not measured, and left out: {', '.join(missing)}." if missing else ""
    figure = finish(drawing, points, question, answer)
    drawing.draw_without_rendering()
    for ax, (panel, shown) in zip(axes, chosen.items(), strict=True):
        first = shown["method"].isin({*fronts[panel]["method"], SR, *UNPRUNED}).sort_values(ascending=False, kind="stable")
        shown = shown.loc[first.index]
        label_dots(ax, shown[panel[1]], 100 * shown["accuracy"], [paper_name(row) for row in shown["method"]])
    return figure


def latency_dots(points: pd.DataFrame) -> Figure:
    """Latency of each form of a network relative to the dense one, median and quartile range, a panel for each batch size.

    Args:
        points: The points of `gkp.artifact.tables.latencies`.
    """
    question = "Is the pruned network faster in PyTorch?"
    if points.empty:
        return not_run(question)
    sizes, models = (list(dict.fromkeys(points[name])) for name in ("batch_size", "model"))
    shown = points[points["form"] != "dense"]
    drawing, axes = panels(1, len(sizes), 1.5 + 4 * len(sizes), 0.45 * len(models) + 1.8, sharey=True)
    for ax, size in zip(axes, sizes, strict=True):
        for row in shown[shown["batch_size"] == size].to_dict("records"):
            half = row["iqr"] / (row["median"] / row["ratio"]) / 2
            at, colour = -models.index(row["model"]), _FORMS.get(row["form"], "#aaaaaa")
            ax.errorbar(row["ratio"], at, xerr=half, marker="o", color=colour, capsize=2)
        ax.axvline(1, color="#777777", linewidth=1)
        ax.set(title=f"Batch of {size}", xlabel="Time, dense network = 1 (log scale)", xscale="log")
        ax.set_xlim(min(0.6, 0.9 * shown["ratio"].min()), max(1.3, 1.15 * shown["ratio"].max()))
        log_ticks(ax.xaxis, (0.5, 0.7, 1, 1.5, 2, 3, 5, 10), *ax.get_xlim())
        ax.grid(axis="x", color="#eeeeee")
        sns.despine(ax=ax, left=True)
    axes[0].set_yticks(range(0, -len(models), -1), [ARCHITECTURES.get(model, model) for model in models])
    axes[0].set_ylim(0.6 - len(models), 0.6)
    entries = [Line2D([], [], color=_FORMS[form], marker="o", linestyle="", label=form) for form in _FORMS]
    drawing.legend(handles=entries, loc="outside lower center", ncols=2, frameon=False)
    spans = {form: shown.loc[shown["form"] == form, "ratio"] for form in dict.fromkeys(shown["form"])}
    told = [f"{form}, {rows.min():.2f} to {rows.max():.2f} times the dense network's time" for form, rows in spans.items()]
    faster = [form for form, rows in spans.items() if (rows < 1).all()]
    opening = "Yes" if len(faster) == len(spans) else f"Only with {', '.join(faster)}" if faster else "No"
    return finish(drawing, points, question, f"{opening}: {'; '.join(told)}, on one thread. Bars: quartile range.")


def frequency_dots(points: pd.DataFrame) -> Figure:
    """Table 1 as a figure: accuracy on the frequencies above each cut with 95 % intervals, a panel for each cut.

    Args:
        points: The points of `gkp.artifact.tables.high_frequency`.
    """
    question = "Do pruned networks see more in high frequencies?"
    if points.empty:
        return not_run(question)
    cuts = list(dict.fromkeys(points["cut"]))
    drawing, axes = _grid_of_dots(points, "cut", {cut: "All frequencies" if cut == "full" else f"Above {cut}" for cut in cuts})
    for ax, cut in zip(axes, cuts, strict=True):
        for value in points[(points["cut"] == cut) & (points["method"] == UNPRUNED[0])]["accuracy"]:
            ax.axvline(100 * value, color="#999999", linewidth=1, zorder=0)
    told = [_above(points[points["cut"] == cut], cut) for cut in cuts if cut != "full"]
    test = "by pairs of images, Holm over a cut, one training each"
    answer = f"Significantly above the unpruned network: {'; '.join(told)} ({test}). Grey line: the unpruned network."
    answer += f" {_bars_of(points)}"
    return finish(drawing, points, question, answer)


def _grid_of_dots(points: pd.DataFrame, by: str, titles: Mapping[str, str]) -> tuple[MatplotlibFigure, list[Axes]]:
    """A panel for each value of a column, a row for each method: the unpruned first, then by mean accuracy without "clean"."""
    ordered = points[~points[by].isin(["clean", "full"])] if len(titles) > 1 else points
    means = ordered.groupby("method", sort=False)["accuracy"].mean().sort_values(ascending=False, kind="stable")
    order = [*(row for row in UNPRUNED if row in means.index), *(row for row in means.index if row not in UNPRUNED)]
    drawing, axes = panels(1, len(titles), 1.8 + 2.6 * len(titles), 0.235 * len(order) + 1.7, sharey=True)
    for ax, (value, title) in zip(axes, titles.items(), strict=True):
        rows = points[points[by] == value].set_index("method").reindex(order).dropna(subset=["accuracy"])
        _dots(ax, rows, [-order.index(row) for row in rows.index])
        ax.set(title=title, xlabel="Accuracy (%)")
    axes[0].set_yticks(range(0, -len(order), -1), [paper_name(row) for row in order])
    axes[0].set_ylim(0.7 - len(order), 0.7)
    families(drawing, order)
    return drawing, axes


def _above(rows: pd.DataFrame, cut: str) -> str:
    """The numbers of pruned networks that are more and less accurate than the unpruned one, by pairs of images."""
    others = rows[~rows["method"].isin(UNPRUNED)].dropna(subset=["p_holm"])
    if others.empty:
        return f"not known at {cut}, where it is not finished"
    apart = others[others["p_holm"] <= 1 - LEVEL]
    more, less = int((apart["difference"] > 0).sum()), int((apart["difference"] < 0).sum())
    return f"{more} of {len(others)} pruned networks at a cut of {cut}, and {less} below it"


def _dots(ax: Axes, rows: pd.DataFrame, heights: Sequence[float], *, whole: bool = False) -> None:
    """Accuracies with intervals at the given heights; outliers are written at the edge, unless `whole`."""
    close = near(rows["accuracy"], least=2 * (rows["high"] - rows["low"]).median()) | whole
    for _ in range(len(rows)):  # what lies between the ends of the others' bars is no outlier, and its own bar widens the panel
        low, high = 100 * rows.loc[close, "low"].min(), 100 * rows.loc[close, "high"].max()
        close |= (100 * rows["accuracy"]).between(low, high)
    ax.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    for (row, values), bar, at, shown in zip(rows.iterrows(), bars(rows).T, heights, close, strict=True):
        colour, value = method_colour(str(row)), 100 * values["accuracy"]
        if shown:
            ax.errorbar(value, at, xerr=bar[:, None], marker="o", markersize=5, capsize=2, color=colour)
        else:
            edge, text, side = (0.0, f"◂ {value:.1f}", "left") if value < low else (1.0, f"{value:.1f} ▸", "right")
            ax.text(edge, at, text, color=colour, ha=side, va="center", fontsize=8, transform=ax.get_yaxis_transform())
    ax.grid(axis="x", color="#eeeeee")
    ax.set_axisbelow(True)
    ax.tick_params(left=False)
    sns.despine(ax=ax, left=True)


def _best_of(means: pd.DataFrame, attacks: Sequence[str]) -> str:
    """The answer of a figure of methods: the best of each panel, how many are tied with it, and the ranks of SR-GKP."""
    told, places = [], []
    for attack in attacks:
        rows = means[(means["attack"] == attack) & means["group"].notna()].set_index("method")["accuracy"]
        group = means[(means["attack"] == attack) & (means["group"] == 1)]["method"]
        if rows.empty:
            continue
        name = attack_name(attack, str(means["protocol"].iloc[0]))
        tied = f", {len(group) - 1} more cannot be told apart from it" if len(group) > 1 else ""
        told.append(f"{name}: {paper_name(str(rows.idxmax()))}{tied}")
        if SR in rows.index:
            places.append(f"{int(rows.rank(ascending=False, method='min')[SR])}")
    best = f"Best, {'; '.join(told)}" if told else "Too few methods are finished to say"
    ours = f". SR-GKP has rank {', '.join(places)} of {means.loc[means['group'].notna(), 'method'].nunique()}" if places else ""
    return f"{best}{ours}. {_bars_of(means)}"


def _bars_of(points: pd.DataFrame) -> str:
    """The meaning of the bars: the number of images, and of seeds where the points have it."""
    text = f"Bars: 95 %, {images(points)} images"
    if "seeds" not in points:
        return f"{text}."
    alone = ": networks are told apart, not their methods" if points["seeds"].max() == 1 else ""
    return f"{text}; {seeds_of(points['seeds'])}{alone}."
