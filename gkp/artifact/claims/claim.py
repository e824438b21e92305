"""Read and check claims.toml: statements of the paper, each with the rule that decides it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from gkp.artifact.claims import counts, printed, protocol, rules, training_log
from gkp.artifact.claims.case import Case
from gkp.artifact.claims.decision import KINDS, Decision, Rule
from gkp.artifact.claims.evidence import Index
from gkp.artifact.claims.gpu_hours import SETTINGS, gpu_hours
from gkp.artifact.experiments.cell import Cell
from gkp.artifact.experiments.status import for_gpu, stated_minutes
from gkp.artifact.profiles import COMMITTED
from gkp.errors import BadInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("claims.toml")
_DEFINED = [value for module in (rules, protocol, counts, printed, training_log) for value in vars(module).values()]
RULES = {value.name: value for value in _DEFINED if isinstance(value, Rule)}


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, or a control that the paper lacks, that data can decide.

    Attributes:
        id: Its name.
        item: Where it stands in the paper: "Table 4", "Figure 5" or "text"; several are separated by ", ".
        statement: The statement.
        reported: The printed result; "not reported" for a control.
        tolerance: Which deviation counts as agreement, in words.
        rule: The rule that decides it.
        parameters: The parameters of the rule.
        kind: One of `gkp.artifact.claims.KINDS`; by default that of the rule.
        models: The architectures it may be decided on, the preferred one first.
        same: The architectures for which the paper reports it; empty for a control.
        notebook: The notebook that shows it.
        gpu: Setting of `gpu_hours` -> number of trainings that it takes in the paper's own setting.
        page: The page of the camera-ready paper, or "appendix".
        family: Its table of claims.toml; the p values of a family are corrected together.
    """

    id: str
    item: str
    statement: str
    reported: str
    tolerance: str
    rule: Rule
    parameters: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    models: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    notebook: str = "99_verdict"
    gpu: Mapping[str, int] = field(default_factory=dict)
    page: str = "appendix"
    family: str = ""

    @property
    def board(self) -> str:
        """Its board, one of `gkp.artifact.claims.decision.BOARDS`."""
        return self.rule.board

    @property
    def items(self) -> tuple[str, ...]:
        """The tables and figures of `item`, one by one."""
        return tuple(self.item.split(", "))

    @property
    def gpu_hours(self) -> float:
        """Upper bound on its GPU-hours in the paper's own setting; 0 where nothing has to be trained."""
        return sum(gpu_hours(setting, networks) for setting, networks in self.gpu.items())

    def find(self, index: Index, model: str) -> list[Cell]:
        """The cells that decide it on one architecture; empty where the profile does not have all of them."""
        return self.rule.find(index, model, **self.parameters)

    def decide(self, case: Case) -> Decision:
        """Decide it on the architecture of the case. Raises NotRun where experiments are missing."""
        return self.rule.decide(case, **self.parameters)

    def minutes_of(self, cells: Sequence[Cell]) -> float:
        """Estimated minutes of these cells and their ancestors on one core; of `gpu_hours` where they are meant for a GPU."""
        return 60 * self.gpu_hours if for_gpu(cells) else stated_minutes(cells)

    def command(self, profile: str) -> str:
        """The command that shows the verdict and computes missing cells first."""
        compute = " COMPUTE=1" if profile == COMMITTED and self.models else ""
        return f"make reproduce PROFILE={profile} ONLY={self.notebook}{compute}"


_FIELDS = [f.name for f in fields(Claim) if f.name not in ("id", "parameters")]


@cache
def claims() -> tuple[Claim, ...]:
    """All claims of claims.toml; each of Tables 1-20 and Figures 1-9 has one or more."""
    return read_claims(FILE.read_text(encoding="utf-8"), FILE.name)


def read_claims(text: str, name: str) -> tuple[Claim, ...]:
    """Read the claims of a TOML file, in its order.

    A table of the file is a family: its sub-tables are claims, with the fields of `Claim`; its other values are their defaults.

    Args:
        text: The contents of the file.
        name: The name of the file in errors.

    Raises:
        BadInput: The text is not TOML, or a claim (the message names it) has a missing or unknown field, or an unknown rule,
            parameter, method, attack, kind or setting.
    """
    try:
        groups = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{name} cannot be read: {error}") from None
    found: dict[str, Claim] = {}
    for group, members in groups.items():
        defaults = {key: value for key, value in members.items() if key in _FIELDS or not isinstance(value, dict)}
        for id, given in members.items():
            if id in defaults:
                continue
            try:
                if id in found:
                    raise BadInput("there is another of this name")
                found[id] = replace(_claim(id, {**defaults, **given}), family=group)
            except BadInput as error:
                raise BadInput(f"{name}, claim {group}.{id}: {error}") from None
    return tuple(found.values())


def _claim(id: str, given: dict[str, Any]) -> Claim:
    if unknown := [key for key in given if key not in _FIELDS]:
        raise BadInput(f"there is no field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}")
    if missing := [key for key in _FIELDS[: _FIELDS.index("kind")] if not given.get(key)]:
        raise BadInput(f"{missing[0]} is missing")
    parameters = dict(given["rule"]) if isinstance(given["rule"], dict) else {}
    if (rule := RULES.get(called := parameters.pop("name", None))) is None:
        raise BadInput(f"there is no rule {called!r}; the rules are {', '.join(RULES)}")
    facts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    claim = Claim(**{"kind": rule.kind, **facts, "id": id, "rule": rule, "parameters": rule.arguments(parameters)})
    if claim.kind not in KINDS:
        raise BadInput(f"there is no kind {claim.kind!r}; give {', '.join(KINDS)}")
    if unknown := [setting for setting in claim.gpu if setting not in SETTINGS]:
        raise BadInput(f"there is no setting {unknown[0]!r}; give {', '.join(SETTINGS)}")
    return claim
