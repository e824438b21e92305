"""The table of verdicts: every claim with the reported result, ours, and the verdict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pandas as pd

from gkp.artifact.claims.case import Case, case_of
from gkp.artifact.claims.claim import Claim, claims
from gkp.artifact.claims.decision import BOARDS, CLAIMS, NO_VERDICT, NOT_RUN, UNDECIDED, VERDICTS, Decision, NotRun
from gkp.artifact.claims.gpu_hours import hours_in_words
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.report import Result
from gkp.artifact.experiments.status import for_gpu, stated_minutes
from gkp.artifact.experiments.store import Store
from gkp.artifact.experiments.todo import family
from gkp.artifact.published import FIGURES, TABLES
from gkp.artifact.tables.table import Table
from gkp.errors import BadInput
from gkp.evaluation.statistics import holm

FACTS = (  # columns of `points`, in this order
    *("id", "board", "item", "statement", "reported", "ours", "n", "seeds", "interval", "setting", "margin", "p", "p_holm"),
    *("tolerance", "verdict", "reason", "command", "minutes", "stated_minutes", "kind", "page", "value", "low", "high"),
)
MAIN = (  # the main claims
    *("fragility", "free-benign", "free-robustness-control", "sr-over-tmi", "sr-over-l2-gkp", "best-or-second-resnet56"),
    *("snaking-cheaper", "robust-to-strong-attacks"),
)
ITEMS = (*(f"Table {n}" for n in TABLES), *(f"Figure {n}" for n in FIGURES), "text")


def verdicts(
    profile: str = "cifar10",
    results: Sequence[Result] | None = None,
    *,
    item: str | Sequence[str] | None = None,
    notebook: str | None = None,
    store: Store | None = None,
) -> Table:
    """The verdict on each claim. Nothing is computed.

    A claim whose experiments are missing is "not run", with their number and cost. Digits give no verdict.

    Args:
        profile: The profile whose experiments are the evidence.
        results: Results of a run; others are taken from the store.
        item: A table or figure of the paper, "Table 2", or several: only their claims.
        notebook: A notebook, "02_cifar10_main": only its claims; with `item`, the claims of either.
        store: Where finished experiments are; None for `gkp.artifact.experiments.default_store()`.

    Returns:
        A table with five columns (statement, reported, ours with interval and n, setting, verdict) and a note for each claim:
        reason, tolerance, command and minutes. Its points have the columns `FACTS`: value, low and high are fractions, or
        ratios for costs; margin and p are as in `Decision`; p_holm is corrected over the claims of a family; minutes are
        recorded where all experiments of the claim are finished, and otherwise estimated like stated_minutes.

    Raises:
        BadInput: The profile, item or notebook is not known.
    """
    wanted = [item] if isinstance(item, str) else list(item or ())
    if notebook is not None and notebook not in (names := sorted({claim.notebook for claim in claims()})):
        raise BadInput(f"no claim is shown by {notebook!r}; the notebooks that show some: {', '.join(names)}")
    if unknown := [name for name in wanted if name not in ITEMS]:
        raise BadInput(f"no claim is about {unknown[0]!r}; give Table 1 to Table 20, Figure 1 to Figure 9, or text")
    everything = not wanted and notebook is None
    chosen = [claim for claim in claims() if everything or set(wanted) & set(claim.items) or claim.notebook == notebook]
    case = case_of(profile, results, store)
    points = _with_holm(pd.DataFrame([_row(claim, case, profile) for claim in chosen]))
    about = [*wanted, *([notebook] if notebook else [])]
    title = f"Verdicts · {', '.join(about) or 'every claim'} · profile {profile}"
    notes = {str(row["id"]): _note(row) for row in rows_of(points)}
    return Table(title, as_read(points), points[list(FACTS)], notes)


def on_board(table: Table, board: str) -> Table:
    """The verdicts of one board, one of `BOARDS`. Raises BadInput for an unknown board."""
    if board not in BOARDS:
        raise BadInput(f"there is no board {board!r}; there are {', '.join(BOARDS)}")
    points = table.points[table.points["board"] == board]
    return Table(f"{board.capitalize()} · {table.title}", as_read(points), points, {i: table.notes[i] for i in points["id"]})


def as_read(points: pd.DataFrame) -> pd.DataFrame:
    """The five columns that are shown, by id."""
    shown = points[["id", "statement", "reported", "setting", "verdict"]].set_index("id")
    shown.insert(2, "ours", [in_full(row) for row in rows_of(points)])
    return shown


def in_full(row: Mapping[str, Any]) -> str:
    """The result with its interval and the numbers of images and seeds; the reason where there is no result."""
    text = {name: "" if pd.isna(row[name]) else str(row[name]) for name in ("ours", "interval", "reason")}
    if not text["ours"]:
        return re.split(r", about|[;(]", text["reason"])[0].strip()  # the rest is in the notes
    interval = "" if text["interval"].startswith("none") else text["interval"]
    seeds = f"{int(row['seeds'])} seeds" if row["seeds"] > 1 else ""
    return "; ".join(filter(None, [text["ours"], interval, f"n {int(row['n']):,}" if row["n"] else "", seeds]))


def headlines(points: pd.DataFrame) -> list[str]:
    """One sentence for each board: the number of claims with each verdict."""
    found = []
    for board in BOARDS:
        given = Counter(points.loc[points["board"] == board, "verdict"])
        words = [word for word in (*VERDICTS[board], NO_VERDICT) if given[word]]
        if words:
            found.append(f"{board.capitalize()}: {', '.join(f'{given[word]} {word}' for word in words)}.")
    return found


def says(table: Table) -> list[str]:
    """Text lines: the headline of each board, then every decided statement of the board "claims", by verdict."""
    points = table.points
    rows = [row for word in VERDICTS[CLAIMS] for row in rows_of(points) if row["board"] == CLAIMS and row["verdict"] == word]
    decided = [row for row in rows if row["verdict"] not in (UNDECIDED, NOT_RUN)]
    return [*headlines(points), *(f"{row['verdict'].capitalize()}: {row['statement']}: {in_full(row)}." for row in decided)]


def cannot_say(table: Table) -> list[str]:
    """Text lines: every undecided statement, then every one that was not run, with the reason; one line for digits."""
    points = table.points
    if (points["verdict"] == NO_VERDICT).any():
        return ["Digits decide nothing about the paper: every statement stays open."]
    rows = [row for word in (UNDECIDED, NOT_RUN) for row in rows_of(points) if row["verdict"] == word]
    told = [f"{row['verdict'].capitalize()}: {row['statement']}: {in_full(row)}." for row in rows]
    return told or ["No statement of this notebook stays open where it was measured."]


def rows_of(points: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `verdicts(...).points`, or of its CSV, as column -> value."""
    return [{str(name): value for name, value in row.items()} for row in points.to_dict("records")]


def main_rows(points: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the claims `MAIN` that are there, in that order."""
    rows = {row["id"]: row for row in rows_of(points)}
    return [rows[name] for name in MAIN if name in rows]


def _note(row: Mapping[str, Any]) -> str:
    return f"{row['reason']}. Agreement: {row['tolerance']}. {row['minutes']:,.0f} minutes: `{row['command']}`"


def _with_holm(points: pd.DataFrame) -> pd.DataFrame:
    """Add p_holm: each p corrected over all claims of its family."""
    corrected = points.groupby("family")["p"].transform(lambda p: _holm(p) if p.notna().any() else p) if len(points) else ()
    return points.assign(p_holm=corrected)


def _holm(p: pd.Series) -> pd.Series:
    known = p.dropna()
    return pd.Series(holm(known.to_numpy()), known.index).reindex(p.index)


def _row(claim: Claim, case: Case, profile: str) -> dict[str, object]:
    decision, cells = decide(claim, case)
    stated = claim.minutes_of(cells)
    minutes = {"minutes": _recorded(cells, case) or stated, "stated_minutes": stated}
    return {**vars(claim), "board": claim.board, **vars(decision), **minutes, "command": claim.command(profile)}


def decide(claim: Claim, case: Case) -> tuple[Decision, list[Cell]]:
    """Decide a claim on the first of its architectures that has the experiments, by the longest complete fine-tuning.

    Args:
        claim: The claim.
        case: The evidence of a profile.

    Returns:
        The decision, and the cells that it follows from.
    """
    found: list[tuple[Decision, list[Cell]]] = []
    for model in claim.models or ("",):
        measured = [(index, cells) for index in case.index.by_schedule(model) if (cells := claim.find(index, model))]
        complete = [(index, cells) for index, cells in measured if all(cell.hash in case.results for cell in cells)]
        if claim.models and not measured:
            continue
        index, cells = (complete[:1] or measured[-1:] or [(case.index, [])])[0]
        try:
            decision = claim.decide(case.at(model, claim.same, index))
        except NotRun as missing:
            found.append((_not_run(claim, case, cells, str(missing)), cells))
            continue
        if decision.verdict == UNDECIDED:
            shorter = [case.at(model, claim.same, index) for index, _ in complete[1:]]
            decision = replace(decision, setting="; ".join([decision.setting, *_decided(claim, shorter)]))
        return _stamped(decision, claim, case), cells
    decision, cells = found[0] if found else (_not_run(claim, case, [], "this profile has no cells for it"), [])
    return _stamped(decision, claim, case), cells


def _decided(claim: Claim, cases: Sequence[Case]) -> Iterator[str]:
    """The verdicts by shorter schedules, of which more seeds may be there, on a claim that the longest one leaves open."""
    for case in cases:
        with suppress(NotRun):
            if (found := claim.decide(case)).verdict != UNDECIDED:
                seeds = f", {found.seeds} seeds" if found.seeds > 1 else ""
                yield f"after {case.epochs()} epochs{seeds}: {found.verdict} ({found.ours} {found.interval})"


def _stamped(decision: Decision, claim: Claim, case: Case) -> Decision:
    """The decision with the cost of deciding an undecided claim, and without a verdict where all networks saw digits only."""
    if decision.verdict == UNDECIDED:
        needs = f"; the paper's own setting: {hours_in_words(claim.gpu_hours)}" if claim.gpu_hours else ""
        decision = replace(decision, reason=f"{decision.reason}; more images or seeds would decide{needs}")
    return replace(decision, verdict=NO_VERDICT) if case.index.embedded else decision


def _not_run(claim: Claim, case: Case, cells: Sequence[Cell], why: str) -> Decision:
    missing = [cell for cell in cells if cell.hash not in case.results]
    on_gpu = for_gpu(missing)
    if missing:
        cost = "" if on_gpu else f", about {stated_minutes(missing):.0f} minutes with what they are built on"
        why = f"{len(missing)} of {len(cells)} cells are not finished{cost} ({why})"
    if claim.gpu_hours and (not missing or on_gpu):
        why += f"; needs {hours_in_words(claim.gpu_hours)}"
    return Decision(NOT_RUN, "", why)


def _recorded(cells: Sequence[Cell], case: Case) -> float | None:
    """Minutes that these cells and their ancestors took; None unless all are recorded."""
    results = [case.results.get(key) for key in family(cells)]
    seconds = [result.run.get("seconds") for result in results if result is not None]
    if not results or len(seconds) < len(results) or None in seconds:
        return None
    return sum(float(second) for second in seconds if second is not None) / 60
