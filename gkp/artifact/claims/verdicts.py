"""The verdict table: every claim, what is reported, what we found, and what that says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from gkp.artifact.claims.case import Case, case_of
from gkp.artifact.claims.claim import Claim, claims
from gkp.artifact.claims.decision import NO_VERDICT, NOT_RUN, Decision, NotRun
from gkp.artifact.claims.gpu_hours import hours_in_words
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.report import Result
from gkp.artifact.experiments.status import for_gpu, stated_minutes
from gkp.artifact.experiments.store import Store
from gkp.artifact.experiments.todo import family
from gkp.artifact.published import FIGURES, TABLES
from gkp.artifact.tables.table import Table
from gkp.errors import BadInput

SHOWN = [
    "item",
    "statement",
    "reported",
    "ours",
    "n",
    "seeds",
    "interval",
    "tolerance",
    "verdict",
    "reason",
    "command",
    "minutes",
]
ITEMS = (*(f"Table {n}" for n in TABLES), *(f"Figure {n}" for n in FIGURES), "text")


def verdicts(
    profile: str = "cifar10",
    results: Sequence[Result] | None = None,
    *,
    item: str | Sequence[str] | None = None,
    notebook: str | None = None,
    store: Store | None = None,
) -> Table:
    """A row for each claim, with its verdict.

    A claim whose experiments are missing says "not run", how many are missing and what they cost; embedded data give no
    verdict. Nothing is computed.

    Args:
        profile: Its experiments are the evidence.
        results: Of a run; whatever else the store holds is used too.
        item: Only claims of this table or figure, "Table 2", or of several.
        notebook: Those that this notebook shows, "02_cifar10_main"; with `item`, either.
        store: Where finished experiments are; by default where `gkp.artifact.experiments.run` keeps them.

    Returns:
        Columns id, item, statement, reported, ours, n, seeds, interval, tolerance, verdict, reason, command, and minutes.
        In `points` also kind, page, value, low, high (fractions, or the quotient of a cost ratio) and stated_minutes,
        estimated from the work; minutes are those recorded, once all experiments of the claim are finished.

    Raises:
        BadInput: For an unknown profile, item or notebook.
    """
    wanted = [item] if isinstance(item, str) else list(item or ())
    if notebook is not None and notebook not in (names := sorted({claim.notebook for claim in claims()})):
        raise BadInput(f"no claim is shown by {notebook!r}; the notebooks that show some: {', '.join(names)}")
    if unknown := [name for name in wanted if name not in ITEMS]:
        raise BadInput(f"no claim is about {unknown[0]!r}; give Table 1 to Table 20, Figure 1 to Figure 9, or text")
    everything = not wanted and notebook is None
    chosen = [claim for claim in claims() if everything or set(wanted) & set(claim.items) or claim.notebook == notebook]
    case = case_of(profile, results, store)
    points = pd.DataFrame([_row(claim, case, profile) for claim in chosen])
    about = [*wanted, *([notebook] if notebook else [])]
    title = f"Verdicts · {', '.join(about) or 'every claim'} · profile {profile}"
    shown = points.set_index("id")[SHOWN]
    return Table(title, shown.assign(minutes=shown["minutes"].map("{:.0f}".format)), points)


def _row(claim: Claim, case: Case, profile: str) -> dict[str, object]:
    decision, cells = decide(claim, case)
    stated = claim.minutes_of(cells)
    minutes = {"minutes": _recorded(cells, case) or stated, "stated_minutes": stated}
    facts = {**vars(claim), **vars(decision), **minutes, "command": claim.command(profile)}
    return {name: facts[name] for name in ("id", *SHOWN, "stated_minutes", "kind", "page", "value", "low", "high")}


def decide(claim: Claim, case: Case) -> tuple[Decision, list[Cell]]:
    """Decide a claim on the first of its architectures that can decide it, there by the longest fine-tuning that is complete.

    Returns:
        The decision, and the experiments behind it.
    """
    found: list[tuple[Decision, list[Cell]]] = []
    for model in claim.models or ("",):
        measured = [(index, cells) for index in case.index.by_schedule(model) if (cells := claim.find(index, model))]
        complete = [(index, cells) for index, cells in measured if all(cell.hash in case.results for cell in cells)]
        if claim.models and not measured:
            continue
        index, cells = (complete[:1] or measured[-1:] or [(case.index, [])])[0]
        try:
            return _stamped(claim.decide(case.at(model, claim.same, index)), claim, case), cells
        except NotRun as missing:
            found.append((_not_run(claim, case, cells, str(missing)), cells))
    decision, cells = found[0] if found else (_not_run(claim, case, [], "this profile has no cells for it"), [])
    return _stamped(decision, claim, case), cells


def _stamped(decision: Decision, claim: Claim, case: Case) -> Decision:
    """The decision with the cost of what would settle it, and without a verdict where all data are embedded."""
    if decision.verdict == NOT_RUN and decision.n:  # it was run and says too little
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
    """Minutes that these cells and all they are built on took, None unless all are recorded."""
    results = [case.results.get(key) for key in family(cells)]
    seconds = [result.run.get("seconds") for result in results if result is not None]
    if not results or len(seconds) < len(results) or None in seconds:
        return None
    return sum(float(second) for second in seconds if second is not None) / 60
