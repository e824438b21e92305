"""`gkp reproduce` without a profile: render the results measured on CIFAR-10, then run the same pipeline live on digits.

The first part shows committed cells; it computes nothing and needs neither a network nor a data set. The second part trains,
prunes, fine-tunes and attacks one network on digits, to show that the pipeline works on this machine. Cost: a minute and a half
on two cores, seconds where everything is up to date.
"""

from __future__ import annotations

from pathlib import Path

from gkp.artifact.html_report import html_report
from gkp.artifact.notebooks import reproduce, verdict_lines
from gkp.artifact.profiles import COMMITTED

LIVE = ("quick", "00_start_here")  # profile and notebook: one network from its training to its attacks
NEXT = (
    ("make reproduce PROFILE=quick", "every notebook live on digits, about 5 minutes on two cores"),
    (f"make reproduce PROFILE={COMMITTED} ONLY=05_cost COMPUTE=1", "cells of one notebook that are not committed"),
    (f"gkp run --profile {COMMITTED} --only WORDS --again", "finished cells computed anew and compared; needs CIFAR-10"),
    ("gkp run --profile paper --dry-run", "what the paper's own setting takes"),
)


def first_look(*, jobs: int | None = None, force: bool = False) -> None:
    """Show the committed results, run the pipeline once, and print where the report is and further commands.

    Args:
        jobs: As in `gkp.artifact.notebooks.reproduce`.
        force: As in `gkp.artifact.notebooks.reproduce`.

    Raises:
        RunFailed: A notebook or a cell failed.
    """
    print("1/2: what was measured on CIFAR-10 and is committed, rendered again; nothing is computed", flush=True)
    reproduce(COMMITTED, jobs=jobs, force=force, compute=False, conclude=False)
    profile, notebook = LIVE
    print("2/2: the same pipeline live on digits: train, prune, fine-tune, attack", flush=True)
    reproduce(profile, only=notebook, jobs=jobs, force=force, conclude=False)
    report = html_report(COMMITTED, out=Path("build") / "report")
    print("", *verdict_lines(Path("build") / COMMITTED), "", sep="\n")
    print(f"The report, every claim with its evidence: {report.index}", "Next:", sep="\n")
    print(*(f"  {command:<58} {what}" for command, what in NEXT), sep="\n", flush=True)
