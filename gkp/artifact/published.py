"""The numbers that the paper prints (data/published), including misprints, and what follows from them alone.

Nothing here was measured. Each row of `tables.csv` is one printed number; accuracies are in percent, as printed. A misprint
keeps its printed value: `erratum` says what is wrong, and `likely` the probable value where it can be inferred. Cost:
milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from gkp.errors import BadInput
from gkp.evaluation.statistics import mean_rank
from gkp.files import locate

TABLES = tuple(range(1, 21))
FIGURES = tuple(range(1, 10))
ATTACKED = ("clean", "fgsm-0.01", "fgsm-0.1", "pgd-8/255")  # benign, (a), (b), (c) of the CIFAR-10 tables
NETWORKS = {
    "ResNet-20": "resnet20",
    "ResNet-32": "resnet32",
    "ResNet-56": "resnet56",
    "ResNet-110": "resnet110",
    "VGG-16": "vgg16_bn",
}
ARCHITECTURES = {model: name for name, model in NETWORKS.items()}
REFERENCE = "ResNet-56"  # the paper's network that is shown beside ours where the paper does not have the same one
_MAIN = {
    7 / 16: {"ResNet-32": 9, "ResNet-56": 10, "ResNet-110": 11, "VGG-16": 12},
    10 / 16: {"ResNet-32": 17, "ResNet-56": 18, "ResNet-110": 19},
}
_BALANCERS = {"ResNet-32": 14, "ResNet-56": 15, "ResNet-110": 16}
_PARTS = {  # rows of ablations: table, and their names there; 15 stands for 14 to 16
    "greedy-gkp": (5, "GKP, Smoothness Snaking + Greedy"),
    "least-smooth-gkp": (5, "GKP, Smoothness Snaking + Least Smooth"),
    "sfp-smooth": (6, "SFP + smoothness, CSB 0.9"),
    **{f"sfp-smooth (csb {csb})": (6, f"SFP + smoothness, CSB {csb}") for csb in (0.5, 0.75)},
    **{f"sr-gkp (alpha {alpha})": (15, f"SR-GKP, CSB {alpha}") for alpha in (0.1, 0.25, 0.5)},
    "sr-gkp (alpha 0.75)": (15, "SR-GKP, CSB 0.75/0.9"),
}
RANKED = ("CC", "DHP", "FPGM", "L1Norm-A", "L1Norm-B", "NPPM", "SFP", "SR-GKP")  # the rows of Table 20
TEXT, LOG, CODE = "text", "log", "code"  # the text; the log published with the code; that code run again


def published(table: int | str | None = None) -> pd.DataFrame:
    """The printed numbers of a table, one a row.

    Args:
        table: 1 to 20, "Table 4", "text", "log" (of the public code, on its ResNet-20) or "code" (that code, run again on
            one-shot pruning); None for all. Table 2 is a part of Table 10 and has its rows; Table 8, which has no numbers, is
            returned as `table_8.csv`.

    Returns:
        Columns table, dataset, network, rate (share of kernels removed), method, setting, criterion (the metric by which the
        epoch was chosen), metric, value, unit, note, erratum, likely.

    Raises:
        BadInput: The paper has no such table.
    """
    if table is None:
        return _tables().copy()
    number = _number(table)
    if number == "8":
        return pd.read_csv(published_file("table_8.csv"), keep_default_na=False)
    frame = _tables()
    found = frame[frame["table"] == ("10" if number == "2" else number)]
    return found.assign(table=number).reset_index(drop=True)


def errata() -> pd.DataFrame:
    """The rows with a known misprint: the printed value, what is wrong with it, and the likely value if there is one."""
    frame = _tables()
    return frame[frame["erratum"] != ""].reset_index(drop=True)


def superscores(table: int | str, *, network: str | None = None, likely: bool = False) -> pd.DataFrame:
    """The best printed value of each method (row) in each column of `ATTACKED`, in percent: the bars of Figures 5-9.

    A row may combine values of several epochs, so it need not be of any single network.

    Args:
        table: As in `published`.
        network: A network of the table, "ResNet-56"; None where it has only one.
        likely: Whether misprints are replaced by their likely values.

    Raises:
        BadInput: The network is not in the table, or the table has several and none is given.
    """
    frame = published(table)
    frame = frame[frame["metric"].isin(ATTACKED)]
    known = list(dict.fromkeys(frame["network"]))
    if (network is None and len(known) > 1) or (network is not None and network not in known):
        raise BadInput(f"table {table} is of {', '.join(known)}; name one of them as network=, not {network!r}")
    frame = frame[frame["network"] == (network or known[0])]
    value = frame["likely"].fillna(frame["value"]) if likely else frame["value"]
    name = (frame["method"] + ", " + frame["setting"]).str.removesuffix(", ")
    wide = value.groupby([name.rename("method"), frame["metric"]], sort=False).max().unstack(sort=False)
    return wide[[metric for metric in ATTACKED if metric in wide]]


def printed(row: str, network: str = REFERENCE, rate: float = 7 / 16) -> dict[str, float]:
    """The printed values for a network of ours, with misprints corrected.

    Args:
        row: The network, as `gkp.artifact.results.row_name` gives it.
        network: The paper's name of the architecture, "ResNet-56".
        rate: 7/16 or 10/16, the rates of the paper on CIFAR-10.

    Returns:
        Metric -> best printed value in percent; empty where the paper has no such row. The paper's unpruned networks were not
        fine-tuned.
    """
    part = _PARTS.get(row, (0, "")) if rate == 7 / 16 else (0, "")
    for table, name in (part, (_MAIN.get(rate, {}).get(network, 0), _names_there().get(row, row))):
        table = _BALANCERS.get(network, 0) if table == 15 else table
        best = _superscores(table, network) if table else pd.DataFrame()
        if name in best.index:
            return {str(metric): float(value) for metric, value in best.loc[name].dropna().items()}
    return {}


def gain(
    table: int, more: Sequence[str], less: Sequence[str], metrics: Sequence[str], networks: Sequence[str | None] = (None,)
) -> float:
    """The printed difference between two groups of methods, with misprints corrected.

    Args:
        table: As in `published`.
        more, less: The methods of both sides, rows of `superscores`.
        metrics: The columns of `superscores` that are averaged.
        networks: The networks over which the difference is averaged; (None,) where the table has only one.

    Returns:
        The mean of `more` minus the mean of `less`, as a fraction.
    """
    found = []
    for network in networks:
        best = superscores(table, network=network, likely=True)[list(metrics)]
        found.append(float(best.loc[list(more)].to_numpy().mean() - best.loc[list(less)].to_numpy().mean()) / 100)
    return sum(found) / len(found)


def mean_ranks(*, likely: bool = True, ties: str = "min") -> pd.DataFrame:
    """Table 20, computed by its rule: the superscores of `RANKED` on benign, (a), (b) and (c) are ranked and averaged.

    The paper leaves HRank, LRF and OTOv2 out.

    Args:
        likely: As in `superscores`.
        ties: As in `gkp.evaluation.statistics.mean_rank`.

    Returns:
        A row for each method, a column for each network and one for all three.
    """
    columns = {}
    for table, network in ((17, "ResNet-32"), (18, "ResNet-56"), (19, "ResNet-110")):
        best = superscores(table, likely=likely).loc[list(RANKED)]
        columns[network] = mean_rank(best, ties=ties)["mean rank"]
    frame = pd.DataFrame(columns)
    return frame.assign(**{"all three": frame.mean(axis=1)})


def names_here() -> dict[str, str]:
    """The paper's name of a method -> its name in `gkp.methods()`, for methods that are implemented here."""
    table = published(8)
    return {row["method"]: row["name_here"] for row in table.to_dict("records") if row["name_here"]} | {"Unpruned": "none"}


def _names_there() -> dict[str, str]:
    """Our name of a row -> the paper's."""
    return {here: there for there, here in names_here().items()} | {"unpruned": "Unpruned"}


@cache
def _superscores(table: int, network: str) -> pd.DataFrame:
    has = set(published(table)["network"])
    return superscores(table, network=network, likely=True) if network in has else pd.DataFrame()


def published_file(name: str) -> Path:
    """The path of data/published/`name`. Raises BadInput outside a checkout of the repository."""
    path = locate(f"published/{name}")
    if path is None:
        raise BadInput(f"data/published/{name} is missing; run this in a checkout of the repository")
    return path


@cache
def _tables() -> pd.DataFrame:
    text = dict.fromkeys(
        ("table", "dataset", "network", "method", "setting", "criterion", "metric", "unit", "note", "erratum"), str
    )
    frame = pd.read_csv(published_file("tables.csv"), dtype=text)
    return frame.fillna(dict.fromkeys(text, ""))


def _number(table: int | str) -> str:
    number = str(table).removeprefix("Table ").strip()
    if number not in {*map(str, TABLES), TEXT, LOG, CODE}:
        raise BadInput(f"the paper has no table {table!r}; give 1 to 20, {TEXT!r}, {LOG!r} or {CODE!r}")
    return number
