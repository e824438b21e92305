"""A new process and the library alone: it reads every network that was saved, and loads only what it uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from method_checks import CHEAP, pictures

from gkp.checkpoints import load_model, save_model
from gkp.networks.build import build_model
from gkp.pruning.prune import prune, train_pruned
from gkp.pruning.registry import methods
from gkp.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
COMMITTED = sorted(file.parent for file in ROOT.glob("data/results/*/compact/model.safetensors"))
KINDS = {  # the field of JSON by which a kind of spec is recognised -> methods whose plans consist of it
    "group_of_filter": [name for name, info in methods().items() if info.family == "grouped kernel"],
    "kept_filters": [name for name, info in methods().items() if info.family == "filter"],
    "kept_inputs": ["cc"],
    "kept_inputs_between": ["lrf"],
    "removed_block": ["gal"],
}
NOT_MEASURED = ("removed_block",)  # kinds of which no network is committed
LOAD = """
import sys
import gkp
import torch
x = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)
for folder in sys.argv[1:]:
    with torch.no_grad():
        print(*gkp.load_model(folder)(x)[0].tolist())
"""


UNUSED = """
import json, sys
import numpy, torch
theirs = {name.partition(".")[0] for name in sys.modules}
import gkp
pruned = gkp.prune(gkp.load_model("resnet20"), "sr-gkp")
packages = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(packages - theirs - set(sys.stdlib_module_names))))
"""


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What a new process of this checkout says."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


def logits_elsewhere(folders) -> torch.Tensor:
    """The logits `(folders, classes)` that a process which imports gkp alone gets from the networks in these folders."""
    done = python("-c", LOAD, *folders)
    assert done.returncode == 0, done.stderr
    return torch.tensor([[float(word) for word in line.split()] for line in done.stdout.splitlines()])


def logits_here(nets) -> torch.Tensor:
    x = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        return torch.cat([net.eval()(x) for net in nets])


def kind_of(folder: Path) -> str:
    """The first known field of the first spec in a saved network."""
    (spec, *_) = json.loads((folder / "model.json").read_text())["plan"].values()
    return next(key for key in KINDS if key in spec)


def pruned_by(method: str):
    """A small network pruned by this method, whatever it takes."""
    net, data, options = build_model("resnet20"), pictures(16, 8), CHEAP.get(method, {})
    info = methods()[method]
    if info.procedure == "one-shot":
        return prune(net, method, **({"data": data} if "data" in info.needs else {}), **options)
    return train_pruned(net, method, data, Recipe(epochs=1, lr=0.01, batch_size=8), progress=False, **options)[0]


def test_every_method_is_of_one_of_these_kinds():
    assert sorted(name for names in KINDS.values() for name in names) == list(methods())


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_saved_is_read_by_a_process_that_imports_gkp_alone(kind, tmp_path):
    """One process a kind, so that no kind is known only because a network of another was read before."""
    nets = {}
    for method in KINDS[kind]:
        pruned = pruned_by(method)
        nets[save_model(pruned, tmp_path / method / "masked")] = pruned
        nets[save_model(pruned.compact(), tmp_path / method / "compact")] = pruned.compact()
    assert {kind_of(folder) for folder in nets} == {kind}
    committed = [folder for folder in COMMITTED if kind_of(folder) == kind]
    assert committed or kind in NOT_MEASURED
    expected = logits_here([*nets.values(), *map(load_model, committed)])
    torch.testing.assert_close(logits_elsewhere([*nets, *committed]), expected)


def test_the_command_line_evaluates_a_network_of_every_kind_in_a_new_process():
    folder = next(folder for folder in COMMITTED if "-cc-" in folder.parent.name)
    done = python("-m", "gkp", "benchmark", "--checkpoint", folder, "--dataset", "digits", "--examples", "2",
                  "--attack", "fgsm", "--eps", "1/255", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"].keys() == {"clean", "fgsm-1/255", "worst-case-1/255"}


def test_every_method_is_registered_by_asking_for_them():
    done = python("-c", "import gkp; print(*gkp.methods())")
    assert done.stdout.split() == list(methods())


def test_pruning_loads_nothing_beside_torch_and_numpy():
    assert json.loads(python("-c", UNUSED).stdout) == ["gkp"]


def test_importing_the_package_loads_neither_torch_nor_numpy():
    done = python("-c", "import sys, gkp; print({'torch', 'numpy'} & set(sys.modules))")
    assert done.stdout.split() == ["set()"]
