"""The paper's main claims: who is robust after pruning, and what frequencies have to do with it (Tables 1-3, 9-13, 17-20)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gkp.artifact.claims.claim import Claim
from gkp.artifact.claims.decision import Decision, NotRun
from gkp.artifact.claims.evidence import (
    BASELINE,
    CONTINUED,
    SR,
    TMI,
    Case,
    Net,
    high,
)
from gkp.artifact.claims.gpu_hours import GpuRun
from gkp.artifact.claims.rules import Contrast, contrasts, equal_but_fragile, ranked
from gkp.artifact.profiles import UNPRUNED
from gkp.artifact.published import names_here, published, superscores

ATTACKS = ("fgsm-0.01", "fgsm-0.1", "pgd-8/255")  # (a), (b), (c)
COLUMNS = ("clean", *ATTACKS)
PIXEL = "worst-case-1/255"
RESNETS = ("resnet32", "resnet56", "resnet110")
TEXT = ("resnet20", "resnet56", "resnet32", "resnet110")  # a statement about no network in particular: what is best measured
OLD = ("L1Norm-A", "L1Norm-B", "SFP", "FPGM")
MODERN = ("CC", "HRank", "LRF")  # NPPM, the fourth that the paper names, is not implemented here
THETAS = ("0.3", "0.5", "0.7")
MAIN = "02_cifar10_main"


def nets(printed: Iterable[str]) -> tuple[Net, ...]:
    """The rows of these methods, called as the paper does, that this project has."""
    here = names_here()
    return tuple(Net(here[name]) for name in printed if name in here)


def gain(table: int, more: Iterable[str], less: Iterable[str], keys: Sequence[str], network: str | None = None) -> float:
    """The printed difference of mean superscores over methods and metrics, as a fraction."""
    best = superscores(table, network=network, likely=True)[list(keys)]
    return float(best.loc[list(more)].to_numpy().mean() - best.loc[list(less)].to_numpy().mean()) / 100


def points(fraction: float) -> str:
    """A difference in points with its sign."""
    return f"{100 * fraction:+.1f} points"


def claims() -> Iterator[Claim]:
    """Every claim of this file."""
    yield from _fragility()
    yield from _families()
    yield from _free()
    yield from _best_or_second()
    yield from _frequencies()
    yield from _elsewhere()


def _fragility() -> Iterator[Claim]:
    best = superscores(10)
    reported = (
        f"CC {best.loc['CC', 'clean']:.2f} and SR-GKP {best.loc['SR-GKP', 'clean']:.2f} % benign, "
        f"{best.loc['CC', 'fgsm-0.1']:.2f} and {best.loc['SR-GKP', 'fgsm-0.1']:.2f} % under FGSM .1"
    )
    text = "Pruned networks of equal benign accuracy differ in adversarial accuracy"
    within = "benign accuracy within 1 point; 5 points apart under attack, p < .05 after Holm"
    gpu = (GpuRun("resnet56", 13),)
    decide, find = equal_but_fragile(ATTACKS, RESNETS)
    yield Claim("fragility", "text, Table 2, Figure 5", text, "direction", reported, within, decide, find, TEXT, RESNETS, MAIN,
                gpu, "1-4")  # fmt: skip
    decide, find = equal_but_fragile((PIXEL,), (), part="pixel")
    yield Claim("fragility-pixel", "text", f"{text}, also in pixel space with true labels", "direction", "not reported", within,
                decide, find, TEXT, (), "09_protocol_matters")  # fmt: skip


def _families() -> Iterator[Claim]:
    for keys, part, suffix, where in ((ATTACKS, "paper", "", RESNETS), ((PIXEL,), "pixel", "-pixel", ())):
        reported = gain(10, OLD, MODERN, ATTACKS) if not suffix else None
        told = f"{points(reported)} on ResNet-56, mean of (a), (b), (c)" if reported else "not reported"
        also = ", also in pixel space with true labels" if suffix else ""
        old_modern = Contrast("old less modern", nets(OLD), nets(MODERN), keys, part, reported=reported)
        decide, find = contrasts([old_modern], where)
        yield Claim(f"modern-worse{suffix}", "text, Table 2, Figure 5" if not suffix else "text",
                    f"Modern methods (CC, HRank, LRF) are less robust than old ones (L1Norm, SFP, FPGM){also}",
                    "order at equal MACs", told, "interval of the paired difference lies above 0", decide, find, TEXT, where,
                    MAIN if not suffix else "09_protocol_matters", (GpuRun("resnet56", 8),), "1-4")  # fmt: skip
        others = (*OLD, *MODERN)
        reported = gain(10, ["TMI-GKP"], others, ATTACKS) if not suffix else None
        told = f"{points(reported)} on ResNet-56, mean of (a), (b), (c)" if reported else "not reported"
        decide, find = contrasts([Contrast("TMI-GKP less others", (TMI,), nets(others), keys, part, reported=reported)], where)
        yield Claim(f"tmi-free{suffix}", "text, Table 2" if not suffix else "text",
                    f"TMI-GKP is more robust than filter and channel pruning although it was not made for it{also}",
                    "order at equal MACs", told, "interval of the paired difference lies above 0", decide, find, TEXT, where,
                    MAIN if not suffix else "09_protocol_matters", (GpuRun("resnet56", 9),), "2-4")  # fmt: skip


def _free() -> Iterator[Claim]:
    above = "interval of the paired difference lies above 0"

    def order(name: str, item: str, statement: str, parts: Sequence[Contrast], told: str, within: str, *, notebook: str = MAIN,
              same: Sequence[str] = RESNETS, gpu: int = 2) -> Claim:  # fmt: skip
        decide, find = contrasts(parts, same)
        return Claim(name, item, statement, "order at equal MACs", told, within, decide, find, TEXT, tuple(same), notebook,
                     (GpuRun("resnet56", gpu),), "2-4, 9-10")  # fmt: skip

    clean, robust = (gain(10, ["SR-GKP"], ["Unpruned"], keys) for keys in (["clean"], ATTACKS))
    yield order(
        "free-benign", "text, Table 2", "SR-GKP costs no benign accuracy",
        [Contrast("SR-GKP less unpruned", (SR,), (BASELINE,), ("clean",), margin=0.005, equal_macs=False)],
        f"{points(clean)} on ResNet-56", "not more than 0.5 points below",
    )  # fmt: skip
    yield order(
        "free-robustness", "text, Table 2", "SR-GKP makes the network more robust than it was unpruned",
        [Contrast("SR-GKP less unpruned", (SR,), (BASELINE,), ATTACKS, reported=robust, equal_macs=False)],
        f"{points(robust)} on ResNet-56, mean of (a), (b), (c)", above,
    )  # fmt: skip
    yield order(
        "free-robustness-control", "text",
        "SR-GKP is more robust than the unpruned network that was fine-tuned as long: it is the pruning, not the fine-tuning",
        [Contrast("SR-GKP less unpruned, fine-tuned", (SR,), (CONTINUED,), ATTACKS, reported=robust, equal_macs=False)],
        "not reported: the paper's unpruned rows were not fine-tuned", above, same=(),
    )  # fmt: skip
    yield order(
        "free-robustness-pixel", "text", "SR-GKP is more robust than the unpruned network, fine-tuned, also in pixel space",
        [Contrast("SR-GKP less unpruned, fine-tuned", (SR,), (CONTINUED,), (PIXEL,), "pixel", equal_macs=False)],
        "not reported", above, notebook="09_protocol_matters", same=(),
    )  # fmt: skip
    over = gain(10, ["SR-GKP"], ["TMI-GKP"], ATTACKS)
    yield order(
        "sr-over-tmi", "text, Table 2", "Smoothness adds robustness: SR-GKP is more robust than TMI-GKP",
        [Contrast("SR-GKP less TMI-GKP", (SR,), (TMI,), ATTACKS, reported=over)],
        f"{points(over)} on ResNet-56, mean of (a), (b), (c)", above, gpu=3,
    )  # fmt: skip
    for control, words in (("random-gkp", "grouped kernels drawn at random"), ("l2-gkp", "those of largest norm")):
        yield order(
            f"sr-over-{control}", "text", f"The choice of kernels matters: SR-GKP is more robust than keeping {words}",
            [Contrast(f"SR-GKP less {control}", (SR,), (Net(control),), ATTACKS, reported=over)],
            "not reported: the paper has no such control", above, same=(), gpu=3, notebook="03_ablations",
        )  # fmt: skip


def _best_or_second() -> Iterator[Claim]:
    here = names_here()
    rows = (
        (9, 6, "ResNet-32", ("resnet32", "resnet20"), 12),
        (10, 7, "ResNet-56", ("resnet56", "resnet20"), 13),
        (11, 8, "ResNet-110", ("resnet110",), 13),
        (12, 9, "VGG-16", ("vgg16_bn",), 6),
    )
    for table, figure, network, models, trained in rows:
        rivals = [Net(here[name]) for name in superscores(table).index if name in here and name not in ("SR-GKP", "Unpruned")]
        decide, find = ranked(rivals, COLUMNS, models[:1], who=SR)
        also = ", Table 2, Figure 5" if table == 10 else ""
        yield Claim(f"best-or-second-{models[0]}", f"Table {table}, Figure {figure}{also}",
                    f"{network}: SR-GKP is best or second best on benign accuracy and under each attack",
                    "order at equal MACs", _four(table, "SR-GKP"),
                    "at most one method ahead in each column; differs when two are told apart as better",
                    decide, find, models, models[:1], MAIN, (GpuRun(models[0], trained),),
                    "8" if table == 10 else "appendix")  # fmt: skip
    for table, network, models in ((17, "ResNet-32", ("resnet32", "resnet20")), (18, "ResNet-56", ("resnet56",)),
                                   (19, "ResNet-110", ("resnet110",))):  # fmt: skip
        printed = (here.get(name, UNPRUNED) for name in superscores(table).index)
        rivals = [high(Net(name)) for name in printed if name not in (UNPRUNED, "sr-gkp")]
        decide, find = ranked(rivals, COLUMNS, models[:1], who=high(SR))
        yield Claim(f"high-rate-{models[0]}", f"Table {table}, Table 20",
                    f"{network} at 62.5 %: SR-GKP is best or second best on benign accuracy and under each attack",
                    "order at equal MACs", f"mean rank {_rank(network):g}; {_four(table, 'SR-GKP')}",
                    "at most one method ahead in each column; differs when two are told apart as better", decide, find, models,
                    models[:1], "06_high_rate", (GpuRun(models[0], 9),))  # fmt: skip


def _frequencies() -> Iterator[Claim]:
    frame = published(1).pivot(index="method", columns="setting", values="value")
    high_pass = [column for column in frame if column != "full"]
    gaps = frame.loc[["CC", "L1Norm-B"], high_pass].mean(axis=1) - frame.loc["Unpruned", high_pass].mean()
    for control, suffix, told in (
        (BASELINE, "", "; ".join(f"{name} {gap:+.1f} points" for name, gap in gaps.items())),
        (CONTINUED, "-control", "not reported: the paper's unpruned network was not fine-tuned"),
    ):
        parts = [
            Contrast(f"{name} above {theta}", nets([name]), (control,), ("clean",), f"high-frequency-{theta}", equal_macs=False)
            for name in ("CC", "L1Norm-B")
            for theta in THETAS
        ]
        decide, find = contrasts(parts, ("resnet56",) if not suffix else ())
        also = " that was fine-tuned as long" if suffix else ""
        yield Claim(f"high-frequencies{suffix}", "Table 1, Figure 2" if not suffix else "text",
                    f"Pruned networks read more from high frequencies alone than the unpruned network{also}", "direction", told,
                    "all six intervals of paired differences lie above 0", decide, find, ("resnet56", "resnet20"),
                    ("resnet56",) if not suffix else (), "01_fragility", (GpuRun("resnet56", 4),), "3-4")  # fmt: skip


def _elsewhere() -> Iterator[Claim]:
    """Tables on data and networks for which no profile has cells: what they say, and what running them takes."""

    def never(case: Case) -> Decision:
        raise NotRun("no profile has cells of this data set")

    tiny = published(13).query("criterion in ('', 'Best Benign')")
    for network, setting in (("ResNet-56", "tiny-imagenet resnet56"), ("ResNet-101", "tiny-imagenet resnet101")):
        wide = tiny[tiny["network"] == network].pivot(index="method", columns="metric", values="value")
        told = "; ".join(f"{m} {wide.loc[m, 'clean']:.2f} / {wide.loc[m, 'pgd-4/255']:.2f}" for m in ("SR-GKP", "TMI-GKP"))
        yield Claim(f"tiny-{network.lower()}", "Table 13", f"{network} on Tiny-ImageNet: SR-GKP beats TMI-GKP",
                    "order at equal MACs", told, "interval of the paired difference lies above 0", never,
                    notebook="07_imagenet", gpu=(GpuRun(setting, 3),))  # fmt: skip
    wide = published(3).pivot(index=["setting", "method"], columns="metric", values="value")
    for setting, rivals, trained in (("self-trained baseline", "TMI-GKP", 3), ("torchvision baseline", "FPGM and SFP", 3)):
        told = "; ".join(
            f"{name} {row['clean']:.2f} / {row['pgd']:.2f}" for name, row in wide.loc[setting].iterrows() if name != "Unpruned"
        )
        yield Claim(f"imagenet-{setting.partition(' ')[0]}", "Table 3",
                    f"ResNet-50 on ImageNet, {setting}: SR-GKP beats {rivals}, benign and by PGD", "order at equal MACs", told,
                    "interval of the paired difference lies above 0", never, notebook="07_imagenet",
                    gpu=(GpuRun("imagenet resnet50", trained),))  # fmt: skip


def _four(table: int, method: str) -> str:
    return " / ".join(f"{value:.2f}" for value in superscores(table).loc[method]) + " %"


def _rank(network: str) -> float:
    frame = published(20)
    return float(frame.loc[(frame["method"] == "SR-GKP") & (frame["network"] == network), "value"].iloc[0])
