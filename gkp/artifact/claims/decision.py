"""Verdicts, the three boards they stand on, and the form of the rules that reach them.

| board | question | verdicts |
|---|---|---|
| exactness | Does what was published (code, checkpoint, log, counts) come out of our code? | reproduced, not reproduced |
| claims | Is the statement true where it was measured? | holds, does not hold, no difference, undecided |
| consistency | Do the paper's own numbers agree with each other? | consistent, inconsistent |

A claim says in its setting how far that is from the paper's; it never says of the paper's setting what was not measured there.
"no difference" is a finding: two one-sided tests bound the difference within a margin. Where nothing was run a verdict is "not
run", with what running it takes. Digits give no verdict at all.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from gkp.errors import BadInput

EXACTNESS, CLAIMS, CONSISTENCY = BOARDS = ("exactness", "claims", "consistency")
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
HOLDS, FAILS, SAME, UNDECIDED = "holds", "does not hold", "no difference", "undecided"
CONSISTENT, INCONSISTENT = "consistent", "inconsistent"
NOT_RUN = "not run"
VERDICTS = {  # by board; "not run" last
    EXACTNESS: (REPRODUCED, NOT_REPRODUCED, NOT_RUN),
    CLAIMS: (HOLDS, FAILS, SAME, UNDECIDED, NOT_RUN),
    CONSISTENCY: (CONSISTENT, INCONSISTENT, NOT_RUN),
}
NO_VERDICT = "not a verdict: digits show that the pipeline works"
VALUE, ORDER, TREND, COST, INTERNAL = KINDS = ("value", "order at equal MACs", "direction", "cost ratio", "internal")
COUNTED = "none: counted, not measured"


class NotRun(Exception):
    """Raised while a claim is being decided when what it needs is not there; the message is the reason."""


@dataclass(frozen=True)
class Decision:
    """A verdict on a claim, with the numbers it follows from.

    Attributes:
        verdict: One of `VERDICTS` of its board, or `NO_VERDICT`.
        ours: What was found, as text in the units of the statement.
        reason: Why the verdict follows.
        n: Images, networks or printed numbers behind it.
        seeds: Trainings behind it.
        interval: Of `ours`, as text.
        value: The first number of `ours`, a fraction or a quotient; NaN where there is none.
        low, high: Its interval; NaN where there is none.
        setting: The network and the schedule it was measured in, and how far they are from the paper's; "" where none was.
        margin: A difference within this, a fraction, counts as none; NaN where no difference is tested.
        p: Two-sided p of "there is no difference", of the first difference; NaN where none is tested.
    """

    verdict: str
    ours: str
    reason: str
    n: int = 0
    seeds: int = 0
    interval: str = ""
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    setting: str = ""
    margin: float = math.nan
    p: float = math.nan


@dataclass(frozen=True)
class Rule:
    """The procedure that decides claims of one form; claims.toml names it and gives its parameters.

    Attributes:
        board: The board its claims stand on, one of `BOARDS`.
        kind: The kind of the claims it decides, one of `KINDS`, unless a claim says otherwise.
        decide: From the evidence (a `Case`) and the parameters, by keyword, to the `Decision`; raises `NotRun`.
        find: From the experiments of a profile (an `Index`), an architecture and the parameters to those that decide it,
            none where the profile has no experiments for it.
    """

    board: str
    kind: str
    decide: Callable[..., Decision]
    find: Callable[..., list]

    @property
    def name(self) -> str:
        """Its name in claims.toml."""
        return self.decide.__name__

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as claims.toml gives them, read; see `arguments`."""
        return arguments(self.decide, given, f"rule {self.name}")


def rule(
    kind: str, find: Callable[..., list] | None = None, *, board: str = CLAIMS
) -> Callable[[Callable[..., Decision]], Rule]:
    """Make a `Rule` of the function that decides; without `find` it needs no experiments."""
    return lambda decide: Rule(board, kind, decide, find or (lambda index, model, **_: []))


def arguments(function: Callable[..., Any], given: Mapping[str, Any], called: str) -> dict[str, Any]:
    """Arguments from claims.toml as the types that a function names, all but the first `case`.

    Args:
        function: A function or class. A type of its arguments with a method `of` reads itself.
        given: Name -> plain value.
        called: What the function is called in errors.

    Raises:
        BadInput: For an argument that is unknown, missing, or of another type.
    """
    known = {name: p for name, p in inspect.signature(function).parameters.items() if name != "case"}
    if unknown := [name for name in given if name not in known]:
        raise BadInput(f"{called} has no parameter {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    if missing := [name for name, p in known.items() if p.default is p.empty and name not in given]:
        raise BadInput(f"{called} needs {missing[0]}")
    types = get_type_hints(function)
    return {name: _read(name, value, types[name]) for name, value in given.items()}


def _read(name: str, given: Any, wanted: Any) -> Any:
    if hasattr(wanted, "of"):
        return wanted.of(given)
    if get_origin(wanted) is tuple:
        if not isinstance(given, list):
            raise BadInput(f"{name} is {given!r}, and has to be a list")
        return tuple(_read(name, item, get_args(wanted)[0]) for item in given)
    fits = isinstance(given, wanted) or (float in (wanted, *get_args(wanted)) and isinstance(given, int))
    if not fits or (isinstance(given, bool) and wanted is not bool):
        raise BadInput(f"{name} is {given!r}, and has to be {getattr(wanted, '__name__', wanted)}")
    return given
