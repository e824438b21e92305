"""JupyterLab on the notebooks: this environment's kernel alone, and notebooks that run from their own folder."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from gkp.artifact.kernel import execute

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"


def kernel_of_another(folder: Path, name: str) -> None:
    """Put a kernel under this name into a folder of JUPYTER_PATH."""
    (folder / "kernels" / name).mkdir(parents=True)
    spec = {"argv": ["/another/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "another"}
    (folder / "kernels" / name / "kernel.json").write_text(json.dumps({**spec, "language": "python"}))


@pytest.fixture
def asked(tmp_path):
    """A function that asks the server of `gkp lab`, on a machine with kernels of others under two names."""
    for name in ("python3", "other"):
        kernel_of_another(tmp_path / "theirs", name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PATH": str(tmp_path / "theirs"), "HOME": str(tmp_path)}
    environment |= {name: str(tmp_path / name) for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    environment |= {"JUPYTER_TOKEN": "a-token-of-this-test"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gkp", "lab", "--no-browser", "--port", str(port)]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        end, direct = time.monotonic() + 60, urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def ask(path: str):
            request = urllib.request.Request(f"http://localhost:{port}/{path}")
            request.add_header("Authorization", "token a-token-of-this-test")
            while True:
                try:
                    with direct.open(request, timeout=60) as answer:
                        return json.load(answer)
                except urllib.error.URLError:  # not yet
                    assert server.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
                    time.sleep(0.3)

        yield ask
    finally:
        server.kill()
        server.wait()


def test_the_lab_has_the_kernel_of_this_environment_alone_and_shows_the_notebooks(asked):
    found = asked("api/kernelspecs")
    assert found["default"] == "python3" and set(found["kernelspecs"]) == {"python3"}
    assert found["kernelspecs"]["python3"]["spec"]["argv"][:3] == [sys.executable, "-m", "ipykernel_launcher"]
    names = {item["name"] for item in asked("api/contents")["content"]}
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} <= names


@pytest.fixture
def saved():
    """The folder that a notebook saves into when it runs where it is; it is removed if it was not there before."""
    folder, there = NOTEBOOKS / "build", (NOTEBOOKS / "build").exists()
    yield folder
    if not there:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("profile", ["quick", "cifar10"])
def test_run_all_works_from_the_folder_of_the_notebooks_and_a_table_links_its_csv(profile, saved):
    book = nbformat.read(NOTEBOOKS / "07_imagenet.ipynb", as_version=4)
    (parameters,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = f'profile = "{profile}"\njobs = 0'
    execute(book, NOTEBOOKS)
    pages = [output.data.get("text/html", "") for cell in book.cells for output in cell.get("outputs", []) if "data" in output]
    links = [link for page in pages for link in re.findall(r'href="([^"]+)"', page)]
    assert "build/tables/imagenet_counts.csv" in links
    assert all((NOTEBOOKS / link).is_file() and (NOTEBOOKS / link).is_relative_to(saved / "tables") for link in links)
