"""Two figures of all methods: whether pruning costs robustness, and whether robustness trades off against accuracy.

Differences are to the unpruned network with the same fine-tuning, on the same images, over all finished seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy
import seaborn as sns
from matplotlib.axes import Axes

from gkp.artifact.effects import ATTACKS, Scores, exceptions, printed_differences, scores, smallest_radius, worst_case
from gkp.artifact.experiments.report import Result
from gkp.artifact.figures.figure import (
    FAMILIES,
    Figure,
    bars,
    families,
    family_of,
    finish,
    hollow,
    label_dots,
    method_colour,
    near,
    not_run,
    panels,
)
from gkp.artifact.results import BASELINE, CONTINUED, SR, of_one_network, paper_name, seeds_of, sentences
from gkp.evaluation.statistics import LEVEL

PRINTED = "the paper's difference to its unpruned network (ResNet-56, Table 10)"
_FAMILY_NAMES = {"nothing": "Nothing is removed", **{name: f"{name.capitalize()}s" for name in FAMILIES}, "": "Other"}


def forest(results: Sequence[Result]) -> Figure:
    """A forest plot: the difference of each method to the unpruned network with the same fine-tuning, with 95 % intervals.

    The left panel shows the mean of the paper's three attacks, the right one the worst case in pixels; methods are grouped by
    what they remove. Hollow marks are from Table 10 of the paper, where the unpruned network was not fine-tuned.

    Args:
        results: Finished networks of one rate and schedule, and their evaluations, of any number of seeds; of several
            architectures the first is shown.
    """
    question = "Does pruning cost robustness?"
    results, alone = of_one_network(results)
    frames = {title: frame for title, frame in _sides(results).items() if len(frame)}
    if not frames:
        return not_run(question)
    printed = printed_differences()
    points = pd.concat([frame.assign(panel=title) for title, frame in frames.items()], ignore_index=True)
    points["printed"] = points["method"].map(printed).where(points["attack"] == "+".join(ATTACKS))
    heights, headings = _by_family(points.drop_duplicates("method"))
    drawing, axes = panels(1, len(frames), 5.2 * len(frames), 0.235 * (len(heights) + len(headings)) + 1.9, sharey=True)
    for ax, title in zip(axes, frames, strict=True):
        rows = points[points["panel"] == title]
        _panel(ax, rows.assign(height=rows["method"].map(heights)))
        ax.set(title=title, xlabel="Minus the unpruned network fine-tuned as long, points")
    _name_rows(axes[0], heights, headings)
    families(drawing, points["method"], hollow(PRINTED))
    return finish(drawing, points, question, _cost_of_pruning(points, alone, exceptions(results)))


def _sides(results: Sequence[Result]) -> dict[str, pd.DataFrame]:
    """Title of a panel -> `differences` under the attacks of its protocol."""
    return {
        "Paper's protocol, mean of its three attacks": differences(scores(results, "paper", ATTACKS)),
        f"Pixels, worst case at {smallest_radius(results)}": differences(worst_case(results)),
    }


def differences(side: Scores, reference: str = CONTINUED) -> pd.DataFrame:
    """The difference of each method to a reference network.

    Args:
        side: The scores of all networks.
        reference: The `row_name` of the reference.

    Returns:
        A row for each method: difference, low and high as fractions, p, p_holm (over the methods), n and seeds. The unpruned
        network before fine-tuning has a row too, without p_holm. Empty where the reference is missing.
    """
    if reference not in side.rows:
        return pd.DataFrame()
    found, corrected = side.differences(reference)
    if BASELINE in side.rows and reference != BASELINE:
        found = {BASELINE: side.minus(BASELINE, reference)} | found
    rows = [
        {
            "method": row,
            "family": family_of(row),
            "attack": "+".join(side.keys),
            "difference": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "p": estimate.p(),
            "p_holm": corrected.get(row, np.nan),
            "n": estimate.n,
            "seeds": estimate.seeds,
        }
        for row, estimate in found.items()
    ]
    return pd.DataFrame(rows)


def trade_off(results: Sequence[Result]) -> Figure:
    """Benign against attacked accuracy, as differences to the unpruned network with the same fine-tuning, with 95 % intervals.

    Outliers, and values of the paper outside the panel, are triangles on its edge that point to where they are.

    Args:
        results: As for `forest`.
    """
    question = "Are accuracy and robustness a trade-off here?"
    results, alone = of_one_network(results)
    benign = differences(scores(results, "paper", ["clean"]))
    frames = {
        title: benign.merge(rows, on=["method", "family"], suffixes=("_benign", "_attacked"))
        for title, rows in _sides(results).items()
        if len(rows) and len(benign)
    }
    if not frames:
        return not_run(question)
    points = pd.concat([frame.assign(panel=title) for title, frame in frames.items()], ignore_index=True)
    printed = pd.DataFrame({"x": printed_differences(["clean"]), "y": printed_differences()}) * 100
    drawing, axes = panels(1, len(frames), 6.4 * len(frames), 6.2)
    for ax, (title, frame) in zip(axes, frames.items(), strict=True):
        _cloud(ax, frame, printed if frame["attack_attacked"].iloc[0] == "+".join(ATTACKS) else printed.iloc[:0])
        ax.set(
            title=title, xlabel="Benign accuracy, difference in points", ylabel="Accuracy under attack, difference in points"
        )
    families(drawing, [*points["method"], *printed.index], hollow(PRINTED))
    figure = finish(drawing, points, question, _trade(frames, alone, exceptions(results)))
    drawing.draw_without_rendering()  # names need the final size of the panels
    for ax, frame in zip(axes, frames.values(), strict=True):
        first = frame.loc[frame["method"].isin([SR, BASELINE]).sort_values(ascending=False, kind="stable").index]
        at = [
            _place(ax, 100 * x, 100 * y) for x, y in zip(first["difference_benign"], first["difference_attacked"], strict=True)
        ]
        names = [_label(row) + place.outside for row, place in zip(first["method"], at, strict=True)]
        label_dots(ax, [place.x for place in at], [place.y for place in at], names)
    return figure


def _by_family(rows: pd.DataFrame) -> tuple[dict[str, float], dict[str, float]]:
    """Vertical positions of the methods, the best of each family first, and of the headings of families."""
    heights: dict[str, float] = {}
    headings: dict[str, float] = {}
    at = 0.0
    for family, name in _FAMILY_NAMES.items():
        members = rows[rows["family"] == family].sort_values("difference", ascending=False)
        if members.empty:
            continue
        headings[name], at = at, at - 1
        for row in members["method"]:
            heights[row], at = at, at - 1
        at -= 0.4
    return heights, headings


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    """One panel of the forest plot: intervals, and the paper's values as hollow marks."""
    ax.axvline(0, color="#777777", linewidth=1)
    for (_, row), bar in zip(rows.iterrows(), bars(rows, "difference").T, strict=True):
        style: dict[str, Any] = {"marker": "o", "markersize": 5, "capsize": 2, "color": method_colour(str(row["method"]))}
        ax.errorbar(100 * row["difference"], row["height"], xerr=bar[:, None], **style)
    told = rows.dropna(subset=["printed"])
    edge = [method_colour(row) for row in told["method"]]
    ax.scatter(100 * told["printed"], told["height"], marker="D", s=24, facecolors="white", edgecolors=edge, alpha=0.75)
    ax.grid(axis="x", color="#eeeeee")
    ax.set_axisbelow(True)
    sns.despine(ax=ax, left=True)
    ax.tick_params(left=False)


def _name_rows(ax: Axes, heights: dict[str, float], headings: dict[str, float]) -> None:
    """Label the rows with the paper's names, and the families in bold."""
    places = {**headings, **{_label(row): at for row, at in heights.items()}}
    ax.set_yticks(list(places.values()), list(places))
    for label in ax.get_yticklabels():
        if label.get_text() in headings:
            label.set_fontweight("bold")
    ax.set_ylim(min(heights.values()) - 0.7, 0.7)


def _cost_of_pruning(points: pd.DataFrame, *remarks: str) -> str:
    """The answer of the forest plot."""
    told: list[str] = []
    shares: set[float] = set()
    for title, rows in points.dropna(subset=["p_holm"]).groupby("panel", sort=False):
        apart = rows[rows["p_holm"] <= 1 - LEVEL]
        less, more = apart[apart["difference"] < 0], apart[apart["difference"] > 0]
        shares.add(len(less) / len(rows))
        worst = f" (by up to {-100 * less['difference'].min():.1f} points)" if len(less) else ""
        told.append(
            f"{_within(str(title))}, {len(less)} of {len(rows)} methods are less robust than the unpruned network fine-tuned"
            f" as long{worst}, {len(more)} more robust than it{_named(more['method'])}, and {len(rows) - len(apart)}"
            " cannot be told apart from it"
        )
    opening = "No" if shares == {0.0} else "Yes" if shares == {1.0} else "For some methods"
    measured = _measured(points["n"], points["seeds"])
    return sentences(f"{opening}. {'; '.join(told)} (Holm over each panel)", *remarks, measured)


def _measured(n: Iterable[int], seeds: Iterable[int]) -> str:
    """The meaning of the bars, with the numbers of images and of seeds."""
    return f"Bars: 95 %; n = {' and '.join(f'{images:,}' for images in dict.fromkeys(n))} images; {seeds_of(seeds)}."


def _within(title: str) -> str:
    """The title of a panel as part of a sentence."""
    if title.startswith("Paper"):
        return "Under the paper's protocol"
    return f"in pixels at {title.rpartition(' ')[2]}"


def _named(rows: pd.Series) -> str:
    return f" ({', '.join(paper_name(row) for row in rows[:3])}{', ...' if len(rows) > 3 else ''})" if len(rows) else ""


def _label(row: str) -> str:
    """The label of a row among differences to the unpruned network with the same fine-tuning."""
    return "unpruned, not fine-tuned" if row == BASELINE else paper_name(row)


class _Place(NamedTuple):
    """The place of a dot in a panel: its own, or the nearest one on the edge.

    Attributes:
        x, y: In data units.
        marker: The marker, "" for that of the series; a triangle that points out of the panel for a dot outside of it.
        outside: What its name is followed by: its coordinates where they cannot be read off.
    """

    x: float
    y: float
    marker: str
    outside: str


def _place(ax: Axes, x: float, y: float) -> _Place:
    """The place of a dot, given the final limits of the panel."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    inside = float(np.clip(x, left, right)), float(np.clip(y, low, high))
    if inside == (x, y):
        return _Place(x, y, "", "")
    marker = ("<" if x < left else ">") if inside[0] != x else ("v" if y < low else "^")
    return _Place(*inside, marker, f" ({x:+.1f}, {y:+.1f})")


def _cloud(ax: Axes, frame: pd.DataFrame, printed: pd.DataFrame) -> None:
    """One panel of the trade-off: a dot with both intervals for each method, the paper's values behind."""
    close = frame[near(frame["difference_benign"]) & near(frame["difference_attacked"])]
    heights = 100 * pd.concat(
        [close["low_attacked"], close["high_attacked"], frame["difference_attacked"], printed["y"].clip(0) / 100]
    )
    ax.set(
        xlim=(100 * close["low_benign"].min() - 1.3, 100 * max(close["high_benign"].max(), 0) + 0.9),  # room for names
        ylim=(min(heights) - 0.4, max(*heights, 0) + 0.4),
    )
    ax.axhline(0, color="#bbbbbb", linewidth=1, zorder=0)
    ax.axvline(0, color="#bbbbbb", linewidth=1, zorder=0)
    for row, x, y in zip(printed.index, printed["x"], printed["y"], strict=True):
        at, colour = _place(ax, x, y), method_colour(row)
        ax.plot(at.x, at.y, at.marker or "D", ms=5.3, mfc="white", mec=colour, alpha=0.5, zorder=1, clip_on=False)
    ends = {}
    for side in ("benign", "attacked"):
        columns = [f"{name}_{side}" for name in ("difference", "low", "high")]
        ends[side] = bars(frame[columns].set_axis(["difference", "low", "high"], axis=1), "difference")
    for number, (_, row) in enumerate(frame.iterrows()):
        colour, sr = method_colour(str(row["method"])), row["method"] == SR
        at = _place(ax, 100 * row["difference_benign"], 100 * row["difference_attacked"])
        if at.marker:
            ax.plot(at.x, at.y, at.marker, ms=7, color=colour, zorder=3, clip_on=False)
            continue
        style: dict[str, Any] = {"color": colour, "ecolor": (colour, 0.9 if sr else 0.35), "elinewidth": 1.5 if sr else 0.8}
        style |= {"xerr": ends["benign"][:, [number]], "yerr": ends["attacked"][:, [number]]}
        ax.errorbar(at.x, at.y, marker="o", markersize=5, zorder=4 if sr else 3, **style)
    sns.despine(ax=ax)


def _trade(frames: dict[str, pd.DataFrame], *remarks: str) -> str:
    """The answer of the trade-off: the rank correlation over methods in each panel."""
    told, signs = [], set()
    for title, frame in frames.items():
        rows = frame[frame["method"] != BASELINE]
        if len(rows) > 3:
            found = scipy.stats.spearmanr(rows["difference_benign"], rows["difference_attacked"])
            signs.add(int(np.sign(found.statistic)) if found.pvalue < 1 - LEVEL else 0)
            told.append(f"{_within(title)} {found.statistic:+.2f} (p = {found.pvalue:.2g}, {len(rows)} methods)")
    if not told:
        return sentences("Too few methods are finished to say", *remarks)
    opening = {-1: "Yes", 1: "No, they go together", 0: "No sign of it"}
    text = opening[next(iter(signs))] if len(signs) == 1 else "It depends on the protocol"
    told[0] = told[0][0].lower() + told[0][1:]
    points = pd.concat(list(frames.values()))
    measured = _measured(points["n_attacked"], points["seeds_attacked"])
    found = f"{text}. Rank correlation of benign and attacked accuracy over pruned networks: {'; '.join(told)}"
    return sentences(found, *remarks, measured)
