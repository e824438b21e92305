"""A cell: one frozen specification, whose content hash names the folder that holds its result.

The hash covers the stage's name and revision number, the parameters, the hash of the data and the parents' hashes. It
never covers source files or time stamps, so editing a plot retrains nothing; whoever changes what a stage *computes*
raises its revision, and every cell of that stage, and all its descendants, become new cells.

A stage is a plain function, registered under a name; a kind of cell is a frozen dataclass that names its stage:

    @stage("double", revision=1)
    def double(params, parents, folder, context):
        return {"value": 2 * params["x"]}            # the figures; files written into `folder` are kept with them

    @dataclass(frozen=True, kw_only=True)
    class Double(Cell):
        stage = "double"
        x: float = 1.0
        source: Cell | None = None                    # a field that holds a cell makes that cell a parent

Cost: about 20 microseconds a cell to hash.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from gkp.errors import BadInput

HASH_DIGITS = 10  # of the hash in an id: two of 100,000 cells with one label meet with a chance of 1 in 200
_PLAIN = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True)
class Stage:
    """A registered stage: its function, its revision, and where a worker process imports it from."""

    name: str
    revision: int
    function: Callable[..., Mapping[str, Any]]

    @property
    def module(self) -> str:
        """The module that a worker imports the function from."""
        return self.function.__module__

    @property
    def file(self) -> str | None:
        """The source file of the stage's module, from which a worker that cannot import it by name loads it."""
        return getattr(sys.modules.get(self.module), "__file__", None)


_STAGES: dict[str, Stage] = {}


def stage(name: str, *, revision: int) -> Callable[[Callable], Callable]:
    """A decorator that registers a function `(params, parents, folder, context) -> figures` as the stage `name`.

    params: the cell's parameters as plain JSON values; parents: role -> finished folder of that parent (read only);
    folder: an empty folder whose files become part of the result; context: see `gkp.artifact.experiments.compute.Context`.
    revision: raise it whenever the stage computes something else than before.
    Raises BadInput when another function has the name already.
    """

    def register(function: Callable) -> Callable:
        known = _STAGES.get(name)
        if known and (known.module, known.function.__qualname__) != (function.__module__, function.__qualname__):
            raise BadInput(f"stage {name!r} is already registered by {known.module}; give yours another name")
        _STAGES[name] = Stage(name, revision, function)
        _revision.cache_clear()
        return function

    return register


def find_stage(name: str) -> Stage:
    """The registered stage of this name; BadInput when there is none."""
    if name not in _STAGES:
        importlib.import_module("gkp.artifact.experiments.stages")  # the built-in ones register themselves
    if name not in _STAGES:
        raise BadInput(
            f"unknown stage {name!r}; known: {', '.join(sorted(_STAGES))}; register yours with "
            "@gkp.artifact.experiments.cell.stage(name, revision=1)"
        )
    return _STAGES[name]


@cache
def _revision(name: str) -> int:
    return find_stage(name).revision


def later(default: Any) -> Any:
    """A field for something that a kind of cell learnt after cells of it had been computed.

    At its default, which must mean "as before", it is left out of the hash, so that the cells that exist keep theirs.
    """
    return field(default=default, metadata={"left_out": default})


def not_hashed(default: Any) -> Any:
    """A field that cannot change the result, such as a limit or a name for people."""
    return field(default=default, compare=False, metadata={"hashed": False})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What every cell has, whatever its stage.

    threads: CPU threads the cell computes with, whatever `jobs` is. It is part of the specification because it is part
    of the result: torch sums weight gradients over threads, and 1 and 2 threads give different last bits. 0 means
    "cores / jobs", for cells whose bits depend on the machine anyway (those for a GPU).
    time_limit (seconds) and memory_limit (MB of resident memory) end a cell that goes astray; they are not hashed.
    """

    stage: ClassVar[str] = ""
    threads: int = 1
    time_limit: float | None = not_hashed(None)
    memory_limit: float | None = not_hashed(None)

    @property
    def label(self) -> str:
        """The readable part of the id; override it to name what distinguishes your cells."""
        return self.stage

    @property
    def data(self) -> dict[str, str]:
        """Name and hash of each data set the stage reads."""
        return {}

    @property
    def work(self) -> float:
        """How long the cell takes relative to others of its stage, in any unit: scales recorded durations."""
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
        """What the hash covers: stage, revision, params, data, and the parents' hashes by role."""
        return {
            "stage": self.stage,
            "revision": _revision(self.stage),
            "params": self.params,
            "data": self.data,
            "parents": {role: parent.hash for role, parent in self.parents.items()},
        }

    @cached_property
    def hash(self) -> str:
        """64 hex digits: sha256 of the canonical JSON of `spec`. BadInput when a parameter is no plain JSON value."""
        try:
            return hashlib.sha256(canonical(self.spec)).hexdigest()
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"{type(self).__name__}: a parameter cannot be written as JSON ({error}); use finite numbers, "
                "strings, booleans, None, and lists or dictionaries of those"
            ) from None

    @cached_property
    def id(self) -> str:
        """Label and the first digits of the hash: the name of the cell's folder."""
        return f"{_PLAIN.sub('_', self.label)[:150]}-{self.hash[:HASH_DIGITS]}"

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # without what is cached: a revision may change

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces; equal values give equal bytes. ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


_NOTHING = object()
_FIELDS: dict[type[Cell], tuple[tuple[str, bool, Any], ...]] = {}


def _hashed_fields(kind: type[Cell]) -> tuple[tuple[str, bool, Any], ...]:
    """(name, is it declared as a float, value at which it is left out) of each field that the hash covers.

    Declared floats are hashed as floats: rate=1 and rate=1.0 are one cell.
    """
    if kind not in _FIELDS:
        _FIELDS[kind] = tuple(
            (f.name, str(f.type).startswith("float") or f.type is float, f.metadata.get("left_out", _NOTHING))
            for f in fields(kind)
            if f.metadata.get("hashed", True)
        )
    return _FIELDS[kind]


def select(cells: Iterable[Cell], only: str | None) -> list[Cell]:
    """The cells whose id contains one of the comma-separated words of `only`; all of them when it is None.

    A word may use the wildcards of a shell, and then must match the whole id. Raises BadInput when nothing matches.
    """
    from fnmatch import fnmatchcase

    cells = list(cells)
    if only is None:
        return cells
    words = [word.strip() for word in only.split(",") if word.strip()]
    chosen = [cell for cell in cells if any(word in cell.id or fnmatchcase(cell.id, word) for word in words)]
    if not chosen:
        some = ", ".join(cell.id for cell in cells[:3])
        raise BadInput(f"no cell matches --only {only!r}; ids look like {some or 'nothing: the profile is empty'}")
    return chosen


def load_module(name: str, file: str | None) -> None:
    """Import a module by name, or from its file when the name is not on this process's path. ImportError otherwise."""
    if name in sys.modules:
        return
    try:
        importlib.import_module(name)
        return
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0] or file is None or not Path(file).is_file():
            raise
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
