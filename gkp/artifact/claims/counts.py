"""Claims that are counted or computed: MACs, parameters and values of SR-GKP, the checklist of methods, what grouped kernels
are, and the authors' own ResNet-20 (Tables 8-12 and 17-19, Figures 1, 3, the public code).

What is counted, and what holds for any weights, is computed here and now, on networks that were never trained: seconds in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import pandas as pd
import torch

from gkp.artifact.claims.claim import Claim
from gkp.artifact.claims.decision import DIFFERS, DIRECTION, REPRODUCED, Decision, NotRun
from gkp.artifact.claims.evidence import PAPER_EPOCHS, SR, Case, Index, Net
from gkp.artifact.claims.gpu_hours import GpuRun
from gkp.artifact.claims.main import COLUMNS
from gkp.artifact.claims.rules import Decide, Find
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import PruneCell
from gkp.artifact.published import CODE, LOG, NETWORKS, published, superscores
from gkp.artifact.tables.methods import method_checklist
from gkp.evaluation.statistics import LEVEL, SHIPPED, tolerance, wilson
from gkp.networks.build import build_model
from gkp.pruning.budget import Counter
from gkp.pruning.plan import Plan
from gkp.pruning.prune import layers_for, prune
from gkp.pruning.registry import make_method, method_info
from gkp.pruning.sr_gkp.grouping import smoothness_snaking
from gkp.pruning.sr_gkp.smoothness import smoothness

OFFICIAL, OFFICIAL_PRUNED = Net("official"), Net("official sr-gkp")
PUBLIC_KEYS = ("clean", "fgsm-0.01", "fgsm-0.1", "fgsm-0.01-true", "fgsm-0.1-true")


def claims() -> Iterator[Claim]:
    """Every claim of this file."""
    yield from _macs()
    yield from _values()
    yield from _public_code()
    yield Claim("checklist", "Table 8", "The methods are of the types and procedures that the checklist gives", "direction",
                "13 methods", "types agree, and one-shot methods are one-shot, for those implemented", _decide_checklist,
                notebook=MAIN, page="18")  # fmt: skip
    yield Claim("grouped-convolution", "Figure 1", "Grouped kernel pruning leaves a grouped convolution of the same function",
                "direction", "drawing", "logits within 1e-5 of the masked dense network's", _decide_same_function,
                page="2-4")  # fmt: skip
    yield Claim("snaking-balances", "Figure 3", "Snaking gives every filter group about the same smoothness", "direction",
                "drawing", "groups more alike than groups of neighbours in every layer", _decide_balance,
                page="5")  # fmt: skip


MAIN = "02_cifar10_main"


def _macs() -> Iterator[Claim]:
    for network, tables in (("ResNet-20", (LOG,)), ("ResNet-32", (9, 17)), ("ResNet-56", (10, 18)), ("ResNet-110", (11, 19)),
                            ("VGG-16", (12,))):  # fmt: skip
        frame = pd.concat([published(table) for table in tables])
        frame = frame[frame["metric"].isin(("MACs", "params")) & frame["method"].isin(("Unpruned", "SR-GKP"))]
        printed = frame.fillna({"rate": 0.0}).groupby(["rate", "metric"])["value"].first().unstack()
        rates = [float(rate) for rate in printed.index]
        told = "; ".join(f"{printed.loc[r, 'MACs']:.3f} M MACs, {printed.loc[r, 'params']:.3f} M parameters" for r in rates)
        item = ", ".join("text" if table == LOG else f"Table {table}" for table in tables)
        yield Claim(f"macs-{NETWORKS[network]}", item, f"{network}: MACs and parameters, unpruned and by SR-GKP", "value",
                    told, "every printed digit", _counted(NETWORKS[network], printed), notebook="05_cost")  # fmt: skip


def _counted(model: str, printed: pd.DataFrame) -> Decide:
    def decide(case: Case) -> Decision:
        ours, off = [], []
        for rate in printed.index:
            found = _count(model, float(rate))
            ours.append(f"{found['MACs']:.3f} M MACs, {found['params']:.3f} M parameters")
            wrong = [key for key in found if found[key] != printed.loc[rate, key]]
            off += [f"{found[key]:.3f} instead of {printed.loc[rate, key]:.3f}" for key in wrong]
        verdict, reason = (DIFFERS, "; ".join(off)) if off else (REPRODUCED, "counted as the paper counts (gkp.pruning.cost)")
        return Decision(verdict, "; ".join(ours), reason, printed.size, 1, "none: counted, not measured")

    return decide


@cache
def _counter(model: str) -> tuple[torch.nn.Module, Counter]:
    net = build_model(model)
    return net, Counter(net)


@cache
def _count(model: str, rate: float) -> dict[str, float]:
    """Millions of multiply-accumulates and parameters; which kernels go does not matter. rate 0: unpruned."""
    net, counter = _counter(model)
    method = make_method("random-gkp", rate=rate)
    found = counter(method.plan(net, layers_for(method_info("random-gkp"), net, None)[0]) if rate else Plan({}))
    return {"MACs": round(found.paper_macs / 1e6, 3), "params": round(found.params / 1e6, 3)}


def _values() -> Iterator[Claim]:
    """SR-GKP's own numbers, which only the paper's own setting can give again."""
    for table, model, network in ((9, "resnet32", "ResNet-32"), (10, "resnet56", "ResNet-56"), (11, "resnet110", "ResNet-110"),
                                  (12, "vgg16_bn", "VGG-16"), (17, "resnet32", "ResNet-32"), (18, "resnet56", "ResNet-56"),
                                  (19, "resnet110", "ResNet-110")):  # fmt: skip
        printed = superscores(table).loc["SR-GKP", list(COLUMNS)]
        net = SR if table < 17 else Net("sr-gkp", (), 10 / 16)
        decide, find = _superscore(net, tuple(printed / 100), model)
        yield Claim(f"value-table-{table}", f"Table {table}", f"{network}: SR-GKP's best benign, (a), (b) and (c)",
                    "value", " / ".join(f"{value:.2f}" for value in printed) + " %",
                    "z sqrt(p (1 - p) / n), combined with the spread over seeds", decide, find, (model,), (model,),
                    "02_cifar10_main" if table < 17 else "06_high_rate", (GpuRun(model, 2),))  # fmt: skip


def _superscore(net: Net, printed: tuple[float, ...], model: str) -> tuple[Decide, Find]:
    def decide(case: Case) -> Decision:
        if not case.at_paper_scale((model,)):
            raise NotRun(f"{case.model} was fine-tuned for {case.epochs()} epochs here, and a value needs the paper's 300")
        results = list(case.finished(net).values())
        logs = [pd.DataFrame(result["epochs"]) for result in results]
        n = getattr(results[0].cell, "log_examples", 0)
        if not n or any(set(COLUMNS) - set(log) for log in logs):
            raise NotRun("the epochs of the fine-tuning were not scored on the test set")
        spread = case.spread("paper", COLUMNS)
        best = {key: sum(float(log[key].max()) for log in logs) / len(logs) for key in COLUMNS}
        width = {key: tolerance(p, n, spread=spread, trainings=len(logs)) for key, p in zip(COLUMNS, printed, strict=True)}
        off = [key for key, p in zip(COLUMNS, printed, strict=True) if abs(best[key] - p) > width[key]]
        reason = f"outside the tolerance: {', '.join(off)}" if off else "all inside the tolerance"
        ours = " / ".join(f"{100 * best[key]:.2f}" for key in COLUMNS) + " %"
        interval = " / ".join(f"±{100 * width[key]:.2f}" for key in COLUMNS)
        first = best["clean"]
        return Decision(DIFFERS if off else REPRODUCED, ours, f"{reason}; best of {len(logs[0])} epochs on the test set, as "
                        "the paper chooses", n, len(logs), interval, first, first - width["clean"],
                        first + width["clean"])  # fmt: skip

    def find(index: Index, at: str) -> list[Cell]:
        networks = index.networks(net, at).values()
        return [cell for cell in networks if isinstance(cell, PruneCell) and cell.epochs >= PAPER_EPOCHS]

    return decide, find


def _public_code() -> Iterator[Claim]:
    log = published(LOG).query("criterion == 'one-shot'").set_index("metric")["value"]
    code = published(CODE).pivot(index="method", columns="metric", values="value")
    for net, name, method, said, told in (
        (OFFICIAL, "official-unpruned", "Unpruned", "the authors' ResNet-20, unpruned", ""),
        (OFFICIAL_PRUNED, "official-one-shot", "SR-GKP", "the authors' ResNet-20 after one-shot SR-GKP",
         "; its log, of another torch: " + " / ".join(f"{log[key]:.2f}" for key in PUBLIC_KEYS[:3])),
    ):  # fmt: skip
        printed = [float(code.loc[method, key]) for key in PUBLIC_KEYS]
        decide, find = _accuracy(net, printed)
        yield Claim(name, "text", f"Benign, FGSM .01 and .1 of {said}; then FGSM with true labels", "value",
                    f"{' / '.join(f'{value:.2f}' for value in printed)} % by the public code, run on this torch{told}",
                    "0.05 points on 10,000 images; z sqrt(p (1 - p) / n) on fewer", decide, find, ("resnet20",), ("resnet20",),
                    "09_protocol_matters", (), "public code")  # fmt: skip


def _accuracy(net: Net, printed: Sequence[float]) -> tuple[Decide, Find]:
    def decide(case: Case) -> Decision:
        out = next(iter(case.outcomes(net, "paper").values()))
        ours, ends = out.accuracy(), out.interval()
        if missing := [key for key in PUBLIC_KEYS if key not in ours]:
            raise NotRun(f"not evaluated under {', '.join(missing)}")
        allowed = {
            key: SHIPPED if out.n == 10_000 else tolerance(p / 100, out.n) for key, p in zip(PUBLIC_KEYS, printed, strict=True)
        }
        off = [key for key, p in zip(PUBLIC_KEYS, printed, strict=True) if abs(ours[key] - p / 100) > allowed[key] + 1e-9]
        reason = f"outside the tolerance: {', '.join(off)}" if off else "the same weights, the same images"
        text = " / ".join(f"{100 * ours[key]:.2f}" for key in PUBLIC_KEYS) + " %"
        interval = " / ".join(f"[{100 * ends[key][0]:.2f}, {100 * ends[key][1]:.2f}]" for key in PUBLIC_KEYS)
        return Decision(DIFFERS if off else REPRODUCED, text, reason, out.n, 1, interval, ours["clean"], *ends["clean"])

    return decide, lambda index, model: index.measured([net], ["paper"], model)


def _decide_checklist(case: Case) -> Decision:
    table = method_checklist().points
    printed = table[table["type, published"] != ""]
    here = printed[printed["type, here"] != "not implemented"]
    other_type = list(here.loc[here["type, published"] != here["type, here"], "method"])
    one_shot = here[here["procedure, published"] == "one-shot"]
    other = list(one_shot.loc[one_shot["procedure, here"] != "one-shot", "method"])
    absent = list(printed.loc[printed["type, here"] == "not implemented", "method"])
    adapted = int(here["fidelity"].str.startswith("adapted").sum())
    low, high = wilson(len(here) - len(other_type), len(here), LEVEL)
    verdict = DIFFERS if other_type or other else DIRECTION
    reason = f"not implemented here: {', '.join(absent)}; {adapted} of {len(here)} adapted, see `gkp methods`"
    ours = f"{len(here)} of {len(printed)} implemented, {len(here) - len(other_type)} of the same type"
    share = len(here) / len(printed)
    return Decision(verdict, ours, reason, len(printed), 1, "none: counted, not measured", share, low, high)


@cache
def _untrained() -> torch.nn.Module:
    return build_model("resnet20", seed=0).eval()


def _decide_same_function(case: Case) -> Decision:
    pruned = prune(_untrained(), "l2-gkp").eval()
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gap = float((pruned(x) - pruned.compact().eval()(x)).abs().max())
    verdict = REPRODUCED if gap <= 1e-5 else DIFFERS
    ours = "at most 1e-5 apart" if gap <= 1e-5 else f"{gap:.1e} apart"  # the digits depend on the processor
    return Decision(verdict, ours, "masked dense and grouped convolutions, ResNet-20, 10 logits of 8 images", 8, 1,
                    "none: an identity")  # fmt: skip


def _decide_balance(case: Case) -> Decision:
    ratios = []
    for _, layer in _untrained().named_modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.in_channels > 3 and layer.kernel_size == (3, 3):
            of_filter = smoothness(layer.weight).sum(dim=1)
            neighbours = torch.arange(len(of_filter)) * 8 // len(of_filter)
            ratios.append(_unevenness(of_filter, smoothness_snaking(layer.weight, 8)) / _unevenness(of_filter, neighbours))
    worst = max(ratios)
    ours = f"the spread between groups is {worst:.2f} times that of neighbours, or less"
    return Decision(DIRECTION if worst < 1 else DIFFERS, ours, f"{len(ratios)} layers of an untrained ResNet-20, 8 groups",
                    len(ratios), 1, f"{min(ratios):.2f} to {worst:.2f} over the layers",
                    round(worst, 3), round(min(ratios), 3), round(worst, 3))  # fmt: skip


def _unevenness(of_filter: torch.Tensor, group: torch.Tensor) -> float:
    total = torch.zeros(8, dtype=of_filter.dtype).index_add(0, group, of_filter)
    return math.sqrt(float(total.var()))
