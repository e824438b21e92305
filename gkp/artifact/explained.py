"""The share of attacked accuracy that benign accuracy explains, by regression over networks; the residual of SR-GKP.

An image that is misclassified without an attack is mostly misclassified under one, so a method that loses benign accuracy loses
attacked accuracy too, whatever it does to robustness. A regression of attacked on benign accuracy over all networks separates
the two effects. Our networks are grouped by architecture and length of fine-tuning, with all rates and options together; the
paper's by table, with every printed row. Methods that train on adversarial images are left out.

The residual of SR-GKP is its distance from the line through all other methods, with the prediction interval for one more
method. Seeds of one network are a cluster, and so are the epochs that the paper prints of one method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gkp.artifact.effects import ATTACKS, is_tuned, setting_of
from gkp.artifact.experiments.kinds import PruneCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import ARCHITECTURES, ATTACKED, names_here, published
from gkp.artifact.results import SR, attack_name, evaluations, method_of, row_name, trained_for_robustness
from gkp.evaluation.statistics import beside_line, fit_line

QUESTION = "How much does benign accuracy explain, and is anything left for SR-GKP?"
TABLES = (9, 10, 11, 12, 17, 18, 19)  # with benign accuracy and three attacks for many methods
FEWEST = 5  # the smallest number of methods besides SR-GKP for a line


def networks(results: Sequence[Result]) -> pd.DataFrame:
    """Our finished networks under every attack of both protocols.

    Args:
        results: Finished networks and their evaluations, of any number of architectures and schedules.

    Returns:
        A row for each network and attack, with columns source ("ResNet-20, 3 epochs"), method (a `row_name`), cluster, is_sr,
        is_variant (SR-GKP with any options), part, attack, n, and the accuracies benign and attacked, fractions.
    """
    rows: list[dict[str, Any]] = []
    for part in ("paper", "pixel"):
        for one in evaluations(results, part):
            if not isinstance(one.net, PruneCell) or not is_tuned(one):
                continue
            model, rate, epochs = setting_of(one)
            row, length = row_name(one.net), f"{epochs} epochs" if epochs else "one shot"
            length = "1 epoch" if epochs == 1 else length
            facts: dict[str, Any] = {"source": f"{ARCHITECTURES.get(model, model)}, {length}", "part": part, "method": row}
            facts |= {
                "cluster": f"{row} at {rate:g}",
                "is_sr": row.removesuffix(", one shot") == SR,
                "is_variant": method_of(row) == SR,
                "n": one.facts["n"],
            }
            accuracy = one.result["accuracy"]
            rows += [
                {**facts, "attack": key, "benign": accuracy["clean"], "attacked": value}
                for key, value in accuracy.items()
                if key != "clean"
            ]
    return pd.DataFrame(rows)


def printed_networks() -> pd.DataFrame:
    """The printed rows of the paper's `TABLES` as `networks` returns ours, with misprints corrected and duplicates removed."""
    robust = {name for name, here in names_here().items() if trained_for_robustness(here)}
    rows = []
    for table in TABLES:
        frame = published(table)
        frame = frame[frame["metric"].isin(ATTACKED) & ~frame["method"].isin(robust)]
        value = frame["likely"].fillna(frame["value"]) / 100
        keys = [frame["network"], frame["method"], frame["setting"], frame["criterion"], frame["metric"]]
        wide = value.groupby(keys, sort=False).first().unstack().dropna().reset_index()
        wide = wide.drop_duplicates(subset=["method", "setting", *ATTACKED])
        for row in wide.to_dict("records"):
            facts = {"source": f"Table {table}, {row['network']}", "part": "paper", "method": row["method"], "n": 10_000}
            facts |= {"cluster": f"{row['method']} {row['setting']}", "is_sr": row["method"] == "SR-GKP"}
            facts["is_variant"] = facts["is_sr"]
            rows += [{**facts, "attack": key, "benign": row["clean"], "attacked": row[key]} for key in ATTACKS]
    return pd.DataFrame(rows)


def explained(points: pd.DataFrame) -> pd.DataFrame:
    """The regression of attacked on benign accuracy for each source and attack, and the residual of SR-GKP.

    Args:
        points: As returned by `networks` or `printed_networks`.

    Returns:
        Columns source, part, attack, networks, methods (number of clusters), n, r2 (of the line through all networks), slope
        with its interval slope_low and slope_high (clustered errors), and left with its interval low and high: the attacked
        accuracy of SR-GKP minus the value of the line through all other methods, a fraction; NaN where SR-GKP is missing.
        Attacks under which accuracies do not vary, and sources with fewer than `FEWEST` other methods, are left out.
    """
    rows = []
    for (source, part, attack), group in points.groupby(["source", "part", "attack"], sort=False) if len(points) else ():
        # variants of SR-GKP are neither SR-GKP nor other methods
        group = group[group["is_sr"] | ~group["is_variant"]]
        others = group[~group["is_sr"]]
        if others["cluster"].nunique() < FEWEST or min(np.ptp(others["benign"]), np.ptp(others["attacked"])) < 1e-3:
            continue
        x, y, cluster = (group[name].to_numpy() for name in ("benign", "attacked", "cluster"))
        line = fit_line(x, y, cluster)
        left, low, high = beside_line(x, y, cluster, apart=group["is_sr"].to_numpy())
        facts = {"source": source, "part": part, "attack": attack, "networks": len(group), "methods": len(set(cluster))}
        fit = {"r2": line.r2, "slope": line.slope, "slope_low": line.low, "slope_high": line.high}
        rows.append({**facts, "n": int(group["n"].iloc[0]), **fit, "left": left, "low": low, "high": high})
    return pd.DataFrame(rows)


def of_both(results: Sequence[Result]) -> pd.DataFrame:
    """`explained` of our networks and of the paper's tables; the column printed is True for the latter."""
    ours, theirs = explained(networks(results)), explained(printed_networks())
    return pd.concat([ours.assign(printed=False), theirs.assign(printed=True)], ignore_index=True)


def shown_columns(points: pd.DataFrame, radius: str) -> dict[str, pd.DataFrame]:
    """The rows of `of_both` for the attacks that are shown: the paper's, those with true labels, and one in pixels.

    Args:
        points: As returned by `of_both`.
        radius: The radius of the worst case in pixels, "1/255".

    Returns:
        Name of the attack -> its rows.
    """
    wanted = [("paper", key) for key in (*ATTACKS, "fgsm-0.01-true", "fgsm-0.1-true")] + [("pixel", f"worst-case-{radius}")]
    found = {attack_name(key, part): points[(points["part"] == part) & (points["attack"] == key)] for part, key in wanted}
    return {name: rows for name, rows in found.items() if len(rows)}


def told(points: pd.DataFrame) -> str:
    """The answer in words: the explained variance, and in how many columns SR-GKP lies significantly above the line."""
    sentences = [_side(points[~points["printed"]], "Here"), _side(points[points["printed"]], "In the paper's tables")]
    return " ".join(filter(None, sentences))


def _side(rows: pd.DataFrame, where: str) -> str:
    if rows.empty:
        return ""
    left = rows.dropna(subset="left")
    groups = (
        [("", rows)] if rows["printed"].all() else [(f" on {name}", part) for name, part in rows.groupby("source", sort=False)]
    )
    shares = ", and ".join(f"{_share(part)}{on}" for on, part in groups)
    text = f"{where} benign accuracy alone explains, of what differs between networks, {shares}"
    above, below = int((left["low"] > 0).sum()), int((left["high"] < 0).sum())
    if left.empty:
        return f"{text}."
    something = f"above the line in {above} of {len(left)}, below it in {below}"
    return f"{text}; SR-GKP's interval is {something}, {100 * left['left'].mean():+.1f} points on average."


def _share(rows: pd.DataFrame) -> str:
    """The median of the explained shares of some columns, their range, and how many of the lines fall."""
    r2, falling = 100 * rows["r2"], int((rows["slope"] < 0).sum())
    columns = f"{len(rows)} {'columns' if len(rows) > 1 else 'column'}"
    falls = f", {falling} of the lines falling" if falling else ""
    return f"{r2.median():.0f} % (median of {columns}, {r2.min():.0f} to {r2.max():.0f} %{falls})"
