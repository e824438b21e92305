"""The leaderboard of finished experiments, made of committed ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gkp.artifact import experiments, profiles, standings
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.kinds import EvaluateCell, LatencyCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.groups import under_autoattack
from gkp.artifact.results import outcomes_of, row_name
from gkp.evaluation.robustbench.entry import load_entries

METHODS = ("unpruned", "unpruned, fine-tuned", "sr-gkp", "cc", "l1norm-b")


SMALL = ("precision", "autoattack-small")  # the roles of evaluations at small radii on more images


@pytest.fixture(scope="module")
def every() -> list[Result]:
    """The committed networks of five rows, their evaluations and latencies."""
    found = experiments.run(profiles.cells("cifar10", "board"), jobs=0, quiet=True)
    return [result for result in found if row_of(result.cell) in METHODS]


@pytest.fixture(scope="module")
def results(every) -> list[Result]:
    """The same without the evaluations at small radii on more images, whose number grows."""
    return [one for one in every if not (isinstance(one.cell, EvaluateCell) and one.cell.part in SMALL)]


def row_of(cell: Cell) -> str:
    return row_name(cell.net if isinstance(cell, EvaluateCell | LatencyCell) else cell)


@pytest.fixture(scope="module")
def board(results, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return standings.of_results(results), folder / "build"


def measured(results: list[Result], row: str, part: str) -> Result:
    """The committed evaluation of a row in a role."""
    (found,) = [
        result
        for result in results
        if isinstance(result.cell, EvaluateCell) and row_name(result.cell.net) == row and result.cell.part == part
    ]
    return found


def test_the_board_has_every_network_at_the_radii_where_something_can_be_seen(results, board):
    points = board[0].points.set_index(["method", "eps"])
    assert set(points.index) == {(row, eps) for row in METHODS for eps in ("0.5/255", "1/255")}
    for (row, eps), point in points.iterrows():
        pixel = measured(results, row, "pixel")
        assert float(point["best known"]) == pytest.approx(100 * pixel["accuracy"][f"worst-case-{eps}"], abs=0.005)
        low, high = pixel["interval"][f"worst-case-{eps}"]
        assert (point["low"], point["high"]) == (round(100 * low, 2), round(100 * high, 2))
        assert point["n"] == pixel["n"] == 1000


def test_time_is_that_of_the_committed_measurements_and_the_dense_network_is_one(results, board):
    cells = [one for one in results if isinstance(one.cell, LatencyCell) and one.cell.engine == "torch"]
    timed = {row_name(one.cell.net): one["latency"] for one in cells}
    times = board[0].points.drop_duplicates("method").set_index("method")["time"]
    assert set(timed) == {"sr-gkp", "cc", "l1norm-b"}
    for row, measurements in timed.items():
        assert times[row] == next(one["ratio"] for one in measurements if one["batch_size"] == 1)
    assert times["unpruned"] == times["unpruned, fine-tuned"] == 1.0


def test_methods_stand_by_what_they_remove_named_as_in_the_paper_and_the_best_is_marked(board):
    shown = board[0].shown
    assert list(shown["removes"]) == ["nothing", "nothing", "grouped kernel", "filter", "channel"]
    assert set(shown.index) == {"unpruned", "unpruned, fine-tuned", "SR-GKP", "CC", "L1Norm-B"}
    for eps in ("0.5/255", "1/255"):
        column = shown[f"Best known {eps}"]
        points = board[0].points[board[0].points["eps"] == eps].set_index("method")["best known"].astype(float)
        assert sum("**" in cell for cell in column) == 1
        assert f"**{points.max():.1f}**" in " ".join(column)
    assert shown.loc["SR-GKP", "MACs (M)"] == "23.391"


def test_entries_are_robustbenchs_and_say_what_stronger_attacks_left(results, board):
    entries = {(one["name"], one["eps"]): one for one in load_entries(board[1] / "entries")}
    assert len(entries) == 10
    made = entries["SR-GKP", "1/255"]
    cascade = measured(results, "sr-gkp", "cascade")
    assert f"on 128 images: {100 * cascade['accuracy']['worst-case-1/255']:.1f} [" in made["footnote"]
    assert made["autoattack_acc"] is None and made["removes"] == "grouped kernel" and made["latency"]["batch_size"] == 1
    assert "Cascade" not in entries["SR-GKP", "0.5/255"]["footnote"]
    page = (board[1] / "leaderboard.html").read_text()
    assert "grouped by what is removed" in page and "Robust accuracy by what is removed: cifar10" in page


def test_what_was_run_is_said(board):
    table, build = board
    for text in (table.legend, (build / "leaderboard.html").read_text()):
        assert "At 0.5/255: 5 networks, FGSM and PGD, 1,000 images" in text


def under_autoattack_of(result: Result) -> Result:
    """The same evaluation as if its outcomes at 0.5/255 were those of AutoAttack."""
    (cell,) = under_autoattack([result.cell.net])
    value = result["accuracy"]["worst-case-0.5/255"]
    accuracy = {"autoattack-0.5/255": value, "worst-case-0.5/255": value}
    return replace(result, cell=cell, figures={**result.figures, "accuracy": accuracy})


def test_autoattack_is_said_to_be_missing_until_a_network_was_evaluated_under_it(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "AutoAttack: not run at these radii" in standings.of_results(results).legend
    some = [under_autoattack_of(measured(results, row, "pixel")) for row in ("sr-gkp", "cc")]
    legend = standings.of_results([*results, *some]).legend
    assert "AutoAttack: not run" not in legend
    assert "AutoAttack, which is stronger, leaves 0.0 points less of the images that both saw, 0.0 at most (2 of 5" in legend
    assert "Cascade, which is stronger" in legend and "(5 of 5 networks)" in legend


def precise(result: Result) -> Result:
    """The same evaluation as if it were of all test images."""
    cell = EvaluateCell(net=result.cell.net, eps=("0.5/255", "1/255"), purpose="precision")
    return replace(result, cell=cell, figures={**result.figures, "n": 10_000})


def test_all_test_images_decide_once_they_are_finished_for_every_network_and_not_before(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    all_five = [precise(measured(results, row, "pixel")) for row in METHODS]
    some = standings.of_results([*results, *all_five[:2]]).legend
    assert "1,000 images" in some and "On all test images: finished for 2 of 5 networks" in some
    assert "10,000 images" in standings.of_results([*results, *all_five]).legend


def test_networks_that_the_fast_engine_evaluated_in_their_compact_form_are_ranked_too(every, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compact = measured(every, "sr-gkp", "precision")
    masked = next(one for one in every if one.cell.hash == compact.cell.net.hash)
    assert outcomes_of(compact).model_sha256 != masked["model_sha256"]
    points = standings.of_results(every).points.set_index(["method", "eps"])
    assert set(points["n"]) == {10_000}
    for row in METHODS:
        accuracy = measured(every, row, "precision")["accuracy"]["worst-case-0.5/255"]
        assert float(points.loc[(row, "0.5/255"), "best known"]) == pytest.approx(100 * accuracy, abs=0.005)


def elsewhere(result: Result) -> dict[str, float]:
    """Accuracies but for those at the radii of the board."""
    return {key: value for key, value in result["accuracy"].items() if key.rpartition("-")[2] not in standings.RADII}


def test_without_the_usual_radii_the_two_smallest_make_the_board(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    only = [
        replace(one, figures={**one.figures, "accuracy": elsewhere(one)}) if isinstance(one.cell, EvaluateCell) else one
        for one in results
    ]
    assert list(standings.of_results(only).points["eps"].unique()) == ["0.25/255", "2/255"]
    assert Path("build/leaderboard.html").is_file()
