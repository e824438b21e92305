"""What a protocol's choices do to the figures: labels of FGSM, the space of eps, the epoch that is reported, the seed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from gkp.artifact.experiments.kinds import EvaluateCell, Network, PruneCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import ATTACKED
from gkp.artifact.results import net_seed, row_name, with_interval
from gkp.artifact.tables.table import Table, not_run


def label_choice(results: Sequence[Result], *, attack: str = "fgsm-0.1") -> Table:
    """FGSM with the network's own predictions as labels against true labels: accuracy, difference, rank under each.

    attack: a row of the paper protocol. Ranks are among the rows shown, 1 being the most robust.
    """
    points = []
    for net, result in _evaluations(results, "paper"):
        predicted, true = result["accuracy"][attack], result["accuracy"][f"{attack}-true"]
        points.append(
            {
                "method": row_name(net),
                "clean": result["accuracy"]["clean"],
                "predicted": predicted,
                "true": true,
                "difference": predicted - true,
                "n": result["n"],
                "seed": net_seed(net),
            }
        )
    if not points:
        return not_run(f"{attack} with predicted and with true labels")
    frame = pd.DataFrame(points)
    for name in ("predicted", "true"):
        frame[f"rank_{name}"] = frame[name].rank(ascending=False, method="min").astype(int)
    shown = pd.DataFrame(
        {
            "method": frame["method"],
            "benign": _percent(frame["clean"]),
            "predicted labels": _percent(frame["predicted"]),
            "true labels": _percent(frame["true"]),
            "difference": (100 * frame["difference"]).map("{:+.2f}".format),
            "rank, predicted": frame["rank_predicted"],
            "rank, true": frame["rank_true"],
        }
    )
    n = int(frame["n"].iloc[0])
    title = f"{attack} (normalised units) with predicted and with true labels, accuracy in percent, n = {n:,}"
    return Table(title, shown.set_index("method"), frame)


def epoch_choice(results: Sequence[Result], *, metric: str = "fgsm-0.1") -> Table:
    """The last epoch against the best one on the test set, per method, from the log of each fine-tuning (PAPER A5).

    metric: what the best epoch is chosen by. Only networks that were logged are shown. Accuracies are of the first images of
    the test set, as many as the log has.
    """
    points = []
    for result in results:
        if not isinstance(result.cell, PruneCell):
            continue
        rows = [row for row in result["epochs"] if metric in row]  # those at the final MACs, as in the paper
        if rows:
            best = max(rows, key=lambda row: row[metric])
            points.append(
                {
                    "method": row_name(result.cell),
                    "seed": result.cell.seed,
                    "epochs": len(rows),
                    "last": rows[-1][metric],
                    "best": best[metric],
                    "best_epoch": rows.index(best) + 1,
                    "clean_last": rows[-1]["clean"],
                    "clean_at_best": best["clean"],
                    "n": result.cell.log_examples,
                }
            )
    if not points:
        return not_run(f"{metric}: the last epoch and the best one on the test set")
    frame = pd.DataFrame(points)
    frame["gain"] = frame["best"] - frame["last"]
    low, high = proportion_confint((frame["last"] * frame["n"]).round(), frame["n"], method="wilson")
    frame["last_low"], frame["last_high"] = low, high
    shown = pd.DataFrame(
        {
            "method": frame["method"],
            "seed": frame["seed"],
            "last epoch": [with_interval(row.last, row.last_low, row.last_high) for row in frame.itertuples()],
            "best epoch": _percent(frame["best"]),
            "which": [f"{row.best_epoch} of {row.epochs}" for row in frame.itertuples()],
            "gain": (100 * frame["gain"]).map("{:+.2f}".format),
            "benign, last": _percent(frame["clean_last"]),
            "benign, at that epoch": _percent(frame["clean_at_best"]),
        }
    )
    n = int(frame["n"].iloc[0])
    title = f"{metric}: the last epoch and the best one on the test set, accuracy in percent, n = {n:,}"
    return Table(title, shown.set_index("method"), frame)


def seed_spread(results: Sequence[Result], *, protocol: str = "paper", attacks: Sequence[str] = ATTACKED) -> Table:
    """Mean and standard deviation over seeds of each method's accuracy under these attacks; methods with one seed say so."""
    rows = [
        {
            "method": row_name(net),
            "seed": net_seed(net),
            "n": result["n"],
            "attack": key,
            "accuracy": value,
        }
        for net, result in _evaluations(results, protocol)
        for key, value in result["accuracy"].items()
        if key in attacks
    ]
    if not rows:
        return not_run(f"Mean ± standard deviation over seeds, {protocol} protocol")
    points = pd.DataFrame(rows)
    grouped = points.groupby(["method", "attack"], sort=False)["accuracy"].agg(["mean", "std", "count"]).reset_index()
    text = [
        f"{100 * mean:.2f} ± {100 * std:.2f}" if seeds > 1 else f"{100 * mean:.2f} (one seed)"
        for mean, std, seeds in zip(grouped["mean"], grouped["std"], grouped["count"], strict=True)
    ]
    shown = grouped.assign(text=text).pivot(index="method", columns="attack", values="text")
    shown = shown.loc[list(dict.fromkeys(points["method"])), list(attacks)]
    shown["seeds"] = points.groupby("method")["seed"].nunique()
    n = int(points["n"].iloc[0])
    title = f"Mean ± standard deviation over seeds, {protocol} protocol, accuracy in percent, n = {n:,} images a seed"
    return Table(title, shown, points)


def space_choice(results: Sequence[Result]) -> Table:
    """PGD at the paper's 8/255 of normalised space beside PGD at the radii of pixel space, per method, in percent.

    results: networks with evaluations in both protocols; n differs between them and is stated.
    """
    pixel = {net.hash: result for net, result in _evaluations(results, "pixel")}
    points = []
    for net, result in _evaluations(results, "paper"):
        other = pixel.get(net.hash)
        rows = [("normalised 8/255", result["accuracy"]["pgd-8/255"], result["n"])]
        if other is not None:
            radii = [key for key in other["accuracy"] if key.startswith("pgd-")]
            rows += [(f"pixel {key.removeprefix('pgd-')}", other["accuracy"][key], other["n"]) for key in radii]
        facts = {"method": row_name(net), "seed": net_seed(net)}
        points += [{**facts, "eps": eps, "accuracy": accuracy, "n": n} for eps, accuracy, n in rows]
    if not points:
        return not_run("PGD in normalised and in pixel units")
    frame = pd.DataFrame(points)
    first = frame[frame["seed"] == 0]
    shown = first.assign(text=_percent(first["accuracy"])).pivot(index="method", columns="eps", values="text")
    shown = shown.loc[list(dict.fromkeys(first["method"])), list(dict.fromkeys(first["eps"]))]
    counts = ", ".join(f"{n:,}" for n in dict.fromkeys(frame["n"]))
    return Table(f"PGD in normalised and in pixel units, accuracy in percent, n = {counts}", shown, frame)


def _evaluations(results: Sequence[Result], protocol: str) -> list[tuple[Network | PruneCell, Result]]:
    """What was evaluated on the plain test set in this protocol, with its own attacks, and the figures."""
    return [
        (cell.net, result)
        for result in results
        if isinstance(cell := result.cell, EvaluateCell)
        and cell.protocol == protocol
        and not cell.variant
        and cell.attacks is None
    ]


def _percent(values: pd.Series) -> pd.Series:
    return (100 * values).map("{:.2f}".format)
