"""README and docs/: their Python runs, their commands exist, their links lead somewhere, their numbers are data."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from distributed.cli import dask_scheduler, dask_worker

from gkp.cli import gkp as command_line
from gkp.files import locate
from gkp.pruning import registry

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)

BLOCKS = [(page, block) for page in PAGES for block in re.findall(r"^```python\n(.*?)^```$", TEXT[page], re.M | re.S)]
_FINDINGS = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8").partition("## What came out\n")[2].partition("\n## ")[0]
FINDINGS = re.findall(r"^- (.*(?:\n  .*)*)", _FINDINGS, flags=re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", TEXT[page], flags=re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


# --- Python -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page, block", BLOCKS, ids=[f"{page.stem}-{number}" for number, (page, _) in enumerate(BLOCKS)])
def test_a_block_of_a_page_runs(page, block, tmp_path, monkeypatch, capsys):
    """Each by itself, in an empty folder; what a comment after a print says is what it prints."""
    if '"cifar10"' in block and not (locate("cifar10_test.npz") and locate("checkpoints/resnet20-12fca82f.safetensors")):
        pytest.skip("needs CIFAR-10 and the akamaster weights: set GKP_DATA")
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setenv("GKP_CELLS", str(tmp_path / "cells"))
    if "folder:" in block:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page.name, "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    for said in re.findall(r"^print\(.*\)  # ([\d(\[{].*|True|tensor\(.*\))$", block, re.MULTILINE):
        assert said in printed.splitlines()


def test_the_block_of_the_readme_runs_without_a_network_or_a_data_set(tmp_path):
    ((_, block),) = [(page, block) for page, block in BLOCKS if page == README]
    for name in ("prune(", ".compact()", "compile(", "latency(", "attack(", 'weights="gkp"'):
        assert name in block
    asked = tmp_path / "asked"
    paths = os.pathsep.join([str(ROOT / "tests" / "offline"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "GKP_DATA": "", "GKP_OFFLINE_LOG": str(asked)}
    ran = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    assert not asked.exists() and re.search(r"^PGD leaves \d+% of the predictions", ran.stdout, re.MULTILINE)


@by_page
def test_a_block_has_at_most_20_lines_and_imports_what_it_uses(page):
    for _, block in (found for found in BLOCKS if found[0] == page):
        assert len([line for line in block.splitlines() if line.strip()]) <= 20, block
        assert "gkp." not in block or re.search(r"^(import gkp$|from gkp\.)", block, re.MULTILINE), block


@by_page
def test_every_name_of_gkp_on_a_page_exists(page):
    for code in inline_code(page):
        for dotted in re.findall(r"^gkp((?:\.\w+)+)(?:\(|$)", code):
            found = import_module("gkp")
            for name in dotted.strip(".").split("."):
                found = getattr(found, name) if hasattr(found, name) else import_module(f"{found.__name__}.{name}")


# --- commands ---------------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """Every command of the sh blocks and of the prose, without comments, and without VAR=value before it."""
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```$", TEXT[page], re.M | re.S) for line in block.splitlines()]
    found = [re.sub(r"(^|\s)#.*$|\s*&$", "", line).strip() for line in [*lines, *inline_code(page)]]
    return [re.sub(r"^(\w+=\S+\s+)+", "", line) for line in found if line]


PROGRAMS = {"gkp": command_line.commands, "dask": {"scheduler": dask_scheduler.main, "worker": dask_worker.main}}


@by_page
def test_every_command_and_option_of_gkp_and_of_dask_on_a_page_exists(page):
    for line in commands(page):
        for program, known in PROGRAMS.items():
            _, found, rest = f" {line}".partition(f" {program} ")
            if found and (name := rest.split()[0]).isidentifier():
                parameters = known[name].params
                options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
                assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", rest)) <= options | {"--help"}, line


def test_nothing_is_in_a_block_of_a_language_that_no_test_reads():
    for page in PAGES:
        languages = re.findall(r"^```(\w*)\n.*?^```$", TEXT[page], re.M | re.S)
        assert set(languages) <= {"python", "sh"} | ({""} if page.name == "layout.md" else set()), page


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


@by_page
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page):
    for link in links(page):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@by_page
def test_every_path_that_a_page_names_is_there(page):
    made = ("build/", ".venv/", "checkpoints/", "cifar", "CIFAR-10-C", "PATH/")  # what is made by a command, or is the reader's
    for code in inline_code(page):
        if re.fullmatch(r"[\w.-]+/[\w./-]*", code) and not code.startswith(made):
            assert (ROOT / code).exists(), code


def test_the_readme_leads_to_every_page_of_docs():
    led = {(README.parent / link).resolve() for link in links(README) if link.startswith("docs/")}
    assert led >= set(PAGES[1:])


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_says_what_this_is_what_to_type_and_what_was_not_done():
    text = TEXT[README]
    assert len(text.splitlines()) <= 150
    for word in ("Pjky9XG8zP", "10.5281/zenodo.10677218", "make reproduce", "make test", "(figures/robustness.png)"):
        assert word in text
    headings = re.findall(r"^## (.*)$", prose(README), re.MULTILINE)
    assert headings[:4] == ["Two commands", "What was found", "In Python", "What is scaled down"]


def test_the_readme_says_that_nothing_was_run_on_a_gpu_as_long_as_that_is_so():
    runs = [json.loads(file.read_text()) for file in (ROOT / "data" / "results").glob("*/run.json")]
    on_gpu = any(run["hardware"].get("gpu") for run in runs)
    assert runs and ("nothing here was ever run on a GPU" in TEXT[README]) is not on_gpu


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding.split("**")[1])
def test_every_number_of_a_finding_is_one_of_the_claims_it_names(finding):
    verdicts = pd.read_csv(ROOT / "data" / "verdicts.csv", dtype=str, keep_default_na=False).set_index("id")
    claims = re.findall(r"`(.*?)`", finding)
    assert claims and set(claims) <= set(verdicts.index)
    number = re.compile(r"(?<![\w-])[+-]?\d[\d,]*(?:\.\d+)?(?:/\d+)?(?!\w)")
    said = re.sub(r"`.*?`", "", finding)
    found = " ".join(verdicts.loc[claims, ["statement", "ours", "interval", "setting", "reason"]].to_numpy().ravel())
    known = {value.rstrip(",") for value in number.findall(found)}
    assert {value.rstrip(",") for value in number.findall(said)} <= known | {value.lstrip("+-") for value in known}


def test_there_are_findings():
    assert len(FINDINGS) >= 5
