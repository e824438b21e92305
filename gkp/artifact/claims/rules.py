"""Claims that say which network is better: contrasts, ranks, and differences at equal benign accuracy.

All compare, per image, networks of one profile that were pruned to the same multiply-accumulates and fine-tuned alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests

from gkp.artifact.claims.decision import (
    DIFFERS,
    DIRECTION,
    NOT_RUN,
    REPRODUCED,
    Decision,
    NotRun,
)
from gkp.artifact.claims.evidence import Case, Index, Net
from gkp.artifact.experiments.cell import Cell
from gkp.evaluation.statistics import Estimate, difference, judge, quantile, together

SAME_MACS = 0.01  # relative: "equal MACs"
Decide = Callable[[Case], Decision]
Find = Callable[[Index, str], list[Cell]]


@dataclass(frozen=True)
class Contrast:
    """Accuracy of `more` against that of `less`, each averaged over its networks, and over the attacks `keys` of `part`.

    margin: None for "more than", else "not less by more than this", a fraction. reported: the paper's difference, a fraction.
    equal_macs: whether both sides must have the same; the unpruned network never has.
    """

    name: str
    more: tuple[Net, ...]
    less: tuple[Net, ...]
    keys: tuple[str, ...]
    part: str = "paper"
    margin: float | None = None
    reported: float | None = None
    equal_macs: bool = True

    def estimate(self, case: Case, tests: int) -> Estimate:
        """The difference with its interval. Raises NotRun for what is not finished."""
        sides = [[case.rows(net, self.part, self.keys) for net in nets] for nets in (self.more, self.less)]
        seeds = min(len(rows) for side in sides for rows in side)
        more, less = ([row for rows in side for row in rows] for side in sides)
        if self.equal_macs:
            check_macs(case, (*self.more, *self.less))
        spread = case.spread(self.part, self.keys)
        return difference(more, less, spread=spread, tests=tests, seeds=seeds)


def contrasts(parts: Sequence[Contrast], same: Sequence[str]) -> tuple[Decide, Find]:
    """Decides a claim of one or several orders: it holds when all do. same: the architectures the paper reports it for."""

    def decide(case: Case) -> Decision:
        found = [part.estimate(case, len(parts)) for part in parts]
        states = [judge(est, margin=part.margin, reported=part.reported) for part, est in zip(parts, found, strict=True)]
        holds = together(states)
        detail = "; ".join(
            f"{part.name}: {_says(state, est, part)}" for part, est, state in zip(parts, found, states, strict=True)
        )
        return conclude(
            case,
            same,
            holds,
            detail,
            ours="; ".join(f"{part.name} {100 * est.value:+.1f}" for part, est in zip(parts, found, strict=True)),
            interval="; ".join(f"[{100 * est.low:.1f}, {100 * est.high:.1f}]" for est in found),
            estimate=found[0],
            n=min(est.n for est in found),
            seeds=min(est.seeds for est in found),
        )

    def find(index: Index, model: str) -> list[Cell]:
        nets_of: dict[str, dict[Net, None]] = {}
        for part in parts:
            nets_of.setdefault(part.part, {}).update(dict.fromkeys((*part.more, *part.less)))
        groups = [index.measured(nets, [part], model) for part, nets in nets_of.items()]
        return list({cell.hash: cell for group in groups for cell in group}.values()) if all(groups) else []

    return decide, find


def conclude(
    case: Case,
    same: Sequence[str],
    holds: bool | None,
    detail: str,
    *,
    ours: str,
    interval: str,
    n: int,
    seeds: int,
    estimate: Estimate | None = None,
) -> Decision:
    """The decision for a claim that holds, fails, or is open, in the setting of this case."""
    like = case.at_paper_scale(same)
    verdict = {True: REPRODUCED if like else DIRECTION, False: DIFFERS, None: NOT_RUN}[holds]
    setting = f"on {case.model}, {case.epochs()} epochs, last epoch"
    spread = "" if seeds > 1 else ", one seed of some rows"
    reason = f"{'undecided: ' if holds is None else ''}{detail} ({setting}{spread})"
    numbers = (estimate.value, estimate.low, estimate.high) if estimate else (np.nan, np.nan, np.nan)
    return Decision(verdict, ours, reason, n, seeds, interval, *numbers)


def ranked(
    against: Sequence[Net], keys: Sequence[str], same: Sequence[str], *, who: Net, part: str = "paper", at_least: int = 3
) -> tuple[Decide, Find]:
    """Decides "best or second best under each of these keys" among the methods `against` that the profile has.

    It holds when at most one of them is more accurate under each key, and fails when two or more are told apart as better.
    """

    def decide(case: Case) -> Decision:
        rivals = _finished(case, against, part)
        if len(rivals) < at_least:
            raise NotRun(f"only {len(rivals)} of the methods to compare with are finished on {case.model}")
        check_macs(case, [who, *rivals])
        states: list[bool | None] = []
        told, places, seeds, n = [], [], [], 0
        for key in keys:
            own, spread = case.rows(who, part, [key]), case.spread(part, [key])
            gaps = {net: difference(case.rows(net, part, [key]), own, spread=spread, tests=len(rivals)) for net in rivals}
            ahead = sum(gap.value > 0 for gap in gaps.values())
            better = [net.label for net, gap in gaps.items() if gap.low > 0]
            states.append(False if len(better) > 1 else True if ahead < 2 else None)
            beaten = f", surely behind {', '.join(better)}" if better else ""
            places.append(f"{key}: rank {ahead + 1} of {len(rivals) + 1}")
            told.append(f"{places[-1]} with {100 * np.mean(own):.1f} %{beaten}")
            seeds.append(min(gap.seeds for gap in gaps.values()))
            n = len(own[0])
        interval = f"95 % for all {len(rivals)} comparisons of a column"
        ours, detail = "; ".join(places), "; ".join(told)
        return conclude(case, same, together(states), detail, ours=ours, interval=interval, n=n, seeds=min(seeds))

    return decide, lambda index, model: _measured(index, [who], against, part, model)


def equal_but_fragile(
    keys: Sequence[str], same: Sequence[str], *, part: str = "paper", close: float = 0.01, apart: float = 0.05
) -> tuple[Decide, Find]:
    """Decides "networks of equal benign accuracy differ in robustness": some pair of pruned networks within `close` of each
    other without attack differs by `apart` or more under an attack of `keys`, Holm-corrected for all such pairs."""

    def decide(case: Case) -> Decision:
        nets = [net for net in case.index.methods(case.model) if net.method != "none"]
        nets = _finished(case, nets, part)
        if len(nets) < 4:
            raise NotRun(f"only {len(nets)} pruned networks are finished on {case.model}")
        check_macs(case, nets)
        clean = {net: float(np.mean(case.rows(net, part, ["clean"]))) for net in nets}
        pairs = [(a, b, key) for a, b in combinations(nets, 2) if abs(clean[a] - clean[b]) <= close for key in keys]
        if not pairs:
            raise NotRun(f"no two of {len(nets)} networks are within {100 * close:.0f} point of each other without attack")
        gaps = []
        for a, b, key in pairs:
            if np.mean(case.rows(a, part, [key])) < np.mean(case.rows(b, part, [key])):
                a, b = b, a
            rows = case.rows(a, part, [key]), case.rows(b, part, [key])
            gaps.append((difference(*rows, spread=case.spread(part, [key]), tests=len(pairs)), a, b, key))
        errors = [(gap.high - gap.low) / 2 / quantile(len(pairs)) for gap, *_ in gaps]
        p = multipletests(
            [2 * norm.sf(gap.value / max(e, 1e-12)) for (gap, *_), e in zip(gaps, errors, strict=True)], method="holm"
        )[1]
        sure = [gap for gap, p_holm in zip(gaps, p, strict=True) if p_holm < 0.05]
        largest = max(gaps, key=lambda gap: gap[0].value)
        est, a, b, key = max(sure or gaps, key=lambda gap: gap[0].value)
        holds = True if sure and est.value >= apart else False if largest[0].high < apart else None
        detail = (
            f"{a.label} and {b.label}, {100 * clean[a]:.1f} and {100 * clean[b]:.1f} % without attack, are "
            f"{100 * est.value:.1f} points apart under {key}; {len(sure)} of {len(pairs)} pairs of equal benign accuracy "
            "and attack are told apart (Holm)"
        )
        ours, interval = f"{100 * est.value:.1f} points", f"[{100 * est.low:.1f}, {100 * est.high:.1f}]"
        return conclude(case, same, holds, detail, ours=ours, interval=interval, n=est.n, seeds=est.seeds, estimate=est)

    return decide, lambda index, model: _measured(index, [], index.methods(model), part, model)


def check_macs(case: Case, nets: Sequence[Net]) -> None:
    """Raises NotRun unless all these networks cost the same multiply-accumulates, by the paper's counter, within 1 %."""
    macs = {net.label: next(iter(case.finished(net).values()))["paper_macs"] for net in nets}
    low, high = min(macs, key=lambda name: macs[name]), max(macs, key=lambda name: macs[name])
    if macs[high] > (1 + 2 * SAME_MACS) * macs[low]:  # each within 1 % of one budget
        raise NotRun(f"{high} has {macs[high]:,} MACs and {low} {macs[low]:,}: not the same budget, so no order is claimed")


def _finished(case: Case, nets: Sequence[Net], part: str) -> list[Net]:
    found = []
    for net in nets:
        try:
            case.finished(net, part), case.finished(net)
        except NotRun:
            continue
        found.append(net)
    return found


def _measured(index: Index, needed: Sequence[Net], wished: Sequence[Net], part: str, model: str) -> list[Cell]:
    """The cells of the needed networks and of those wished for that the profile has; empty when a needed one is not there."""
    groups = [index.measured([net], [part], model) for net in needed]
    if not all(groups):
        return []
    groups += [index.measured([net], [part], model) for net in wished]
    return list({cell.hash: cell for group in groups for cell in group}.values())


def _says(state: bool | None, est: Estimate, part: Contrast) -> str:
    bound = "" if part.margin is None else f", {100 * part.margin:.1f} allowed"
    words = {True: "holds", False: "fails" if est.high < 0 else "no difference as large as reported", None: "open"}[state]
    if state is False and est.low < 0 < est.high and part.reported is not None:
        words += f" ({100 * part.reported:+.1f})"
    return f"{est.text}{bound}: {words}"
