"""The rule that compares our fine-tuning of the authors' network with the one log that they published."""

from __future__ import annotations

from gkp.artifact.claims.case import Case
from gkp.artifact.claims.decision import EXACTNESS, NOT_REPRODUCED, REPRODUCED, VALUE, Decision, NotRun, rule
from gkp.artifact.claims.evidence import Index
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import PruneCell
from gkp.artifact.groups import LOG_LENGTH, is_logged
from gkp.artifact.published_log import COLUMNS, MEASURES, compared, curve_of


def _trained(index: Index, model: str, *, method: str) -> list[Cell]:
    found: list[Cell] = [c for c in index.cells if is_logged(c) and c.method == method and c.model == model]
    return found[:1]


@rule(VALUE, _trained, board=EXACTNESS)
def published_log_agrees(case: Case, *, method: str) -> Decision:
    """A fine-tuning by `method` agrees with the log: last epoch, best epoch, and jump at the step of the learning rate."""
    cell = next(iter(_trained(case.index, case.model, method=method)), None)
    if not isinstance(cell, PruneCell) or (result := case.results.get(cell.hash)) is None:
        raise NotRun(f"{LOG_LENGTH} epochs of the authors' network are not finished")
    curve = curve_of(cell, result["epochs"], finished=True)
    rows = list(compared(curve, {key: case.spread("paper", [key]) for key in COLUMNS}))
    if any(row["ours"] != row["ours"] for row in rows):
        raise NotRun("epochs of the fine-tuning that the log is compared at were not scored on the test set")
    off = [f"{row['measure']} {COLUMNS[row['attack']]}" for row in rows if abs(row["ours"] - row["theirs"]) > row["allowed"]]
    reason = f"outside the tolerance: {', '.join(off)}" if off else f"all {len(rows)} numbers are inside the tolerance"
    reason += f"; best of the {len(curve.points)} epochs that were scored, and of the same ones of the log"
    ours = "; ".join(_told(rows, measure, "ours", "{:+.2f}" if measure == "jump" else "{:.2f}") for measure in MEASURES)
    interval = "; ".join(_told(rows, measure, "allowed", "±{:.2f}") for measure in MEASURES)
    last, allowed = rows[0]["ours"], rows[0]["allowed"]
    setting = f"the authors' ResNet-20, {cell.epochs} epochs (as in their log)"
    verdict, numbers = NOT_REPRODUCED if off else REPRODUCED, (last, last - allowed, last + allowed)
    return Decision(verdict, f"{ours} (%)", reason, cell.log_examples, 1, interval, *numbers, setting=setting)


def _told(rows: list[dict], measure: str, side: str, form: str) -> str:
    return f"{measure} {' / '.join(form.format(100 * row[side]) for row in rows if row['measure'] == measure)}"
