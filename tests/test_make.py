"""The Makefile: what it explains, refuses and passes on, and the environment it builds. Nothing is installed here."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"help", "reproduce", "lab", "test", "verify", "check", "bench", "zoo", "publish", "html", "clean", "distclean"}
VARIABLES = {"VENV", "PYTHON", "PROFILE", "ONLY", "JOBS", "FORCE", "COMPUTE"}
MAKE_VARIABLES = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", *VARIABLES}


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The finished `make arguments` in `folder`, free of what an outer make has set."""
    environment = {key: value for key, value in os.environ.items() if key not in MAKE_VARIABLES}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_make_alone_explains_every_target_and_names_none_that_is_not_there():
    (phony,) = re.findall(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(phony.split()) == TARGETS
    explained = set(re.findall(r"^make (\w+)", make().stdout, re.MULTILINE))
    assert explained == TARGETS - {"help"}


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_can_be_planned(target: str):
    assert make("-n", target, "VENV=").returncode == 0


def test_reproduce_passes_the_profile_the_notebook_and_the_workers_on():
    plan = make("-n", "reproduce", "VENV=", "PROFILE=cifar10", "ONLY=00_start_here", "JOBS=2").stdout
    assert shlex.split(plan)[1:] == [
        "-m",
        "gkp",
        "reproduce",
        "--profile",
        "cifar10",
        "--jobs",
        "2",
        "--only",
        "00_start_here",
        "--out",
        "build/cifar10",
    ]


def test_reproduce_is_forced_by_force_alone_and_a_profile_of_ones_own_has_its_own_folder():
    assert "--force" in make("-n", "reproduce", "VENV=", "FORCE=1").stdout
    assert "--force" not in make("-n", "reproduce", "VENV=", "FORCE=0").stdout + make("-n", "reproduce", "VENV=").stdout
    assert shlex.split(make("-n", "reproduce", "VENV=", "PROFILE=some/mine.py").stdout)[-1] == "build/mine"


def test_reproduce_computes_what_is_missing_or_not_as_it_is_told_and_by_the_profile_otherwise():
    said = {value: make("-n", "reproduce", "VENV=", f"COMPUTE={value}").stdout for value in ("", "0", "1")}
    assert {value: "--compute" in text for value, text in said.items()} == {"": False, "0": False, "1": True}
    assert {value: "--no-compute" in text for value, text in said.items()} == {"": False, "0": True, "1": False}


@pytest.mark.parametrize("given", ["COMPUTE=no", "FORCE=false"])
def test_a_switch_that_is_neither_0_nor_1_is_refused_in_one_line(given: str):
    finished = make("-n", "reproduce", "VENV=", given)
    assert finished.returncode == 2 and "FORCE and COMPUTE take 0 or 1, not " in finished.stderr
    assert finished.stdout == "" and len(finished.stderr.splitlines()) == 1


def test_publish_takes_the_real_data_unless_told_otherwise_and_html_what_reproduce_made():
    assert "--profile" not in make("-n", "publish", "VENV=").stdout
    assert shlex.split(make("-n", "publish", "VENV=", "PROFILE=paper").stdout)[-2:] == ["--profile", "paper"]
    assert shlex.split(make("-n", "html", "VENV=").stdout)[1:] == ["-m", "gkp", "html"]
    assert shlex.split(make("-n", "html", "PROFILE=quick", "VENV=").stdout)[1:] == ["-m", "gkp", "html", "--profile", "quick"]


def test_a_misspelt_make_variable_is_refused_in_one_line():
    finished = make("-n", "reproduce", "VENV=", "PROFLE=cifar10")
    assert finished.returncode == 2 and finished.stdout == ""
    assert "PROFLE" in finished.stderr and len(finished.stderr.splitlines()) == 1


def test_an_environment_that_is_not_there_is_refused_in_one_line():
    finished = make("test", "VENV=no-such-folder")
    assert finished.returncode == 2
    assert "no-such-folder" in finished.stderr and len(finished.stderr.splitlines()) == 1


@pytest.fixture
def bare_copy(tmp_path: Path) -> Path:
    """A folder with what `make` needs to build .venv, and a `python` that plays Python 3.11 but installs nothing.

    It notes how it was called in calls.txt; its pip fails as long as a file called offline is there.
    """
    for file in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh
cd '{tmp_path}'
case "$1 $2" in
    "-c "*)     echo 3.11; exit ;;
    "-m venv")  rm -rf .venv; mkdir -p .venv/bin; cp python .venv/bin/python ;;
    "-m pip")   test ! -e offline || exit 1 ;;
esac
echo "$@" >> calls.txt
""")
    python.chmod(0o755)
    return tmp_path


def calls(folder: Path) -> list[str]:
    """What the playing Python did since the last look: venv, pip or pytest."""
    lines = (folder / "calls.txt").read_text().splitlines() if (folder / "calls.txt").exists() else []
    (folder / "calls.txt").unlink(missing_ok=True)
    return [line.split()[1] for line in lines]


def test_make_refuses_another_version_of_python_in_one_line(bare_copy: Path):
    python = bare_copy / "python"
    python.write_text(python.read_text().replace("echo 3.11", "echo 3.9"))
    finished = make("test", f"PYTHON={python}", folder=bare_copy)
    assert finished.returncode == 2 and not (bare_copy / ".venv").exists()
    assert "needs Python 3.11" in finished.stderr and "is 3.9" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1


def test_make_builds_the_environment_once_and_updates_it_when_the_lock_changes(bare_copy: Path):
    arguments = ("test", f"PYTHON={bare_copy / 'python'}")
    assert make(*arguments, folder=bare_copy).returncode == 0
    assert calls(bare_copy) == ["venv", "pip", "pip", "pytest"]
    assert make(*arguments, folder=bare_copy).returncode == 0
    assert calls(bare_copy) == ["pytest"]
    stamp = (bare_copy / ".venv/.installed").stat().st_mtime
    os.utime(bare_copy / "requirements.lock", (stamp + 2, stamp + 2))
    assert make(*arguments, folder=bare_copy).returncode == 0
    assert calls(bare_copy) == ["pip", "pip", "pytest"]


def test_an_install_that_fails_leaves_no_stamp_and_is_redone(bare_copy: Path):
    arguments = ("test", f"PYTHON={bare_copy / 'python'}")
    (bare_copy / "offline").touch()
    assert make(*arguments, folder=bare_copy).returncode == 2
    assert calls(bare_copy) == ["venv"] and not (bare_copy / ".venv/.installed").exists()
    (bare_copy / "offline").unlink()
    assert make(*arguments, folder=bare_copy).returncode == 0
    assert calls(bare_copy) == ["venv", "pip", "pip", "pytest"]


def test_clean_leaves_the_environment_and_distclean_does_not(bare_copy: Path):
    assert make("test", f"PYTHON={bare_copy / 'python'}", folder=bare_copy).returncode == 0
    (bare_copy / "build/quick").mkdir(parents=True)
    make("clean", folder=bare_copy)
    assert not (bare_copy / "build").exists() and (bare_copy / ".venv/.installed").exists()
    make("distclean", folder=bare_copy)
    assert not (bare_copy / ".venv").exists() and (bare_copy / "pyproject.toml").exists()
