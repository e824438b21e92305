"""Tables of accuracies: without and under attack, and on the high frequencies of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from gkp.artifact.effects import SETTING, UNPRUNED, is_tuned, over_seeds, scores, setting_of
from gkp.artifact.experiments.kinds import LatencyCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.groups import RATE
from gkp.artifact.published import ARCHITECTURES, ATTACKED, RANKED, REFERENCE, printed, published
from gkp.artifact.results import (
    BASELINE,
    STRONG,
    Evaluation,
    attack_name,
    evaluations,
    images,
    of_one_network,
    paper_name,
    row_name,
    seeds_of,
)
from gkp.artifact.tables.table import Table, beside, by_method, marked, not_run, spread_out, titled, with_interval
from gkp.attacks.options import parse_eps
from gkp.data.folders import is_folder
from gkp.engine.names import ENGINES
from gkp.evaluation.outcomes import Outcomes
from gkp.evaluation.statistics import mean_rank

_NOTHING = 0.005  # a column in which no accuracy is above this is not shown


def accuracies(outcomes: Mapping[str, Outcomes]) -> Table:
    """The accuracy of each network (column) without and under each attack (row), with 95 % Wilson intervals.

    Args:
        outcomes: Name -> outcome matrix.
    """
    title = "Accuracy (%)"
    if not outcomes:
        return not_run(title)
    rows, shown = [], {}
    for network, out in outcomes.items():
        frame = out.to_frame().reset_index()
        rows.append(frame.assign(network=network, protocol=out.protocol, dataset=out.dataset, seed=out.seed))
        shown[network] = dict(zip(frame["attack"], with_interval(frame), strict=True))
    first = next(iter(outcomes.values()))
    title = f"{title} · {first.dataset}, {first.protocol} protocol, n = {first.n:,}, seed {first.seed}, 95 % Wilson intervals"
    named = pd.DataFrame(shown).rename(index=lambda attack: attack_name(attack, first.protocol))
    return Table(title, named, pd.concat(rows, ignore_index=True))


def methods_table(
    results: Sequence[Result],
    *,
    protocol: str,
    title: str,
    attacks: Sequence[str] | None = None,
    radius: str | None = None,
) -> Table:
    """The cost of each network and its accuracy under some attacks, as means over seeds with 95 % intervals.

    The best and second best of a column are marked as in the paper, among networks of the same rate and schedule; "=" marks
    those that do not differ significantly from the best (paired on the images, with the spread over seeds, Holm over the
    column). Unpruned networks, shapes trained from scratch and methods that train on adversarial images are not ranked. The
    paper's value is shown below ours where it prints one.

    Args:
        results: Finished networks and their evaluations; each network is a row, in their order.
        protocol: The role of the evaluations, as in `gkp.artifact.results.plays`: "paper" (with columns of cost), "pixel" or
            "precision".
        title: The title of the table.
        attacks: The columns; None for the paper's four, or for benign and the worst case at each radius.
        radius: Columns for benign and every attack at this radius, or at the smallest one where there is none at this radius.

    Returns:
        A table whose points have all attacks and seeds; "group" is 1 for the best network of a column and those that do not
        differ significantly from it, 2 for the others, and missing for networks that are not ranked. Rows of several rates have
        theirs behind their name.
    """
    points = _points(results, protocol)
    if points.empty:
        return not_run(title)
    wanted = _columns(list(dict.fromkeys(points["attack"])), protocol, attacks, radius)
    most = points.groupby("attack")["accuracy"].max()
    columns = [attack for attack in wanted if attacks or most[attack] > _NOTHING] or wanted
    groups = {
        (*setting, attack, method): 1 if method in leaders else 2
        for setting, inside in _settings(results, protocol).items()
        for attack in dict.fromkeys(points["attack"])
        for found in [scores(results, protocol, [attack], wanted=inside)]
        for leaders in [found.leaders()]
        for method in (found.pruned if len(found.pruned) > 1 else ())
    }
    keys = points[[*SETTING, "attack", "method"]].itertuples(index=False, name=None)
    points["group"] = pd.array([groups.get(key) for key in keys], dtype="Int64")
    means = over_seeds(points)
    frames = {attack: means[means["attack"] == attack].set_index([*SETTING, "method"]) for attack in columns}
    first = frames[columns[0]]
    facts = first.reset_index()
    cost = {
        "MACs (M)": [_millions(macs, off) for macs, off in zip(first["paper_macs"], first["off_budget"], strict=True)],
        "params (M)": ["" if pd.isna(params) else f"{params / 1e6:.3f}" for params in first["params"]],
    }
    shown = {
        **_told_apart(facts),
        **(cost if protocol == "paper" else {}),
        **{attack_name(attack, protocol): _marked(frame, protocol) for attack, frame in frames.items()},
        "seeds": first["seeds"].to_list(),
    }
    told = "**best**, _second best_, = cannot be told apart from the best (Holm over the column); [95 % intervals]"
    beside = f"; paper: what it prints for the same network, or for {REFERENCE}, of the best epoch of each column"
    told += "" if means["seeds"].max() > 1 else "; one seed: networks are told apart, not their methods"
    legend = told + (beside if protocol == "paper" and points["printed"].any() else "")
    ranked = points.groupby([*SETTING, "method"], sort=False, dropna=False)["group"].count()
    if left := [paper_name(key[-1]) for key, ranks in ranked.items() if not ranks and key[-1] not in UNPRUNED]:
        legend += f"; not ranked, no other method being trained alike: {', '.join(left)}"
    if none := [attack_name(attack, protocol) for attack in wanted if attack not in columns]:
        legend += f"; at most {_NOTHING:.1%} everywhere and not shown: {', '.join(none)}"
    order = ["method", *SETTING, "seed", "n", "paper_macs", "params", "protocol", "attack", "accuracy", "low", "high", "group"]
    table = by_method(shown, facts["method"])
    if facts.loc[facts["rate"] > 0, "rate"].nunique() > 1:
        named = zip(table.index, facts["rate"], strict=True)
        table.index = pd.Index([f"{name}, {16 * rate:g}/16" if rate else name for name, rate in named], name="method")
    return Table(f"{title} · {images(points)}", table, points[order], legend=legend, marked=True)


def _points(results: Sequence[Result], protocol: str) -> pd.DataFrame:
    """A row for each network, seed and attack, with its cost."""
    points = []
    for one in evaluations(results, protocol):
        known = one.network.figures if one.network else {}  # an evaluation may be stored without its network
        cost = {name: known.get(name) for name in ("paper_macs", "params", "off_budget")}
        cost["printed"] = not is_folder(one.net.dataset)  # the paper's values for these methods are for CIFAR-10
        facts = {**one.facts, **cost, **dict(zip(SETTING, setting_of(one), strict=True)), "protocol": protocol}
        points += [{**facts, **row} for row in one.accuracies]
    return pd.DataFrame(points)


def _settings(results: Sequence[Result], protocol: str) -> dict[tuple, Callable[[Evaluation], bool]]:
    """Each architecture, rate and schedule -> which networks are compared in it, the unpruned one included."""

    def inside(setting: tuple) -> Callable[[Evaluation], bool]:
        model, _, epochs = setting
        return lambda one: is_tuned(one) and setting_of(one) in (setting, (model, 0.0, epochs))

    found = dict.fromkeys(setting_of(one) for one in evaluations(results, protocol) if is_tuned(one))
    return {setting: inside(setting) for setting in found if setting[1]}


def _columns(known: list[str], protocol: str, attacks: Sequence[str] | None, radius: str | None) -> list[str]:
    """The attacks that have a column, of those that are known."""
    if attacks is not None:
        wanted = list(attacks)
    elif protocol == "paper":
        wanted = list(ATTACKED)
    else:
        radii = [key.rpartition("-")[2] for key in known if key.startswith("worst-case-")]
        at = radius if radius in radii or not radii else min(radii, key=parse_eps)
        chosen = f"-{at}" if radius else "worst-case-"
        wanted = [key for key in known if key == "clean" or (key.endswith(chosen) if radius else key.startswith(chosen))]
        wanted = wanted if len(wanted) > 1 else known
    return [key for key in wanted if key in known]


def _marked(frame: pd.DataFrame, protocol: str) -> list[str]:
    """The text of a column: accuracy with its marks, its interval, and the paper's value."""
    place = (
        frame["accuracy"]
        .where(frame["group"].notna())
        .groupby(level=list(SETTING), dropna=False)
        .rank(ascending=False, method="min")
    )
    found = []
    for at, (key, row) in zip(place, frame.iterrows(), strict=True):
        model, rate, _, method = key
        network = REFERENCE if model == "resnet20" else ARCHITECTURES.get(model, REFERENCE)
        told = protocol == "paper" and row["printed"]
        paper = printed(method, network, rate or RATE).get(row["attack"]) if told else None
        beside = "" if paper is None else f" · paper {paper:.2f}"
        numbers = (100 * row[name] for name in ("accuracy", "low", "high"))
        found.append(marked(*numbers, rank=at, tied=at > 1 and row["group"] == 1) + beside)
    return found


def _told_apart(rows: pd.DataFrame) -> dict[str, list[str]]:
    """The columns that tell rows of one method apart, where there are such: network, epochs; rates stand in the names."""
    again = rows[rows["method"].duplicated(keep=False)].groupby("method")
    text = {"network": rows["model"].replace(ARCHITECTURES), "epochs": rows["epochs"].map(str)}
    differ = {"network": (again["model"].nunique() > 1).any(), "epochs": (again["epochs"].nunique() > 1).any()}
    return {name: words.to_list() for name, words in text.items() if differ[name]}


def _millions(macs: float | None, off: float | None) -> str:
    """Multiply-accumulates in millions; off: by which share a method misses the budget of the others, if it does."""
    if macs is None or pd.isna(macs):
        return ""
    return f"{macs / 1e6:.3f}" + ("" if off is None or pd.isna(off) else f" ({off:+.1%}, not at equal MACs)")


def high_frequency(results: Sequence[Result]) -> Table:
    """Table 1: the accuracy of each network on the whole test set and on its frequencies above each cut, with intervals.

    Args:
        results: Finished networks and their evaluations, one seed of each; those in the role "frequency" are shown, in their
            order, of the first architecture.

    Returns:
        A table whose points have the columns "difference", to the unpruned network on the same images, and "p_holm", corrected
        over the other networks of a cut; NaN where it is the unpruned network or not known.
    """
    results, alone = of_one_network(results)
    points = [
        {
            "method": one.facts["method"],
            "model": one.net.model,
            "cut": one.cell.variant.removeprefix("high-frequency-") or "full",
            **{name: value for name, value in clean.items() if name != "attack"},
            "n": one.facts["n"],
            "seed": one.facts["seed"],
        }
        for one in evaluations(results, "frequency")
        for clean in one.accuracies
        if clean["attack"] == "clean"
    ]
    title = titled("Table 1", alone, "accuracy (%) on frequencies above a cut")
    if not points:
        return not_run(title)
    frame = pd.DataFrame(points)
    paired = {cut: _to_unpruned(results, str(cut)) for cut in frame["cut"].unique()}
    found = [paired[cut].get(row, (np.nan, np.nan)) for cut, row in zip(frame["cut"], frame["method"], strict=True)]
    frame[["difference", "p_holm"]] = found
    theirs = published(1).set_index(["method", "setting"])["value"]
    names = frame["method"].map(lambda row: "Unpruned" if row == BASELINE else paper_name(row))
    settings = frame["cut"].map(lambda cut: cut if cut == "full" else f"high frequencies above {cut}")
    text = beside(with_interval(frame), [theirs.get(key) for key in zip(names, settings, strict=True)])
    legend = f"paper: what it prints for {REFERENCE}"
    shown = spread_out(frame, text, columns="cut")
    seeds = seeds_of(frame.groupby("method")["seed"].nunique())
    return Table(f"{title}, {images(frame)}, {seeds}, 95 % Wilson intervals", shown, frame, legend=legend, marked=True)


def _to_unpruned(results: Sequence[Result], cut: str) -> dict[str, tuple[float, float]]:
    """Row -> difference of accuracy to the unpruned network above a cut, image by image, and its p after Holm's correction."""
    found = scores(results, "frequency" if cut == "full" else f"high-frequency-{cut}", ["clean"])
    if BASELINE not in found.rows:
        return {}
    gaps, p = found.differences(BASELINE)
    return {row: (gap.value, p[row]) for row, gap in gaps.items()}


def strong_attacks(results: Sequence[Result]) -> Table:
    """The accuracy of each network under strong attacks (cascades, AutoAttack), with n and interval.

    Args:
        results: Finished networks, their evaluations and measured latencies, one seed of each, of which the first architecture
            is shown.

    Returns:
        A table whose points have a row for each network and attack, with the cost of the network: "macs", multiply-accumulates
        in millions by the paper's counter; "latency" in PyTorch and "latency_fast" in `gkp.compile`, the time for the largest
        batch relative to the dense network in the same engine, 1 for unpruned networks and NaN where it was not measured.
    """
    title = "Accuracy (%) under strong attacks"
    results, alone = of_one_network(results)
    took = {name: _relative_times(results, engine) for name, engine in zip(("latency", "latency_fast"), ENGINES, strict=True)}
    points = [
        {
            "method": one.facts["method"],
            "macs": one.network["paper_macs"] / 1e6,
            **{
                name: times.get(one.net.hash, 1.0 if times and row_name(one.net) in UNPRUNED else np.nan)
                for name, times in took.items()
            },
            "seed": one.facts["seed"],
            "n": one.facts["n"],
            "of": one.cell.purpose or one.cell.protocol,
            **row,
        }
        for one in evaluations(results, STRONG)
        for row in one.accuracies
        if one.network and not row["attack"].startswith("worst-case")
    ]
    if not points:
        return not_run(title)
    frame = pd.DataFrame(points)
    attacked = frame[frame["attack"] != "clean"]
    text = [f"{told}, n {n:,}" for told, n in zip(with_interval(attacked), attacked["n"], strict=True)]
    shown = spread_out(attacked, text, columns="attack").rename(columns=lambda attack: attack_name(attack, "pixel"))
    seeds = seeds_of(frame.groupby("method")["seed"].nunique())
    return Table(titled(f"{title} in pixels, 95 % Wilson intervals, {seeds}", alone), shown, frame)


def _relative_times(results: Sequence[Result], engine: str) -> dict[str, float]:
    """Hash of a network -> its time for the largest batch in this engine, relative to the dense network."""
    return {
        timed.cell.net.hash: float(max(timed["latency"], key=lambda row: row["batch_size"])["ratio"])
        for timed in results
        if isinstance(timed.cell, LatencyCell) and timed.cell.engine == engine
    }


def mean_ranks(points: pd.DataFrame) -> Table:
    """Table 20: methods by the mean of their ranks on benign, (a), (b) and (c); 1 is the best.

    Methods are ranked within each architecture, rate and schedule, and ranks averaged over these. Any difference counts,
    however small; `gkp.evaluation.compare.rank_groups` tests which are significant.

    Args:
        points: The points of `methods_table(..., protocol="paper")`; unpruned networks are left out, as in the paper.
    """
    title = "Table 20 · mean rank over benign accuracy and the three attacks"
    rows = points[points["attack"].isin(ATTACKED) & ~points["method"].str.startswith("unpruned")] if len(points) else points
    if rows.empty:
        return not_run(title)
    wide = rows.pivot_table(index=[*SETTING, "method"], columns="attack", values="accuracy", sort=False)[list(ATTACKED)]
    inside = pd.concat([mean_rank(setting) for _, setting in wide.round(12).groupby(level=list(SETTING), sort=False)])
    ranks = inside.groupby(level="method", sort=False).mean().sort_values("mean rank")
    told = ranks.map("{:g}".format).assign(**{"mean rank": ranks["mean rank"].map("{:.2f}".format)})
    told = told.rename(columns={attack: attack_name(attack, "paper") for attack in ATTACKED})
    frame = ranks.reset_index().assign(n=int(rows["n"].iloc[0]))
    theirs = published(20).query("network == 'all three'").set_index("method")["value"]
    told["mean rank"] = beside(told["mean rank"], [theirs.get(paper_name(row)) for row in frame["method"]])
    legend = f"paper: its mean over three networks, among {len(RANKED)} methods"
    shown = by_method(told, frame["method"])
    return Table(f"{title} · last epoch, {images(frame)}", shown, frame, legend=legend, marked=True)
