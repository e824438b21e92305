"""What a claim is, and what can become of it.

Four words are verdicts on the paper. "reproduced": found again in the paper's own setting. "direction holds": found in a
setting scaled down from it, which can say no more. "differs": the data speak against it. "not run": what would decide it was
not run, or what was run leaves it undecided; the reason says which, and what deciding it takes. Digits give no verdict at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gkp.artifact.claims.decision import KINDS, Decision
from gkp.artifact.claims.gpu_hours import GpuRun, gpu_hours
from gkp.artifact.experiments.status import for_gpu, stated_minutes
from gkp.artifact.profiles import COMMITTED

if TYPE_CHECKING:
    from gkp.artifact.claims.evidence import Case, Index
    from gkp.artifact.experiments.cell import Cell


@dataclass(frozen=True)
class Claim:
    """One statement of the paper, or of the data inside it, that can be decided.

    item: what it stands in, "Table 4", "Figure 5" or "text", several with ", " between. reported: what is printed, "not
    reported" for a control that the paper lacks. tolerance: how far off still counts, in words. decide: from the evidence to
    the decision; find: the cells that decide it, for one network architecture. models: the architectures it may be decided on,
    best first; same: those for which the paper reports it, on which it can be reproduced and not only point the same way;
    notebook: what shows it. gpu: what deciding it in the paper's own setting takes. page: of the camera-ready, or "appendix".
    """

    id: str
    item: str
    statement: str
    kind: str
    reported: str
    tolerance: str
    decide: Callable[[Case], Decision]
    find: Callable[[Index, str], list[Cell]] = lambda index, model: []
    models: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    notebook: str = "99_verdict"
    gpu: tuple[GpuRun, ...] = ()
    page: str = "appendix"

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"{self.id}: {self.kind}"

    @property
    def items(self) -> tuple[str, ...]:
        """The tables and figures it stands in, one by one."""
        return tuple(self.item.split(", "))

    @property
    def gpu_hours(self) -> float:
        """GPU-hours, at most, of the paper's own setting; 0 where nothing has to be trained."""
        return sum(gpu_hours(run) for run in self.gpu)

    def cells(self, profile: str) -> list[Cell]:
        """The cells of this profile that decide it, on the first architecture that it has; empty if it has none."""
        from gkp.artifact.claims.evidence import Index

        index = Index.of(profile)
        return next((found for model in self.models if (found := self.find(index, model))), [])

    def minutes(self, profile: str) -> float:
        """Minutes to compute those cells and all they are built on from nothing; see `minutes_of`."""
        return self.minutes_of(self.cells(profile))

    def minutes_of(self, cells: Sequence[Cell]) -> float:
        """Minutes for these cells of it as estimated from their work, or of a GPU where they are made for one."""
        return 60 * self.gpu_hours if for_gpu(cells) else stated_minutes(cells)

    def command(self, profile: str) -> str:
        """What shows the verdict, computing first what is missing."""
        compute = " COMPUTE=1" if profile == COMMITTED and self.models else ""
        return f"make reproduce PROFILE={profile} ONLY={self.notebook}{compute}"
