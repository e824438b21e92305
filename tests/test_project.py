"""The frame of the project beyond the artifact checklist (tests/test_artifact.py): the lock, names and sizes."""

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
import yaml
from test_artifact import MODULES, ROOT, locked, name, project


def test_every_line_of_the_lock_is_one_exact_version_and_names_no_host_or_path():
    assert len(locked()) > 150
    assert not re.search(r"://|^-|\bfile:|@", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="only the .venv of make promises these versions")
def test_the_environment_that_make_builds_holds_the_versions_of_the_lock():
    assert {package: importlib.metadata.version(package) for package in locked()} == locked()


def test_the_licence_is_mit_everywhere_it_is_named():
    assert project()["project"]["license"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "MIT"


def test_the_citation_names_this_software_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project()["project"]["version"]
    paper = citation["preferred-citation"]
    assert (paper["doi"], paper["year"], len(paper["authors"])) == ("10.5281/zenodo.10677218", 2023, 10)
    assert paper["url"].endswith("Pjky9XG8zP") and "Structured Grouped Kernel Pruning" in paper["title"]


def test_no_module_is_longer_than_400_lines():
    lengths = {name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert not {path: length for path, length in lengths.items() if length > 400}
