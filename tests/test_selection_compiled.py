"""The compiled search against the numpy search, which it has to equal bit for bit, and when it is used at all."""

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkp.checkpoints import load_model
from gkp.networks.build import build_model
from gkp.pruning.prune import prune
from gkp.pruning.sr_gkp import selection_compiled
from gkp.pruning.sr_gkp.selection import Balance, greedy, smooth_beam_greedy

needs_numba = pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="needs numba: pip install gkp[fast]")


@pytest.fixture
def compiled(monkeypatch):
    """The compiled search for everything that it knows, and its kernels."""
    monkeypatch.setattr(selection_compiled, "engine", "compiled")
    return selection_compiled.prepare(0.0)


def by(engine, search, *arguments, **options):
    """What `search` returns on one of the two paths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection_compiled, "engine", engine)
        return search(*arguments, **options)


def python(program, **environment):
    """What `program` prints in a process of its own."""
    root = Path(__file__).parents[1]
    run = [sys.executable, "-c", program]
    return subprocess.run(run, capture_output=True, text=True, check=True, cwd=root, env=os.environ | environment).stdout


def layer(channels, seed, groups=1, length=6):
    generator = torch.Generator().manual_seed(seed)
    kernels = torch.randn(groups, channels, length, generator=generator)
    return kernels, torch.rand(groups, channels, generator=generator, dtype=torch.float64)


@needs_numba
@pytest.mark.parametrize(
    ("channels", "keep", "width", "balance"),
    [
        (16, 9, 2, Balance()),
        (32, 18, 2, Balance(alpha=0.5, beta="paper")),
        (64, 36, 2, Balance()),
        (100, 33, 3, Balance(0.3, 2, "paper")),
        (129, 70, 2, Balance(0.9, 1, 3.5)),
        (200, 150, 1, Balance()),
        (256, 64, 2, Balance(nearest=0)),
        (300, 40, 4, Balance(0.1, 3, "paper")),
        (512, 40, 2, Balance()),
        (7, 6, 5, Balance(0.5, 2)),
        (3, 2, 2, Balance()),
    ],
)
def test_the_compiled_search_chooses_as_numpy_does(channels, keep, width, balance):
    kernels, rough = layer(channels, seed=channels, groups=2 if channels < 150 else 1)
    arguments = {"beam_width": width, "balance": balance}
    ours = by("compiled", smooth_beam_greedy, kernels, rough, keep, **arguments)
    assert torch.equal(ours, by("numpy", smooth_beam_greedy, kernels, rough, keep, **arguments))


@needs_numba
@pytest.mark.parametrize(("channels", "keep"), [(16, 9), (64, 16), (257, 129), (512, 128), (640, 160)])
def test_the_compiled_greedy_search_chooses_as_numpy_does(channels, keep):
    kernels, _ = layer(channels, seed=keep)
    assert torch.equal(by("compiled", greedy, kernels, keep), by("numpy", greedy, kernels, keep))


@needs_numba
@given(data=st.data(), channels=st.integers(3, 40), seed=st.integers(0, 10**6), values=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_equal_kernels_distances_and_roughness_are_told_apart_by_their_order_alone(data, channels, seed, values):
    keep, width = data.draw(st.integers(1, channels - 1)), data.draw(st.integers(1, 3))
    balance = Balance(data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])), data.draw(st.integers(1, 4)), "paper")
    generator = torch.Generator().manual_seed(seed)
    kernels = torch.randint(values, (1, channels, 2), generator=generator).float()
    rough = torch.randint(values, (1, channels), generator=generator).double()
    ours, numpys = (
        by(engine, smooth_beam_greedy, kernels, rough, keep, beam_width=width, balance=balance)
        for engine in ("compiled", "numpy")
    )
    assert torch.equal(ours, numpys)


@needs_numba
@pytest.mark.parametrize("values", [2, 3, 9])
@pytest.mark.parametrize(("channels", "keep", "width"), [(256, 40, 2), (512, 20, 2), (300, 40, 3), (512, 60, 1)])
def test_wide_layers_of_equal_distances_are_told_apart_by_their_order_alone(channels, keep, width, values):
    generator = torch.Generator().manual_seed(channels + values)
    kernels = torch.randint(values, (1, channels, 4), generator=generator).float()
    rough = torch.randint(values, (1, channels), generator=generator).double()
    arguments = {"beam_width": width, "balance": Balance(0.9, 3 if width == 2 else 2, "paper")}
    ours = by("compiled", smooth_beam_greedy, kernels, rough, keep, **arguments)
    assert torch.equal(ours, by("numpy", smooth_beam_greedy, kernels, rough, keep, **arguments))


@needs_numba
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 2])
def test_of_equal_costs_the_first_start_wins_in_any_number_of_threads(monkeypatch, compiled, width, threads):
    monkeypatch.setattr(selection_compiled, "THREADS_PAY", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    square = torch.tensor([[[0.0, 0.0], [3.0, 3.0], [3.0, 0.0], [0.0, 3.0]]])
    assert smooth_beam_greedy(square, torch.zeros(1, 4), 2, beam_width=width).tolist() == [[0, 1]]
    kernels, rough = layer(50, seed=1)
    kept = smooth_beam_greedy(kernels, rough, 20, beam_width=width)
    assert torch.equal(kept, by("numpy", smooth_beam_greedy, kernels, rough, 20, beam_width=width))


@needs_numba
def test_rows_of_any_length_are_summed_in_the_order_of_numpy(compiled):
    generator, stack = np.random.default_rng(0), np.empty(64)
    for channels in [*range(1, 300), 511, 512, 513, 1000, 1027, 2048, 4096, 5001]:
        rows = generator.normal(size=(3, channels))
        blocks = np.array(selection_compiled.summation_blocks(0, channels), dtype=np.uint64)
        assert compiled.sum_row(rows, 1, blocks, stack) == rows[1].sum()


@needs_numba
@pytest.mark.parametrize(("bound", "certain"), [(1.0, 1), (1.25, 2), (np.inf, 2)])
def test_a_choice_that_equals_what_a_channel_left_out_could_have_is_not_certain(compiled, bound, certain):
    similarity = np.eye(4)
    similarity[0, 1:] = similarity[1:, 0] = [1.0, -1.0, 0.5]  # 0 is the branch, and 2 the first choice
    similarity[2, 1] = similarity[1, 2] = -1.0
    similarity[2, 3] = similarity[3, 2] = -0.5  # then 1 and 3 are equally distant, and 1 comes first
    rel = np.array([[np.inf, 1.0, -1.0, 0.5]])
    tree, _ = selection_compiled._working_memory(4, selection_compiled._rule(4, 3, 1, Balance(check_every=0)))
    tree.numbers[0] = 0.0, 0.0, bound, 0.0
    least = similarity.min(axis=0)
    arguments = (tree.shortlist, tree.values, tree.numbers, tree.path, rel, 0, -1.0, 1, 3, 2)
    levels, *_ = compiled.grow(similarity, least, np.zeros(4), *arguments)
    assert levels == certain
    assert tree.path[2].tolist()[:2] == [2, 1] or certain == 1


@needs_numba
def test_no_multiplication_is_fused_with_an_addition_and_the_machine_code_is_kept(tmp_path):
    program = (
        "import gkp.pruning.sr_gkp.selection_compiled as c; c.engine = 'compiled'; kernels = c.prepare(0.0); "
        "print(c.kernels_on_disk(kernels), *kernels.search_starts.inspect_asm().values())"
    )
    printed = python(program, NUMBA_CACHE_DIR=str(tmp_path))  # a new folder: what comes from the cache cannot be inspected
    assert printed.startswith("True") and "search_starts" in printed
    assert not re.search(r"\bv?fn?m(add|sub|la|ls)", printed)


@needs_numba
def test_the_compiled_plan_equals_the_released_codes_in_144_of_144_filter_groups(
    compiled, official_weights, official_selection
):
    plan = prune(load_model("resnet20", weights="srgkp-official"), "sr-gkp", rate=7 / 16, groups=8).plan
    same = [
        kept.tolist() == theirs
        for name, reference in official_selection.items()
        for kept, theirs in zip(plan[name].kept, reference["kept"], strict=True)
    ]
    assert len(same) == 144 and all(same)


@needs_numba
@pytest.mark.parametrize("balance", [Balance(check_every=0), Balance(nearest=2), Balance(check_every=8)])
def test_endless_beams_and_several_nearest_kernels_are_left_to_numpy(compiled, balance):
    kernels, rough = layer(9, seed=2)
    assert selection_compiled.choose_search(len, 1, 9, 5, 2, balance) is len
    assert smooth_beam_greedy(kernels, rough, 5, balance=balance).shape == (1, 5)


@needs_numba
def test_kernels_that_are_not_finite_are_left_to_numpy(compiled):
    search = selection_compiled.choose_search(lambda *arguments: "numpy", 1, 3, 2, 2, Balance())
    assert search(np.full((3, 3), np.nan), np.zeros(3), 2, 2, Balance()) == "numpy"


def test_small_networks_do_not_pay_for_numba():
    program = "import sys, gkp; gkp.prune(gkp.load_model('resnet20'), 'sr-gkp'); print('numba' in sys.modules)"
    assert python(program).strip() == "False"


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_without_numba_the_search_is_numpys(monkeypatch, seconds):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "gkp.pruning.sr_gkp.selection_kernels", raising=False)
    monkeypatch.setattr(selection_compiled, "_loaded", None)
    monkeypatch.setattr(selection_compiled, "_unavailable", False)
    assert selection_compiled.prepare(seconds) is None
    assert selection_compiled.choose_search(len, 8, 2048, 512, 1, Balance()) is len
    monkeypatch.setattr(selection_compiled, "engine", "compiled")
    with pytest.raises(ImportError):
        selection_compiled.prepare(seconds)


@needs_numba
def test_without_a_folder_for_machine_code_the_search_is_compiled_for_the_process_only(monkeypatch, compiled):
    import numba

    real = numba.njit

    def refuse(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", refuse)
    assert compiled.compiled(lambda x: x + 1)(1) == 2


@needs_numba
def test_a_search_is_not_compiled_anew_for_a_few_seconds_of_numpy(monkeypatch):
    monkeypatch.setattr(selection_compiled, "_loaded", None)
    monkeypatch.setattr(selection_compiled, "kernels_on_disk", lambda kernels: False)
    assert selection_compiled.prepare(selection_compiled.LOAD_SECONDS) is None


def test_no_progress_is_shown_where_there_is_no_terminal(monkeypatch, capfd):
    monkeypatch.setattr(sys.modules["gkp.pruning.sr_gkp.method"], "SHOW_PROGRESS", 0.0)
    prune(build_model("resnet20"), "sr-gkp")
    assert capfd.readouterr() == ("", "")


def test_the_time_of_a_search_is_known_before_it_within_a_factor_of_a_few(monkeypatch):
    kernels, rough = layer(100, seed=3)
    started = time.process_time()
    by("numpy", smooth_beam_greedy, kernels, rough, 56)
    took = time.process_time() - started
    assert 0.1 < took / selection_compiled.expected_seconds(1, 100, 56, 2, Balance()) < 20
