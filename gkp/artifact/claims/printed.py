"""Rules that compare statements of the paper with its own printed numbers; nothing is run.

"consistent": the statement follows from the printed numbers; "inconsistent": they contradict it. Each printed number is of one
training, without an interval.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from gkp.artifact.claims.case import Case
from gkp.artifact.claims.decision import CONSISTENCY, CONSISTENT, INCONSISTENT, INTERNAL, Decision, Rule, rule
from gkp.artifact.published import ATTACKED, LOG, RANKED, mean_ranks, published, superscores
from gkp.artifact.results import attack_name

Answer = tuple[bool, str, str, int]  # holds, ours, reason, how many printed numbers


def consistent(answer: Callable[..., Answer]) -> Rule:
    """Make a `Rule` of the consistency board of a function that returns an `Answer`."""

    @wraps(answer)
    def decide(case: Case, **parameters: object) -> Decision:
        holds, ours, reason, n = answer(**parameters)
        return Decision(CONSISTENT if holds else INCONSISTENT, ours, reason, n, 1, "none printed")

    return rule(INTERNAL, board=CONSISTENCY)(decide)


@consistent
def printed_best_or_second(*, table: int, acceptable: float = 1.0) -> Answer:
    """SR-GKP is best or second best in each column.

    Args:
        table: The table of the paper.
        acceptable: Methods that lose more points of benign accuracy to pruning are left out.
    """
    best = superscores(table, likely=True)
    ranked = best[best["clean"] >= best.loc["Unpruned", "clean"] - acceptable].drop("Unpruned")
    left_out = [name for name in best.index.drop("Unpruned") if name not in ranked.index]
    ranks, ahead = [], []
    for key in ATTACKED:
        better = ranked.index[ranked[key] > ranked.loc["SR-GKP", key]]
        ranks.append(len(better) + 1)
        if len(better):
            ahead.append(f"{attack_name(key, 'paper')}: {', '.join(f'{name} {ranked.loc[name, key]:.2f}' for name in better)}")
    ours = f"ranks {', '.join(map(str, ranks))} of {len(ranked)}"
    reason = f"ahead of it, {'; '.join(ahead)}" if ahead else "nothing is ahead of it"
    return max(ranks) <= 2, ours, reason + (f"; left out: {', '.join(left_out)}" if left_out else ""), ranked.size


@consistent
def printed_bars(*, table: int) -> Answer:
    """The bars of each method in a figure, the best values of this table, are all of one epoch."""
    frame = published(table)
    wide = frame[frame["metric"].isin(ATTACKED)].pivot(index=["method", "criterion"], columns="metric", values="value")
    mixed, several = [], 0
    for method, rows in wide.groupby(level="method", sort=False):
        if len(rows) > 1:
            several += 1
            if not (rows == rows.max()).all(axis=1).any():
                mixed.append(str(method))
    reason = f"mixed: {', '.join(mixed)}" if mixed else "none is mixed"
    return not mixed, f"{len(mixed)} of {several} methods with several epochs mix them", reason, wide.size


@consistent
def printed_balance(*, table: int, used: str) -> Answer:
    """The CSB that the main table uses is not the one with the best mean of best epochs."""
    best = superscores(table).drop("Unpruned").mean(axis=1).rename(lambda name: name.removeprefix("SR-GKP, "))
    listed = "; ".join(f"{name} {value:.2f}" for name, value in best.items())
    return best.idxmax() != used, f"the best is {best.idxmax()}", f"mean of benign, (a), (b): {listed}", 3 * len(best)


@consistent
def printed_mean_rank(*, network: str) -> Answer:
    """SR-GKP has the lowest mean rank by the rule of Table 20, with misprints corrected."""
    ranks = mean_ranks()[network].sort_values()
    listed = "; ".join(f"{name} {value:.2f}" for name, value in ranks.items())
    return ranks.index[0] == "SR-GKP", f"{ranks.index[0]} with {ranks.iloc[0]:.2f}", listed, len(RANKED)


@consistent
def printed_rank_table() -> Answer:
    """The ranks of Table 20 follow from Tables 17 to 19 as printed."""
    printed = published(20).pivot(index="method", columns="network", values="value")
    off, mended = (
        int(((mean_ranks(likely=likely).loc[printed.index, printed.columns] - printed).abs() > 0.006).to_numpy().sum())
        for likely in (False, True)
    )
    reason = (
        f"as printed, {off} of {printed.size} do not follow; with the likely reading of Table 18's misprint, {mended}: FPGM on "
        "ResNet-110, whose tie with SR-GKP is counted against it"
    )
    return not off, f"{printed.size - off} of {printed.size} follow", reason, printed.size


@consistent
def printed_same_run() -> Answer:
    """The rows of SR-GKP in Tables 5 and 9 are of one training."""
    beam = superscores(5, network="ResNet-32").loc["GKP, Smoothness Snaking + Smooth Beam Greedy"]
    main = superscores(9).loc["SR-GKP", list(beam.index)]
    ours = " / ".join(f"{value:.2f}" for value in beam) + " % in Table 5"
    reason = "another run of the same method on the same network: so large is the effect of chance"
    return bool((beam == main).all()), ours, reason, 6


@consistent
def printed_high_frequencies() -> Answer:
    """Every pruned network of Table 1 is more accurate than the unpruned one on high frequencies."""
    frame = published(1).pivot(index="method", columns="setting", values="value").drop(columns="full")
    unpruned, pruned = frame.loc["Unpruned"], frame.drop("Unpruned")
    lower = [
        f"{method} at {setting.rpartition(' ')[2]}: {row[setting]:.2f} below {unpruned[setting]:.2f}"
        for method, row in pruned.iterrows()
        for setting in frame
        if row[setting] <= unpruned[setting]
    ]
    return not lower, f"{pruned.size - len(lower)} of {pruned.size}", "; ".join(lower), frame.size


@consistent
def printed_speedup(*, times: int) -> Answer:
    """The largest ratio of grouping times in Table 7, rounded to hundreds, is the one in the text."""
    wide = published(7).query("metric == 'grouping'").pivot(index="network", columns="method", values="value")
    ratio = wide["TMI-GKP"] / wide["SR-GKP"]
    listed = "; ".join(f"{network} {value:,.0f}" for network, value in ratio.items())
    largest = ratio.max()
    return round(largest, -2) == times, f"{largest:,.0f} times", f"{listed}; seconds are printed whole", wide.size


@consistent
def printed_text(*, method: str) -> Answer:
    """A number in the text is that of its table."""
    row = published("text").set_index("method").loc[method]
    return row["value"] == row["likely"], f"{row['likely']:.2f} % in the table", row["erratum"], 2


@consistent
def printed_labels(*, tables: tuple[int | str, ...]) -> Answer:
    """In these tables, each row labelled as the best epoch by a metric has the highest value of that metric."""
    wrong, rows = [], 0
    for table in tables:
        frame = published(table)
        for criterion, metric in (("Best Benign", "clean"), ("Best (a)", "fgsm-0.01"), ("Best (b)", "fgsm-0.1")):
            of = frame[frame["metric"] == metric]
            best = of.groupby("method")["value"].transform("max")
            labelled = of[of["criterion"] == criterion]
            rows += len(labelled)
            wrong += [
                f"Table {table}, {r.method}, {criterion}: {r.value}"
                for r in labelled[labelled["value"] < best[labelled.index]].itertuples()
            ]
    return not wrong, f"{rows - len(wrong)} of {rows} rows", "; ".join(wrong), rows


@consistent
def printed_copies() -> Answer:
    """The OTOv2 rows of Tables 18 and 19 have different numbers."""
    keys = ["method", "metric"]
    here, there = (published(t).query("method.str.startswith('OTOv2')").set_index(keys)["value"] for t in (19, 18))
    same = int((here == there).sum())
    return not same, f"{same} of {len(here)} are those of Table 18", "multiply-accumulates and parameters among them", len(here)


@consistent
def printed_epoch_choice() -> Answer:
    """The gain from choosing the epoch on the test set is smaller than the lead of SR-GKP over TMI-GKP."""
    chosen = published(LOG).query("metric == 'fgsm-0.01'").set_index("criterion")["value"]
    gap = chosen["Best (a)"] - chosen["last epoch"]
    methods = superscores(9).loc["SR-GKP", "fgsm-0.01"] - superscores(9).loc["TMI-GKP", "fgsm-0.01"]
    ours = f"{gap:.2f} points by choosing the epoch"
    return gap < methods, ours, f"SR-GKP is {methods:.2f} points ahead of TMI-GKP on ResNet-32, FGSM .01", 300
