"""Rules on the paper's protocol: predicted labels, normalised space, the choice of the epoch, strong attacks.

The paper does not state these claims; they are implied by its column headings and by how it chooses networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr, t

from gkp.artifact.claims.case import Case
from gkp.artifact.claims.decision import TREND, Decision, NotRun, rule
from gkp.artifact.claims.evidence import BASELINE, CONTINUED, Index, Keys, Net
from gkp.artifact.claims.rules import HALF, conclude
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import PruneCell
from gkp.evaluation.statistics import LEVEL, Estimate, difference, wilson

RESAMPLES = 1000  # of the bootstrap over test images


@rule(TREND, lambda index, model, *, nets, **_: index.measured(nets, ["paper"], model))
def predicted_labels_flatter_little(case: Case, *, nets: tuple[Net, ...], keys: Keys, margin: float = 0.005) -> Decision:
    """Attacks with predicted labels leave at most `margin` more accuracy than attacks with true labels.

    Args:
        case: The evidence.
        nets: The networks.
        keys: The attacks with predicted labels; those with true labels have "-true" behind.
        margin: A difference, a fraction.
    """
    gaps, lines = [], []
    for net in nets:
        for key in keys:
            rows = [case.rows(net, "paper", [row]) for row in (key, f"{key}-true")]
            gaps.append(difference(*rows, tests=len(nets) * len(keys)))
            attack = key.replace("fgsm-", "FGSM ")
            lines.append(f"{net.label}, {attack}: predicted minus true labels {gaps[-1].text} points")
    largest = max(gaps, key=lambda gap: gap.value)
    holds = False if largest.low > margin else True if all(gap.high <= margin for gap in gaps) else None
    return conclude(case, holds, "; ".join(lines), ours=f"{100 * largest.value:.1f} points flattered", estimate=largest)


@rule(TREND, lambda index, model, *, net, **_: index.measured([net], ["paper", "pixel"], model))
def pixels_leave_accuracy(case: Case, *, net: Net, key: str, above: float) -> Decision:
    """A network keeps an accuracy above a threshold when eps is measured in pixels instead of normalised units.

    Args:
        case: The evidence.
        net: The network.
        key: The attack.
        above: The threshold, a fraction.
    """
    paper, pixel = (case.one(net, part) for part in ("paper", "pixel"))
    if key not in pixel.rows():
        raise NotRun(f"{case.model} was not evaluated under {key} in pixel space")
    found = Estimate(pixel.accuracy()[key], *pixel.interval()[key], pixel.n, 1)
    holds = True if found.low > above else False if found.high < above else None
    ours = f"{100 * paper.accuracy()[key]:.1f} % in normalised units, {100 * found.value:.1f} % in pixels"
    detail = f"{net.label}; 8/255 in normalised units is about 1.6/255 in pixels, of which three steps of 2/255 reach 1.2/255"
    setting = f"{case.network()}, unpruned" if net == BASELINE else ""
    return conclude(case, holds, detail, ours=ours, estimate=found, interval=f"{found.interval} in pixels", setting=setting)


@rule(TREND, lambda index, model, **_: [cell for part in ("paper", "pixel") for cell in index.every_method(part, model)])
def order_survives_pixels(case: Case, *, keys: Keys, pixel: str, at_least: float) -> Decision:
    """Methods have the same order in the paper's protocol as in pixel space, by Spearman's rank correlation.

    Args:
        case: The evidence.
        keys: The attacks of the paper's protocol, whose accuracies are averaged.
        pixel: The attack in pixel space.
        at_least: The correlation from which on the orders count as the same.
    """
    nets = [net for net in case.index.methods(case.model) if net != CONTINUED]
    nets = case.available(case.available(nets, "paper"), "pixel")
    if len(nets) < HALF:
        raise NotRun(f"only {len(nets)} methods are finished in both protocols on {case.model}")
    rows = [
        np.array([np.mean(case.rows(net, part, keys), axis=0) for net in nets])
        for part, keys in (("paper", keys), ("pixel", [pixel]))
    ]
    rho = float(spearmanr(*(part.mean(axis=1) for part in rows)).statistic)
    drawn = np.random.default_rng(0)
    again = []
    for _ in range(RESAMPLES):  # resample test images, not networks
        means = [part[:, drawn.integers(part.shape[1], size=part.shape[1])].mean(axis=1) for part in rows]
        again.append(float(spearmanr(*means).statistic))
    low, high = np.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    holds = True if low >= at_least else False if high < at_least else None
    ours, interval = f"Spearman {rho:.2f}", f"[{low:.2f}, {high:.2f}]"
    detail = f"{ours} {interval} over {len(nets)} methods: mean of (a), (b), (c) against {pixel}"
    return conclude(case, holds, detail, ours=ours, interval=interval, n=rows[1].shape[1], seeds=1)


def _logged(index: Index, model: str, **_: Any) -> list[Cell]:
    cells = [cell for net in index.methods(model) for cell in index.networks(net, model).values()]
    return [cell for cell in cells if isinstance(cell, PruneCell) and cell.log_examples]


@rule(TREND, _logged)
def best_epoch_near_last(case: Case, *, keys: Keys, margin: float) -> Decision:
    """The best epoch on the test set is at most `margin` more accurate than the last one, as a mean over methods.

    Networks of one method are not independent, so each method counts once, with the mean of its networks.

    Args:
        case: The evidence.
        keys: The attacks whose gains are averaged.
        margin: A fraction.
    """
    results = case.those_of(_logged(case.index, case.model))
    of_method: dict[str, list[float]] = {}
    for result in results:
        log = pd.DataFrame(result["epochs"])
        if len(log) > 1 and set(keys) <= set(log):
            gain = float(np.mean([log[key].max() - log[key].iloc[-1] for key in keys]))
            of_method.setdefault(getattr(result.cell, "method", ""), []).append(gain)
    if len(of_method) < 3:
        raise NotRun(f"only {len(of_method)} methods on {case.model} have their epochs scored on the test set")
    gains, networks = np.array([np.mean(found) for found in of_method.values()]), sum(map(len, of_method.values()))
    mean, half = float(gains.mean()), float(t.ppf((1 + LEVEL) / 2, len(gains) - 1) * gains.std(ddof=1)) / len(gains) ** 0.5
    holds = False if mean - half > margin else True if mean + half <= margin else None
    images = min(getattr(result.cell, "log_examples", 0) for result in results)
    detail = f"best minus last epoch, mean of (a), (b), (c), over {len(gains)} methods, {networks} networks, {images} images"
    interval = f"[{100 * (mean - half):.2f}, {100 * (mean + half):.2f}]"
    seeds = max(map(len, of_method.values()))
    return conclude(case, holds, detail, ours=f"{100 * mean:+.2f} points", interval=interval, n=images, seeds=seeds)


@rule(TREND, lambda index, model, *, net, **_: index.measured([net], ["autoattack"], model))
def survives_autoattack(case: Case, *, net: Net, above: float) -> Decision:
    """A network classifies more than a threshold of the images correctly both without attack and under AutoAttack.

    Args:
        case: The evidence.
        net: The network.
        above: The threshold, a fraction.
    """
    out = case.one(net, "autoattack")
    (key,) = (spec.key for spec in out.attacks)
    right = int((out.right[0] & out.rows()[key]).sum())
    found = Estimate(right / out.n, *wilson(right, out.n, LEVEL), out.n, 1)
    holds = True if found.low > above else False if found.high < above else None
    detail = f"{key} in pixel space, without attack and under it"
    return conclude(case, holds, detail, ours=f"{100 * found.value:.1f} %", estimate=found)
