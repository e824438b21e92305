"""The grid with real processes on the loopback interface: what it must survive (workers, runners and schedulers that die)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import psutil
import pytest
from grid_stages import Number, TinyTraining, Trouble

from gkp.artifact import experiments as grid
from gkp.artifact import profiles
from gkp.artifact.experiments import child, cluster
from gkp.artifact.experiments.child import supervise
from gkp.artifact.experiments.compute import Job, Outcome
from gkp.artifact.experiments.provenance import resident_mb
from gkp.errors import BadInput

T = TypeVar("T")
PATIENCE = 60  # seconds: a limit for broken code, not an expectation; this machine may be busy

# What a runner killed by the tests does. It starts from a string, as `gkp run` starts from a console script.
RUNNER = """
import sys
from pathlib import Path
from grid_stages import Number, Trouble
from gkp.artifact import experiments as grid
root, jobs, note, counter = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
cells = [Number(x=x, counter=counter) for x in range(20)]
if note:
    cells.append(Trouble(how="wait", note=note))
report = grid.run(cells, jobs=jobs, store=grid.Store(root), progress=False)
"""


OWN = """
from dataclasses import dataclass
from gkp.artifact.experiments import Cell

@dataclass(frozen=True, kw_only=True)
class Own(Cell):
    stage = "test-own"

    @staticmethod
"""


@pytest.fixture
def store(tmp_path: Path) -> grid.Store:
    return grid.Store(tmp_path / "cells")


def compute(cells, store, jobs=2, **options) -> grid.Report:
    return grid.run(cells, jobs=jobs, store=store, progress=False, check=False, quiet=True, **options)


def until(look: Callable[[], T], what: str) -> T:
    """What `look` returns as soon as that is true; fails after PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {PATIENCE} s for {what}")


def pids_in(note: Path) -> list[int]:
    """The worker's and the child's process ids that a stage left in its note."""
    words = note.read_text().split() if note.exists() else []
    return [int(word) for word in words] if len(words) == 2 else []


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def leftovers(root: Path) -> list[str]:
    return [
        path.name
        for path in [*root.glob(".*.partial-*"), *root.glob(".*.old-*"), *root.glob(".locks/*"), *root.glob(".scratch/*")]
    ]


_started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Ends what a failing test left behind."""
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.communicate()


def python(*arguments: str) -> subprocess.Popen:
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    _started.append(
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    )
    return _started[-1]


def end(process: subprocess.Popen, timeout: float = PATIENCE) -> str:
    """What the process printed until it ended by itself."""
    output, _ = process.communicate(timeout=timeout)
    return output


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """The address of a scheduler and the processes: [scheduler, worker], two single-threaded workers in the latter."""
    file = tmp_path / "scheduler.json"
    quiet = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    scheduler = python(
        "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *quiet, "--scheduler-file", str(file)
    )
    worker = python(
        "-m",
        "distributed.cli.dask_worker",
        "--scheduler-file",
        str(file),
        "--nworkers",
        "2",
        "--nthreads",
        "1",
        "--host",
        "127.0.0.1",
        "--local-directory",
        str(tmp_path),
        "--memory-limit",
        "0",
        *quiet,
    )
    yield str(file), [scheduler, worker]


def wait_for_scheduler(file: str) -> str:
    return until(
        lambda: Path(file).exists() and Path(file).stat().st_size and json.loads(Path(file).read_text()), "the scheduler"
    )["address"]


# --- the same bytes everywhere --------------------------------------------------------------------------------------


def test_results_are_byte_equal_in_process_on_two_workers_and_on_a_dask_cluster(tmp_path, dask, monkeypatch):
    trained = [TinyTraining(seed=seed) for seed in range(3)]
    cells = [*trained, Number(x=2, source=Number(x=1))]
    stores = [grid.Store(tmp_path / name) for name in ("one", "two", "dask")]
    reports = [compute(cells, stores[0], jobs=1), compute(cells, stores[1], jobs=2)]
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", wait_for_scheduler(dask[0]))
    reports.append(compute(cells, stores[2], jobs=1))
    assert [report.computed for report in reports] == [4, 4, 4]
    for cell, one, two, remote in zip(cells, *reports, strict=True):
        names = sorted(path.name for path in one.folder.iterdir())
        assert names == sorted(path.name for path in two.folder.iterdir())
        for name in set(names) - {"run.json", "log.txt"}:
            bytes_of_one = (one.folder / name).read_bytes()
            assert bytes_of_one == (two.folder / name).read_bytes(), (cell.id, name)
            assert bytes_of_one == (remote.folder / name).read_bytes(), (cell.id, name)
    assert reports[0][0]["leak"] != reports[0][1]["leak"]  # the global generators start from the cell's own hash


# --- workers that die -----------------------------------------------------------------------------------------------


def test_a_worker_killed_in_the_middle_of_a_cell_costs_that_cell_one_more_attempt(store, tmp_path):
    note = tmp_path / "note"
    killer = python(
        "-c",
        "import os, sys, time\nfrom pathlib import Path\nnote = Path(sys.argv[1])\n"
        "while not note.exists() or len(note.read_text().split()) < 2: time.sleep(0.02)\n"
        "os.kill(int(note.read_text().split()[0]), 9)",
        str(note),
    )
    report = compute([Trouble(how="hang-once", note=str(note)), *(Number(x=x) for x in range(6))], store)
    end(killer)
    assert report.exit_status == 0 and report[0]["done"] == 2 and report.computed == 7
    assert leftovers(store.root) == []
    assert until(lambda: all(map(gone, pids_in(note))), "the killed worker's child to go")


def test_cells_that_raise_hang_eat_memory_crash_or_fill_the_disk_fail_alone(store, tmp_path):
    note = str(tmp_path / "note")
    bad = [
        Trouble(how="raise"),
        Trouble(how="hang", note=note, time_limit=3.0),
        Trouble(how="eat", memory_limit=800),
        Trouble(how="crash"),
        Trouble(how="fill", note=note),
    ]
    good = [Number(x=x) for x in range(4)]
    blocked = [Number(x=1, source=cell) for cell in bad]
    report = compute([*bad, *blocked, *good], store)
    kinds = {outcome.id: outcome.kind for outcome in report.failures}
    assert [kinds.get(cell.id) for cell in bad] == ["error", "time limit", "memory limit", "crashed", "disk full"]
    assert [result["value"] for result in report] == [0, 1, 2, 3] and report.exit_status == 1
    assert report.blocked == {child.id: cell.id for child, cell in zip(blocked, bad, strict=True)}
    messages = {outcome.id: outcome.message for outcome in report.failures}
    assert "longer than its limit of 3 s" in messages[bad[1].id] and "more than its limit of 800 MB" in messages[bad[2].id]
    assert "SIGABRT" in messages[bad[3].id]
    for cell in bad:
        log = store.root / ".failed" / cell.id / "log.txt"
        assert log.read_text().startswith(f"about to {cell.how}"), cell.id
    assert leftovers(store.root) == []
    assert len(report.failure_lines()) == 6 and all("\n" not in line for line in report.failure_lines())


def test_a_cell_that_kills_every_worker_it_meets_is_given_up_and_the_rest_computed(store, tmp_path):
    report = compute([Trouble(how="kill-worker"), *(Number(x=x) for x in range(3))], store)
    assert [(outcome.kind, outcome.message) for outcome in report.failures] == [("lost", "3 workers died while they had it")]
    assert [result["value"] for result in report] == [0, 1, 2]
    until(lambda: grid.status([Trouble(how="kill-worker")], store=store).to_json()["failed"] == 1, "the last child to go")
    store.prepare()  # as the next run does
    assert leftovers(store.root) == []


# --- runners that die, or meet --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("jobs", "how"), [(1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGINT)])
def test_a_killed_runner_loses_at_most_its_running_cell_and_the_next_one_resumes(store, tmp_path, jobs, how):
    note, begun, counter = tmp_path / "note", tmp_path / "note.begun", tmp_path / "counter"
    note.touch()
    runner = python("-c", RUNNER, str(store.root), str(jobs), str(note), str(counter))
    worker, child = until(lambda: pids_in(begun), "the last cell to begin")
    until(lambda: len(list(store.root.glob("number-*/result.json"))) == 20, "the other cells")
    assert grid.status([Trouble(how="wait", note=str(note))], store=store).to_json()["running"] == 1
    runner.send_signal(how)
    end(runner)
    assert runner.returncode not in (0, None)
    if jobs > 1:
        until(lambda: gone(worker) and gone(child), "workers to end with their runner")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in store.root.glob("number-*/*")}
    assert len(before) == 5 * 20
    note.unlink()
    runner = python("-c", RUNNER, str(store.root), str(jobs), str(note), str(counter))
    assert "21 cells: 20 cached, 1 computed\n" in end(runner)
    assert runner.returncode == 0 and leftovers(store.root) == []
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert set(Counter(counter.read_text().split()).values()) == {1}


def test_two_runners_on_one_store_share_the_work_and_compute_nothing_twice(store, tmp_path):
    note, counter = tmp_path / "note", tmp_path / "counter"
    note.touch()  # both wait for one cell that only one of them can be computing
    runners = [python("-c", RUNNER, str(store.root), str(jobs), str(note), str(counter)) for jobs in (1, 2)]
    until(lambda: pids_in(tmp_path / "note.begun") and len(list(store.root.glob("number-*/result.json"))) == 20, "all cells")
    note.unlink()
    outputs = [end(runner) for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], outputs
    assert set(Counter(counter.read_text().split()).values()) == {1} and len(counter.read_text().split()) == 20
    computed = [int(output.split(" cached, ")[1].split()[0]) for output in outputs]
    assert sum(computed) == 21 and leftovers(store.root) == []


# --- schedulers -----------------------------------------------------------------------------------------------------


def test_a_scheduler_that_does_not_answer_is_a_clear_error_within_15_seconds(store, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets this port
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
        assert cluster.CONNECT_SECONDS <= 10
        monkeypatch.setattr(cluster, "CONNECT_SECONDS", 3)  # the wait is all that takes time here
        started = time.monotonic()
        with pytest.raises(BadInput, match=rf"no Dask scheduler answers at {address} .*unset DASK_SCHEDULER_ADDRESS"):
            compute([Number(x=1)], store)
    assert time.monotonic() - started < 3 + 5
    with pytest.raises(BadInput, match=r"missing.json: is not the file of a running scheduler"):
        compute([Number(x=1)], store, scheduler=tmp_path / "missing.json")


def test_a_scheduler_that_dies_is_a_clear_error_and_finished_cells_are_kept(store, tmp_path, dask):
    file, (scheduler, _) = dask
    wait_for_scheduler(file)
    note = tmp_path / "note"
    note.touch()
    waiting = Trouble(how="wait", note=str(note))
    killer = python(
        "-c",
        "import os, sys, time\nfrom pathlib import Path\nroot, begun, pid = sys.argv[1:]\n"
        "while not (Path(begun).exists() and len(list(Path(root).glob('number-*'))) == 3): time.sleep(0.05)\n"
        "os.kill(int(pid), 9)",
        str(store.root),
        str(tmp_path / "note.begun"),
        str(scheduler.pid),
    )
    with pytest.raises(BadInput, match=r"the Dask scheduler was lost .* cells were finished and are kept"):
        compute([waiting, *(Number(x=x) for x in range(3))], store, scheduler=file)
    end(killer)
    note.unlink()
    report = compute([*(Number(x=x) for x in range(3))], store, jobs=1)
    assert report.cached == 3


def test_a_child_keeps_its_memory_computes_by_the_file_of_the_run_and_keeps_the_last_words_of_a_cell(
    store, tmp_path, monkeypatch
):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")  # as in a worker of Dask's, which would have it given back
    store.prepare()

    def supervised(cell: grid.Cell, **options) -> Outcome:
        return supervise(Job.of(cell, store, {}, **options))

    file, values = tmp_path / "mine.py", []
    for value in (1, 2):  # an edited file, whose old form the child still has
        file.write_text(OWN + f"    def compute(*_): return {{'value': {value}}}\ndef cells(): return [Own()]\n")
        [cell] = profiles.cells(str(file))
        assert supervised(cell, recompute=True).status == "computed"
        values.append(json.loads((store.root / cell.id / "result.json").read_text())["figures"]["value"])
    assert values == [1, 2]
    job = Job.of(cell, store, {}, recompute=True)
    assert "has changed since the run was started" in supervise(replace(job, source="another")).message

    assert supervised(Trouble(how="print")).kind == "error"
    assert (store.root / ".failed" / Trouble(how="print").id / "log.txt").read_text().splitlines()[-1] == "the last words"
    if (environ := Path(f"/proc/{child._here.child.pid}/environ")).exists():
        given = environ.read_bytes().split(b"\0")
        assert b"MALLOC_TRIM_THRESHOLD_=1073741824" in given and b"MALLOC_TRIM_THRESHOLD_=65536" not in given
    child._here.child.kill()
    child._here.child = None


def test_a_cell_with_a_memory_limit_gets_a_new_child_where_earlier_cells_have_left_too_much(store, monkeypatch):
    class Idle:
        def __init__(self, *_) -> None:
            self.pid, self.living = os.getpid(), True
            self.pipe = SimpleNamespace(send=lambda _: None, poll=lambda _: True, recv=lambda: self)

        def alive(self) -> bool:
            return self.living

        is_ready = alive

        def kill(self) -> None:
            self.living = False

    monkeypatch.setattr(child, "Child", Idle)
    monkeypatch.setattr(child._here, "child", None, raising=False)
    here, used = resident_mb(os.getpid()), []
    for limit in (None, 3 * here, 1.5 * here, 1.5 * here):
        used.append(supervise(Job.of(Number(x=1), store, {}, memory_limit=limit)))
    assert used[0] is used[1] and not used[1].living and used[1] is not used[2] is not used[3] and used[3].living


def test_two_runs_on_one_scheduler_never_share_a_task_and_a_stage_of_a_script_is_refused(store):
    keys = []

    class Client:
        def submit(self, *_, key: str, **__) -> SimpleNamespace:
            keys.append(key)
            return SimpleNamespace(add_done_callback=lambda _: None)

    job = Job.of(Number(x=1), store, {})
    for _ in range(2):  # in one process, or in two containers with the same process id
        cluster.Cluster(Client()).submit(job)
    assert len(set(keys)) == 2
    with pytest.raises(BadInput, match="'test-number' is defined in a script"):
        cluster.Cluster(Client()).submit(replace(job, module="__main__"))


def test_workers_stop_at_the_deadline_of_the_run_and_the_next_one_goes_on_with_what_they_kept(store, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["gkp.artifact.experiments.run"], "_TO_BEGIN", 0.0)
    monkeypatch.setattr(Trouble, "resumable", True)
    cells = [Trouble(how="resume", note=str(tmp_path / name)) for name in ("first", "second")]
    report = grid.run(cells, jobs=2, store=store, progress=False, check=False, seconds=12)
    assert report.failures == () and report.stopped == tuple(cell.id for cell in cells) and store.failures() == {}
    assert sorted(path.parts[-2] for path in store.root.glob(".scratch/*/epoch")) == sorted(cell.id for cell in cells)
    assert [*store.root.glob(".*.partial-*"), *store.root.glob(".locks/*")] == []
    assert [result["done"] for result in grid.run(cells, jobs=1, store=store, progress=False)] == [2, 2]
