"""The log that the authors published and ours over it: what is scored while it trains, how both are compared, what is shown."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gkp.artifact import experiments as grid
from gkp.artifact import figures, profiles, published_log, tables
from gkp.artifact.claims.case import Case
from gkp.artifact.claims.claim import claims
from gkp.artifact.claims.decision import NOT_REPRODUCED, NOT_RUN, REPRODUCED, NotRun
from gkp.artifact.claims.evidence import SR, Index
from gkp.artifact.claims.verdicts import decide
from gkp.artifact.experiments.history import epochs_so_far, keep_unfinished, kept_sha256, problems_of_unfinished
from gkp.artifact.experiments.kinds import PruneCell, TrainCell
from gkp.artifact.experiments.report import Report, Result
from gkp.artifact.groups import LOG_EPOCHS, is_logged
from gkp.artifact.published_log import COLUMNS, Curve, authors, compared
from gkp.errors import BadInput
from gkp.evaluation.statistics import Spread
from gkp.training.checkpoint import Keeper
from gkp.training.recipe import PAPER_FINETUNE, Recipe

SHORT = {"schedule": "one-cycle", "split": "train", "batch_size": 256, "log_examples": 12}
SCORED = TrainCell(dataset="digits", model="resnet20", epochs=3, log_epochs=(2, 3), **SHORT)
CELLS = {cell.method: cell for cell in profiles.cells("cifar10", "log") if isinstance(cell, PruneCell)}


def rows_of(points: pd.DataFrame) -> list[dict]:
    """The rows of the log of a training that has these accuracies, and scored nothing after the other epochs."""
    last = int(points.index[-1])
    return [{"epoch": at} | (points.loc[at].to_dict() if at in points.index else {}) for at in range(1, last + 1)]


def finished(points: pd.DataFrame, method: str = "sr-gkp") -> Result:
    return Result(CELLS[method], {"epochs": rows_of(points)}, None, True)  # type: ignore[arg-type]  # no files


def ours(change: float = 0.0, at=slice(None), key: str = "clean") -> pd.DataFrame:
    """The authors' log after the epochs that we score, some of its numbers changed."""
    points = authors().points.loc[list(LOG_EPOCHS)].copy()
    points.loc[at, key] += change
    return points


# --- what is scored while it trains -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Result:
    return grid.run([SCORED], jobs=1, store=grid.Store(tmp_path_factory.mktemp("whole")), progress=False)[0]


def test_a_training_is_scored_after_the_epochs_that_are_named_and_as_it_would_be_after_each(scored, tmp_path):
    each = grid.run([replace(SCORED, log_epochs=None)], jobs=1, store=grid.Store(tmp_path), progress=False)[0]
    keys = {"clean", "fgsm-0.01", "fgsm-0.1", "pgd-8/255"}
    assert [keys <= row.keys() for row in scored["epochs"]] == [False, True, True]
    assert not keys & scored["epochs"][0].keys() and scored["epochs"][1:] == each["epochs"][1:]
    assert scored["model_sha256"] == each["model_sha256"]


def stopped_after_two_epochs(store: grid.Store, monkeypatch: pytest.MonkeyPatch) -> Report:
    """The report of a run of `SCORED` whose disk fails once its second epoch is kept."""
    save = Keeper.save

    def failing(keeper, net, optimizer, callbacks, rows):
        save(keeper, net, optimizer, callbacks, rows)
        if len(rows) == 2:
            raise OSError(5, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "save", failing)
        return grid.run([SCORED], jobs=1, store=store, progress=False, check=False)


def test_a_scored_training_that_is_killed_says_how_far_it_is_and_goes_on_to_the_same_bytes(scored, tmp_path, monkeypatch):
    store = grid.Store(tmp_path)
    assert epochs_so_far(SCORED, store) == []
    assert stopped_after_two_epochs(store, monkeypatch).failures[0].kind == "error"
    rows = epochs_so_far(SCORED, store)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in rows] == scored["epochs"][:2]
    again = grid.run([SCORED], jobs=1, store=store, progress=False)[0]
    for name in ("result.json", "model/model.safetensors", "trace.safetensors"):
        assert again.file(name).read_bytes() == scored.file(name).read_bytes(), name
    assert epochs_so_far(SCORED, store) == []  # the cell itself says it now


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> grid.Store:
    """A store in which `SCORED` was stopped after two epochs; its committed cells are in `data/results`."""
    store = grid.Store(tmp_path / "cells", (tmp_path / "data" / "results",))
    stopped_after_two_epochs(store, monkeypatch)
    return store


def test_the_log_of_an_unfinished_training_is_committed_and_read_where_its_checkpoint_is_not(stopped, scored, tmp_path):
    folder, results = tmp_path / "data" / "unfinished", tmp_path / "data" / "results"
    elsewhere = grid.Store(tmp_path / "empty", (results,))
    assert epochs_so_far(SCORED, elsewhere) == [] and kept_sha256(SCORED, elsewhere) == ""
    keep_unfinished([SCORED], folder, stopped)
    assert epochs_so_far(SCORED, elsewhere) == scored["epochs"][:2]
    (file,) = folder.iterdir()
    body = json.loads(file.read_text())
    assert body["sha256"] == kept_sha256(SCORED, elsewhere) and body["run"]["seconds"] > 0 and body["run"]["hardware"]
    keep_unfinished([SCORED], folder, elsewhere)  # a machine that has no checkpoint leaves it
    assert json.loads(file.read_text()) == body and problems_of_unfinished(folder, results) == []
    other = replace(SCORED, lr=0.07)
    (folder / f"{other.id}.json").write_text(file.read_text())
    assert epochs_so_far(other, elsewhere) == []
    assert [line for line in problems_of_unfinished(folder, results) if "is not what its name says" in line]
    keep_unfinished([], folder, stopped)  # it is finished
    assert list(folder.iterdir()) == []


def test_a_committed_log_that_was_edited_says_nothing_and_is_found(stopped, tmp_path):
    folder, results = tmp_path / "data" / "unfinished", tmp_path / "data" / "results"
    keep_unfinished([SCORED], folder, stopped)
    (file,), elsewhere = folder.iterdir(), grid.Store(tmp_path / "empty", (results,))
    text = file.read_text()
    for edited in (text.replace('"epoch": 2', '"epoch": 3'), text[:-40], ""):
        file.write_text(edited)
        assert epochs_so_far(SCORED, elsewhere) == [] and len(problems_of_unfinished(folder, results)) == 1
    file.write_text(text)
    assert problems_of_unfinished(folder, results) == []
    (results / SCORED.id).mkdir(parents=True)
    assert "is finished" in problems_of_unfinished(folder, results)[0]


def test_a_checkpoint_that_cannot_be_read_says_nothing(tmp_path):
    store = grid.Store(tmp_path)
    store.scratch(SCORED.id).mkdir(parents=True)
    (store.scratch(SCORED.id) / "training.pt").write_bytes(b"no checkpoint")
    assert epochs_so_far(SCORED, store) == []


def test_epochs_that_are_named_are_hashed_and_without_them_nothing_changes():
    plain = replace(SCORED, log_epochs=None)
    assert "log_epochs" not in plain.params and plain.hash != SCORED.hash != replace(SCORED, log_epochs=(3,)).hash
    assert plain.work < SCORED.work  # committed cells are weighed as before


@pytest.mark.parametrize("fields", [{"log_epochs": (4,)}, {"log_epochs": (0,)}, {"log_examples": 0}])
def test_epochs_that_are_not_there_or_score_nothing_are_refused(fields):
    with pytest.raises(BadInput, match=r"log_epochs .*: give epochs from 1 to the last, and how many images are scored$"):
        replace(SCORED, **fields)


# --- the group --------------------------------------------------------------------------------------------------------


def test_the_group_follows_the_recipe_of_the_log_from_the_authors_weights_sr_gkp_first():
    assert list(CELLS) == ["sr-gkp", "none", "l2-gkp"]
    for cell in CELLS.values():
        assert Recipe(**{name: cell.params[name] for name in vars(PAPER_FINETUNE)}) == PAPER_FINETUNE
        assert cell.net.weights == "srgkp-official" and cell.split == "train+val" and cell.rate == 7 / 16
    wanted = {300, 98, 100, 101, 102, 198, 202, 291, *range(10, 301, 10)}
    assert wanted <= set(LOG_EPOCHS) and len(LOG_EPOCHS) == 47
    on_gpu = [cell for cell in profiles.cells("paper", "log") if is_logged(cell)]
    assert len(on_gpu) == 3 and all(cell.log_epochs is None and cell.threads == 0 for cell in on_gpu)
    assert profiles.cells("quick", "log") == []


def test_what_is_trained_of_the_authors_network_is_no_evidence_for_other_claims():
    index = Index.of("cifar10")
    assert {cell.net.hash for cell in index.networks(SR, "resnet20").values()} != {CELLS["sr-gkp"].net.hash}
    assert not {cell.hash for cells in index._pruned.values() for cell in cells} & {cell.hash for cell in CELLS.values()}
    assert all(CELLS["sr-gkp"] in part.cells for part in index.by_schedule("resnet20"))


# --- how both are compared --------------------------------------------------------------------------------------------


def test_best_last_and_jump_are_read_off_the_epochs_that_were_scored():
    points = pd.DataFrame({key: [0.1, 0.2, 0.3, 0.7, 0.9, 0.5] for key in COLUMNS}, index=[98, 99, 100, 101, 102, 300])
    curve = Curve("sr-gkp", points, 300)
    assert curve.best("clean") == (102, 0.9) and curve.best("clean", [98, 101, 300]) == (101, 0.7)
    assert curve.last("clean") == 0.5 and curve.jump("clean") == pytest.approx(0.8 - 0.2)
    assert math.isnan(Curve("sr-gkp", points.drop(99), 300).jump("clean")) and math.isnan(curve.jump("clean", 200))
    assert math.isnan(Curve("sr-gkp", points.drop(300), 299).last("clean"))


def test_the_noise_of_an_epoch_is_that_of_neighbours_and_no_drift():
    at = np.arange(1, 301)
    points = pd.DataFrame(dict.fromkeys(COLUMNS, 0.5 + 1e-07 * at + 0.01 * (at % 2)), index=at)
    for epoch in (100, 101, 300):  # neighbours are .01 apart: the variance of their difference is twice that of one
        assert Curve("x", points, 300).noise("clean", epoch) == Spread(pytest.approx(0.01 / 2**0.5, rel=1e-4), 33)


def test_the_jump_and_the_noise_of_the_log_are_those_of_its_file():
    log = authors()
    assert [round(100 * log.jump(key), 2) for key in COLUMNS] == [3.36, 5.90, 0.41]
    assert log.best("fgsm-0.01") == (101, 0.6872) and log.last("clean") == pytest.approx(0.9167) and log.whole


def test_the_log_agrees_with_itself_and_each_number_may_be_off_by_what_is_allowed():
    rows = list(compared(Curve("sr-gkp", ours(), 300), {"clean": Spread(0.002, 20)}))
    assert len(rows) == 9 and all(row["ours"] == pytest.approx(row["theirs"]) and row["allowed"] > 0 for row in rows)
    alone = next(compared(Curve("sr-gkp", ours(), 300)))
    assert rows[0]["allowed"] > alone["allowed"] == pytest.approx(authors().noise("clean", 300).half_width(2, 9))


def decided(points: pd.DataFrame | None):
    (claim,) = (c for c in claims() if c.id == "published-log")
    cells = tuple(profiles.cells("cifar10", "log"))
    results = {} if points is None else {CELLS["sr-gkp"].hash: finished(points)}
    return decide(claim, Case(Index(cells), results))[0]


def test_the_claim_is_decided_by_last_epoch_best_epoch_and_jump():
    allowed = next(compared(Curve("sr-gkp", ours(), 300)))["allowed"]
    same = decided(ours())
    assert same.verdict == REPRODUCED and same.ours.startswith(
        "last 91.67 / 63.56 / 17.27; best 91.98 / 68.72 / 17.88; jump +3.36"
    )
    assert same.setting == "the authors' ResNet-20, 300 epochs (as in their log)" and same.n == 10_000
    assert decided(ours(0.9 * allowed, at=300)).verdict == REPRODUCED
    off = decided(ours(-1.1 * allowed, at=300))
    assert off.verdict == NOT_REPRODUCED and off.reason.startswith("outside the tolerance: last benign;")
    assert "best benign" in decided(ours(0.02, at=280)).reason
    assert "jump fgsm_0.01" in decided(ours(0.06, at=slice(98, 100), key="fgsm-0.01")).reason


def test_the_claim_is_not_run_with_its_cost_until_the_training_is_finished():
    missing = decided(None)
    assert missing.verdict == NOT_RUN and "1 of 1 cells are not finished, about 1203 minutes" in missing.reason
    assert "were not scored on the test set" in decided(ours().drop(99)).reason
    (claim,) = (c for c in claims() if c.id == "published-log")
    with pytest.raises(NotRun, match="300 epochs of the authors' network are not finished"):
        claim.decide(Case(Index(()), {}, "resnet20"))


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_a_profile_without_the_training_shows_the_authors_curve_alone():
    figure = figures.published_log(Report(()))
    assert figure.question == "Is the published log reproduced at full length?"
    assert figure.answer.startswith(
        "Only the authors' curve: ours are not part of this profile. In theirs, (a) FGSM .01 jumps by +5.9"
    )
    assert set(figure.points["curve"]) == {published_log.THEIRS} and len(figure.points) == 300
    assert len(tables.published_log(Report(())).shown) == 3


def test_each_curve_that_is_not_there_says_so_with_its_hours(tmp_path, monkeypatch):
    monkeypatch.setattr(published_log, "epochs_so_far", lambda cell: [])
    missing = Report((), missing=tuple(profiles.cells("cifar10", "log")))
    figure = figures.published_log(missing)
    assert figure.answer.startswith(
        "SR-GKP: not run, about 20.1 h; unpruned, fine-tuned: not run, about 20.1 h; L2-GKP: not run, about 20.1 h. In theirs"
    )
    assert set(figure.points["curve"]) == {published_log.THEIRS}
    shown = tables.published_log(missing).shown
    assert (
        shown.loc[("Benign", "SR-GKP"), "trained"] == "not run, about 20.1 h"
        and shown.loc[("Benign", "SR-GKP"), "last epoch"] == ""
    )


def test_a_training_that_is_under_way_is_drawn_as_far_as_it_goes(monkeypatch):
    so_far = ours(0.01).loc[:120]
    monkeypatch.setattr(published_log, "epochs_so_far", lambda cell: rows_of(so_far) if cell.method == "sr-gkp" else [])
    figure = figures.published_log(Report((), missing=tuple(profiles.cells("cifar10", "log"))))
    told = (
        "As far as it goes, epoch by epoch 1.00 (Benign), 0.00 ((a) FGSM .01), 0.00 ((b) FGSM .1) points from theirs on average"
    )
    assert figure.answer.startswith(f"{told}. SR-GKP: 120 of 300 epochs so far; ")
    drawn = figure.points[figure.points["curve"] == "sr-gkp"]
    assert drawn["epoch"].max() == 120 and len(drawn) == len(so_far)
    shown = tables.published_log(Report((), missing=tuple(CELLS.values()))).shown
    assert shown.loc[("Benign", "SR-GKP"), "trained"] == "120 of 300 epochs so far"
    assert shown.loc[("Benign", "SR-GKP"), "jump at epoch 101"] == "+3.36"


def test_a_finished_training_is_put_beside_theirs():
    figure = figures.published_log(Report((finished(ours(0.002)), finished(ours(-0.01), "none"))))
    assert figure.answer.startswith(
        "Benign: last 91.87 [91.67] %, best 92.18 [91.98] %, jump +3.4 [+3.4]; (a) FGSM .01: last 63.56"
    )
    legend = [text.get_text() for text in figure.drawing.legends[0].get_texts()]
    assert legend == ["the authors' log, SR-GKP", "unpruned, fine-tuned: 300 epochs", "SR-GKP: 300 epochs"]


def test_looking_for_a_training_writes_nothing(tmp_path):
    assert epochs_so_far(SCORED, grid.Store(tmp_path / "nowhere")) == [] and not (tmp_path / "nowhere").exists()
