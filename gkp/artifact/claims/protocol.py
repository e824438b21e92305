"""What the paper's protocol does to its own conclusions: labels, normalised space, the choice of the epoch, strong attacks.

These are claims that the paper makes without saying so, by what it calls its columns and by how it chooses its networks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from gkp.artifact.claims.claim import Claim
from gkp.artifact.claims.decision import DIFFERS, DIRECTION, NOT_RUN, Decision, NotRun
from gkp.artifact.claims.evidence import (
    BASELINE,
    CONTINUED,
    SR,
    Case,
    Index,
    Net,
)
from gkp.artifact.claims.main import ATTACKS, PIXEL, TEXT
from gkp.artifact.claims.rules import _finished, _measured, conclude
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import PruneCell
from gkp.artifact.published import LOG, published, superscores
from gkp.evaluation.statistics import LEVEL, difference, wilson

NOTEBOOK, STRONG = "09_protocol_matters", "08_robustbench"
RESAMPLES = 1000


def claims() -> Iterator[Claim]:
    """Every claim of this file."""
    unpruned = superscores(10).loc["Unpruned", "pgd-8/255"]
    yield Claim("fgsm-labels", "text", "The FGSM columns say how accurate a network is under an attack that knows the labels",
                "direction", "FGSM .01 and .1; the code hands ART the network's own predictions",
                "0.5 points with true labels instead", _decide_labels, _find(BASELINE, SR), TEXT, (), NOTEBOOK, (),
                "public code")  # fmt: skip
    yield Claim("pgd-is-not-8-255-of-a-pixel", "text, Table 2", "PGD at 8/255 leaves an undefended network much accuracy",
                "direction", f"unpruned ResNet-56 {unpruned:.2f} %", "above 10 % also in pixel space, where 8/255 is 8 of 255",
                _decide_pixel_pgd, _find(BASELINE, parts=("paper", "pixel")), TEXT, (), NOTEBOOK, (), "8")  # fmt: skip
    yield Claim("order-survives-pixel", "text", "The order of the methods under attack is that of pixel space with true labels",
                "direction", "not reported", "rank correlation of at least 0.8", _decide_order, _every_method, TEXT, (),
                NOTEBOOK)  # fmt: skip
    yield Claim("epoch-chosen-on-test", "text", "The networks of the tables could have been chosen without the test set",
                "direction", _log_bias(), "best epoch on the test set not more than 0.5 points above the last, on average",
                _decide_epochs, _logged, TEXT, (), NOTEBOOK, (), "8-9")  # fmt: skip
    yield Claim("robust-to-strong-attacks", "text", "Pruning by SR-GKP leaves robustness to AutoAttack at 8/255", "direction",
                "not reported: no strong attack was used", "interval of the accuracy lies above 1 %", _decide_autoattack,
                _find(SR, parts=("autoattack",)), TEXT, (), STRONG)  # fmt: skip


def _find(*nets: Net, parts: tuple[str, ...] = ("paper",)):
    return lambda index, model: index.measured(nets, parts, model)


def _decide_labels(case: Case) -> Decision:
    gaps, lines = [], []
    for net in (BASELINE, SR):
        for eps in ("0.01", "0.1"):
            rows = [case.rows(net, "paper", [key]) for key in (f"fgsm-{eps}", f"fgsm-{eps}-true")]
            gaps.append(difference(*rows, tests=4))
            lines.append(f"{net.label} FGSM {eps}: {gaps[-1].text} points less with true labels")
    largest = max(gaps, key=lambda gap: gap.value)
    holds = False if largest.low > 0.005 else True if all(gap.high <= 0.005 for gap in gaps) else None
    return conclude(case, (), holds, "; ".join(lines), ours=f"{100 * largest.value:.1f} points flattered",
                    interval=f"[{100 * largest.low:.1f}, {100 * largest.high:.1f}]", n=largest.n, seeds=largest.seeds,
                    estimate=largest)  # fmt: skip


def _decide_pixel_pgd(case: Case) -> Decision:
    paper, pixel = (next(iter(case.outcomes(BASELINE, part).values())) for part in ("paper", "pixel"))
    key = "pgd-8/255"
    if key not in pixel.rows():
        raise NotRun(f"{case.model} was not evaluated under {key} in pixel space")
    low, high = pixel.interval()[key]
    verdict = DIRECTION if low > 0.1 else DIFFERS if high < 0.1 else NOT_RUN
    ours = f"{100 * paper.accuracy()[key]:.1f} % in normalised units, {100 * pixel.accuracy()[key]:.1f} % in pixels"
    reason = f"{case.model}, unpruned; 8/255 in normalised units is about 1.6/255 in pixels"
    return Decision(verdict, ours, reason, pixel.n, 1, f"[{100 * low:.1f}, {100 * high:.1f}] in pixels",
                    pixel.accuracy()[key], low, high)  # fmt: skip


def _decide_order(case: Case) -> Decision:
    nets = [net for net in case.index.methods(case.model) if net != CONTINUED]
    nets = [net for net in _finished(case, nets, "paper") if net in _finished(case, nets, "pixel")]
    if len(nets) < 5:
        raise NotRun(f"only {len(nets)} methods are finished in both protocols on {case.model}")
    paper, pixel = (
        np.array([np.mean(case.rows(net, part, keys), axis=0) for net in nets])
        for part, keys in (("paper", list(ATTACKS)), ("pixel", [PIXEL]))
    )
    rho = float(spearmanr(paper.mean(axis=1), pixel.mean(axis=1)).statistic)
    drawn = np.random.default_rng(0)
    again = []
    for _ in range(RESAMPLES):  # other test images of the same kind; the networks stay
        means = [rows[:, drawn.integers(rows.shape[1], size=rows.shape[1])].mean(axis=1) for rows in (paper, pixel)]
        again.append(float(spearmanr(*means).statistic))
    low, high = np.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    holds = True if low >= 0.8 else False if high < 0.8 else None
    detail = f"Spearman {rho:.2f} [{low:.2f}, {high:.2f}] over {len(nets)} methods: mean of (a), (b), (c) against {PIXEL}"
    return conclude(case, (), holds, detail, ours=f"Spearman {rho:.2f}", interval=f"[{low:.2f}, {high:.2f}]",
                    n=pixel.shape[1], seeds=1)  # fmt: skip


def _every_method(index: Index, model: str) -> list[Cell]:
    nets = index.methods(model)
    return [*_measured(index, [], nets, "paper", model), *_measured(index, [], nets, "pixel", model)]


def _log_bias() -> str:
    chosen = published(LOG).query("metric == 'fgsm-0.01'").set_index("criterion")["value"]
    best, last = chosen["Best (a)"], chosen["last epoch"]
    return f"ResNet-20, log of the public code: FGSM .01 {best:.2f} % at its best epoch, {last:.2f} % at the last"


def _logged(index: Index, model: str) -> list[Cell]:
    cells = [cell for net in index.methods(model) for cell in index.networks(net, model).values()]
    return [cell for cell in cells if isinstance(cell, PruneCell) and cell.log_examples]


def _decide_epochs(case: Case) -> Decision:
    results = [case.results[cell.hash] for cell in _logged(case.index, case.model) if cell.hash in case.results]
    logs = [pd.DataFrame(result["epochs"]) for result in results]
    logs = [log for log in logs if len(log) > 1 and set(ATTACKS) <= set(log)]
    if len(logs) < 3:
        raise NotRun(f"only {len(logs)} networks of {case.model} have their epochs scored on the test set")
    gains = np.array([[log[key].max() - log[key].iloc[-1] for key in ATTACKS] for log in logs]).mean(axis=1)
    mean, half = float(gains.mean()), 1.96 * float(gains.std(ddof=1)) / len(gains) ** 0.5
    holds = False if mean - half > 0.005 else True if mean + half <= 0.005 else None
    images = min(getattr(result.cell, "log_examples", 0) for result in results)
    detail = f"best minus last epoch, mean of (a), (b), (c), over {len(gains)} networks, {images} test images"
    return conclude(case, (), holds, detail, ours=f"{100 * mean:+.2f} points",
                    interval=f"[{100 * (mean - half):.2f}, {100 * (mean + half):.2f}]", n=images, seeds=len(gains))  # fmt: skip


def _decide_autoattack(case: Case) -> Decision:
    out = next(iter(case.outcomes(SR, "autoattack").values()))
    (key,) = (spec.key for spec in out.attacks)
    right = int((out.right[0] & out.rows()[key]).sum())
    low, high = wilson(right, out.n, LEVEL)
    verdict = DIRECTION if low > 0.01 else DIFFERS if right / out.n <= 0.01 else NOT_RUN
    return Decision(verdict, f"{100 * right / out.n:.1f} %", f"{case.model}, {key} in pixel space", out.n, 1,
                    f"[{100 * low:.1f}, {100 * high:.1f}]", right / out.n, low, high)  # fmt: skip
