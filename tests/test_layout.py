"""The order of imports, and what no change of layout may change: ids of cells and public names."""

from __future__ import annotations

import ast
import json
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from freeze import FOLDER, PROFILES, cell_ids, public_names

PACKAGE = Path(__file__).parents[1] / "gkp"
# Each floor may import itself and the floors before it.
FLOORS = (
    ("errors", "files"),
    ("attacks", "networks"),
    ("data",),
    ("training",),
    ("pruning",),
    ("engine",),
    ("checkpoints",),
    ("evaluation",),
    ("artifact",),
    ("cli", "__main__", "reproduce"),
)
APART = {("attacks", "networks"), ("networks", "attacks")}  # on one floor, and independent of each other


def module_name(path: Path) -> str:
    parts = ("gkp", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name: str) -> set[str]:
    """The modules of gkp that a module imports, at its top or in a function; those for type checkers only are left out."""
    found: set[str] = set()
    hidden: set[ast.AST] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            hidden |= {inner for statement in node.body for inner in ast.walk(statement)}
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "gkp"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            if (node.module or "").partition(".")[0] == "gkp":
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {module if module in FILES else str(node.module) for module in inner}
    return found


def floor(module: str) -> int:
    room = module.split(".")[1]
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


LONGEST = 330  # lines of a module, docstrings included: more than one thing is in a longer one


@pytest.mark.parametrize("name", FILES)
def test_a_module_is_short_enough_to_be_read_at_once(name):
    assert len(FILES[name].read_text().splitlines()) <= LONGEST


def test_every_module_stands_in_a_room_of_the_order():
    rooms = {room for rooms in FLOORS for room in rooms}
    assert {name.split(".")[1] for name in FILES if "." in name} <= rooms


@pytest.mark.parametrize("name", [name for name in FILES if name != "gkp"])
def test_a_module_imports_only_what_stands_before_it(name):
    for other in imported(name):
        assert other in FILES, f"{name} imports {other}, which is not there"
        assert other != "gkp", f"{name} imports the package's face; import the module that has the name"
        pair = (name.split(".")[1], other.split(".")[1])
        assert floor(other) <= floor(name) and pair not in APART, f"{name} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    """Those that a package face closes count too: a face imports what is inside it, and nothing inside imports the face."""
    try:
        order = list(TopologicalSorter({name: imported(name) - {name} for name in FILES}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert len(order) == len(FILES)


def test_inside_pruning_nobody_imports_its_face():
    inside = [name for name in FILES if name.startswith("gkp.pruning.")]
    assert [name for name in inside if "gkp.pruning" in imported(name)] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_every_cell_keeps_its_id(profile):
    assert cell_ids(profile) == (FOLDER / f"{profile}.txt").read_text().splitlines()


def test_public_names_keep_their_signatures():
    assert public_names() == json.loads((FOLDER / "names.json").read_text())


def test_scripts_that_import_from_a_former_place_go_on_working():
    from gkp.artifact import notebooks
    from gkp.reproduce import run_notebook

    assert run_notebook is notebooks.run_notebook
