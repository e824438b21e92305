"""README's Python blocks run as they stand, in order, and stay short."""

import re
from pathlib import Path

import pandas as pd
import pytest

from gkp.files import locate
from gkp.pruning import registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
_SECTION = README.partition("## What came out\n")[2].partition("\n## ")[0]
FINDINGS = re.findall(r"^- (.*(?:\n  .*)*)", _SECTION, flags=re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(autouse=True)
def a_registry_of_its_own(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: next(line for line in block.splitlines() if line))
def test_a_block_of_the_readme_runs(block, tmp_path, monkeypatch):
    if "cifar10" in block and not (locate("cifar10_test.npz") and locate("checkpoints/resnet20-12fca82f.safetensors")):
        pytest.skip("needs CIFAR-10 and the akamaster weights: set GKP_DATA")
    monkeypatch.chdir(tmp_path)
    exec(compile(f"import gkp\n{block}", "README.md", "exec"), {"__name__": "readme"})


def test_own_network_data_and_method_take_at_most_20_lines_each():
    assert len(BLOCKS) == 8
    assert all(len([line for line in block.splitlines() if line.strip()]) <= 20 for block in BLOCKS)


def test_the_resnet18_example_prints_what_the_readme_says():
    said = re.search(r"# (\d+) (\{.*?\})\n", README)
    assert said is not None
    import torchvision

    import gkp

    pruned = gkp.prune(torchvision.models.resnet18(num_classes=10), "l2-gkp", rate=0.5)
    assert (str(len(pruned.plan)), str(pruned.left_out)) == said.groups()


def test_every_fact_the_readme_links_is_there():
    for word in ("Pjky9XG8zP", "10.5281/zenodo.10677218", "make reproduce", "make test"):
        assert word in README


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding.split("**")[1])
def test_every_number_of_a_finding_is_one_of_the_claims_it_names(finding):
    verdicts = pd.read_csv(ROOT / "data" / "verdicts.csv", dtype=str, keep_default_na=False).set_index("id")
    claims = re.findall(r"`(.*?)`", finding)
    assert claims and set(claims) <= set(verdicts.index)
    number = re.compile(r"(?<![\w-])[+-]?\d[\d,]*(?:\.\d+)?(?:/\d+)?(?!\w)")
    said = re.sub(r"`.*?`", "", finding)
    found = " ".join(verdicts.loc[claims, ["statement", "ours", "interval", "reason"]].to_numpy().ravel())
    known = {value.rstrip(",") for value in number.findall(found)}
    assert {value.rstrip(",") for value in number.findall(said)} <= known | {value.lstrip("+-") for value in known}


def test_the_readme_has_findings():
    assert len(FINDINGS) >= 5
