"""The command line: every command once, and every mistake as one line with exit status 2."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from grid_stages import Number

from gkp.artifact import experiments as grid
from gkp.checkpoints import load_model, save_model
from gkp.cli import gkp, main
from gkp.networks.build import build_model
from gkp.pruning.prune import prune


@pytest.fixture
def folder(tmp_path):
    """A saved, untrained ResNet-20."""
    return save_model(build_model("resnet20"), tmp_path / "net")


def run(capsys, *argv):
    status = main([str(word) for word in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_methods_are_listed_with_family_needs_and_fidelity(capsys):
    status, out, _ = run(capsys, "methods")
    assert status == 0 and "sr-gkp" in out and "grouped kernel" in out and "faithful" in out
    listed = {entry["name"]: entry for entry in json.loads(run(capsys, "methods", "--json")[1])}
    assert listed["sr-gkp"]["needs"] == ["weights"] and listed["sr-gkp"]["options"]["beam_width"] == 2


def test_prune_saves_the_network_that_prune_makes_in_python(capsys, folder, tmp_path):
    status, out, _ = run(
        capsys,
        "prune",
        "--checkpoint",
        folder,
        "--rate",
        "7/16",
        "--option",
        "alpha=0.5",
        "--out",
        tmp_path / "small",
        "--json",
    )
    facts = json.loads(out)
    assert status == 0 and facts["params"] == [269_722, 152_794] and facts["paper_macs"] == [40_938_122, 23_390_858]
    expected = prune(load_model(folder), "sr-gkp", alpha=0.5).plan.to_json()
    assert json.loads((tmp_path / "small" / "model.json").read_text())["plan"] == expected


def test_benchmark_prints_every_attack_with_its_interval_and_keeps_the_outcomes(capsys, folder, tmp_path):
    flags = ("--checkpoint", folder, "--dataset", "digits", "--examples", 20)
    status, out, _ = run(capsys, "benchmark", *flags, "--json", "--out", tmp_path / "outcomes")
    result = json.loads(out)
    assert status == 0 and result["n"] == 20 and {"clean", "pgd-1/255", "worst-case-1/255"} <= set(result["accuracy"])
    low, high = result["interval"]["clean"]
    assert low <= result["accuracy"]["clean"] <= high
    assert {file.name for file in (tmp_path / "outcomes").iterdir()} == {"outcomes.npz", "outcomes.json"}
    table = run(capsys, "benchmark", *flags, "--protocol", "paper")[1]
    assert "fgsm-0.01" in table and "paper protocol, first 20 test images" in table


def test_no_two_options_of_a_command_fill_one_parameter_and_resume_keeps_finished_images_beside_the_network(
    capsys, folder, tmp_path
):
    """--resume was taken for --checkpoint, the network: both filled one parameter."""
    for name, command in gkp.commands.items():
        names = [parameter.name for parameter in command.params]
        assert len(set(names)) == len(names), name
    flags = ("--dataset", "digits", "--examples", 4, "--attack", "fgsm", "--eps", "1/255", "--resume", tmp_path / "kept")
    first, again = (run(capsys, "benchmark", "--checkpoint", folder, *flags) for _ in range(2))
    assert first[0] == 0 and first == again and list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["prune", "--model", "resnet21", "--weights", "akamaster", "--out", "x"], "unknown model 'resnet21'"),
        (["prune", "--out", "x"], "no network given; use --checkpoint FOLDER"),
        (["prune", "--model", "resnet20", "--out", "x"], "--model resnet20 needs --weights"),
        (["prune", "--checkpoint", "{net}", "--method", "magic", "--out", "x"], "unknown method 'magic'; known: "),
        (
            ["prune", "--checkpoint", "{net}", "--rate", "0.45", "--out", "x"],
            "rate 0.45 leaves 8.8 of 16 grouped kernels in layer1.0.conv1",
        ),
        (["prune", "--checkpoint", "{net}", "--groups", "7", "--out", "x"], "do not divide by 7 groups"),
        (["prune", "--checkpoint", "{net}", "--method", "hrank", "--out", "x"], "hrank looks at images; give --dataset"),
        (["prune", "--checkpoint", "{net}", "--method", "sfp", "--out", "x"], "which takes Python: gkp.pruning.train_pruned"),
        (["prune", "--checkpoint", "{net}", "--option", "alpha", "--out", "x"], "is not NAME=VALUE"),
        (["prune", "--checkpoint", "{net}", "--option", "gamma=1", "--out", "x"], "sr-gkp has no option gamma"),
        (["prune", "--checkpoint", "{net}", "--out", "{net}/model.json/below"], "choose a folder you may write to"),
        (["benchmark", "--model", "none yet", "--out", "{net}/model.json"], "model.json is no folder; choose a folder"),
        (["audit", "--model", "none yet", "--out", "{net}/model.json/below"], "model.json is no folder; choose a folder"),
        (["html", "--profile", "none yet", "--out", "{net}/model.json"], "model.json is no folder; choose a folder"),
        (["benchmark", "--checkpoint", "{net}", "--dataset", "cifar11"], "unknown dataset 'cifar11'; known: "),
        (["benchmark", "--checkpoint", "{net}", "--dataset", "digits", "--examples", "0"], "0"),
        (["benchmark", "--checkpoint", "{net}", "--dataset", "digits", "--examples", "501"], "500"),
        (["reproduce", "--profile", "fast"], "unknown profile 'fast'"),
        (["reproduce", "--only", "42_answers"], "no notebook matches '42_answers'"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_nothing_is_written(argv, message, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *(word.replace("{net}", str(folder)) for word in argv))
    assert status == 2 and out == "" and message in err
    assert err.startswith("gkp: ") and err.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["net"]


COMMANDS = (
    "methods",
    "prune",
    "benchmark",
    "audit",
    "leaderboard",
    "run",
    "status",
    "reproduce",
    "verify",
    "publish",
    "html",
    "lab",
)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "Missing command (commands: methods, prune, "),
        (["publish-paper"], "No such command 'publish-paper'. Did you mean 'publish'? (commands: methods, prune, "),
        (["--quiet"], "No such option '--quiet'"),
        (
            ["prune", "--rate", "much", "--out", "x"],
            "'much' is neither a number nor a fraction such as 7/16 (see `gkp prune --help`)",
        ),
        (["prune", "--met", "sr-gkp", "--out", "x"], "No such option '--met'"),
        (["prune", "--checkpoint", "x"], "Missing option '--out'"),
        (["prune", "--out"], "Option '--out' requires an argument"),
        (["prune", "--form", "small", "--out", "x"], "'small' is not one of 'compact', 'masked'"),
        (["run", "--jobs", "two"], "'two' is not a valid integer"),
        (["run", "--for", "soon"], "'soon' is no length of time such as 90s, 25min or 1.5h"),
        (["verify", "all"], "Got unexpected extra argument (all)"),
    ],
)
def test_a_command_that_cannot_be_parsed_is_one_line_and_status_2_too(argv, message, capsys):
    status, out, err = run(capsys, *argv)
    assert status == 2 and out == "" and err.startswith("gkp: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    assert tuple(gkp.commands) == COMMANDS
    status, out, _ = run(capsys, name, "--help")
    assert status == 0 and f"Example:\n    gkp {name}" in out


def test_help_loads_neither_torch_nor_what_draws_figures():
    code = (
        "import sys; from gkp.cli import main; main(['--help']); print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Commands:" in done.stdout and done.stdout.splitlines()[-1] == "[]"


def test_the_module_runs_as_a_process_and_a_closed_pipe_is_no_error():
    done = subprocess.run(f"{sys.executable} -m gkp methods | head -1", shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("METHOD") and "Traceback" not in done.stderr


def test_a_finished_cell_is_computed_again_and_compared_with_what_there_was(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GKP_CELLS", str(tmp_path / "cells"))
    cells = [Number(x=1), Number(x=2)]
    monkeypatch.setattr("gkp.artifact.profiles.cells", lambda profile: cells)
    assert run(capsys, "run", "--jobs", "1")[0] == 0
    status, out, _ = run(capsys, "run", "--jobs", "1", "--only", "number-1", "--again")
    assert status == 0 and "1 cell: 0 cached, 1 computed" in out and f"the same as before: {cells[0].id}" in out
    old = next(iter(grid.load(cells[1:])))
    other = replace(old, figures={**old.figures, "value": 3.0})
    monkeypatch.setattr(grid, "load", lambda wanted: [other])
    assert f"differs in value: {cells[1].id}" in run(capsys, "run", "--jobs", "1", "--only", "number-2", "--again")[1]
    figures = {"accuracy": {"pgd-1/255": 0.5, "clean": 0.9}}
    monkeypatch.setattr(grid, "run", lambda *_, **__: grid.Report((replace(old, figures=figures),)))
    monkeypatch.setattr(grid, "load", lambda wanted: [replace(old, figures={"accuracy": {"pgd-1/255": 0.4, "clean": 0.9}})])
    said = run(capsys, "run", "--only", "number-2", "--again")[1]
    assert said == f"differs in pgd-1/255 40.00 -> 50.00 %: {cells[1].id}\n"
    assert run(capsys, "run", "--again")[0] == 2
