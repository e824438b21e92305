"""The grid in one process: identity of cells, the store, planning, failures, estimates. Workers: test_cluster.py."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import grid_stages
import numpy as np
import pytest
import torch
from grid_stages import Number, TinyTraining, Trouble

from gkp.artifact import experiments as grid
from gkp.artifact import profiles
from gkp.artifact.experiments import provenance
from gkp.artifact.experiments import store as store_module
from gkp.artifact.experiments.cell import Cell, find_kind, later
from gkp.artifact.experiments.compute import Job, Outcome, isolated
from gkp.artifact.experiments.compute import compute as compute_job
from gkp.artifact.experiments.copies import check_folder
from gkp.artifact.experiments.kinds import EvaluateCell, PretrainedCell, PruneCell, TrainCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.experiments.status import Durations, Kind, Progress, in_words
from gkp.artifact.experiments.store import Busy, Entry
from gkp.artifact.experiments.todo import Plan, family, leave_out_absent, make_plan, take_shard
from gkp.errors import BadInput


@pytest.fixture
def store(tmp_path: Path) -> grid.Store:
    return grid.Store(tmp_path / "cells", (tmp_path / "results",))


def compute(cells, store, **options) -> grid.Report:
    return grid.run(cells, jobs=1, store=store, progress=False, check=False, **options)


def computations(counter: Path) -> Counter[str]:
    return Counter(counter.read_text().split()) if counter.exists() else Counter()


def leftovers(root: Path) -> list[str]:
    """Half-written folders, locks and scratch folders."""
    return [
        str(path.relative_to(root))
        for path in [*root.glob(".*.partial-*"), *root.glob(".*.old-*"), *root.glob(".locks/*"), *root.glob(".scratch/*")]
    ]


def test_cells_whose_images_or_weights_nobody_may_download_can_be_left_out(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GKP_DATA", str(tmp_path))
    monkeypatch.setattr("gkp.files.searched_folders", lambda: [tmp_path])
    net = TrainCell(dataset="tiny-imagenet", model="resnet56", epochs=1)
    theirs = PruneCell(net=PretrainedCell(model="resnet20", weights="srgkp-official"), epochs=0)
    asked = [Number(x=1), net, EvaluateCell(net=net), EvaluateCell(net=theirs, examples=1)]
    report = grid.run(asked, jobs=1, store=store, progress=False, skip_absent=True)
    assert report.computed == 1 and list(report.missing) == asked[1:] and not report.failures
    images, weights, counted = capsys.readouterr().out.splitlines()
    assert images.startswith("not computed: 2 cells; tiny-imagenet: tiny-imagenet-200 is in none of the folders searched")
    assert weights.startswith("not computed: 3 cells; the srgkp-official weights of resnet20: ")
    assert counted == "4 cells: 0 cached, 1 computed, 3 missing"
    grid.run(asked, jobs=0, store=store, skip_absent=True)  # nothing is computed anyway: no word of folders
    assert capsys.readouterr().out == "4 cells: 1 cached, 0 computed, 3 missing\n"
    with pytest.raises(grid.CellsFailed, match="tiny-imagenet-200 is in none of the folders"):
        grid.run(asked[:2], jobs=1, store=store, progress=False, quiet=True)


def test_weights_that_only_finished_ancestors_needed_are_not_missed(store, tmp_path, monkeypatch):
    monkeypatch.setattr("gkp.networks.public.why_absent", lambda *_: "no such weights")
    pruned = PruneCell(net=PretrainedCell(model="resnet20", weights="srgkp-official", dataset="digits"), epochs=0)
    cell = EvaluateCell(net=pruned, examples=1)
    plan = Plan([cell], {pruned.hash: Entry(tmp_path, {}, {}, ())}, {cell.hash: cell})
    assert leave_out_absent(plan) == () and list(plan.todo) == [cell.hash]
    plan = make_plan([cell], store)
    assert leave_out_absent(plan) == ("not computed: 3 cells; no such weights",) and not plan.todo


# --- what a cell is -------------------------------------------------------------------------------------------------


def test_the_hash_is_the_sha256_of_the_canonical_json_of_stage_revision_parameters_data_and_parents():
    parent = Number(x=1)
    by_hand = (
        '{"data":{},"params":{"counter":"","seed":3,"threads":1,"x":2.0},"parents":{"source":"'
        + parent.hash
        + '"},"revision":1,"stage":"test-number"}'
    )
    assert Number(x=2, seed=3, source=parent).hash == hashlib.sha256(by_hand.encode()).hexdigest()


def test_the_id_is_readable_and_ends_in_the_first_digits_of_the_hash():
    cell = Number(x=2.5, seed=7)
    assert cell.id == f"number-2.5-s7-{cell.hash[:10]}"


def test_limits_do_not_change_the_hash_but_parameters_threads_and_ancestors_do():
    cell = Number(x=2, source=Number(x=1))
    assert replace(cell, time_limit=5, memory_limit=100).hash == cell.hash
    others = [
        replace(cell, x=3),
        replace(cell, threads=2),
        replace(cell, source=None),
        replace(cell, source=Number(x=1.5)),
        replace(cell, source=Number(x=1, source=Number(x=0))),
    ]
    assert len({other.hash for other in [cell, *others]}) == 6


def test_raising_the_revision_of_a_stage_makes_new_cells_of_it_and_of_all_its_descendants(monkeypatch):
    child, other = Number(x=2, source=TinyTraining()), Number(x=3)
    before = child.hash, child.source.hash, other.hash
    monkeypatch.setattr(TinyTraining, "revision", 2)
    child, other = pickle.loads(pickle.dumps((child, other)))  # as new objects: hashes are remembered
    assert child.hash != before[0] and child.source.hash != before[1] and other.hash == before[2]


def test_a_field_added_later_leaves_the_hashes_of_old_cells_alone_until_it_is_used():
    @dataclass(frozen=True, kw_only=True)
    class Longer(Number):
        colour: str = later("red")

    assert Longer(x=1).hash == Number(x=1).hash != Longer(x=1, colour="blue").hash


def test_a_whole_number_given_for_a_float_is_the_same_cell():
    assert Number(x=1).hash == Number(x=1.0).hash


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_a_parameter_that_is_no_plain_value_is_refused(value):
    with pytest.raises(BadInput, match="Number: a parameter cannot be written as JSON"):
        str(Number(x=value).hash)


def test_an_unknown_stage_and_a_stage_of_two_kinds_are_refused():
    with pytest.raises(BadInput, match="unknown stage 'brew'"):
        find_kind("brew")
    with pytest.raises(BadInput, match="'test-number' already belongs to Number of grid_stages"):

        class Other(Cell):
            stage = "test-number"


def test_a_cell_that_nothing_can_compute_fails_with_what_its_kind_lacks(store):
    @dataclass(frozen=True, kw_only=True)
    class Idle(Cell):
        stage = "test-idle"

    [outcome] = compute([Idle()], store).failures
    assert outcome.kind == "bad input" and "Idle has no static method compute(" in outcome.message


def test_a_worker_with_another_revision_of_a_stage_computes_nothing(store, monkeypatch):
    store.prepare()
    job = Job.of(Number(x=1), store, {})
    monkeypatch.setattr(Number, "revision", 2)
    outcome = compute_job(job, alone=False)
    assert outcome.kind == "bad input" and "has revision 2 here but 1 where the run was started" in outcome.message


def test_two_different_cells_with_one_id_are_refused(store, monkeypatch):
    monkeypatch.setattr(Number, "id", "same")
    with pytest.raises(BadInput, match="two different cells have the id same"):
        compute([Number(x=1), Number(x=2)], store)


def test_select_takes_words_and_wildcards_and_refuses_what_matches_nothing():
    cells = [Number(x=1), Number(x=1, seed=1), Number(x=2)]
    assert grid.select(cells, "number-1-") == cells[:2]
    assert grid.select(cells, "*-s1-*, number-2") == cells[1:]
    with pytest.raises(BadInput, match="no cell matches --only 'table9'; ids look like number-1-s0-"):
        grid.select(cells, "table9")


def test_a_label_that_begins_with_a_dot_gives_a_folder_that_is_found(store, monkeypatch):
    monkeypatch.setattr(Number, "label", property(lambda cell: f".{cell.x:g}"))
    compute([Number(x=5)], store)
    assert grid.load([Number(x=5)], store=store).cached == 1 and Number(x=5).id.startswith("5-")


def test_a_stage_that_changes_its_parameters_changes_its_own_copy(store, monkeypatch):
    def careless(params, parents, folder, context):
        return {"last": params["seed"].pop()}

    monkeypatch.setattr(Number, "compute", staticmethod(careless))
    cell = Number(seed=[1, 2])
    folder = compute([cell], store)[0].folder
    assert cell.seed == [1, 2] and json.loads((folder / "spec.json").read_text())["params"]["seed"] == [1, 2]
    assert check_folder(folder) == []


# --- cache ----------------------------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_cells_and_are_computed_once(store, tmp_path, capsys):
    counter = tmp_path / "count"
    base = Number(x=10, counter=str(counter))
    cells = [Number(x=x, source=base, counter=str(counter)) for x in (3, 1, 2, 3)]
    first = compute(cells, store)
    assert [result["value"] for result in first] == [13, 11, 12, 13]
    assert capsys.readouterr().out == "4 cells: 0 cached, 4 computed (1 parent computed on the way)\n"
    second = compute(cells, store)
    assert [result.figures for result in second] == [result.figures for result in first]
    assert capsys.readouterr().out == "4 cells: 4 cached, 0 computed\n"
    assert set(computations(counter).values()) == {1} and len(computations(counter)) == 4
    assert leftovers(store.root) == []


def test_an_ancestor_that_nobody_needs_is_not_computed(store, tmp_path):
    child = Number(x=1, source=Number(x=2))
    compute([child], store)
    shutil.rmtree(store.root / child.source.id)
    report = compute([child], store)
    assert (report.cached, report.computed, report.extra) == (1, 0, 0)


def test_the_same_cell_twice_gives_the_same_bytes_but_for_run_json(store, tmp_path):
    cell, again = TinyTraining(), grid.Store(tmp_path / "again")
    one, two = compute([cell], store)[0].folder, compute([cell], again)[0].folder
    for name in ("result.json", "spec.json", "net.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_what_happened_before_in_the_process_does_not_leak_into_a_cell_nor_out_of_it(store, tmp_path):
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    one = compute([TinyTraining()], store)[0]
    seed()
    expected = draw()
    seed()
    threads = torch.get_num_threads()
    two = compute([TinyTraining()], grid.Store(tmp_path / "again"))[0]
    assert one.figures == two.figures and one["threads"] == 1
    assert draw() == expected
    assert torch.get_num_threads() == threads


def test_a_cell_computes_with_its_own_number_of_threads_whatever_the_process_had():
    before = torch.get_num_threads()
    with isolated(before + 1, seed=0):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_every_result_says_when_where_and_how_it_was_computed(store):
    run = compute([Number(x=1)], store)[0].run
    assert {"finished", "seconds", "peak_memory_mb", "git_commit", "versions", "hardware", "threads"} <= run.keys()
    assert {"torch", "python"} <= run["versions"].keys() and {"processor", "cores"} <= run["hardware"].keys()
    assert run["peak_memory_mb"] > 5 and run["threads"] == 1


def test_the_commit_is_that_of_the_code_when_the_stage_began(store, monkeypatch):
    commits = iter(["old", "new"])
    monkeypatch.setattr(provenance, "git_commit", cache(lambda: next(commits)))
    commit_at = []
    monkeypatch.setattr(
        Number, "compute", staticmethod(lambda *_: commit_at.append(provenance.git_commit.cache_info().currsize) or {})
    )
    compute([Number(x=1)], store)
    assert commit_at == [1]


def test_the_commit_is_that_of_the_checkout_also_in_a_hook_of_git(monkeypatch, tmp_path):
    read = provenance.git_commit.__wrapped__
    here = read()
    for name in ("GIT_DIR", "GIT_INDEX_FILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert read() == here


def test_seconds_do_not_contain_the_loading_of_libraries(store, monkeypatch):
    @contextmanager
    def slow(threads, seed):
        time.sleep(0.3)  # as importing torch does
        yield

    monkeypatch.setattr("gkp.artifact.experiments.compute.isolated", slow)
    assert compute([Number(x=1)], store)[0].run["seconds"] < 0.3


def test_committed_results_come_before_computed_ones_and_need_no_writable_folder(store, tmp_path):
    cell = Number(x=4)
    compute([cell], grid.Store(tmp_path / "elsewhere"))
    [published] = grid.publish([cell], tmp_path / "results", store=grid.Store(tmp_path / "elsewhere"))
    report = compute([cell], store)
    assert report[0].folder == published == tmp_path / "results" / cell.id and report[0].cached
    assert not store.root.exists() and not (published / "log.txt").exists()


def test_a_copy_without_its_large_files_serves_figures_and_is_recomputed_only_for_a_child(store, tmp_path):
    elsewhere, base = grid.Store(tmp_path / "elsewhere"), Number(x=4)
    compute([base], elsewhere)
    grid.publish([base], tmp_path / "results", without=["*.txt"], store=elsewhere)
    assert compute([base], store).computed == 0
    with pytest.raises(BadInput, match=f"{base.id}: value.txt is not in .*kept without it"):
        compute([base], store)[0].file("value.txt")
    report = compute([Number(x=1, source=base)], store)
    assert report[0]["value"] == 5 and report.extra == 1


def test_recomputing_a_finished_cell_gives_the_same_bytes_and_touches_no_committed_result(store, tmp_path):
    cells = [TinyTraining(), Number(x=1, source=Number(x=2))]
    compute(cells, grid.Store(tmp_path / "elsewhere"))
    committed = grid.publish([*cells, cells[1].source], tmp_path / "results", store=grid.Store(tmp_path / "elsewhere"))
    before = [(path, path.read_bytes(), path.stat().st_mtime_ns) for folder in committed for path in folder.iterdir()]
    report = compute(cells, store, recompute=True)
    assert (report.cached, report.computed, report.extra) == (0, 2, 0)
    for result, folder in zip(report, committed, strict=False):
        assert result.folder == store.root / result.cell.id
        assert (result.folder / "result.json").read_bytes() == (folder / "result.json").read_bytes()
    assert [(path, path.read_bytes(), path.stat().st_mtime_ns) for path, _, _ in before] == before
    assert compute(cells, store, recompute=True).computed == 2


def test_without_locks_the_slower_of_two_runners_leaves_the_other_ones_cell_alone(store, monkeypatch):
    cell, other = Number(x=1), grid.Store(store.root)

    def meanwhile(folder: Path) -> None:
        monkeypatch.undo()
        with monkeypatch.context() as patch:
            patch.setattr(grid.Store, "lock", lambda *_: nullcontext())
            patch.setattr(grid.Store, "partial_name", lambda *_: store.root / f".{cell.id}.partial-other-1")
            assert compute([cell], other).computed == 1

    monkeypatch.setattr(store_module, "_flush_tree", meanwhile)
    assert compute([cell], store)[0]["value"] == 1 and leftovers(store.root) == []


def test_a_disk_that_fills_while_cells_are_published_is_one_line_and_leaves_no_half_copy(store, tmp_path, monkeypatch):
    compute([Number(x=1)], store)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil.copytree, "__kwdefaults__", None)
    monkeypatch.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
    with pytest.raises(BadInput, match=r"cannot be copied to .*No space left on device"):
        grid.publish([Number(x=1)], tmp_path / "results", store=store)
    assert os.listdir(tmp_path / "results") == []


def test_publishing_what_is_not_finished_is_refused(store, tmp_path):
    with pytest.raises(BadInput, match="1 cells are not finished"):
        grid.publish([Number(x=1)], tmp_path / "results", store=store)


def test_load_computes_nothing_and_lists_what_is_missing(store):
    compute([Number(x=1)], store)
    report = grid.load([Number(x=1), Number(x=2)], store=store)
    assert [result["value"] for result in report] == [1] and report.missing == (Number(x=2),)
    assert report.headline == "2 cells: 1 cached, 0 computed, 1 missing"


# --- damage ---------------------------------------------------------------------------------------------------------


def _truncate(folder: Path) -> None:
    path = folder / "result.json"
    path.write_bytes(path.read_bytes()[:-40])


def _empty(folder: Path) -> None:
    (folder / "result.json").write_bytes(b"")


def _edit_a_figure(folder: Path) -> None:
    path = folder / "result.json"
    path.write_text(path.read_text().replace('"value": 1.0', '"value": 9.0'))


def _make_a_figure_nan(folder: Path) -> None:
    path = folder / "result.json"
    path.write_text(path.read_text().replace('"value": 1.0', '"value": NaN'))


def _shorten_a_file(folder: Path) -> None:
    (folder / "value.txt").write_text("1")


def _remove_the_result(folder: Path) -> None:
    (folder / "result.json").unlink()


def _take_that_of_another_cell(folder: Path) -> None:
    shutil.copy(folder.parent / Number(x=2).id / "result.json", folder)


@pytest.mark.parametrize(
    "harm",
    [_truncate, _empty, _edit_a_figure, _make_a_figure_nan, _shorten_a_file, _remove_the_result, _take_that_of_another_cell],
)
def test_a_damaged_cell_is_noticed_recomputed_and_reported(store, harm, capsys):
    cells = [Number(x=1), Number(x=2)]
    before = compute(cells, store)[0].folder.joinpath("result.json").read_bytes()
    harm(store.root / cells[0].id)
    capsys.readouterr()
    report = compute(cells, store := grid.Store(store.root))
    assert report[0]["value"] == 1 and (report.cached, report.computed) == (1, 1)
    assert (store.root / cells[0].id / "result.json").read_bytes() == before
    headline, reason = capsys.readouterr().out.splitlines()
    assert headline == "2 cells: 1 cached, 1 computed (1 damaged and not used)"
    assert reason.startswith("damaged: ") and cells[0].id in reason
    assert leftovers(store.root) == [] and compute(cells, grid.Store(store.root)).damaged == {}


def test_a_specification_with_what_is_no_json_is_a_line_and_a_damaged_run_json_is_no_obstacle(store):
    folder = compute([Number(x=1)], store)[0].folder
    spec, run = folder / "spec.json", folder / "run.json"
    run.write_text('{"seconds": 3}')
    assert grid.status([Number(x=1), Number(x=2)], store=store).to_json()["missing"] == 1
    spec.write_text(spec.read_text().replace("1.0", "NaN"))
    [problem] = check_folder(folder)
    assert problem.endswith("spec.json: is missing or is not JSON")


def test_a_file_edited_in_place_is_noticed_before_another_cell_is_built_on_it(store):
    base = Number(x=1)
    compute([base], store)
    (store.root / base.id / "value.txt").write_text("7.0")  # as long as before
    report = compute([Number(x=1, source=base)], store)
    assert report[0]["value"] == 2 and base.id in report.damaged


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_failing_cell_is_recorded_its_descendants_blocked_and_everything_else_computed(store):
    bad = Trouble(how="raise")
    child = Number(x=1, source=bad)
    cells = [bad, child, Number(x=2, source=child), Number(x=3)]
    report = compute(cells, store)
    assert [result["value"] for result in report] == [3] and report.exit_status == 1
    assert report.headline == "4 cells: 0 cached, 1 computed, 1 failed, 2 blocked"
    assert report.failure_lines()[0].startswith(f"failed: {bad.id}: error: RuntimeError: the sky is falling (log: ")
    assert all("\n" not in line for line in report.failure_lines())
    record = json.loads((store.root / ".failed" / bad.id / "failure.json").read_text())
    assert "in _raise" in record["traceback"] and record["kind"] == "error"
    assert leftovers(store.root) == [] and not (store.root / bad.id).exists()
    status = grid.status(cells, store=store).to_json()
    assert [status[name] for name in ("finished", "running", "failed", "blocked", "missing")] == [1, 0, 1, 2, 0]
    assert status["failures"] == {bad.id: "error: RuntimeError: the sky is falling"}


def test_by_default_run_raises_when_it_is_done_so_that_no_table_lacks_a_row_unnoticed(store):
    with pytest.raises(grid.CellsFailed, match="the sky is falling") as caught:
        grid.run([Trouble(how="raise"), Number(x=3)], jobs=1, store=store, progress=False)
    assert caught.value.report[0]["value"] == 3


def test_a_failed_cell_is_tried_again_by_the_next_run_and_its_record_goes_with_success(store, tmp_path):
    cell = Trouble(how="fill-really", note=str(tmp_path / "note"))
    store.prepare()
    store.record_failure(cell.id, {"hash": cell.hash, "kind": "disk full", "message": "no space left"})
    assert grid.status([cell], store=store).failed == (cell.id,)
    assert compute([cell], store).computed == 1
    status = grid.status([cell], store=store)
    assert status.finished == (cell.id,) and store.failures() == {}


def test_figures_by_number_and_links_to_nowhere_do_not_make_a_cell_unreadable(store, monkeypatch):
    def careless(params, parents, folder, context):
        (folder / "link").symlink_to(folder / "nowhere")
        return {"by epoch": {1: 0.5, 2: 0.6, 10: 0.7}}

    monkeypatch.setattr(sys.modules["gkp.artifact.experiments.run"], "_UNTIL_SEEN", 0.0)
    monkeypatch.setattr(Number, "compute", staticmethod(careless))
    assert compute([Number(x=1)], store)[0]["by epoch"] == {"1": 0.5, "2": 0.6, "10": 0.7}


def test_figures_that_are_not_finite_are_a_failure_that_names_them(store):
    report = compute([Trouble(how="nan")], store)
    assert "returned figures that cannot be written as JSON" in report.failures[0].message


def test_in_this_process_too_a_cell_that_hangs_or_eats_memory_is_ended(store, tmp_path):
    note = str(tmp_path / "note")
    cells = [Trouble(how="hang", note=note, time_limit=0.3), Trouble(how="eat", memory_limit=200), Number(x=1)]
    before = signal.getsignal(signal.SIGALRM)
    started = time.monotonic()
    report = compute(cells, store)
    assert [outcome.kind for outcome in report.failures] == ["time limit", "memory limit"] and report[0]["value"] == 1
    assert time.monotonic() - started < 60 and signal.getsignal(signal.SIGALRM) is before
    assert leftovers(store.root) == []


def test_a_limit_is_kept_by_a_stage_that_catches_whatever_interrupts_it(store, tmp_path, monkeypatch):
    monkeypatch.setattr("gkp.artifact.experiments.limits._AGAIN", 0.2)
    report = compute([Trouble(how="swallow", time_limit=0.2)], store)
    assert [outcome.kind for outcome in report.failures] == ["time limit"]


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_would_not_be_kept_is_refused(store, limit):
    for name in ("time_limit", "memory_limit"):
        with pytest.raises(BadInput, match=f"^{name} is .*give a number above 0"):
            compute([Number(x=1)], store, **{name: limit})
        with pytest.raises(BadInput, match=f"{Number(x=1).id}: {name} is "):
            compute([replace(Number(x=1), **{name: limit})], store)


def test_an_interrupt_leaves_nothing_half_written(store, monkeypatch):
    monkeypatch.setattr(store_module, "_flush_tree", lambda folder: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        compute([Number(x=1)], store)
    assert leftovers(store.root) == [] and not (store.root / Number(x=1).id).exists()


def test_a_long_cell_resumes_from_its_scratch_folder_and_clears_it(store, tmp_path):
    cell = Trouble(how="resume", note=str(tmp_path / "note"), time_limit=0.2)
    assert compute([cell], store).failures[0].kind == "time limit"
    report = compute([cell], store)
    assert report[0]["done"] == 2 and leftovers(store.root) == []


def test_seconds_contain_those_that_stopped_runs_spent_until_their_last_checkpoint(store, monkeypatch):
    killed = iter([True, True, False])

    def slow(params, parents, folder, context):
        time.sleep(0.2)
        context.scratch.joinpath("checkpoint").touch()
        if next(killed):
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(Number, "compute", staticmethod(slow))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compute([Number(x=1)], store)
    run = compute([Number(x=1)], store)[0].run
    assert 0.4 <= run["taken_over_seconds"] < run["seconds"] and run["seconds"] >= 0.6 and leftovers(store.root) == []


def test_a_cell_is_computed_anew_although_its_writer_was_killed_before_it_removed_the_checkpoints(store, monkeypatch):
    cell, scratch = Trouble(how="resume", note=os.devnull), store.scratch(Trouble(how="resume", note=os.devnull).id)
    scratch.mkdir(parents=True)
    (scratch / "epoch").write_text("1")
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: path == scratch or remove(path, **options))
    assert compute([cell], store)[0]["done"] == 2 and scratch.exists()
    monkeypatch.undo()
    monkeypatch.setattr(grid_stages, "_sleep", lambda *_: 5)
    assert compute([cell], store, recompute=True)[0]["done"] == 5
    scratch.mkdir()  # by a later computation that was stopped
    (scratch / "epoch").write_text("7")
    assert compute([cell], store, recompute=True)[0]["done"] == 8 and leftovers(store.root) == []


def test_a_finished_cell_is_kept_when_its_writer_is_killed_while_it_replaces_it(store):
    cell = Number(x=1)
    compute([cell], store)
    os.rename(store.root / cell.id, store.root / f".{cell.id}.old-77")
    store.prepare()
    assert grid.load([cell], store=store).cached == 1 and leftovers(store.root) == []


# --- full and read-only disks ---------------------------------------------------------------------------------------


def test_a_full_disk_leaves_no_half_written_cell(store, tmp_path):
    report = compute([Trouble(how="fill", note=str(tmp_path / "note")), Number(x=1)], store)
    assert report.failures[0].kind == "disk full" and "no space left for" in report.failures[0].message
    assert report[0]["value"] == 1 and leftovers(store.root) == []


@pytest.mark.parametrize("name", ["spec.json", "run.json", "result.json"])
def test_a_disk_that_fills_while_the_result_is_written_leaves_no_half_written_cell(store, monkeypatch, name):
    write = store_module.write_json

    def full(path: Path, value) -> None:
        if path.name == name:
            path.write_text('{"half')
            raise OSError(28, "No space left on device")
        write(path, value)

    monkeypatch.setattr(store_module, "write_json", full)
    report = compute([Number(x=1)], store)
    assert report.failures[0].kind == "disk full"
    assert leftovers(store.root) == [] and not (store.root / Number(x=1).id).exists()
    monkeypatch.undo()
    assert compute([Number(x=1)], store).computed == 1


def test_a_really_full_file_system_leaves_no_half_written_cell(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs privileges this process has not; /dev/full is tested above")
    try:
        store, cell = grid.Store(disk / "cells"), Trouble(how="fill-really", note=str(tmp_path / "note"))
        report = compute([cell, Number(x=1)], store)
        assert report.failures[0].kind == "disk full" and report[0]["value"] == 1
        assert leftovers(store.root) == [] and not (store.root / cell.id).exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def as_nobody():
    """Makes permissions count, also for root: file access as another user, for this thread."""
    if os.geteuid():
        yield
        return
    if not sys.platform.startswith("linux"):
        pytest.skip("root can write everywhere")
    libc = ctypes.CDLL(None)
    libc.setfsuid(65534)
    try:
        yield
    finally:
        libc.setfsuid(0)


def test_a_read_only_store_serves_what_it_has_and_refuses_to_compute(tmp_path, request):
    folder = tmp_path / "shared"
    store = grid.Store(folder / "cells")
    compute([Number(x=1)], store)
    for path in (tmp_path, *tmp_path.parents):  # pytest's own folders are for their owner only
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    request.getfixturevalue("as_nobody")
    assert compute([Number(x=1)], store).cached == 1
    with pytest.raises(BadInput, match=r"new cells cannot be written here .*GKP_CELLS"):
        compute([Number(x=1), Number(x=2)], store)
    assert grid.status([Number(x=1), Number(x=2)], store=store).to_json()["missing"] == 1


def test_a_machine_that_does_not_see_the_shared_folder_says_so_and_makes_none(tmp_path):
    cell, store = Number(x=1), grid.Store(tmp_path / "shared" / "cells")
    outcome = compute_job(Job.of(cell, store, {}), alone=False)
    assert outcome.status == "failed" and "use one that all machines share (GKP_CELLS)" in outcome.message
    assert not (tmp_path / "shared").exists()


# --- locks ----------------------------------------------------------------------------------------------------------

_HOLD = (
    "import sys, time; from pathlib import Path; from gkp.artifact.experiments.store import Store\n"
    "with Store(Path(sys.argv[1])).lock('a'): print('held', flush=True); time.sleep(600)"
)


def test_a_lock_keeps_others_out_until_its_holder_is_killed(store):
    store.prepare()
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(store.root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Busy), store.lock("a"):
        pass
    assert store.running() == {"a"}
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with store.lock("a"):
        assert store.running() == {"a"}
    assert store.running() == set() and leftovers(store.root) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_and_computed_on_all_the_same(store, monkeypatch, code):
    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.warns(RuntimeWarning, match="this file system has no locks"):
        assert compute([Number(x=1)], store)[0]["value"] == 1
    assert leftovers(store.root) == []


def test_without_locks_nobody_removes_what_another_runner_writes(store, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    cell = Number(x=1)
    with pytest.warns(RuntimeWarning, match="this file system has no locks"):
        store.prepare()
        with store.lock(cell.id), store.writing(cell.id) as partial:
            monkeypatch.setattr("os.getpid", lambda: 1)
            assert compute([cell], grid.Store(store.root)).computed == 1 and partial.exists()


def test_what_a_label_says_is_not_taken_for_the_mark_of_an_incomplete_folder(store, monkeypatch):
    monkeypatch.setattr(Number, "label", property(lambda cell: "very.old-one"))
    store.prepare()
    with store.lock(Number(x=1).id), store.writing(Number(x=1).id) as partial:
        grid.Store(store.root).prepare()
        assert partial.exists()


def test_a_cell_that_another_runner_computes_shows_as_running_and_its_dead_folders_are_cleared(store):
    cell = Number(x=1)
    store.prepare()
    dead = store.root / f".{cell.id}.partial-otherhost-77"
    with store.lock(cell.id):
        dead.mkdir()
        store.prepare()
        assert dead.exists()  # its writer may live
        assert grid.status([cell], store=store).running == (cell.id,)
    store.prepare()
    assert not dead.exists() and grid.status([cell], store=store).missing == (cell.id,)


# --- shards, dry runs, estimates ------------------------------------------------------------------------------------


def _families(n: int) -> list[Cell]:
    return [
        cell
        for x in range(n)
        for parent in [Number(x=x)]
        for cell in [parent, *(Number(x=100, seed=seed, source=parent) for seed in range(3))]
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_shards_are_disjoint_cover_everything_and_do_not_depend_on_the_store(count):
    cells = _families(4)
    shares = [take_shard(cells, f"{index}/{count}") for index in range(1, count + 1)]
    assert Counter(cell.hash for share in shares for cell in share) == Counter(cell.hash for cell in cells)
    if count == 2:
        assert [len(share) for share in shares] == [8, 8]
        assert {cell.source.hash for cell in shares[0] if cell.source}.isdisjoint(
            {cell.source.hash for cell in shares[1] if cell.source}
        )


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "a/b", "1/2/3", "-1/2"])
def test_a_shard_that_is_not_i_of_n_is_refused(shard, store):
    with pytest.raises(BadInput, match="not of the form i/n with i from 1 to n"):
        compute([Number(x=1)], store, shard=shard)


def test_a_dry_run_lists_cells_with_their_estimates_and_writes_nothing(store):
    base = Number(x=1)
    compute([base], store)
    before = sorted(store.root.rglob("*"))
    child = Number(x=1, source=Number(x=2))
    report = grid.run([base, child], jobs=2, store=store, dry_run=True, quiet=True)
    assert report.lines[0] == f"cached   {base.id}"
    assert report.lines[1].startswith(f"compute  {child.source.id}  ") and report.lines[1].endswith(", as a parent")
    assert report.lines[2].startswith(f"compute  {child.id}  ")
    assert report.lines[3].startswith("to compute: 2 cells, ") and report.computed == 0
    assert sorted(store.root.rglob("*")) == before


def test_a_dry_run_on_an_empty_store_says_that_nothing_was_ever_timed(store):
    report = grid.run([Number(x=1)], store=store, dry_run=True, quiet=True)
    assert "never timed" in report.lines[0] and "1 cells never timed" in report.lines[1] and not store.root.exists()


def test_a_dry_run_without_jobs_and_cells_without_work_can_be_estimated(store, monkeypatch):
    monkeypatch.setattr(Number, "work", property(lambda cell: 0.0))
    grid.run([Number(x=1)], jobs=1, store=store)
    report = grid.run([Number(x=2)], jobs=0, store=store, dry_run=True, quiet=True)
    assert report.lines[-1].endswith("about 0 s with 0 jobs")


def test_estimates_are_medians_over_seeds_and_else_scale_with_work(monkeypatch):
    monkeypatch.setattr(Number, "work", property(lambda cell: cell.x))
    durations = Durations()
    assert durations.estimate(Number(x=1)) is None
    for seed, seconds in enumerate((10.0, 12.0, 50.0)):
        durations.add(Number(x=4, seed=seed), seconds)
    assert durations.estimate(Number(x=4, seed=9)) == 12.0
    assert durations.estimate(Number(x=8)) == 2 * 12.0


def test_an_evaluation_of_a_larger_network_is_not_estimated_by_that_of_a_small_one():
    small, large = (
        EvaluateCell(net=TrainCell(dataset="cifar10", model=model), protocol="paper") for model in ("resnet20", "resnet56")
    )
    durations = Durations()
    durations.add(small, 150.0)
    assert durations.estimate(small) == 150.0 and durations.estimate(large) == pytest.approx(3.1 * 150.0)


def test_many_small_cells_do_not_say_how_long_a_large_one_takes(monkeypatch):
    monkeypatch.setattr(Number, "work", property(lambda cell: cell.x))
    durations = Durations()
    for seed in range(90):
        durations.add(Number(x=1, seed=seed), 10.0)  # nine of ten seconds are for starting
    durations.add(Number(x=100), 109.0)
    assert durations.estimate(Number(x=200)) == pytest.approx(2 * 109.0)


def _recorded() -> list[tuple[Cell, float]]:
    """The committed cells of profile cifar10, parents first, with the seconds that each took."""
    store = grid.default_store()
    found = make_plan(profiles.cells("cifar10"), grid.Store(store.root / "none", store.read_only)).finished
    cells = family(profiles.cells("cifar10"))
    return [(cells[key], entry.run()["seconds"]) for key, entry in found.items()]


@pytest.mark.parametrize("order", ["planned", "shuffled"])
def test_time_left_is_within_a_factor_of_one_and_a_half_after_the_first_tenth(order):
    recorded = _recorded()
    assert len(recorded) > 300
    if order == "shuffled":
        recorded.sort(key=lambda pair: pair[0].hash)
    durations, total = Durations(), sum(seconds for _, seconds in recorded)
    kinds, left = Counter(Kind.of_cell(cell) for cell, _ in recorded), total
    assert total / 1.5 < durations.total(kinds)[0] < 1.5 * total  # nothing is recorded yet, and it is not far off
    for cell, seconds in recorded:
        if 0.1 * total < total - left < 0.95 * total:  # the last cells are few
            assert left / 1.5 < durations.total(kinds)[0] < 1.5 * left, f"{left:.0f} s before {cell.id}"
        durations.add(cell, seconds)
        kinds[Kind.of_cell(cell)] -= 1
        left -= seconds


@pytest.mark.parametrize("slots", [1, 2])
def test_what_a_run_says_is_left_is_within_a_factor_of_one_and_a_half_of_its_wall_clock(slots, capsys):
    """The committed durations played again on one and on two workers, and read off the lines that a person sees."""
    recorded, free = _recorded(), [0.0] * slots
    ends = []
    for cell, seconds in recorded:  # each worker takes the next cell as soon as it is free
        at = free.index(min(free))
        free[at] += seconds
        ends.append((free[at], cell, seconds))
    whole = max(free)
    progress = Progress([cell for cell, _ in recorded], Durations(), show=True)
    said = 0
    for end, cell, seconds in sorted(ends, key=lambda entry: entry[0]):
        progress.update(slots)
        progress.settle(cell, Outcome(cell.id, "computed", seconds=seconds))
        if 0.1 * whole < end < 0.9 * whole:
            line = capsys.readouterr().err.splitlines()[-1]
            number, unit = re.search(r"; about ([\d.]+) (s|min|h) left$", line).groups()
            left = float(number) * {"s": 1, "min": 60, "h": 3600}[unit]
            assert (whole - end) / 1.5 < left < 1.5 * (whole - end), line
            said += 1
    progress.close()
    assert said > 100


def test_a_few_quick_cells_of_one_kind_do_not_speak_for_slow_ones():
    """Evaluations without attack take a second where the attacked ones, with the same work, take minutes."""
    durations = Durations()
    quick, slow = (
        [EvaluateCell(net=TrainCell(seed=seed), examples=1000, attacks=attacks) for seed in range(20)]
        for attacks in ((), ({"attack": "cascade", "eps": "1/255"},))
    )
    before = durations.estimate(slow[0])
    for cell in quick:
        durations.add(cell, durations.estimate(cell))
    assert durations.estimate(slow[0]) == pytest.approx(before) and before > 100 * durations.estimate(quick[0])


@pytest.mark.parametrize(("seconds", "words"), [(3.4, "3 s"), (120, "2 min"), (7200, "2.0 h")])
def test_durations_are_given_as_people_say_them(seconds, words):
    assert in_words(seconds) == words


def test_minutes_left_are_those_of_missing_cells_shared_by_the_jobs(store):
    compute([Number(x=1)], store)
    run = store.root / Number(x=1).id / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "seconds": 60.0}))
    cells = [Number(x=1, seed=seed) for seed in range(5)]
    assert grid.status(cells, jobs=2, store=store).minutes_left == pytest.approx(2.0)
    assert grid.status([Trouble()], store=store).not_timed == 1


def test_progress_says_for_each_cell_what_happened_and_what_is_left(store, capsys):
    grid.run([Number(x=1), Number(x=2)], jobs=1, store=store)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"[1/2] {Number(x=1).id} computed in 0 s; about 0 s left")
    assert lines[1].startswith(f"[2/2] {Number(x=2).id} computed in 0 s; nothing left")


def test_jobs_below_one_are_refused(store):
    with pytest.raises(BadInput, match="jobs is -1; give 1 or more, or 0"):
        grid.run([Number(x=1)], jobs=-1, store=store)


# --- the deadline of a run ------------------------------------------------------------------------------------------


def test_a_run_stops_at_its_deadline_without_a_failure_and_the_next_one_goes_on(store, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["gkp.artifact.experiments.run"], "_TO_BEGIN", 0.0)
    monkeypatch.setattr(Trouble, "resumable", True)
    cell = Trouble(how="resume", note=str(tmp_path / "note"))
    child = Number(x=1, source=cell)
    report = compute([cell, child, Number(x=2)], store, seconds=1.0)
    assert (report.failures, report.exit_status, report.stopped[0]) == ((), 0, cell.id)
    assert "the time was up: run again to go on" in report.headline
    assert [p for p in leftovers(store.root) if not p.startswith(".scratch")] == []
    assert grid.status([cell], store=store).to_json()["missing"] == 1
    assert compute([cell], store)[0]["done"] == 2 and leftovers(store.root) == []


def test_nothing_is_begun_that_can_neither_be_finished_in_time_nor_be_resumed(store, tmp_path, monkeypatch):
    monkeypatch.setattr(Number, "work", property(lambda cell: cell.x))
    counter = str(tmp_path / "counter")
    monkeypatch.setattr(Durations, "of", classmethod(lambda cls, store, rates=None: cls()))
    unknown = compute([Number(x=1, counter=counter)], store, seconds=600)
    assert unknown.stopped == (Number(x=1, counter=counter).id,) and not computations(tmp_path / "counter")
    durations = Durations()
    durations.add(Number(x=1), 100.0)
    monkeypatch.setattr(Durations, "of", classmethod(lambda cls, store, rates=None: durations))
    report = compute([Number(x=x, counter=counter) for x in (1, 5, 7)], store, seconds=600)
    assert [result.cell.x for result in report] == [1.0, 5.0] and report.stopped == (Number(x=7, counter=counter).id,)


def test_a_run_ends_after_its_deadline_although_there_is_no_worker_any_more(store, monkeypatch):
    class Nobody:
        threads, slots_left, submitted = 1, [1], False

        def slots(self) -> int:
            return self.slots_left.pop() if self.slots_left else 0

        def submit(self, job: Job) -> None:
            self.submitted = True

        def wait(self, seconds: float) -> list[Outcome]:
            time.sleep(0.05)
            assert time.monotonic() < give_up
            return []

        def close(self) -> None:
            pass

    run = sys.modules["gkp.artifact.experiments.run"]
    nobody, give_up = Nobody(), time.monotonic() + 5
    monkeypatch.setattr(run, "_executor", lambda *_: nobody)
    monkeypatch.setattr(run, "_TO_BEGIN", 0.0)
    monkeypatch.setattr(run, "_GIVE_UP", 0.1)
    monkeypatch.setattr(Number, "resumable", True)
    cells = [Number(x=1), Number(x=2)]
    report = compute(cells, store, seconds=0.2)
    assert nobody.submitted and report.stopped == tuple(cell.id for cell in cells) and not report.failures


def test_a_cell_that_failed_once_and_was_stopped_by_a_deadline_has_not_failed(store, monkeypatch):
    monkeypatch.setattr(sys.modules["gkp.artifact.experiments.run"], "_TO_BEGIN", 0.0)
    monkeypatch.setattr(Trouble, "resumable", True)
    cell = Trouble(how="hang", note=os.devnull, time_limit=0.1)
    assert compute([cell], store).failures and grid.status([cell], store=store).failed
    report = compute([replace(cell, time_limit=None)], store, seconds=0.3)
    assert report.stopped == (cell.id,) and grid.status([cell], store=store).missing == (cell.id,)


def test_recomputed_results_are_compared_by_every_value_and_file():
    cell, folder = Number(x=1), Path("anywhere")
    file = {"value.txt": {"sha256": "a", "bytes": 3}}
    old = Result(cell, {"value": 1.0}, folder, True, file)
    for new, said in (
        (replace(old, cached=False), "the same as before"),
        (replace(old, figures={"value": 1.0, "more": None}), "differs in more"),
        (replace(old, files={"value.txt": {"sha256": "b", "bytes": 3}}), "differs in value.txt"),
        (replace(old, files={}), "differs in value.txt"),
    ):
        assert list(grid.Report((new,)).compared_with([old])) == [f"{said}: {cell.id}"]


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_run_without_time_is_refused(store, seconds):
    with pytest.raises(BadInput, match="give a number above 0"):
        compute([Number(x=1)], store, seconds=seconds)
