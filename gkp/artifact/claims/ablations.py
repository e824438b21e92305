"""Claims on the worth of each part of SR-GKP, and on the cost of grouping (Tables 4-7, 14-16)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gkp.artifact.claims.claim import Claim
from gkp.artifact.claims.decision import DIFFERS, DIRECTION, REPRODUCED, Decision, NotRun
from gkp.artifact.claims.evidence import SR, TMI, Case, Index, Net
from gkp.artifact.claims.gpu_hours import GpuRun
from gkp.artifact.claims.main import ATTACKS, points
from gkp.artifact.claims.rules import Contrast, Decide, Find, contrasts
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import network_in
from gkp.artifact.published import published, superscores
from gkp.checkpoints import load_model
from gkp.errors import BadInput
from gkp.pruning.methods.tmi_gkp.clusterings import CLUSTERINGS
from gkp.pruning.overlap import overlap
from gkp.pruning.plan import Plan, plan_of

BENIGN_MARGIN, ATTACK_MARGIN = 0.005, 0.01  # "not worse": epoch to epoch, the published log moves by 0.4 points under attack
GREEDY, LEAST, SFP, MIXED = Net("greedy-gkp"), Net("least-smooth-gkp"), Net("sfp"), "sfp-smooth"
ABLATION_NETS = ("resnet32", "resnet56", "resnet20")
PRINTED = ("resnet32", "resnet56")
ABOVE = "interval of the paired difference lies above 0"
NOT_WORSE = "not more than 0.5 points below without attack, 1 point under attack"
FEW = 0.1  # of the kernels that stay; by chance 0.44 are others at 7/16
AB = ("fgsm-0.01", "fgsm-0.1")  # Tables 4, 5 and 14-16 have no (c)
NOTEBOOK = "03_ablations"


def claims() -> Iterator[Claim]:
    """Every claim of this file."""
    yield from _parts()
    yield from _balance()
    yield from _selection()
    yield from _transfer()
    yield from _cost()


def _parts() -> Iterator[Claim]:
    tmi, snake, least, beam = (
        "GKP, TMI clustering + Greedy",
        "GKP, Smoothness Snaking + Greedy",
        "GKP, Smoothness Snaking + Least Smooth",
        "GKP, Smoothness Snaking + Smooth Beam Greedy",
    )
    worse = [
        Contrast("benign", (GREEDY,), (TMI,), ("clean",), margin=BENIGN_MARGIN),
        Contrast("attacked", (GREEDY,), (TMI,), AB, margin=ATTACK_MARGIN),
    ]
    yield _order("snaking-not-worse", "Table 4", "Smoothness snaking groups filters no worse than TMI-GKP's clusterings", worse,
                 _told(4, snake, tmi), NOT_WORSE)  # fmt: skip
    shuffled = Net("tmi-gkp", (("grouping", "random"),))
    yield _order("grouping-matters", "text", "Grouping matters: filters grouped at random do worse than TMI-GKP's clusterings",
                 [Contrast("TMI-GKP less random groups", (TMI,), (shuffled,), ("clean", *ATTACKS))],
                 "not reported: the paper has no such control", ABOVE, same=())  # fmt: skip
    for name, rival, printed, words in (
        ("greedy", GREEDY, snake, "plain greedy"),
        ("least-smooth", LEAST, least, "least smooth"),
    ):
        gain = sum(_gain(5, beam, printed, network, AB) for network in ("ResNet-32", "ResNet-56")) / 2
        more = [
            Contrast("benign", (SR,), (rival,), ("clean",), margin=BENIGN_MARGIN),
            Contrast("attacked", (SR,), (rival,), AB, reported=gain),
        ]
        yield _order(f"beam-over-{name}", "Table 5, Figure 4",
                     f"Smooth Beam Greedy selects better than {words}: more robust, no less accurate", more,
                     _told(5, beam, printed), f"attacked: {ABOVE}; benign: not more than 0.5 points below")  # fmt: skip
    text_beta = Net("sr-gkp", (("beta", "paper"),))
    same = [
        Contrast("released less text", (SR,), (text_beta,), ("clean", *ATTACKS), margin=ATTACK_MARGIN),
        Contrast("text less released", (text_beta,), (SR,), ("clean", *ATTACKS), margin=ATTACK_MARGIN),
    ]
    yield _order("beta-no-matter", "Figure 4, text", "The beta of the code and that of the text give equal networks",
                 same, "not reported: the paper does not say that they differ", "within 1 point", same=())  # fmt: skip


def _balance() -> Iterator[Claim]:
    rows = (
        (14, "ResNet-32", ("resnet32", "resnet20"), "CSB 0.9", "CSB 0.1", (), (("alpha", 0.1),)),
        (15, "ResNet-56", ("resnet56",), "CSB 0.75/0.9", "CSB 0.1", (), (("alpha", 0.1),)),
        (16, "ResNet-110", ("resnet110",), "CSB 0.5", "CSB 0.9", (("alpha", 0.5),), ()),
    )
    for table, network, models, used, other, more, less in rows:
        gain = _gain(table, f"SR-GKP, {used}", f"SR-GKP, {other}", None, AB)
        parts = [Contrast(f"{used} less {other}", (Net("sr-gkp", more),), (Net("sr-gkp", less),), AB, reported=gain)]
        yield _order(f"csb-{models[0]}", f"Table {table}", f"{network}: {used}, as in the main table, is better than {other}",
                     parts, f"{points(gain)}, mean of (a) and (b)", ABOVE, models=models, same=models[:1])  # fmt: skip


def _selection() -> Iterator[Claim]:
    told = []
    for table, network in ((14, "ResNet-32"), (15, "ResNet-56"), (16, "ResNet-110")):
        attacked = superscores(table)[list(AB)].mean(axis=1).drop("Unpruned")
        told.append(f"{network} {attacked.max() - attacked.min():.1f}")
    for name, item, rival, statement, reported in (
        ("csb-selects", "Table 14, Table 15, Table 16", Net("sr-gkp", (("alpha", 0.1),)),
         "The balancer decides which kernels stay: CSB 0.1 keeps others than CSB 0.9",
         f"points between the best and the worst CSB, mean of (a) and (b): {'; '.join(told)}"),
        ("norm-selects", "Figure 4, text", Net("l2-gkp"),
         "Smooth Beam Greedy keeps other kernels than those of largest norm",
         "not reported: the paper has no such control"),
    ):  # fmt: skip
        yield Claim(name, item, statement, "direction", reported, f"at least {100 * FEW:.0f} % of those that stay are others",
                    *_other_kernels(SR, rival), ABLATION_NETS, PRINTED, NOTEBOOK, (GpuRun("resnet32", 3),))  # fmt: skip


def _other_kernels(one: Net, other: Net) -> tuple[Decide, Find]:
    """Whether the two keep other kernels of one baseline: counted, so there is no interval."""

    def plan(case: Case, net: Net) -> Plan:
        result = next(iter(case.finished(net).values()))
        try:
            return plan_of(load_model(result.file(network_in(result.folder))))
        except BadInput as error:
            raise NotRun(str(error)) from None

    def decide(case: Case) -> Decision:
        found = overlap(plan(case, one), plan(case, other))
        others = 1 - found.share
        verdict = DIFFERS if others < FEW else REPRODUCED if case.model in PRINTED else DIRECTION
        reason = f"{other.label} against {one.label} on {case.model}: {found.differing} of {found.filters} filters keep others"
        return Decision(verdict, f"{100 * others:.1f} % of the kernels are others", reason, found.filters, 1,
                        "none: counted, not measured", others)  # fmt: skip

    def find(index: Index, model: str) -> list[Cell]:
        groups = [list(index.networks(net, model).values())[:1] for net in (one, other)]
        return [cell for group in groups for cell in group] if all(groups) else []

    return decide, find


def _transfer() -> Iterator[Claim]:
    parts, told = [], []
    for csb in (0.5, 0.75, 0.9):
        mixed = Net(MIXED, () if csb == 0.9 else (("csb", csb),))
        parts.append(Contrast(f"SFP less CSB {csb}", (SFP,), (mixed,), ("clean", *ATTACKS), margin=ATTACK_MARGIN))
        network = "ResNet-56"
        told.append(f"CSB {csb}: {points(_gain(6, 'SFP', f'SFP + smoothness, CSB {csb}', network, ('clean', *ATTACKS)))}")
    decide, find = contrasts(parts, PRINTED)
    yield Claim("no-transfer", "Table 6", "Mixing smoothness into SFP does not help it: no one less reason for filter pruning",
                "order at equal MACs", f"SFP less mixed, mean of all columns, ResNet-56: {'; '.join(told)}",
                "SFP not more than 1 point below at any CSB", decide, find, ABLATION_NETS, PRINTED,
                "04_filter_pruning_transfer", (GpuRun("resnet32", 4), GpuRun("resnet56", 5)), "9-10")  # fmt: skip


def _cost() -> Iterator[Claim]:
    wide = (
        published(7)
        .pivot(index="network", columns=["metric", "method"], values="value")
        .loc[["ResNet-32", "ResNet-56", "ResNet-110"]]
    )
    ratio = {metric: wide[metric]["TMI-GKP"] / wide[metric]["SR-GKP"] for metric in ("grouping", "grouping and pruning")}
    told = {
        metric: ", ".join(f"{n} {x:,.0f}" if x > 50 else f"{n} {x:.1f}" for n, x in r.items()) for metric, r in ratio.items()
    }
    models = ("resnet56", "resnet32", "resnet110", "resnet20")
    yield Claim("snaking-cheaper", "Table 7", "Smoothness snaking costs at most a hundredth of TMI-GKP's grouping",
                "cost ratio", f"{told['grouping']} times", "at least 100 times, the same layers in one process",
                *_grouping_ratio(100.0), models, (), "05_cost")  # fmt: skip
    yield Claim("pruning-cheaper", "Table 7", "SR-GKP as a whole prunes faster than TMI-GKP", "cost ratio",
                f"{told['grouping and pruning']} times", "more than once as fast", *_pruning_ratio(1.0),
                ("resnet20", "resnet56", "resnet32"), (), "05_cost")  # fmt: skip


def _grouping_ratio(at_least: float) -> tuple[Decide, Find]:
    def decide(case: Case) -> Decision:
        found = [case.results[cell.hash] for cell in case.index.timing(case.model) if cell.hash in case.results]
        if not found:
            raise NotRun(f"the costs of {case.model} were not measured")
        took = found[0]["grouping"]
        clustering = sum(took[name] for name in CLUSTERINGS)
        ratio = clustering / took["snaking"]
        whole = took["layers"] == took["of"] and case.model in ("resnet32", "resnet56", "resnet110")
        verdict = DIFFERS if ratio < at_least else REPRODUCED if whole else DIRECTION
        reason = (
            f"{took['layers']} of {took['of']} layers of {case.model}: all three clusterings {clustering:.3g} s, snaking "
            f"{took['snaking']:.3g} s, one process"
        )
        return Decision(verdict, f"{ratio:,.0f} times", reason, int(took["layers"]), 1,
                        "none: one measurement of the clusterings", ratio)  # fmt: skip

    return decide, lambda index, model: index.timing(model)


def _pruning_ratio(more_than: float) -> tuple[Decide, Find]:
    def decide(case: Case) -> Decision:
        seconds = {}
        for net in (TMI, SR):
            took = [r.run.get("prune_seconds") for r in case.finished(net).values()]
            if not (known := [float(t) for t in took if t]):
                raise NotRun(f"the seconds of pruning by {net.label} were not recorded")
            seconds[net] = min(known)
        ratio = seconds[TMI] / seconds[SR]
        verdict = DIRECTION if ratio > more_than else DIFFERS
        reason = f"{case.model}: TMI-GKP {seconds[TMI]:.3g} s, SR-GKP {seconds[SR]:.3g} s, each in a cell of its own"
        return Decision(verdict, f"{ratio:,.0f} times" if ratio > 10 else f"{ratio:.1f} times", reason, 1, 1,
                        "none: one measurement each", ratio)  # fmt: skip

    def find(index: Index, model: str) -> list[Cell]:
        groups = [list(index.networks(net, model).values()) for net in (TMI, SR)]
        return [cell for group in groups for cell in group] if all(groups) else []

    return decide, find


def _order(
    name: str,
    item: str,
    statement: str,
    parts: Sequence[Contrast],
    told: str,
    within: str,
    *,
    models: tuple[str, ...] = ABLATION_NETS,
    same: tuple[str, ...] = PRINTED,
) -> Claim:
    decide, find = contrasts(parts, same)
    gpu = tuple(GpuRun(model, 3) for model in (same or PRINTED))
    return Claim(name, item, statement, "order at equal MACs", told, within, decide, find, models, same, NOTEBOOK, gpu, "9-10")


def _gain(table: int, more: str, less: str, network: str | None, keys: Sequence[str]) -> float:
    best = superscores(table, network=network)[list(keys)]
    return float(best.loc[more].mean() - best.loc[less].mean()) / 100


def _told(table: int, more: str, less: str) -> str:
    """The printed differences without and under attack, for both networks of Tables 4 and 5."""
    lines = [
        f"{network} {points(_gain(table, more, less, network, ['clean']))} benign, "
        f"{points(_gain(table, more, less, network, AB))} (a), (b)"
        for network in ("ResNet-32", "ResNet-56")
    ]
    return "; ".join(lines)
