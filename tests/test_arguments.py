"""Arguments and options of the wrong kind are one line, before anything is computed or written."""

import os
import subprocess
import sys
import typing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gkp
from gkp.cli import main
from gkp.errors import BadInput
from gkp.pruning.registry import make_method, methods
from gkp.training.loop import train
from gkp.training.recipe import Recipe

WRONG = {float: ["abc", None, [1.0], float("nan"), True], int: ["8", 1.5, None, False], bool: ["yes", 1], str: [3, None, b"x"]}


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())


@pytest.mark.parametrize("name", methods())
def test_every_plain_option_of_every_method_is_asked_for_its_kind(name):
    info = methods()[name]
    hints = typing.get_type_hints(info.cls)
    for option in info.options:
        for value in WRONG.get(hints[option], ()):
            with pytest.raises(BadInput, match=rf"^{name}: {option} is .*; give "):
                make_method(name, **{option: value})


def test_a_network_where_a_name_belongs_and_a_function_where_a_network_belongs_are_refused(tmp_path):
    saved = gkp.save_model(net(), tmp_path / "net")
    with pytest.raises(BadInput, match=r"^load_model takes the name of .* or a folder, not a Sequential; .*into=net"):
        gkp.load_model(net())
    for wrong in (net, nn.Sequential, "resnet20"):
        with pytest.raises(BadInput, match=r"^into is a (function|type|str); give an instance of the dense network"):
            gkp.load_model(saved, into=wrong)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda data: train(net(), "digits", Recipe(epochs=1)), "come in a gkp.Dataset, not a str"),
        (lambda data: train(net(), data, Recipe(epochs=1), device="none:7"), "device 'none:7' cannot be used"),
        (lambda data: gkp.latency(net(), input_shape=(3, 8, 8), batch_size=0), "batch_size is 0; give a whole number of 1"),
        (lambda data: replace(data, mean=0.5), "mean 0.5 and std .* must have 3 numbers each"),
        (lambda data: replace(data, images=data.images.permute(0, 2, 3, 1)), r"need .permute\(0, 3, 1, 2\)"),
    ],
)
def test_what_a_stranger_gives_first_is_refused_in_one_line_that_says_how_to_mend_it(call, said):
    with pytest.raises(BadInput, match=said) as refused:
        call(gkp.load_dataset("digits", "train").first(4))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", methods())
def test_defaults_are_of_their_kinds_and_so_are_numbers_of_numpy(name):
    info = methods()[name]
    make_method(name, **info.options)
    numpys = {k: np.float64(v) if type(v) is float else np.int64(v) for k, v in info.options.items() if type(v) in (float, int)}
    make_method(name, **numpys)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["rate", "groups", "seed", "budget", "time_limit", "layers", "input_shape"]),
    st.one_of(
        st.sampled_from([float("nan"), float("inf"), "7/16", b"x", object(), 3j, torch.ones(2), (3, 32.5), (0, 8, 8), [], ""]),
        st.text(max_size=3), st.integers(-3, 3), st.floats(), st.lists(st.integers(-1, 3), max_size=3),
    ),
)  # fmt: skip
def test_whatever_stands_for_an_argument_the_answer_is_a_network_or_one_line(argument, value):
    for method in ("l2-gkp", "l2"):
        try:
            pruned = gkp.prune(net(), method, **({"rate": 0.5, "groups": 2} if method == "l2-gkp" else {}) | {argument: value})
        except BadInput as refused:
            assert "\n" not in str(refused)
        else:
            assert len(pruned.plan)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--option", "alpha=abc"], "sr-gkp: alpha is 'abc'; give a number"),
        (["--option", "beam_width=1.5"], "sr-gkp: beam_width is 1.5; give a whole number"),
        (["--option", "rate=0.5"], "rate is no option of a method"),
        (["--option", "data=3"], "data is no option of a method"),
        (["--option", "layers=3"], "layers is 3; give names of layers"),
        (["--option", "time_limit=abc"], "time_limit is 'abc'; give a number"),
        (["--option", "budget=abc", "--method", "l2"], "budget is 'abc'; give a number"),
        (["--rate", "nan"], "rate must lie between 0 and 1, not nan"),
        (["--rate", "inf"], "rate must lie between 0 and 1, not inf"),
        (["--checkpoint", "build"], "--weights and --checkpoint name two networks"),
    ],
)
def test_nonsense_on_the_command_line_is_one_line(options, says, tmp_path, capsys):
    command = ["prune", "--model", "resnet20", "--weights", "gkp", "--out", str(tmp_path / "small"), *options]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["prune", "--out", ""], ["prune", "--out="], ["benchmark", "", "--model", "resnet20"], [""]])
def test_an_empty_word_is_a_variable_that_the_shell_does_not_have(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--model", "resnet20"]) == 2
    assert "is empty, perhaps an unset variable" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def run_gkp(command, folder):
    """Exit status and errors of a command of the shell, in which `gkp` is this one."""
    root = Path(gkp.__file__).parent.parent
    script = f'gkp() {{ "{sys.executable}" -m gkp "$@"; }}; {command}'
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("command", ["gkp prune --help > /dev/full", "gkp methods --json > /dev/full"])
def test_output_that_cannot_be_written_is_one_line_and_status_1(command, tmp_path):
    assert run_gkp(command, tmp_path) == (1, "gkp: output: No space left on device; what is finished is kept\n")


def test_a_current_folder_that_was_deleted_is_one_line_and_status_2(tmp_path):
    status, error = run_gkp("mkdir gone; cd gone; rmdir ../gone; gkp methods", tmp_path)
    assert (status, error.count("\n")) == (2, 1) and "cd to another one" in error


@pytest.mark.parametrize("option", ["--time-limit", "--memory-limit"])
def test_limits_are_above_zero(option, capsys):
    assert main(["run", "--dry-run", option, "-5"]) == 2
    assert "-5.0 is not in the range" in capsys.readouterr().err


def test_the_index_of_weights_in_several_files_is_told_from_text(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"metadata": {"total_size": 1}, "weight_map": {"conv1.weight": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(BadInput, match="is the index of weights in several files; join them into one"):
        gkp.load_model("resnet20", weights=index)


def test_names_of_layers_may_come_from_a_generator():
    pruned = gkp.prune(net(), "l2-gkp", rate=0.5, groups=2, layers=(name for name in ["2"]), input_shape=np.array([3, 16, 16]))
    assert list(pruned.plan) == ["2"]


def test_a_compact_network_says_that_it_is_pruned_already():
    small = gkp.prune(net(), "l2-gkp", rate=0.5, groups=2).compact()
    with pytest.raises(BadInput, match="this network is pruned already"):
        gkp.prune(small, "l2-gkp", rate=0.5, groups=2)
