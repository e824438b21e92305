"""How much of robustness benign accuracy explains: a line through all networks, and what is left for SR-GKP beside it.

What a network gets wrong without an attack it mostly gets wrong under one: a method that loses benign accuracy loses attacked
accuracy too, whatever it does to robustness. A regression of attacked on benign accuracy over all networks separates the two.
Ours are taken by architecture and length of fine-tuning, all rates and options together; the paper's by table, every printed
row. Methods that train for robustness are left out of both.

What is left for SR-GKP is its distance from the line through all others. Its interval is that of one more method: wide where
others scatter too. Seeds of one network are a cluster, and so are the epochs that the paper prints of one method.
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
from gkp.artifact.results import attack_name, evaluations, method_of, row_name, trained_for_robustness
from gkp.evaluation.statistics import beside_line, fit_line

QUESTION = "How much does benign accuracy explain, and is anything left for SR-GKP?"
TABLES = (9, 10, 11, 12, 17, 18, 19)  # of the paper, with benign accuracy and three attacks for many methods
FEWEST = 5  # methods, beside SR-GKP, that a line is drawn through
_SR = "sr-gkp"


def networks(results: Sequence[Result]) -> pd.DataFrame:
    """Every finished network under every attack of both protocols, one a row.

    Args:
        results: Finished networks and their evaluations, of any number of architectures and schedules.

    Returns:
        Columns source ("ResNet-20, 3 epochs"), method (a `row_name`), cluster, is_sr, is_variant (of SR-GKP, itself included),
        part, attack, n, and the accuracies benign and attacked, fractions of the same images.
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
                "is_sr": row.removesuffix(", one shot") == _SR,
                "is_variant": method_of(row) == _SR,
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
    """The same of the paper's `TABLES`: each printed row once, misprints as likely meant; n is that of the whole test set."""
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
    """The regression of attacked on benign accuracy for each source and attack, and what is left for SR-GKP.

    Args:
        points: As `networks` and `printed_networks` give them.

    Returns:
        Columns source, part, attack, networks, methods (clusters), n, r2 (of the line through all networks), slope and its
        interval slope_low, slope_high (errors clustered), left, low, high: attacked accuracy of SR-GKP minus what the line
        through all other methods gives it, a fraction; NaN where SR-GKP is not among them. Attacks under which nothing varies,
        and sources of fewer than `FEWEST` other methods, are left out.
    """
    rows = []
    for (source, part, attack), group in points.groupby(["source", "part", "attack"], sort=False) if len(points) else ():
        # another balance or search of SR-GKP is neither SR-GKP nor one of the others
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
    """`explained` of our networks, then of the paper's tables; column printed says which."""
    ours, theirs = explained(networks(results)), explained(printed_networks())
    return pd.concat([ours.assign(printed=False), theirs.assign(printed=True)], ignore_index=True)


def shown_columns(points: pd.DataFrame, radius: str) -> dict[str, pd.DataFrame]:
    """Name -> the rows of `of_both` of each column that people read: the paper's attacks, true labels, pixels at one radius."""
    wanted = [("paper", key) for key in (*ATTACKS, "fgsm-0.01-true", "fgsm-0.1-true")] + [("pixel", f"worst-case-{radius}")]
    found = {attack_name(key, part): points[(points["part"] == part) & (points["attack"] == key)] for part, key in wanted}
    return {name: rows for name, rows in found.items() if len(rows)}


def told(points: pd.DataFrame) -> str:
    """The answer in words: what benign accuracy explains, and in how many columns SR-GKP's interval lies above the line."""
    sentences = [_side(points[~points["printed"]], "Here"), _side(points[points["printed"]], "In the paper's tables")]
    return " ".join(filter(None, sentences))


def _side(rows: pd.DataFrame, where: str) -> str:
    if rows.empty:
        return ""
    r2, left = 100 * rows["r2"], rows.dropna(subset="left")
    columns = "columns" if len(rows) > 1 else "column"
    text = f"{where} benign accuracy alone explains {r2.median():.0f} % of what differs between networks"
    text += f" (median of {len(rows)} {columns}, {r2.min():.0f} to {r2.max():.0f} %)"
    above, below = int((left["low"] > 0).sum()), int((left["high"] < 0).sum())
    if left.empty:
        return f"{text}."
    something = f"above the line in {above} of {len(left)}, below it in {below}"
    return f"{text}; SR-GKP's interval is {something}, {100 * left['left'].mean():+.1f} points on average."
