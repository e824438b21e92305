"""The wheel without extras, in an environment that has the core dependencies alone.

The quick test borrows the core packages of this environment. GKP_OLDEST=1 also installs the oldest torch that pyproject.toml
allows from PyPI (3 GB, minutes): once per release, or when the core changes.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_artifact import ROOT, project, project_files

USE = """
import sys
import gkp, torch
folder = sys.argv[1]
net = gkp.load_model("resnet20")
for method in ("sr-gkp", "l2"):
    pruned = gkp.prune(net, method)
    small = gkp.load_model(gkp.save_model(pruned.compact(), folder))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert (small(x) - pruned(x)).abs().max() < 1e-4
    assert gkp.cost(small).params < gkp.cost(net).params
    adversarial = gkp.attack(small, x, small(x).argmax(1), "pgd", eps=8 / 255, steps=2)
    assert 0 < (adversarial - x).abs().max() <= 8 / 255 + 1e-6
out = gkp.benchmark(small, "digits", n_examples=4, attacks="fgsm", eps="1/255", progress=False)
assert set(out.accuracy()) == {"clean", "fgsm-1/255", "worst-case-1/255"} and out.interval()
print(gkp.__file__)
"""
MISSING = """
import gkp, torch
gkp.attack(gkp.load_model("resnet20"), torch.rand(1, 3, 32, 32), torch.tensor([0]), "autoattack", eps=1 / 255)
"""


def core() -> list[Requirement]:
    return [Requirement(line) for line in project()["project"]["dependencies"]]


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished command, in an environment that knows nothing of this checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run([*map(str, command)], env=kept | environment, cwd="/", capture_output=True, text=True, timeout=1500)


def python_in(folder: Path) -> Path:
    """The Python of a new virtual environment without any package."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def site_of(python: Path) -> Path:
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())


def install(python: Path, *arguments: object) -> None:
    done = run(sys.executable, "-m", "pip", "--python", python, "-q", "--disable-pip-version-check", "install", *arguments)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel of the tracked files, built outside the checkout."""
    source = tmp_path_factory.mktemp("source")
    for path in project_files():
        if path.relative_to(ROOT).parts[0] in ("gkp", "pyproject.toml", "README.md", "LICENSE"):
            target = source / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    out = tmp_path_factory.mktemp("wheel")
    command = ("pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source)
    done = run(sys.executable, "-m", *command)
    assert done.returncode == 0, done.stderr
    return next(out.glob("gkp-*.whl"))


def closure(wanted: list[Requirement]) -> set[str]:
    """The names of all installed packages that these need, without extras."""
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in found or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        todo += map(Requirement, metadata.requires(name) or [])
    return found


@pytest.fixture(scope="session")
def bare(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel and links to the core packages of this one."""
    python = python_in(tmp_path_factory.mktemp("bare"))
    site = site_of(python)
    for name in closure(core()):
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(metadata.distribution(name).locate_file(top))
    install(python, "--no-deps", "--no-index", wheel)
    return python


def test_the_wheel_prunes_compacts_attacks_and_benchmarks_without_extras(bare, tmp_path):
    done = run(bare, "-c", USE, tmp_path / "net")
    assert done.returncode == 0, done.stderr
    assert str(site_of(bare)) in done.stdout
    for module in ("matplotlib", "papermill", "robustbench", "pyautoattack", "numba", "onnx", "distributed"):
        assert run(bare, "-c", f"import {module}").returncode != 0, f"{module} is there: the test shows nothing"


def test_a_missing_extra_is_named_in_one_line(bare):
    done = run(bare, "-c", MISSING)
    assert done.stderr.splitlines()[-1].endswith(
        'pyautoattack not installed; get what is missing with: pip install "gkp[attacks]"'
    )
    done = run(bare.parent / "gkp", "status")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "papermill, distributed, psutil not installed; " in done.stderr and 'pip install "gkp[artifact]"' in done.stderr


def test_the_command_line_works_without_extras(bare):
    done = run(bare.parent / "gkp", "methods", "--json")
    assert done.returncode == 0 and "sr-gkp" in {method["name"] for method in json.loads(done.stdout)}, done.stderr


def test_the_wheel_carries_every_file_of_the_package(bare):
    package = site_of(bare) / "gkp"
    ours = {path.relative_to(ROOT / "gkp") for path in project_files() if path.is_relative_to(ROOT / "gkp")}
    assert {path for path in ours if not (package / path).is_file()} == set()


@pytest.mark.skipif(not os.environ.get("GKP_OLDEST"), reason="downloads the oldest torch (3 GB); GKP_OLDEST=1 asks for it")
@pytest.mark.timeout(1800)
def test_the_library_runs_on_the_oldest_torch_that_it_allows(wheel, tmp_path):
    python = python_in(tmp_path / "old")
    (torch,) = (str(next(iter(r.specifier)).version) for r in core() if r.name == "torch")
    install(python, wheel, f"torch=={torch}.*")
    assert run(python, "-c", "import torch; print(torch.__version__)").stdout.startswith(torch)
    done = run(python, "-c", USE, tmp_path / "net")
    assert done.returncode == 0, done.stderr
