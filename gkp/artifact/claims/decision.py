"""Verdicts, the three boards (kinds of questions), and the form of the rules.

| board | question | verdicts |
|---|---|---|
| exactness | Does what was published (code, checkpoint, log, counts) come out of our code? | reproduced, not reproduced |
| claims | Is the statement true where it was measured? | holds, does not hold, no difference, undecided |
| consistency | Do the paper's own numbers agree with each other? | consistent, inconsistent |

A decision names the setting it was measured in and how that differs from the paper's; it says nothing about settings that were
not measured. "no difference" is a result: two one-sided tests show that the difference is within a margin. "not run" means that
the experiments are missing; the reason says what they cost. Digits give no verdict at all.
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
    """Experiments that a claim needs are not finished; the message is the reason."""


@dataclass(frozen=True)
class Decision:
    """A verdict on a claim, with the numbers it follows from.

    Attributes:
        verdict: One of `VERDICTS` of its board, or `NO_VERDICT`.
        ours: The result, as text in the units of the statement.
        reason: Why the verdict follows.
        n: The number of images, networks or printed numbers it rests on.
        seeds: The number of trainings it rests on.
        interval: The confidence interval of `ours`, as text.
        value: The first number of `ours`, a fraction or a quotient; NaN where there is none.
        low, high: The ends of its interval; NaN where there is none.
        setting: The network and schedule that were measured, and how they differ from the paper's; "" where there is none.
        margin: The largest difference that counts as none, a fraction; NaN where no difference is tested.
        p: The two-sided p value of the first difference; NaN where none is tested.
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
        board: The board of its claims, one of `BOARDS`.
        kind: The kind of its claims, one of `KINDS`, unless a claim has another.
        decide: `decide(case, **parameters)` returns the `Decision` on the evidence, a `Case`; raises `NotRun`.
        find: `find(index, model, **parameters)` returns the cells of an `Index` that `decide` needs on this architecture;
            an empty list where the profile does not have them.
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
        """Check and convert the parameters given in claims.toml, as the function `arguments` does."""
        return arguments(self.decide, given, f"rule {self.name}")


def rule(
    kind: str, find: Callable[..., list] | None = None, *, board: str = CLAIMS
) -> Callable[[Callable[..., Decision]], Rule]:
    """Make a `Rule` of the decorated function.

    Args:
        kind: The kind of its claims, one of `KINDS`.
        find: `Rule.find`; None for a rule that needs no experiments.
        board: The board of its claims, one of `BOARDS`.
    """
    return lambda decide: Rule(board, kind, decide, find or (lambda index, model, **_: []))


def arguments(function: Callable[..., Any], given: Mapping[str, Any], called: str) -> dict[str, Any]:
    """Convert the values of claims.toml to the types that a function annotates.

    Args:
        function: A function or class; an argument `case` is left out. Where an annotated type has a class method `of`, that
            converts the value.
        given: Name of an argument -> plain value.
        called: The name of the function in errors.

    Returns:
        Name -> converted value.

    Raises:
        BadInput: An argument is unknown, missing, or of another type.
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
