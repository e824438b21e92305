"""The frame of the project: pins, files, docstrings, notebooks, and what the README says about commands and layout."""

import ast
import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "gkp").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---- pins ----


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@cache
def lock() -> tuple[Requirement, ...]:
    lines = (line.strip() for line in (ROOT / "requirements.lock").read_text().splitlines())
    return tuple(Requirement(line) for line in lines if line and not line.startswith("#"))


def version_of(requirement: Requirement) -> str:
    (clause,) = requirement.specifier
    assert clause.operator == "==" and "*" not in clause.version, f"{requirement} is not one exact version"
    return clause.version


def locked() -> dict[str, str]:
    """Version by package, for the lines of the lock that apply on this machine."""
    return {canonicalize_name(r.name): version_of(r) for r in lock() if r.marker is None or r.marker.evaluate()}


def test_every_line_of_the_lock_is_one_exact_version_and_names_no_host_or_path():
    assert len([version_of(r) for r in lock()]) > 150
    assert all(r.url is None for r in lock())
    assert not re.search(r"://|^-|\bfile:", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def test_every_direct_dependency_is_pinned_to_the_version_of_the_lock():
    declared = project()["project"]["dependencies"] + project()["project"]["optional-dependencies"]["dev"]
    declared += project()["build-system"]["requires"]
    pins = {canonicalize_name(r.name): version_of(r) for r in map(Requirement, declared)}
    assert {package: locked().get(package) for package in pins} == pins


def test_environment_yml_installs_the_lock_and_the_python_of_pyproject():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(entry.partition("=")[::2] for entry in dependencies if isinstance(entry, str))
    (pip,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert project()["project"]["requires-python"] == f">={conda.pop('python')},<3.12"
    assert pip == ["-r requirements.lock", "-e ."]
    assert all(locked().get(package, pin) == pin for package, pin in conda.items() if pin)


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="only the .venv of make promises these versions")
def test_the_environment_that_make_builds_holds_the_versions_of_the_lock():
    assert {package: importlib.metadata.version(package) for package in locked()} == locked()


# ---- files ----


@cache
def project_files() -> tuple[Path, ...]:
    """Every file git tracks or would add; in a copy without git, every file outside scratch folders."""
    git = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if git.returncode == 0:
        paths = sorted({ROOT / file for file in git.stdout.split("\0") if file})
        return tuple(path for path in paths if path.is_file())  # git lists deleted files too
    scratch = {
        ".git",
        ".venv",
        "build",
        "__pycache__",
        "gkp.egg-info",
        ".pytest_cache",
        ".mypy_cache",
        ".ruff_cache",
        ".hypothesis",
        ".ipynb_checkpoints",
    }
    return tuple(path for path in sorted(ROOT.rglob("*")) if path.is_file() and not scratch & set(path.relative_to(ROOT).parts))


def texts() -> Iterator[tuple[Path, str]]:
    for path in project_files():
        try:
            yield path, path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # an image or weights


@pytest.mark.parametrize(
    "what, pattern",
    [
        ("a path of one machine", r"(?<![\w.:/~-])/(?:home|Users|root|tmp|work|workspace|content|mnt|opt|scratch)/\w"),
        ("a path of one Windows machine", r"\b[A-Z]:\\\\?Users\\"),
        ("a Google Drive", r"drive\.google\.com|google[.]colab|/content/drive"),
        ("a download by hand", r"\bwget\b"),
    ],
)
def test_no_file_names(what: str, pattern: str):
    found = [
        f"{name(path)}:{text.count(chr(10), 0, match.start()) + 1}: {match.group()}"
        for path, text in texts()
        if path != Path(__file__).resolve()
        for match in re.finditer(pattern, text)
    ]
    assert not found, f"{what}: {found}"


def test_the_licence_is_mit_everywhere_it_is_named():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    assert project()["project"]["license"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "MIT"


def test_the_citation_names_this_software_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= citation.keys()
    assert citation["version"] == project()["project"]["version"]
    paper = citation["preferred-citation"]
    assert (paper["doi"], paper["year"], len(paper["authors"])) == ("10.5281/zenodo.10677218", 2023, 10)
    assert paper["url"].endswith("Pjky9XG8zP") and "Structured Grouped Kernel Pruning" in paper["title"]


# ---- code ----

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(path: Path) -> Iterator[tuple[Definition, bool]]:
    """Every public function, class and method of a module, and whether it is a method of a class with bases."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node, False
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (
                (item, bool(node.bases)) for item in node.body if isinstance(item, Definition) and not item.name.startswith("_")
            )


def test_every_public_function_class_and_module_has_a_docstring():
    found = [(path, node, inherits) for path in MODULES for node, inherits in public_definitions(path)]
    documented = {node.name for _, node, _ in found if ast.get_docstring(node)}
    documented.add("forward")  # its class says what it computes
    bare = [
        f"{name(path)}:{node.lineno} {node.name}"
        for path, node, inherits in found
        if not ast.get_docstring(node) and not (inherits and node.name in documented)
    ]
    bare += [name(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert found
    assert not bare


def test_no_module_is_longer_than_400_lines():
    lengths = {name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert not {path: length for path, length in lengths.items() if length > 400}


# ---- notebooks ----


def code_of(cell: nbformat.NotebookNode) -> str:
    """The cell's Python: the one magic a notebook may use is the backend of its figures."""
    return "\n".join(
        line for line in cell.source.splitlines() if not re.match(r"%matplotlib inline$|%config InlineBackend\.", line.strip())
    )


def test_there_is_a_notebook_to_start_from():
    assert "00_start_here.ipynb" in {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing_and_has_one_cell_of_literal_parameters(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:  # a leftover ! or % is a syntax error here
        defined = [
            node
            for node in ast.walk(ast.parse(code_of(cell), name(path)))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        ]
        assert not defined, f"{path.name} defines {defined[0].name}: its place is in gkp"
    (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    for statement in ast.parse(parameters.source).body:
        assert isinstance(statement, (ast.Assign, ast.AnnAssign))
        assert statement.value is not None
        ast.literal_eval(statement.value)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_error_and_was_run_from_top_to_bottom_or_not_at_all(path: Path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert [cell.execution_count for cell in cells] in ([None] * len(cells), list(range(1, len(cells) + 1)))


# ---- the README ----


@cache
def readme() -> str:
    return (ROOT / "README.md").read_text()


def section(heading: str) -> str:
    """The text under the first README heading that contains `heading`, up to the next heading outside a code block."""
    lines, inside, fenced = [], False, False
    for line in readme().splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            if inside:
                break
            inside = heading in line
        elif inside:
            lines.append(line)
    assert lines, f"README.md has no section called {heading}"
    return "\n".join(lines)


def fenced_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text + "\n", re.MULTILINE | re.DOTALL)


def shell_commands(text: str) -> list[list[str]]:
    """Every command of the sh blocks, as words, without comments, prompts, VAR=value before it, | and > after it."""
    commands = []
    for block in fenced_blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", re.sub(r"(^|\s)#.*$|^\$ ", "", line)):
                words = shlex.split(re.split(r"[|>]", part)[0])
                while words and re.match(r"\w+=", words[0]):
                    words.pop(0)
                if words:
                    commands.append(words)
    return commands


def inline_code() -> list[list[str]]:
    prose = re.sub(r"^```.*?^```$", "", readme(), flags=re.MULTILINE | re.DOTALL)
    return [code.split() for code in re.findall(r"`([^`\n]+)`", prose)]


def test_the_two_commands_of_the_readme_are_the_ones_that_ci_runs():
    block = fenced_blocks(section("Two commands"), "sh")[0]
    assert shell_commands(f"```sh\n{block}```") == [["make", "reproduce"], ["make", "test"]]


def test_every_make_command_in_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    (targets,) = (line.split() for line in re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE))
    (variables,) = (line.split() for line in re.findall(r"^KNOWN +:=(.*)$", makefile, re.MULTILINE))
    commands = [words[1:] for words in shell_commands(readme()) + inline_code() if words[0] == "make"]
    assert ["reproduce"] in commands
    for word in (re.sub(r"[\[\]]", "", word) for words in commands for word in words):
        assert word in targets or ("=" in word and word.partition("=")[0] in variables), f"make {word}"


def test_every_gkp_command_in_the_readme_is_understood_by_the_parser():
    from gkp.__main__ import parser

    (choices,) = (action.choices for action in parser()._actions if hasattr(action.choices, "keys"))
    shown = [words[1:] for words in shell_commands(readme()) if words[0] == "gkp"]
    assert shown
    for words in shown:
        parser().parse_args(words)  # SystemExit names what it does not know
    for words in inline_code():
        if words[0] == "gkp" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in choices, words


def layout() -> dict[str, str]:
    """Description by path, from README's map: `path  description`, a path indented under a folder being inside it."""
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in fenced_blocks(section("Layout"), r"\w*")[0].splitlines():
        if not line.strip():
            continue
        indent, (path, _, text) = len(line) - len(line.lstrip()), line.strip().partition(" ")
        parents = [(depth, folder) for depth, folder in parents if depth < indent]
        whole = (parents[-1][1] if parents else "") + path
        if path.endswith("/"):
            parents.append((indent, whole))
        found[whole] = text.strip()
    return found


def test_the_map_in_the_readme_lists_every_module_of_gkp_and_nothing_that_is_not_there():
    tree = {name(path) for path in (ROOT / "gkp").glob("*.py")}
    tree |= {f"{name(path.parent)}/" for path in (ROOT / "gkp").glob("*/__init__.py")}
    assert {path for path in layout() if re.fullmatch(r"gkp/[^/]+/?", path)} == tree
    missing = {path for path in layout() if path not in {"build/", ".venv/"} and not (ROOT / path).exists()}
    assert not missing


def test_the_map_in_the_readme_says_what_each_thing_is_and_covers_the_top_level():
    assert all(layout().values()), [path for path, text in layout().items() if not text]
    folders = {f"{path.relative_to(ROOT).parts[0]}/" for path in project_files() if path.parent != ROOT}
    assert folders <= {path.partition("/")[0] + "/" for path in layout()}
