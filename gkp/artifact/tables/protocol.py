"""The effect of choices of the protocol: labels of FGSM, the space of eps, the reported epoch, the seed; and transfer."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gkp.artifact.experiments.kinds import Network, PruneCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.published import ATTACKED
from gkp.artifact.results import (
    attack_name,
    evaluations,
    images,
    load_networks,
    of_one_network,
    paper_name,
    row_name,
    test_images,
    without_images,
)
from gkp.artifact.tables.table import Table, by_method, not_run, percent, spread_out, titled, with_interval
from gkp.errors import BadInput
from gkp.evaluation.compare import transfer
from gkp.evaluation.statistics import wilson


def label_choice(results: Sequence[Result], *, attack: str = "fgsm-0.1") -> Table:
    """Accuracy under FGSM with predicted and with true labels, the difference, and the rank of each method under both.

    All methods are ranked together, with unpruned networks and those that were trained on adversarial images.

    Args:
        results: Finished networks and their evaluations.
        attack: A key of the paper's protocol, with predicted labels.

    Returns:
        A table of means over seeds; a row of its points is a network, with the ranks of its method.
    """
    title = f"{attack_name(attack, 'paper')} (normalised units) with predicted and with true labels"
    results, alone = of_one_network(results)
    points = []
    for one in evaluations(results, "paper"):
        clean, predicted, true = (one.result["accuracy"][key] for key in ("clean", attack, f"{attack}-true"))
        accuracy = {"clean": clean, "predicted": predicted, "true": true, "difference": predicted - true}
        points.append({"method": one.facts["method"], **accuracy, "n": one.facts["n"], "seed": one.facts["seed"]})
    if not points:
        return not_run(title)
    frame = pd.DataFrame(points)
    means = frame.groupby("method", sort=False)[["clean", "predicted", "true", "difference"]].mean()
    for name in ("predicted", "true"):
        means[f"rank_{name}"] = means[name].rank(ascending=False, method="min").astype(int)
        frame[f"rank_{name}"] = frame["method"].map(means[f"rank_{name}"])
    shown = {
        "benign": percent(means["clean"]),
        "predicted labels": percent(means["predicted"]),
        "true labels": percent(means["true"]),
        "difference": percent(means["difference"], "{:+.2f}"),
        "rank, predicted": means["rank_predicted"],
        "rank, true": means["rank_true"],
        "seeds": frame.groupby("method", sort=False)["seed"].nunique(),
    }
    title += f", accuracy in percent, means over seeds, {images(frame)}"
    return Table(titled(title, alone), by_method(shown, means.index.to_series()), frame)


def epoch_choice(results: Sequence[Result], *, metric: str = "fgsm-0.1") -> Table:
    """Accuracy at the last epoch and at the best epoch on the test set, which the paper reports.

    Only epochs after the network has its final size count, as in the paper.

    Args:
        results: Finished networks, of which those whose epochs were scored on test images are shown.
        metric: The attack by which the best epoch is chosen.
    """
    title = f"{attack_name(metric, 'paper')}: the last epoch and the best one on the test set"
    results, alone = of_one_network(results)
    points = []
    for result in results:
        if not isinstance(cell := result.cell, PruneCell):
            continue
        if rows := [row for row in result["epochs"] if metric in row]:
            best = max(rows, key=lambda row: row[metric])
            points.append(
                {
                    "method": row_name(cell),
                    "seed": cell.seed,
                    "metric": metric,
                    "epochs": rows[-1].get("epoch", len(rows)),
                    "last": rows[-1][metric],
                    "best": best[metric],
                    "best_epoch": best.get("epoch", rows.index(best) + 1),
                    "clean_last": rows[-1]["clean"],
                    "clean_at_best": best["clean"],
                    "n": cell.log_examples,
                }
            )
    if not points:
        return not_run(title)
    frame = pd.DataFrame(points)
    frame["gain"] = frame["best"] - frame["last"]
    ends = [wilson(round(last * n), n) for last, n in zip(frame["last"], frame["n"], strict=True)]
    frame["last_low"], frame["last_high"] = zip(*ends, strict=True)
    last = frame[["last", "last_low", "last_high"]].set_axis(["accuracy", "low", "high"], axis=1)
    shown = {
        "seed": frame["seed"],
        "last epoch": with_interval(last),
        "best epoch": percent(frame["best"]),
        "which": [f"{best} of {epochs}" for best, epochs in zip(frame["best_epoch"], frame["epochs"], strict=True)],
        "gain": percent(frame["gain"], "{:+.2f}"),
        "benign, last": percent(frame["clean_last"]),
        "benign, at that epoch": percent(frame["clean_at_best"]),
    }
    title = f"{title}, accuracy in percent, {images(frame)}"
    return Table(titled(title, alone), by_method(shown, frame["method"]), frame)


def seed_spread(results: Sequence[Result], *, protocol: str = "paper", attacks: Sequence[str] = ATTACKED) -> Table:
    """Mean and standard deviation over seeds of the accuracy of each method, with the number of seeds.

    Args:
        results: Finished networks and their evaluations.
        protocol: "paper" or "pixel".
        attacks: The columns, attacks of the protocol.

    Raises:
        BadInput: A method has several networks of one seed, such as those of two rates.
    """
    results, alone = of_one_network(results)
    rows = [
        {**one.facts, "attack": key, "accuracy": value}
        for one in evaluations(results, protocol)
        for key, value in one.result["accuracy"].items()
        if key in attacks
    ]
    if not rows:
        return not_run(f"Mean ± standard deviation over seeds, {protocol} protocol")
    points = pd.DataFrame(rows)
    if points.duplicated(["method", "seed", "attack"]).any():
        raise BadInput("there are several networks of one method and seed; give those of one rate and length of fine-tuning")
    grouped = points.groupby(["method", "attack"], sort=False)["accuracy"].agg(["mean", "std", "count"]).reset_index()
    text = [
        f"{100 * mean:.2f} ± {100 * std:.2f}" if seeds > 1 else f"{100 * mean:.2f} (one seed)"
        for mean, std, seeds in zip(grouped["mean"], grouped["std"], grouped["count"], strict=True)
    ]
    shown = spread_out(grouped, text, columns="attack")[list(attacks)]
    shown.columns = pd.Index([attack_name(attack, protocol) for attack in attacks])
    shown["seeds"] = points.groupby("method", sort=False)["seed"].nunique().to_numpy()
    n = int(points["n"].iloc[0])
    title = f"Mean ± standard deviation over seeds, {protocol} protocol, accuracy in percent, n = {n:,} images a seed"
    return Table(titled(title, alone), shown, points)


def transferred(results: Sequence[Result], *names: str, n: int = 32, eps: float = 2 / 255) -> Table:
    """Transfer of PGD: the accuracy of each network (target) on images attacked for each other one (source).

    It is computed when called.

    Args:
        results: Finished networks.
        names: The networks, as in `load_networks`.
        n: The number of test images, the first ones.
        eps: The radius, in the units of pixels in [0, 1].
    """
    title = f"PGD at eps = {255 * eps:g} / 255, images carried from source to target, accuracy of the target"
    known = {row_name(result.cell): result.cell.dataset for result in results if isinstance(result.cell, Network | PruneCell)}
    if not {*names} <= {*known}:
        return not_run(title)
    dataset = known[names[0]]
    if (carried := test_images(dataset, n)) is None:
        return Table(without_images(title, dataset), pd.DataFrame(), pd.DataFrame())
    pairs = transfer(load_networks(results, *names), carried, eps=eps).to_frame()
    ends = {end: pairs[end].map(paper_name) for end in ("source", "target")}
    shown = pd.DataFrame({**ends, "accuracy (%)": with_interval(pairs)}).set_index(["source", "target"])
    return Table(f"{title}, {images(pairs)}, 95 % Wilson intervals", shown, pairs)


def space_choice(results: Sequence[Result]) -> Table:
    """Accuracy under PGD at 8/255 in normalised space (the paper's protocol) and at several radii in pixel space.

    Args:
        results: Finished networks and their evaluations in both protocols, which may be of different numbers of images.

    Returns:
        A table that shows seed 0; its points have all seeds.
    """
    results, alone = of_one_network(results)
    pixel = {one.net.hash: one for one in evaluations(results, "pixel")}
    points = []
    for one in evaluations(results, "paper"):
        rows = [("normalised 8/255", one.result["accuracy"]["pgd-8/255"], one.facts["n"])]
        if other := pixel.get(one.net.hash):
            accuracy = other.result["accuracy"]
            radii = [key for key in accuracy if key.startswith("pgd-")]
            rows += [(f"pixel {key.removeprefix('pgd-')}", accuracy[key], other.facts["n"]) for key in radii]
        facts = {"method": one.facts["method"], "seed": one.facts["seed"]}
        points += [{**facts, "eps": eps, "accuracy": accuracy, "n": n} for eps, accuracy, n in rows]
    if not points:
        return not_run("PGD in normalised and in pixel units")
    frame = pd.DataFrame(points)
    first = frame[frame["seed"] == 0]
    shown = spread_out(first, percent(first["accuracy"]), columns="eps")
    title = f"PGD in normalised and in pixel units, accuracy in percent, seed 0, {images(frame)}"
    return Table(titled(title, alone), shown, frame)
