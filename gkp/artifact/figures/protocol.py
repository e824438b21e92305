"""The effect of a choice on all methods: the protocol of the attacks, the rate, the length of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from gkp.artifact.effects import ATTACKS, UNPRUNED, Scores, exceptions, is_tuned, scores, setting_of, smallest_radius
from gkp.artifact.experiments.report import Result
from gkp.artifact.figures.figure import Figure, bars, families, finish, method_colour, not_run, panels
from gkp.artifact.results import (
    SR,
    STRONG,
    Evaluation,
    attack_name,
    evaluations,
    images,
    of_one_network,
    paper_name,
    row_name,
    seeds_of,
    sentences,
)
from gkp.evaluation.statistics import LEVEL, holm

_MARKS = "osD^vPX*"


def protocols(results: Sequence[Result]) -> Figure:
    """Accuracy and order of methods under FGSM with predicted labels, with true labels, and under the worst case in pixels.

    The radius in pixels is `smallest_radius`. Methods also attacked by AutoAttack at that radius have a further point,
    and it takes part in the order where all were.

    Args:
        results: Finished networks of one rate and schedule, and their evaluations; of several architectures the first is shown.
    """
    question = "What does the protocol change?"
    results, alone = of_one_network(results)
    radius = smallest_radius(results)
    sides = {
        "FGSM .1,\npredicted labels": scores(results, "paper", ["fgsm-0.1"]),
        "FGSM .1,\ntrue labels": scores(results, "paper", ["fgsm-0.1-true"]),
        f"Pixels, {radius}": scores(results, "pixel", [f"worst-case-{radius}"]),
    }
    sides = {title: side for title, side in sides.items() if len(side.pruned) > 1}
    first = next(iter(sides.values()), Scores("", (), {}))
    common = [row for row in first.pruned if all(row in side.rows for side in sides.values())]
    if len(sides) < 2 or len(common) < 2:
        return not_run(question)
    strongest = scores(results, STRONG, [f"autoattack-{radius}"])
    if len(set(common) & set(strongest.rows)) > 1:
        sides[f"AutoAttack,\n{radius}"] = strongest
    rows = [
        {"protocol": title.replace("\n", " "), "method": row, "seeds": found.seeds, "n": found.n}
        | {"accuracy": found.value, "low": found.low, "high": found.high}
        for title, side in sides.items()
        for row in common
        if row in side.rows
        for found in [side.accuracy(row)]
    ]
    points = pd.DataFrame(rows)
    of_protocol = points.groupby("protocol", sort=False)["accuracy"]
    ranks = of_protocol.rank(ascending=False, method="min")
    points["rank"] = ranks.where(of_protocol.transform("size") == len(common))
    ranked = points.dropna(subset="rank")
    drawing, (left, right) = panels(1, 2, 12, 0.22 * len(common) + 2.2)
    _slopes(left, points, "accuracy", 100, list(sides))
    _slopes(right, ranked, "rank", 1, list(sides)[: ranked["protocol"].nunique()])
    left.set(title="Level", ylabel="Accuracy (%)", ylim=(0, None))
    right.set(title="Order", ylabel="Rank, 1 is the most robust", ylim=(len(common) + 0.5, 0.5))
    right.set_yticks(range(1, len(common) + 1, 1 + len(common) // 12))
    last = ranked[ranked["protocol"] == ranked["protocol"].iloc[-1]]
    _names_at(right, ranked["protocol"].nunique() - 1, list(last["method"]), list(last["rank"]), step=1)
    families(drawing, points["method"])
    return finish(drawing, points, question, sentences(_changed(points), exceptions(results), alone))


def rates(results: Sequence[Result]) -> Figure:
    """Accuracy with 95 % intervals against multiply-accumulates, a curve for each method with several rates.

    Args:
        results: Finished networks of one schedule at several rates, and their evaluations; of several architectures the first
            is shown.
    """
    question = "How do accuracy and robustness change with the rate?"
    results, alone = of_one_network(results)
    radius = smallest_radius(results)
    sides = {
        "Benign": ("paper", ["clean"]),
        "Mean of the paper's three attacks": ("paper", list(ATTACKS)),
        f"Pixels, worst case at {radius}": ("pixel", [f"worst-case-{radius}"]),
    }
    points = pd.DataFrame([row for title, side in sides.items() for row in _by_rate(results, title, *side)])
    several = points.groupby("method")["rate"].transform("nunique") > 1 if len(points) else []
    points = points[several].reset_index(drop=True) if len(points) else points
    if points.empty:
        return not_run(question)
    titles = list(dict.fromkeys(points["panel"]))
    drawing, axes = panels(1, len(titles), 1 + 4.3 * len(titles), 4.4)
    methods = list(dict.fromkeys(points["method"]))
    for ax, title in zip(axes, titles, strict=True):
        for at, method in enumerate(methods):
            line = points[(points["panel"] == title) & (points["method"] == method)].sort_values("macs")
            style: dict[str, Any] = {"color": method_colour(method), "marker": _MARKS[at % len(_MARKS)], "capsize": 2}
            style |= {"linewidth": 2.2, "zorder": 4} if method == SR else {"linewidth": 1.2, "zorder": 3}
            aside = 0.012 * points["macs"].max() * (at - (len(methods) - 1) / 2)  # so that bars do not overlap
            ax.errorbar(
                (line["macs"] + aside) / 1e6, 100 * line["accuracy"], yerr=bars(line), label=paper_name(method), **style
            )
        ax.set(title=title, xlabel="Multiply-accumulates left (M)", ylabel="Accuracy (%)")
        sns.despine(ax=ax)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return finish(drawing, points, question, sentences(_with_rate(points), alone))


def order_by_epochs(results: Sequence[Result]) -> Figure:
    """The rank of each method under the paper's attacks for each length of fine-tuning, with intervals of ranks.

    The interval of a method spans the ranks it can have given the pairs that differ significantly (paired tests of all pairs,
    Holm over those of one length).

    Args:
        results: Finished networks of one rate, of several lengths of fine-tuning, and their evaluations; of several
            architectures the first is shown.
    """
    question = "Does training longer change the order?"
    results, alone = of_one_network(results)
    lengths = sorted({setting_of(one)[2] for one in evaluations(results, "paper") if _is_method(one)})
    sides = {epochs: scores(results, "paper", ATTACKS, wanted=_tuned(epochs)) for epochs in lengths}
    named = {epochs: {row.removesuffix(", one shot"): row for row in side.pruned} for epochs, side in sides.items()}
    named = {epochs: rows for epochs, rows in named.items() if len(rows) > 1}
    common = [row for row in next(iter(named.values()), {}) if all(row in rows for rows in named.values())]
    if len(named) < 2 or len(common) < 2:
        return not_run(question)
    points = pd.DataFrame([row for epochs, rows in named.items() for row in _ranks(sides[epochs], rows, common, epochs)])
    drawing, (ax,) = panels(1, 1, 2.5 + 2.2 * len(named), 0.3 * len(common) + 2)
    spread = np.linspace(-0.12, 0.12, len(common))
    for shift, method in zip(spread, common, strict=True):
        line = points[points["method"] == method]
        at = np.arange(len(line)) + shift
        style: dict[str, Any] = {"color": method_colour(method), "linewidth": 2.2 if method == SR else 1.0}
        ax.plot(at, line["rank"], marker="o", **style)
        ax.vlines(at, line["low"], line["high"], color=method_colour(method), alpha=0.35)
    ax.set_xticks(range(len(named)), [f"{epochs} epochs" for epochs in named])
    ax.set(ylabel="Rank, 1 is the most robust", ylim=(len(common) + 0.5, 0.5), xlim=(-0.3, len(named) - 0.3))
    ax.set_yticks(range(1, len(common) + 1, 1 + len(common) // 12))
    last = points[points["epochs"] == points["epochs"].iloc[-1]]
    _names_at(ax, len(named) - 1 + 0.12, list(last["method"]), list(last["rank"]), step=1)
    sns.despine(ax=ax)
    families(drawing, common)
    return finish(drawing, points, question, sentences(_reordered(points), alone))


def _slopes(ax: Axes, points: pd.DataFrame, value: str, scale: float, titles: Sequence[str]) -> None:
    """A line a method from protocol to protocol; SR-GKP is thick and has its intervals."""
    for method, line in points.groupby("method", sort=False):
        accent, at = method == SR, range(len(line))
        style: dict[str, Any] = {"color": method_colour(str(method)), "linewidth": 2.5 if accent else 0.9}
        style |= {"zorder": 4 if accent else 2, "alpha": 1 if accent else 0.7}
        ax.plot(at, scale * line[value], marker="o", markersize=5 if accent else 3.5, **style)
        if accent and value == "accuracy":
            ax.errorbar(at, scale * line[value], yerr=bars(line), fmt="none", capsize=3, **style)
    ax.set_xticks(range(len(titles)), titles)
    sns.despine(ax=ax)


def _names_at(ax: Axes, x: float, rows: Sequence[str], heights: Sequence[float], *, step: float) -> None:
    """Names to the right of the last points, spaced so that they do not overlap."""
    at = -np.inf
    for height, row in sorted(zip(heights, rows, strict=True)):
        at = max(height, at + step)
        style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8, "annotation_clip": False}
        ax.annotate(paper_name(row), (x, at), (9, 0), color=method_colour(row), **style)


def _changed(points: pd.DataFrame) -> str:
    """The answer of the slope chart: the mean accuracy under each protocol, and the rank correlation with the first one.

    A protocol that was run for some methods only is compared on those, with the one before it.
    """
    every = points.pivot_table(index="method", columns="protocol", values="accuracy", sort=False)
    wide = every.dropna(axis="columns")
    first, *others = wide.columns
    level = ", ".join(f"{100 * wide[name].mean():.1f} % ({name})" for name in wide)
    agreed = ", ".join(f"{wide[first].corr(wide[name], method='spearman'):+.2f} ({name})" for name in others)
    text = f"The level, mean of {len(wide)} methods: {level}. The order, rank correlation with the first: {agreed}."
    for name in every.columns.difference(wide.columns):
        some, before = every.dropna(), wide.columns[-1]
        agree = some[before].corr(some[name], method="spearman")
        text += f" {name}, run for {len(some)} of them, leaves {100 * some[name].mean():.1f} % where {before}, leaves "
        text += f"{100 * some[before].mean():.1f} %, rank correlation {agree:+.2f}."
    ranks = points[points["method"] == SR].set_index("protocol")["rank"].dropna()
    ours = f" SR-GKP has rank {', '.join(f'{rank:.0f}' for rank in ranks)}." if len(ranks) else ""
    return f"{text}{ours} Bars, on SR-GKP: 95 %, {images(points)} images; {seeds_of(points['seeds'])}."


def _by_rate(results: Sequence[Result], panel: str, part: str, keys: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Accuracy and multiply-accumulates of each method at each rate, for the most frequent schedule."""
    found = {one.net.hash: one for one in evaluations(results, part) if _is_method(one) and one.network}
    schedules = [setting_of(one)[2] for one in found.values()]
    usual = max(set(schedules), key=schedules.count) if schedules else 0
    for rate in sorted({setting_of(one)[1] for one in found.values()}):
        here = {hash: one for hash, one in found.items() if setting_of(one)[1:] == (rate, usual)}
        macs_of = {row_name(one.net): one.network["paper_macs"] for one in here.values() if one.network}
        side = scores(results, part, keys, wanted=lambda one, here=here: one.net.hash in here)  # type: ignore[misc]
        for row in side.pruned:
            estimate, macs = side.accuracy(row), macs_of[row]
            facts = {"panel": panel, "method": row, "rate": rate, "macs": macs, "n": estimate.n, "seeds": estimate.seeds}
            yield facts | {"accuracy": estimate.value, "low": estimate.low, "high": estimate.high}


def _with_rate(points: pd.DataFrame) -> str:
    """The answer of the curves: the change of SR-GKP, or another method, from the lowest to the highest rate, and the best."""
    several = points.groupby("method")["rate"].nunique()
    method = SR if several.get(SR, 0) > 1 else str(several.idxmax())
    told, best = [], []
    ends = points[points["method"] == method]["rate"]
    for panel, rows in points.groupby("panel", sort=False):
        line = rows[rows["method"] == method].sort_values("rate")
        if line["rate"].nunique() < 2:  # the evaluations of this panel are not finished
            continue
        change = 100 * (line["accuracy"].iloc[-1] - line["accuracy"].iloc[0])
        told.append(f"{change:+.1f} points ({str(panel)[0].lower()}{str(panel)[1:]})")
        top = rows[rows["rate"] == ends.max()]
        best += [paper_name(top.loc[top["accuracy"].idxmax(), "method"])] if len(top) else []
    return (
        f"From {16 * ends.min():g}/16 to {16 * ends.max():g}/16 of the kernels removed, {paper_name(method)} changes by "
        f"{', '.join(told)}; highest at {16 * ends.max():g}/16: {', '.join(best)}. Bars: 95 %, {images(points)} images, "
        f"{seeds_of(points['seeds'])}; curves are set apart sideways so that none covers another."
    )


def _is_method(one: Evaluation) -> bool:
    """Whether the network was pruned and fine-tuned, not trained from scratch or on adversarial images."""
    return is_tuned(one) and row_name(one.net) not in UNPRUNED


def _tuned(epochs: int) -> Callable[[Evaluation], bool]:
    """The filter for pruned networks with so many epochs of fine-tuning."""
    return lambda one: _is_method(one) and setting_of(one)[2] == epochs


def _ranks(side: Scores, rows: dict[str, str], common: Sequence[str], epochs: int) -> Iterable[dict[str, Any]]:
    """For each of the common methods its rank among them, and the interval of its rank."""
    names = ", ".join(attack_name(key, side.part) for key in side.keys)
    found = {method: side.accuracy(rows[method]) for method in common}
    value = {method: estimate.value for method, estimate in found.items()}
    pairs = list(combinations(common, 2))
    corrected = holm([side.minus(rows[a], rows[b]).p() for a, b in pairs])
    apart = {frozenset(pair) for pair, p in zip(pairs, corrected, strict=True) if p <= 1 - LEVEL}
    for method in common:
        others = [other for other in common if other != method]
        above = sum(value[other] > value[method] for other in others)
        surely_above = sum(value[other] > value[method] for other in others if frozenset((method, other)) in apart)
        surely_below = sum(value[other] < value[method] for other in others if frozenset((method, other)) in apart)
        facts = {"method": method, "epochs": epochs, "attack": names, "accuracy": value[method], "rank": 1 + above}
        facts |= {"low": 1 + surely_above, "high": len(common) - surely_below}
        yield facts | {"n": found[method].n, "seeds": found[method].seeds}


def _reordered(points: pd.DataFrame) -> str:
    """The answer of the ranks: how the orders of two lengths agree, and which pairs change their order significantly."""
    wide = points.pivot_table(index="method", columns="epochs", values="rank", sort=False)
    lengths = list(wide.columns)
    agreed = [f"{a} and {b} epochs {wide[a].corr(wide[b], method='spearman'):+.2f}" for a, b in combinations(lengths, 2)]
    ends = points.set_index(["epochs", "method"])
    sure = {
        epochs: {(a, b) for a in wide.index for b in wide.index if ends.loc[(epochs, a), "high"] < ends.loc[(epochs, b), "low"]}
        for epochs in lengths
    }
    turned = {frozenset(pair) for x, y in combinations(lengths, 2) for pair in sure[x] if pair[::-1] in sure[y]}
    pairs = [" and ".join(map(paper_name, sorted(pair))) for pair in sorted(turned, key=sorted)]
    names = "; ".join([*pairs[:3], *(["..."] if len(pairs) > 3 else [])])
    sure_of = f"Yes, for {len(turned)} pairs for sure ({names})"
    opening = sure_of if turned else "Not for sure: no pair of methods changes places"
    ranks = f"the ranks that paired tests leave open, {len(wide)} methods; {images(points)} images, {seeds_of(points['seeds'])}"
    return f"{opening}. Rank correlation of {'; '.join(agreed)}. Bars: {ranks}."
