"""Rules on counts, costs and single values: MACs, accuracies of one network, kernels kept, seconds, identities.

Identities that hold for any weights are computed on untrained networks. Cost: seconds.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from gkp.artifact.claims.case import PAPER_EPOCHS, Case
from gkp.artifact.claims.decision import (
    COST,
    COUNTED,
    EXACTNESS,
    FAILS,
    HOLDS,
    NOT_REPRODUCED,
    REPRODUCED,
    TREND,
    UNDECIDED,
    VALUE,
    Decision,
    NotRun,
    rule,
)
from gkp.artifact.claims.evidence import SR, TMI, Index, Keys, Net
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.entry import network_in
from gkp.artifact.experiments.kinds import PruneCell, SpeedCell, TimingCell
from gkp.artifact.published import ATTACKED, CODE, NETWORKS, published, superscores
from gkp.artifact.tables.cost import CLUSTERINGS, accelerations
from gkp.artifact.tables.methods import method_checklist
from gkp.checkpoints import load_model
from gkp.errors import BadInput
from gkp.evaluation.statistics import LEVEL, SHIPPED, tolerance, wilson
from gkp.networks.build import build_model
from gkp.pruning.budget import Counter
from gkp.pruning.overlap import overlap
from gkp.pruning.plan import Plan, plan_of
from gkp.pruning.prune import layers_for, prune
from gkp.pruning.registry import make_method, method_info
from gkp.pruning.sr_gkp.grouping import smoothness_snaking
from gkp.pruning.sr_gkp.smoothness import smoothness


@rule(VALUE, board=EXACTNESS)
def counts_agree(case: Case, *, network: str, tables: tuple[int | str, ...]) -> Decision:
    """The printed multiply-accumulates and parameters of a network, unpruned and pruned by SR-GKP, are those counted here.

    Args:
        case: The evidence; not used.
        network: The paper's name of the architecture.
        tables: The tables of the paper that print them.
    """
    frame = pd.concat([published(table) for table in tables])
    frame = frame[frame["metric"].isin(("MACs", "params")) & frame["method"].isin(("Unpruned", "SR-GKP"))]
    printed = frame.fillna({"rate": 0.0}).groupby(["rate", "metric"])["value"].first().unstack()
    ours, off = [], []
    for rate in printed.index:
        found = _count(NETWORKS[network], float(rate))
        ours.append(f"{found['MACs']:.3f} M MACs, {found['params']:.3f} M parameters")
        wrong = [key for key in found if found[key] != printed.loc[rate, key]]
        off += [f"{found[key]:.3f} instead of {printed.loc[rate, key]:.3f}" for key in wrong]
    verdict = NOT_REPRODUCED if off else REPRODUCED
    reason = "; ".join(off) or "counted as the paper counts (gkp.pruning.cost)"
    return Decision(verdict, "; ".join(ours), reason, printed.size, 1, COUNTED)


@cache
def _counter(model: str) -> tuple[torch.nn.Module, Counter]:
    net = build_model(model)
    return net, Counter(net)


@cache
def _count(model: str, rate: float) -> dict[str, float]:
    """Multiply-accumulates and parameters in millions at this rate, 0 for unpruned; they do not depend on which kernels go."""
    net, counter = _counter(model)
    method = make_method("random-gkp", rate=rate)
    found = counter(method.plan(net, layers_for(method_info("random-gkp"), net, None)[0]) if rate else Plan({}))
    return {"MACs": round(found.paper_macs / 1e6, 3), "params": round(found.params / 1e6, 3)}


def _long(index: Index, model: str, *, net: Net, rate: float = SR.rate, **_: Any) -> list[Cell]:
    networks = index.networks(net.at(rate), model).values()
    return [cell for cell in networks if isinstance(cell, PruneCell) and cell.epochs >= PAPER_EPOCHS]


@rule(VALUE, _long, board=EXACTNESS)
def superscores_agree(case: Case, *, net: Net, table: int, rate: float = SR.rate) -> Decision:
    """The best epoch on the test set has, in each column, the accuracy that a table prints.

    Args:
        case: The evidence; anything but the paper's own setting is "not run".
        net: The network.
        table: The table of the paper.
        rate: The share of kernels removed.
    """
    if not case.at_paper_scale():
        raise NotRun(f"{case.model} was fine-tuned for {case.epochs()} epochs here, and a value needs the paper's 300")
    results = list(case.finished(net.at(rate)).values())
    logs = [pd.DataFrame(result["epochs"]) for result in results]
    n = getattr(results[0].cell, "log_examples", 0)
    if not n or any(set(ATTACKED) - set(log) for log in logs):
        raise NotRun("the epochs of the fine-tuning were not scored on the test set")
    spread, printed = case.spread("paper", ATTACKED), superscores(table).loc[net.label, list(ATTACKED)] / 100
    best = {key: sum(float(log[key].max()) for log in logs) / len(logs) for key in ATTACKED}
    width = {key: tolerance(printed[key], n, spread=spread, trainings=len(logs)) for key in ATTACKED}
    off = [key for key in ATTACKED if abs(best[key] - printed[key]) > width[key]]
    reason = f"outside the tolerance: {', '.join(off)}" if off else "all inside the tolerance"
    reason += f"; best of {len(logs[0])} epochs on the test set, as the paper chooses"
    ours = " / ".join(f"{100 * best[key]:.2f}" for key in ATTACKED) + " %"
    interval = " / ".join(f"±{100 * width[key]:.2f}" for key in ATTACKED)
    first, half = best["clean"], width["clean"]
    verdict = NOT_REPRODUCED if off else REPRODUCED
    numbers = first, first - half, first + half
    return Decision(verdict, ours, reason, n, len(logs), interval, *numbers, setting=case.setting())


@rule(VALUE, lambda index, model, *, net, **_: index.measured([net], ["paper"], model), board=EXACTNESS)
def public_code_agrees(case: Case, *, net: Net, row: str, keys: Keys) -> Decision:
    """The accuracies of the authors' own network are those that their public code gives.

    Args:
        case: The evidence.
        net: Their network, unpruned or pruned in one shot.
        row: Its method in the published numbers of the table "code".
        keys: The attacks.
    """
    printed = published(CODE).pivot(index="method", columns="metric", values="value").loc[row] / 100
    out = case.one(net, "paper")
    ours, ends = out.accuracy(), out.interval()
    if missing := [key for key in keys if key not in ours]:
        raise NotRun(f"not evaluated under {', '.join(missing)}")
    allowed = {key: SHIPPED if out.n == 10_000 else tolerance(printed[key], out.n) for key in keys}
    off = [key for key in keys if abs(ours[key] - printed[key]) > allowed[key] + 1e-9]
    reason = f"outside the tolerance: {', '.join(off)}" if off else "the same weights, the same images"
    text = " / ".join(f"{100 * ours[key]:.2f}" for key in keys) + " %"
    interval = " / ".join(f"[{100 * ends[key][0]:.2f}, {100 * ends[key][1]:.2f}]" for key in keys)
    verdict, setting = NOT_REPRODUCED if off else REPRODUCED, "the authors' ResNet-20, their weights"
    return Decision(verdict, text, reason, out.n, 1, interval, ours["clean"], *ends["clean"], setting=setting)


@rule(TREND, lambda index, model, *, one, other, **_: index.seeds([one, other], model, most=1))
def other_kernels(case: Case, *, one: Net, other: Net, at_least: float) -> Decision:
    """Two networks pruned from the same baseline differ in at least a given share of the kernels that they keep.

    Args:
        case: The evidence.
        one, other: The networks.
        at_least: A share of the kernels, a fraction.
    """
    plans = [_plan(case, net) for net in (one, other)]
    found = overlap(*plans)
    others = 1 - found.share
    verdict, setting = FAILS if others < at_least else HOLDS, case.setting()
    reason = f"{other.label} against {one.label}: {found.differing} of {found.filters} filters keep others"
    ours = f"{100 * others:.1f} % of the kernels are others"
    return Decision(verdict, ours, reason, found.filters, 1, COUNTED, others, setting=setting)


def _plan(case: Case, net: Net) -> Plan:
    result = case.first(net)
    try:
        return plan_of(load_model(result.file(network_in(result.folder))))
    except BadInput as error:
        raise NotRun(str(error)) from None


@rule(COST, lambda index, model, **_: index.timed(TimingCell, model))
def grouping_cheaper(case: Case, *, at_least: float) -> Decision:
    """The clusterings of TMI-GKP take at least `at_least` times as long as smoothness snaking."""
    found = case.those_of(case.index.timed(TimingCell, case.model))
    if not found:
        raise NotRun(f"the costs of {case.model} were not measured")
    took = found[0]["grouping"]
    clustering, snaking = sum(took[name] for name in CLUSTERINGS), took["snaking"]
    ratio = clustering / snaking
    verdict = FAILS if ratio < at_least else HOLDS
    layers = f"{took['layers']} of {took['of']} layers"
    reason = f"{layers}: all three clusterings {clustering:.3g} s, snaking {snaking:.3g} s, one process"
    interval = "none: one measurement of the clusterings"
    return Decision(verdict, f"{ratio:,.0f} times", reason, int(took["layers"]), 1, interval, ratio, setting=case.network())


@rule(COST, lambda index, model, **_: index.timed(SpeedCell, model))
def accelerates(case: Case, *, form: str, engine: str) -> Decision:
    """A pruned network takes less time than the dense one, on one thread, at every number of images.

    Args:
        case: The evidence.
        form: A key of `gkp.artifact.experiments.speed.forms_of`, e.g. "grouped, 7/16".
        engine: A column of `gkp.artifact.tables.accelerations`: "stock", each network in its fastest stock engine, or
            "pruning", both in `gkp.compile`.
    """
    found = case.those_of(case.index.timed(SpeedCell, case.model))
    if not found:
        raise NotRun(f"the speed of {case.model} was not measured")
    points = accelerations(found).points
    rows = points[(points["threads"] == 1) & (points["form"] == form)]
    if rows.empty or engine not in rows or rows[engine].isna().any():
        raise NotRun(f'{case.model} was not run as "{form}" in this engine; it needs pip install "gkp[fast,onnx,bench]"')
    low, middle, high = (float(quantile) for quantile in rows[engine].quantile([0, 0.5, 1]))
    verdict = HOLDS if high < 1 else FAILS if low >= 1 else UNDECIDED
    each = zip(rows["batch_size"], rows[engine], strict=True)
    reason = ", ".join(f"{ratio:.2f} for {size} image{'s' if size > 1 else ''}" for size, ratio in each)
    interval = f"[{low:.2f}, {high:.2f}] over numbers of images; medians of rounds in one process"
    ours = f"{middle:.2f} of the dense network's time"
    return Decision(verdict, ours, reason, len(rows), 1, interval, middle, low, high, setting=case.network())


@rule(COST, lambda index, model, **_: index.seeds([TMI, SR], model))
def pruning_cheaper(case: Case, *, more_than: float) -> Decision:
    """TMI-GKP takes more than `more_than` times as long to prune as SR-GKP, whichever of their measured times are compared.

    The networks were pruned on machines of several kinds, so it holds when the fastest of one side and the slowest of the
    other say so.
    """
    seconds = {}
    lengths = (case.whole or case.index).by_length(case.model)  # pruning takes as long whatever follows
    for net in (TMI, SR):
        took = []
        for index in lengths:
            with suppress(NotRun):
                found = case.at(case.model, case.same, index).finished(net).values()
                took += [result.run.get("prune_seconds") for result in found]
        if not (known := sorted(float(t) for t in took if t)):
            raise NotRun(f"the seconds of pruning by {net.label} were not recorded")
        seconds[net] = known
    theirs, ours = seconds[TMI], seconds[SR]
    low, middle, high = theirs[0] / ours[-1], float(np.median(theirs) / np.median(ours)), theirs[-1] / ours[0]
    verdict = HOLDS if low > more_than else FAILS if high < more_than else UNDECIDED
    ranges = (f"{net.label} {times[0]:.3g} to {times[-1]:.3g} s" for net, times in seconds.items())
    reason = f"{', '.join(ranges)}, each in a cell of its own, on machines of several kinds"
    n = min(len(theirs), len(ours))
    interval = f"[{low:.1f}, {high:.1f}] over all pairs of measurements"
    return Decision(verdict, f"{middle:.0f} times", reason, n, n, interval, middle, low, high, setting=case.network())


@rule(TREND, board=EXACTNESS)
def checklist_agrees(case: Case, *, but_for: tuple[str, ...] = ()) -> Decision:
    """The implemented methods have the types that Table 8 prints, and the methods that are one-shot there are one-shot here.

    Args:
        case: The evidence; not used.
        but_for: Methods whose type in Table 8 contradicts their rows in other tables.
    """
    table = method_checklist().points
    printed = table[table["type, published"] != ""]
    here = printed[printed["type, here"] != "not implemented"]
    other_type = list(here.loc[here["type, published"] != here["type, here"], "method"])
    one_shot = here[here["procedure, published"] == "one-shot"]
    other = list(one_shot.loc[one_shot["procedure, here"] != "one-shot", "method"])
    absent = list(printed.loc[printed["type, here"] == "not implemented", "method"])
    adapted = int(here["fidelity"].str.startswith("adapted").sum())
    low, high = wilson(len(here) - len(other_type), len(here), LEVEL)
    verdict = NOT_REPRODUCED if set(other_type) - set(but_for) or other else REPRODUCED
    of_type = [f"of another type: {', '.join(other_type)}"] if other_type else []
    missing = [f"not implemented here: {', '.join(absent)}"] if absent else []
    reason = "; ".join([*missing, *of_type, f"{adapted} of {len(here)} adapted, see `gkp methods`"])
    ours = f"{len(here)} of {len(printed)} implemented, {len(here) - len(other_type)} of the same type"
    share = (len(here) - len(other_type)) / len(here)
    return Decision(verdict, ours, reason, len(printed), 1, COUNTED, share, low, high)


@cache
def _untrained() -> torch.nn.Module:
    return build_model("resnet20", seed=0).eval()


@rule(TREND, board=EXACTNESS)
def same_function(case: Case, *, within: float) -> Decision:
    """The masked network and the compact one have the same logits, at most `within` apart."""
    pruned = prune(_untrained(), "l2-gkp").eval()
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gap = float((pruned(x) - pruned.compact().eval()(x)).abs().max())
    verdict = REPRODUCED if gap <= within else NOT_REPRODUCED
    ours = "at most 1e-5 apart" if gap <= within else f"{gap:.1e} apart"  # the digits depend on the processor
    reason = "masked dense and grouped convolutions, ResNet-20, 10 logits of 8 images"
    return Decision(verdict, ours, reason, 8, 1, "none: an identity")


@rule(TREND)
def snaking_balances(case: Case) -> Decision:
    """In every layer, snaking distributes smoothness over groups more evenly than groups of neighbouring filters."""
    ratios = []
    for _, layer in _untrained().named_modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.in_channels > 3 and layer.kernel_size == (3, 3):
            of_filter = smoothness(layer.weight).sum(dim=1)
            neighbours = torch.arange(len(of_filter)) * 8 // len(of_filter)
            ratios.append(_unevenness(of_filter, smoothness_snaking(layer.weight, 8)) / _unevenness(of_filter, neighbours))
    best, worst = min(ratios), max(ratios)
    verdict = HOLDS if worst < 1 else FAILS
    ours = f"the spread between groups is {worst:.2f} times that of neighbours, or less"
    reason, interval = f"{len(ratios)} layers of an untrained ResNet-20, 8 groups", f"{best:.2f} to {worst:.2f} over the layers"
    numbers = round(worst, 3), round(best, 3), round(worst, 3)
    return Decision(verdict, ours, reason, len(ratios), 1, interval, *numbers)


def _unevenness(of_filter: torch.Tensor, group: torch.Tensor) -> float:
    total = torch.zeros(8, dtype=of_filter.dtype).index_add(0, group, of_filter)
    return math.sqrt(float(total.var()))
