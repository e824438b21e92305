"""Rules that compare networks: differences of accuracy, ranks, and differences at equal benign accuracy.

They compare networks of one profile, image by image, that have the same multiply-accumulates and the same fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from gkp.artifact.claims.case import Case
from gkp.artifact.claims.decision import (
    FAILS,
    HOLDS,
    ORDER,
    SAME,
    TREND,
    UNDECIDED,
    Decision,
    NotRun,
    arguments,
    rule,
)
from gkp.artifact.claims.evidence import SR, Index, Keys, Net
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.groups import RATE, UNPRUNED
from gkp.artifact.published import gain, names_here
from gkp.artifact.results import SAME_MACS, attack_name, of_one_budget
from gkp.errors import BadInput
from gkp.evaluation.statistics import Estimate, Spread, difference, holm, judge

SAME_ACCURACY = 0.01  # differences within a point count as none; where the paper states a smaller one, half of that
SURE = 0.05  # the level of significance
FEWEST = 3  # the smallest number of other methods for a rank
HALF = 7  # of the paper's 14 methods: the smallest number that says something about methods in general


@dataclass(frozen=True)
class Contrast:
    """Accuracy of `more` minus that of `less`, each averaged over its networks and over the rows `keys`.

    Attributes:
        name: Such as "SR-GKP minus TMI-GKP".
        more, less: The networks of both sides.
        keys: The attacks whose accuracies are averaged.
        part: The evaluations, as in `gkp.artifact.results.plays`.
        margin: None to claim that the difference is above 0; a fraction to claim that it is above minus this margin.
        reported: The difference that the paper reports, a fraction; None where it reports none.
        equal_macs: Whether both sides must have the same multiply-accumulates; False for comparisons with unpruned networks.
    """

    name: str
    more: tuple[Net, ...]
    less: tuple[Net, ...]
    keys: Keys
    part: str = "paper"
    margin: float | None = None
    reported: float | None = None
    equal_macs: bool = True

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Contrast:
        """Read a contrast from claims.toml.

        Args:
            given: The fields. Instead of `reported` it may have `printed`: the arguments of `gkp.artifact.published.gain`
                except metrics; `more` and `less` are by default the paper's names of the networks.

        Raises:
            BadInput: A field is unknown, missing or of another type, or the printed difference cannot be found.
        """
        fields = arguments(cls, {name: value for name, value in given.items() if name != "printed"}, "a contrast")
        if "printed" in given:
            calls = {here: name for name, here in names_here().items()} | {"baseline": "Unpruned"}
            sides = {side: [calls.get(net.method, net.label) for net in fields[side]] for side in ("more", "less")}
            try:
                fields["reported"] = gain(**{**sides, **given["printed"]}, metrics=fields["keys"])
            except (KeyError, TypeError) as error:
                raise BadInput(f"the printed difference of {fields['name']} cannot be read: {error}") from None
        return cls(**fields)

    @property
    def equal_within(self) -> float:
        """The largest difference that counts as none, a fraction."""
        small = self.reported is not None and abs(self.reported) < SAME_ACCURACY
        return abs(self.reported or 0) / 2 if small else SAME_ACCURACY

    def verdict(self, estimate: Estimate, tests: int, *, known: bool = True) -> str:
        """The verdict on one of `tests` differences that are judged together; `known`: whether their spread over seeds is."""
        if not known:
            return UNDECIDED
        if (holds := judge(estimate, margin=self.margin)) is not None:
            return HOLDS if holds else FAILS
        none = self.margin is None and estimate.equivalence_p(self.equal_within, tests) < SURE
        return SAME if none else UNDECIDED

    def estimate(self, case: Case, tests: int) -> Estimate:
        """The difference, with an interval for `tests` simultaneous comparisons. Raises NotRun where a network is missing."""
        sides = [[case.rows(net, self.part, self.keys) for net in nets] for nets in (self.more, self.less)]
        seeds = min(len(rows) for side in sides for rows in side)
        more, less = ([row for rows in side for row in rows] for side in sides)
        if self.equal_macs:
            check_macs(case, (*self.more, *self.less))
        if len(self.more) == len(self.less) == 1 and (n := self._one_network(case)):
            return Estimate(0.0, 0.0, 0.0, len(more[0]), n)
        return difference(more, less, spread=self.spread(case), tests=tests, seeds=seeds)

    def spread(self, case: Case) -> Spread:
        """The spread over seeds that its interval rests on."""
        return case.spread(self.part, self.keys, borrowed=True)

    def _one_network(self, case: Case) -> int:
        """The number of seeds for which both sides have the same outcomes under every attack, if those are all they share."""
        ours, theirs = (case.outcomes(nets[0], self.part) for nets in (self.more, self.less))
        shared = [seed for seed in ours if seed in theirs]
        return len(shared) if all(np.array_equal(ours[seed].right, theirs[seed].right) for seed in shared) else 0


def _compared(index: Index, model: str, *, contrasts: Sequence[Contrast]) -> list[Cell]:
    nets_of: dict[str, dict[Net, None]] = {}
    for part in contrasts:
        nets_of.setdefault(part.part, {}).update(dict.fromkeys((*part.more, *part.less)))
    groups = [index.measured(nets, [part], model) for part, nets in nets_of.items()]
    return list({cell.hash: cell for group in groups for cell in group}.values()) if all(groups) else []


@rule(ORDER, _compared)
def contrasts(case: Case, *, contrasts: tuple[Contrast, ...]) -> Decision:
    """One or several differences: the claim holds when all of them do."""
    found = [part.estimate(case, len(contrasts)) for part in contrasts]
    pairs = list(zip(contrasts, found, strict=True))
    spreads = [part.spread(case) for part in contrasts]
    states = [
        part.verdict(est, len(contrasts), known=spread.df > 0) for (part, est), spread in zip(pairs, spreads, strict=True)
    ]
    told = [f"{part.name}: {_says(state, est, part)}" for (part, est), state in zip(pairs, states, strict=True)]
    return conclude(
        case,
        together(states),
        "; ".join([*told, *_of_seeds(spreads)]),
        ours="; ".join(f"{part.name}: {100 * est.value:+.1f} points" for part, est in pairs),
        interval="; ".join(est.interval for est in found),
        estimate=found[0],
        n=min(est.n for est in found),
        seeds=min(est.seeds for est in found),
        margin=contrasts[0].equal_within if contrasts[0].margin is None else contrasts[0].margin,
        p=found[0].p(len(contrasts)),
    )


def conclude(
    case: Case,
    verdict: str | bool | None,
    detail: str,
    *,
    ours: str,
    estimate: Estimate | None = None,
    setting: str = "",
    **facts: Any,
) -> Decision:
    """Make the decision on a claim about measured networks.

    Args:
        case: The evidence.
        verdict: The word; or True, False or None for a claim that holds, does not hold or is undecided.
        detail: Why the verdict follows.
        ours: The result, as text.
        estimate: The first number of `ours`; it gives interval, n and seeds of the decision where `facts` does not.
        setting: The network and its schedule; "" for those of the case.
        facts: Further fields of `Decision`; without `estimate`, interval, n and seeds must be among them.
    """
    word = verdict if isinstance(verdict, str) else {True: HOLDS, False: FAILS, None: UNDECIDED}[verdict]
    if estimate:
        numbers = {name: getattr(estimate, name) for name in ("interval", "n", "seeds", "value", "low", "high")}
        facts = numbers | facts
    seeded = "" if facts["seeds"] > 1 else ", one seed of some rows"
    return Decision(word, ours, detail, setting=setting or case.setting() + seeded, **facts)


def _of_seeds(spreads: Sequence[Spread]) -> list[str]:
    """A remark on intervals whose spread over seeds is that of another architecture, or not known."""
    if any(not spread.df for spread in spreads):
        return ["one training each and no spread over trainings is known, so the intervals are of the images alone"]
    of = sorted({spread.of for spread in spreads if spread.of})
    return [f"one training each, taken to spread as those of {', '.join(of)}"] if of else []


def together(parts: Sequence[str]) -> str:
    """Combine the verdicts on the parts of a claim.

    The claim holds when all parts do. It does not hold when one part does not, or when some hold and others show no difference.
    """
    found = set(parts)
    if FAILS in found:
        return FAILS
    if UNDECIDED in found:
        return UNDECIDED
    return found.pop() if len(found) == 1 else FAILS


def _with_rivals(index: Index, model: str, *, against: tuple[Net, ...], rate: float = RATE, **_: Any) -> list[Cell]:
    return index.available([SR.at(rate)], [net.at(rate) for net in against], "paper", model)


@rule(ORDER, _with_rivals)
def best_or_second(case: Case, *, against: tuple[Net, ...], keys: Keys, rate: float = RATE) -> Decision:
    """SR-GKP is best or second best in each column among the networks at this rate and budget.

    It holds when in each column at most one of the others can be more accurate, by the intervals, and fails when two or more
    are significantly.

    Args:
        case: The evidence.
        against: The methods it is compared with, as far as the profile has them; at least `FEWEST` of them.
        keys: The columns.
        rate: The share of kernels removed.
    """
    who = SR.at(rate)
    finished = case.available([net.at(rate) for net in against], "paper")
    rivals = [net for net in finished if of_one_budget([_macs(case, who), _macs(case, net)])]
    if len(rivals) < FEWEST:
        raise NotRun(f"only {len(rivals)} of the methods to compare with are finished on {case.model}")
    states: list[str] = []
    told, places, seeds, n = [], [], [], 0
    spreads = [case.spread("paper", [key], borrowed=True) for key in keys]
    for key, spread in zip(keys, spreads, strict=True):
        own = case.rows(who, "paper", [key])
        gaps = {net: difference(case.rows(net, "paper", [key]), own, spread=spread, tests=len(rivals)) for net in rivals}
        ahead = sum(gap.value > 0 for gap in gaps.values())
        better = [net.label for net, gap in gaps.items() if gap.low > 0]
        sure = HOLDS if sum(gap.high > 0 for gap in gaps.values()) < 2 else FAILS if len(better) > 1 else UNDECIDED
        states.append(sure if spread.df else UNDECIDED)
        beaten = f", significantly behind {', '.join(better)}" if better else ""
        places.append(f"{attack_name(key, 'paper')}: rank {ahead + 1} of {len(rivals) + 1}")
        told.append(f"{places[-1]} with {100 * np.mean(own):.1f} %{beaten}")
        seeds.append(min(gap.seeds for gap in gaps.values()))
        n = len(own[0])
    interval = f"95 % for all {len(rivals)} comparisons of a column"
    ours, detail = "; ".join(places), "; ".join([*told, *_of_seeds(spreads)])
    return conclude(case, together(states), detail, ours=ours, interval=interval, n=n, seeds=min(seeds))


@rule(TREND, lambda index, model, *, part="paper", **_: index.every_method(part, model))
def equal_but_fragile(case: Case, *, keys: Keys, part: str = "paper", close: float = 0.01, apart: float = 0.05) -> Decision:
    """Networks of equal benign accuracy differ in robustness: at least one pair does, with Holm's correction over all pairs.

    Args:
        case: The evidence.
        keys: The attacks.
        part: The evaluations they are read from, as in `gkp.artifact.results.plays`.
        close: The largest difference of benign accuracy that counts as equal, a fraction.
        apart: The least difference under one of the attacks, a fraction.
    """
    nets = case.available((net for net in case.index.methods(case.model) if net.method != UNPRUNED), part)
    nets = _of_one_budget(case, nets)
    if len(nets) < HALF:
        raise NotRun(f"only {len(nets)} pruned networks are finished on {case.model}")
    clean = {net: float(np.mean(case.rows(net, part, ["clean"]))) for net in nets}
    pairs = [(a, b, key) for a, b in combinations(nets, 2) if abs(clean[a] - clean[b]) <= close for key in keys]
    if not pairs:
        raise NotRun(f"no two of {len(nets)} networks are within {100 * close:.0f} point of each other without attack")
    gaps, spreads = [], {key: case.spread(part, [key], borrowed=True) for key in keys}
    for a, b, key in pairs:
        rows = {net: case.rows(net, part, [key]) for net in (a, b)}
        if np.mean(rows[a]) < np.mean(rows[b]):
            a, b = b, a
        gaps.append((difference(rows[a], rows[b], spread=spreads[key], tests=len(pairs)), a, b, key))
    sure = [gap for gap, p in zip(gaps, _holm([gap for gap, *_ in gaps]), strict=True) if p < 0.05]
    largest = max(gaps, key=lambda gap: gap[0].value)
    est, a, b, key = max(sure or gaps, key=lambda gap: gap[0].low)
    known = all(spread.df for spread in spreads.values())
    holds = None if not known else True if sure and est.low >= apart else False if largest[0].high < apart else None
    detail = (
        f"{a.label} and {b.label}, {100 * clean[a]:.1f} and {100 * clean[b]:.1f} % without attack, are "
        f"{est.text} points apart under {attack_name(key, part)}; {len(sure)} of {len(pairs)} comparisons under an attack of "
        f"two of {len(nets)} networks of equal benign accuracy are significant (Holm)"
    )
    detail = "; ".join([detail, *_of_seeds(list(spreads.values()))])
    return conclude(case, holds, detail, ours=f"{100 * est.value:.1f} points", estimate=est)


def _holm(gaps: Sequence[Estimate]) -> np.ndarray:
    """Two-sided p of each of these differences, whose intervals are simultaneous, after Holm's correction."""
    return holm([gap.p(len(gaps)) for gap in gaps])


def _of_one_budget(case: Case, nets: Sequence[Net]) -> list[Net]:
    """The networks near the median of multiply-accumulates: a method that removes whole blocks may miss the budget."""
    macs = {net: _macs(case, net) for net in nets}
    middle = float(np.median(list(macs.values()))) if macs else 0.0
    return [net for net in nets if abs(macs[net] - middle) <= 2 * SAME_MACS * middle]


def check_macs(case: Case, nets: Sequence[Net]) -> None:
    """Raise NotRun unless all these networks have the same multiply-accumulates, by the paper's counter, within 1 %."""
    macs = {net.label: _macs(case, net) for net in nets}
    if not of_one_budget(macs.values()):
        low, high = min(macs, key=lambda name: macs[name]), max(macs, key=lambda name: macs[name])
        raise NotRun(f"{high} has {macs[high]:,} MACs and {low} {macs[low]:,}: not the same budget, so no order is claimed")


def _macs(case: Case, net: Net) -> int:
    return case.first(net)["paper_macs"]


def _says(state: str, est: Estimate, part: Contrast) -> str:
    bound = f", within {100 * part.equal_within:.1f} counts as none" if part.margin is None else ""
    allowed = "" if part.margin is None else f", {100 * part.margin:.1f} allowed"
    return f"{est.text}{allowed or bound}: {state}"
