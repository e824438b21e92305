"""A cell: the frozen specification of an experiment, whose hash names the folder of its result.

The hash covers the name and revision of the stage, the parameters, the hash of the data and the hashes of the parents. It does
not cover source files or times, so editing a plot retrains nothing. Raise the revision of a stage when it computes something
else than before: its cells and all their descendants then become new cells.

A kind of cell is a frozen dataclass that names its stage and has a function that computes it:

    @dataclass(frozen=True, kw_only=True)
    class Double(Cell):
        stage = "double"
        revision = 1                                  # raise it when `compute` changes
        x: float = 1.0
        source: Cell | None = None                    # a field that holds a cell makes that cell a parent

        @staticmethod
        def compute(params, parents, folder, context):
            return {"value": 2 * params["x"]}         # files written into `folder` are kept with these values

`compute` gets the parameters as plain JSON values, role -> finished folder of each parent (read only), an empty folder whose
files become part of the result, and a `gkp.artifact.experiments.compute.Context`. The functions of the built-in kinds are in
`gkp.artifact.experiments.stages`, so that planning needs neither torch nor data.

Cost: about 20 microseconds per cell to hash.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from gkp.errors import BadInput
from gkp.files import file_sha256

HASH_DIGITS = 10  # of the hash in an id: two of 100,000 cells with one label collide with a chance of 1 in 200
_NOTHING = object()
_PLAIN = re.compile(r"[^A-Za-z0-9._+-]+")
_KINDS: dict[str, type[Cell]] = {}  # stage -> the class that names it
SOURCES: dict[str, str] = {}  # module that `load_file` executed -> sha256 of its source


def find_kind(stage: str) -> type[Cell]:
    """The kind of cell with this stage.

    Raises:
        BadInput: No imported class has it.
    """
    if stage not in _KINDS:
        raise BadInput(
            f"unknown stage {stage!r}; known: {', '.join(sorted(_KINDS))}; "
            "define a kind of cell that names it, as gkp.artifact.experiments.cell shows"
        )
    return _KINDS[stage]


def later(default: Any) -> Any:
    """A field that was added to a kind of cell after some of its cells had been computed.

    Args:
        default: The value that means "as before"; with it the field is left out of the hash, so existing cells keep their hash.
    """
    return field(default=default, metadata={"left_out": default})


def not_hashed(default: Any) -> Any:
    """A field that cannot change the result, such as a limit or a readable name."""
    return field(default=default, compare=False, metadata={"hashed": False})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The fields that all cells have.

    Attributes:
        stage: The name of the computation; each kind has its own.
        revision: The number of the version of the computation.
        compute: The function that computes the cell, see above; None for built-in kinds.
        resumable: Whether a new run continues from what a stopped one left in `Context.scratch`.
        threads: CPU threads to compute with, whatever the number of jobs. It is hashed because the result depends on it: torch
            sums weight gradients over threads, so 1 and 2 threads differ in the last bits. 0 means "cores / jobs", for cells
            for a GPU, whose bits depend on the machine anyway.
        time_limit: Seconds after which the cell is killed; not hashed.
        memory_limit: MB of resident memory above which the cell is killed; not hashed.
    """

    stage: ClassVar[str] = ""
    revision: ClassVar[int] = 1
    compute: ClassVar[Callable[..., Mapping[str, Any]] | None] = None
    resumable: ClassVar[bool] = False
    threads: int = 1
    time_limit: float | None = not_hashed(None)
    memory_limit: float | None = not_hashed(None)

    def __init_subclass__(cls) -> None:
        if name := cls.__dict__.get("stage"):
            known = _KINDS.setdefault(name, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise BadInput(f"stage {name!r} already belongs to {known.__qualname__} of {known.__module__}; rename yours")
            _KINDS[name] = cls

    @property
    def label(self) -> str:
        """The readable part of the id; override it with what distinguishes cells of a kind."""
        return self.stage

    @property
    def data(self) -> dict[str, str]:
        """Name -> hash of each data set that the stage reads."""
        return {}

    @property
    def work(self) -> float:
        """The expected duration relative to other cells of the stage, in any unit."""
        return 1.0

    @property
    def params(self) -> dict[str, Any]:
        """The hashed fields that are not parents, as plain JSON values."""
        found = {}
        for name, is_float, left_out in _hashed_fields(type(self)):
            value = getattr(self, name)
            if not isinstance(value, Cell) and value != left_out:
                found[name] = float(value) if is_float and isinstance(value, int) else value
        return found

    @property
    def parents(self) -> dict[str, Cell]:
        """Role -> cell, for each field that holds a cell."""
        return {name: value for name, *_ in _hashed_fields(type(self)) if isinstance(value := getattr(self, name), Cell)}

    @property
    def spec(self) -> dict[str, Any]:
        """The contents that the hash covers: stage, revision, params, data, and the hashes of the parents by role."""
        return {
            "stage": self.stage,
            "revision": self.revision,
            "params": self.params,
            "data": self.data,
            "parents": {role: parent.hash for role, parent in self.parents.items()},
        }

    @cached_property
    def hash(self) -> str:
        """The sha256 of the canonical JSON of `spec`, 64 hex digits.

        Raises:
            BadInput: A parameter is not a plain JSON value.
        """
        try:
            return hashlib.sha256(canonical(self.spec)).hexdigest()
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"{type(self).__name__}: a parameter cannot be written as JSON ({error}); use finite numbers, "
                "strings, booleans, None, and lists or dictionaries of those"
            ) from None

    @cached_property
    def id(self) -> str:
        """The label and the first digits of the hash; the name of the cell's folder."""
        label = _PLAIN.sub("_", self.label)[:150].lstrip(".")  # folders whose names begin with a dot are no cells
        return f"{label}-{self.hash[:HASH_DIGITS]}"

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # without cached properties: a revision may change

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and without spaces; equal values give equal bytes. ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


_FIELDS: dict[type[Cell], tuple[tuple[str, bool, Any], ...]] = {}


def _hashed_fields(kind: type[Cell]) -> tuple[tuple[str, bool, Any], ...]:
    """(name, whether it is declared as float, the value with which it is left out) of each hashed field.

    Declared floats are hashed as floats: rate=1 and rate=1.0 give the same cell.
    """
    if kind not in _FIELDS:
        _FIELDS[kind] = tuple(
            (f.name, str(f.type).startswith("float") or f.type is float, f.metadata.get("left_out", _NOTHING))
            for f in fields(kind)
            if f.metadata.get("hashed", True)
        )
    return _FIELDS[kind]


def select(cells: Iterable[Cell], only: str | None) -> list[Cell]:
    """Select cells by words in their ids.

    Args:
        cells: The cells.
        only: Words separated by commas, of which an id must contain one; a word with shell wildcards must match the whole id.
            None for all cells.

    Returns:
        The selected cells, in their order.

    Raises:
        BadInput: No cell matches.
    """
    cells = list(cells)
    if only is None:
        return cells
    words = [word.strip() for word in only.split(",") if word.strip()]
    chosen = [cell for cell in cells if any(word in cell.id or fnmatchcase(cell.id, word) for word in words)]
    if not chosen:
        some = ", ".join(cell.id for cell in cells[:3])
        raise BadInput(f"no cell matches --only {only!r}; ids look like {some or 'nothing: the profile is empty'}")
    return chosen


def load_module(name: str, file: str | None, source: str | None = None) -> None:
    """Import a module by name, or from its file where the name cannot be found.

    Args:
        name: The name of the module.
        file: Its source file; None where there is none.
        source: The sha256 of the source that is wanted, as in `SOURCES`; None for any.

    Raises:
        ImportError: Neither can be found.
        BadInput: The file has another source.
    """
    if name in sys.modules and source in (None, SOURCES.get(name)):
        return
    if source is None:
        try:
            importlib.import_module(name)
            return
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0] or file is None or not Path(file).is_file():
                raise
    load_file(name, Path(file or name))
    if source not in (None, SOURCES[name]):
        raise BadInput(f"{file}: has changed since the run was started; run again")


def load_file(name: str, file: Path) -> ModuleType:
    """Execute a source file anew as the module of this name; exceptions of the module are passed on."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    SOURCES[name] = file_sha256(file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
