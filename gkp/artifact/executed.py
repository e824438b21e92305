"""Executed notebooks: what their outputs depend on, whether they are up to date, and the reading copy that is committed.

Outputs depend on the source of the notebook, its parameters, the cells it shows, the code that shows them (without comments and
docstrings), the claims and templates, the published numbers, and the installed packages. Their hashes are recorded beside each
executed copy in `.executed/NAME.json`, with the hashes of the files that the notebook wrote.

Cost: about a second for eleven notebooks; Jupyter is not imported.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gkp.artifact import profiles
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.history import kept_sha256
from gkp.artifact.experiments.store import Entry, Store, default_store, read_json, write_json
from gkp.errors import BadInput
from gkp.files import checkout, file_sha256, json_sha256, replace_file

RECORDS = ".executed"
INJECTED = "injected-parameters"  # papermill's tag for the cell that it adds
HOW = ("jobs",)  # parameters that change the speed, never the outputs
TEXTS = (".toml", ".schema.json", "leaderboard.html.j2", "page.css", "page.js")  # files besides code that decide what is shown
# Code that computes cells and copies files, and does not change what a notebook shows.
MACHINERY = (
    *("cli.py", "__main__.py", "artifact/experiments/", "artifact/commands.py", "artifact/manifest.py", "artifact/readme.py"),
    *("artifact/notebooks.py", "artifact/executed.py", "artifact/publish.py", "artifact/verify.py", "artifact/html_report.py"),
)


@dataclass(frozen=True)
class Record:
    """The record of one execution of a notebook.

    Attributes:
        name: The name of the notebook without suffix.
        origin: Name -> sha256 of everything that the outputs depend on.
        files: Path below the output folder -> sha256 of each file that the notebook wrote, itself included.
        seconds: How long it ran.
    """

    name: str
    origin: dict[str, str]
    files: dict[str, str]
    seconds: float

    def save(self, out: Path) -> None:
        """Write the record beside the executed notebook in `out`."""
        replace_file(record_file(out, self.name), lambda partial: write_json(partial, asdict(self)))

    @classmethod
    def load(cls, out: Path, name: str) -> Record | None:
        """The record of a notebook in `out`; None where there is none or it cannot be read."""
        try:
            return cls(**(read_json(record_file(out, name)) or {}))
        except TypeError:  # there is none, or it has other fields
            return None

    def outdated(self, origin: Mapping[str, str], out: Path) -> str | None:
        """Why the notebook has to be executed again, in a few words; None where it does not.

        Args:
            origin: As returned by the function `origin` now.
            out: The output folder.
        """
        if changed := [what for what in origin if self.origin.get(what) != origin[what]]:
            return f"{', '.join(changed)} changed"
        for path, sha256 in self.files.items():
            if not (out / path).is_file():
                return f"{path} is gone"
            if file_sha256(out / path) != sha256:
                return f"{path} was edited"
        return None


def record_file(out: Path, name: str) -> Path:
    """The path of the record of a notebook executed into `out`."""
    return out / RECORDS / f"{name}.json"


def cells_run(book: Mapping[str, Any], profile: str) -> list[Cell]:
    """The cells that a notebook runs: those of the groups named in its code, as in `profiles.cells(profile, "main")`.

    Args:
        book: The notebook as JSON.
        profile: The profile.

    Raises:
        BadInput: The profile does not have one of the groups.
    """
    calls = list(_calls(book))
    groups = [group for name, given in calls if name == "profiles.cells" for group in given]
    groups += ["start" for name, _ in calls if name == "profiles.start_here"]
    return profiles.cells(profile, *groups) if groups or ("profiles.cells", []) in calls else []


def cells_shown(book: Mapping[str, Any], profile: str) -> list[Cell]:
    """The cells that a notebook shows: those that it runs, or all cells of the profile where it gives verdicts."""
    looks = any(name == "claims.verdicts" for name, _ in _calls(book))
    return profiles.cells(profile) if looks else cells_run(book, profile)


def _calls(book: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the dotted name and the literal text arguments of each call in a notebook's code."""
    code = [line for kind, text in sources(book) if kind == "code" for line in text.splitlines() if not line.startswith("%")]
    for node in ast.walk(ast.parse("\n".join(code))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]


def finished(cells: Iterable[Cell], store: Store | None = None) -> dict[str, Entry]:
    """Hash -> stored cell, for the finished ones among some cells, including those whose network was not kept.

    Args:
        cells: The cells.
        store: Where they are; None for `gkp.artifact.experiments.default_store()`.
    """
    store = store or default_store()
    names = store.names()
    entries = {cell.hash: store.lookup(cell.id, cell.hash) for cell in cells if cell.id in names}
    return {key: entry for key, entry in entries.items() if entry is not None}


def origin(notebook: Path, parameters: Mapping[str, Any], results: Mapping[str, Entry] | None = None) -> dict[str, str]:
    """Name -> sha256 of everything that the outputs of an execution depend on.

    Args:
        notebook: The file of the notebook.
        parameters: Name -> value of the injected parameters; those in `HOW` are ignored.
        results: The cells as returned by `finished`; None to look them up in the default store.
    """
    book, profile = read_notebook(notebook), parameters.get("profile")
    shown = cells_shown(book, profile) if profile else []
    results = finished(shown) if results is None else results
    return {
        "the notebook": source_sha256(book),
        "its parameters": json_sha256({name: value for name, value in parameters.items() if name not in HOW}),
        "its cells": json_sha256(sorted((cell.hash, _sha256_of(cell, results.get(cell.hash))) for cell in shown)),
        "gkp": _code(),
        "data/published": _published(),
        "an installed package": _packages(),
    }


def _sha256_of(cell: Cell, entry: Entry | None) -> str:
    return file_sha256(entry.folder / "result.json") if entry else kept_sha256(cell)


def read_notebook(file: Path) -> dict[str, Any]:
    """The notebook as JSON. Raises BadInput where the file is no notebook."""
    try:
        book = json.loads(file.read_text(encoding="utf-8"))
        cells = book["cells"]
        assert all(isinstance(cell, dict) and "source" in cell for cell in cells)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise BadInput(f"{file} is not a notebook ({type(error).__name__}); restore it with git") from error
    return book


def sources(book: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(type, text) of each cell, without outputs, counts, times and injected parameters."""
    return [
        (cell["cell_type"], "".join(cell["source"]))
        for cell in book["cells"]
        if INJECTED not in cell.get("metadata", {}).get("tags", [])
    ]


def source_sha256(book: Mapping[str, Any]) -> str:
    """The sha256 of the `sources` of a notebook."""
    return json_sha256(sources(book))


def outputs_sha256(book: Mapping[str, Any]) -> str:
    """The sha256 of the outputs of a notebook."""
    return json_sha256([cell.get("outputs", []) for cell in book["cells"]])


def was_executed(book: Mapping[str, Any]) -> bool:
    """Whether the notebook has outputs."""
    return any(cell.get("execution_count") or cell.get("outputs") for cell in book["cells"])


def reading_copy(book: Mapping[str, Any], profile: str, files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The executed notebook as it is committed: the same sources and outputs, without times.

    The injected cell and links to tables are removed, execution counts renumbered and pieces of a stream joined. The output of
    the parameters cell states the profile, and the metadata have the hashes of sources, outputs and figures, so that a later
    edit is noticed.

    Args:
        book: The executed notebook as JSON.
        profile: The profile that it was executed for.
        files: The files that it wrote, as in `Record`.
    """
    cells, count = [], 0
    for old in book["cells"]:
        tags = old.get("metadata", {}).get("tags", [])
        if INJECTED in tags:
            continue
        cell = {name: old[name] for name in ("cell_type", "id", "source") if name in old}
        cell["metadata"] = {"tags": tags} if tags else {}
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count
            cell["outputs"] = [
                {**output, "execution_count": count} if "execution_count" in output else output
                for output in map(_without_links, _joined(old["outputs"]))
            ]
            if "parameters" in tags:
                said = f"executed with profile = {profile!r}: make reproduce PROFILE={profile}\n"
                cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [said]}]
        cells.append(cell)
    kept = {name: book["metadata"][name] for name in ("kernelspec",) if name in book["metadata"]}
    kept["language_info"] = {"name": "python"}
    figures = {path.removeprefix("figures/"): sha256 for path, sha256 in (files or {}).items() if path.startswith("figures/")}
    hashes = {"sources_sha256": source_sha256(book), "outputs_sha256": outputs_sha256({"cells": cells}), "figures": figures}
    marked = {**kept, "gkp": {"profile": profile, **hashes}}
    return {"cells": cells, "metadata": marked, "nbformat": book["nbformat"], "nbformat_minor": book["nbformat_minor"]}


def _joined(outputs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The outputs with adjacent pieces of one stream joined: where a kernel cuts it depends on the time."""
    joined: list[Mapping[str, Any]] = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output["output_type"] == "stream" and output["name"] == last.get("name"):
            text = "".join([*last["text"], *output["text"]])
            joined[-1] = {**last, "text": text.splitlines(keepends=True)}
        else:
            joined.append(output)
    return joined


def _without_links(output: Mapping[str, Any]) -> Mapping[str, Any]:
    """The output without links to tables, which are not committed."""
    if "text/html" not in output.get("data", {}):
        return output
    shown = re.sub(r'<a href="\.\./[^"]*\.csv">[^<]*</a>', "", "".join(output["data"]["text/html"]))
    return {**output, "data": {**output["data"], "text/html": shown.splitlines(keepends=True)}}


@cache
def _code() -> str:
    """The hash of the code that decides what a notebook shows, without comments and docstrings, and of `TEXTS`."""
    return json_sha256(
        {name: code_of(file) if file.suffix == ".py" else file_sha256(file) for name, file in _deciding().items()}
    )


def _deciding() -> dict[str, Path]:
    package = Path(__file__).resolve().parents[1]
    files = {file.relative_to(package).as_posix(): file for file in package.rglob("*") if file.name.endswith((".py", *TEXTS))}
    return {name: file for name, file in files.items() if not name.startswith(MACHINERY)}


def code_of(file: Path) -> str:
    """The syntax tree of a Python file without docstrings, as text."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.dump(tree)


def _published() -> str:
    folder = (checkout() or Path.cwd()) / "data" / "published"
    return json_sha256({str(file.relative_to(folder)): file_sha256(file) for file in folder.rglob("*") if file.is_file()})


@cache
def _packages() -> str:
    installed = {f"{found.name}=={found.version}" for found in metadata.distributions() if found.name != "gkp"}
    return json_sha256([sys.version, *sorted(installed)])
