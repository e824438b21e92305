"""`gkp run` and `gkp status`: the cells of a profile."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from gkp.commands.shared import Add, json_flag, print_json
from gkp.errors import BadInput

if TYPE_CHECKING:
    from gkp.artifact.experiments.report import Result


def declare(add: Add) -> None:
    """Adds the commands to the parser."""
    sub = add("run", _run, "Compute the cells of a profile that are missing.", "gkp run --profile quick --only sr-gkp --jobs 2")
    _profile_flags(sub)
    sub.add_argument("--jobs", type=int, default=None, metavar="N", help="cells computed at once (default: one per core)")
    sub.add_argument("--shard", default=None, metavar="I/N", help="this runner's share, for job arrays without a cluster")
    sub.add_argument("--scheduler", default=None, help="address or file of a Dask scheduler (default: $DASK_SCHEDULER_ADDRESS)")
    sub.add_argument(
        "--again", action="store_true", help="compute finished cells anew, and say whether the same comes out; needs --only"
    )
    sub.add_argument("--dry-run", action="store_true", help="only list cells, hours, and what is cached")
    sub.add_argument("--time-limit", type=float, default=None, metavar="SECONDS", help="for cells without a limit of their own")
    sub.add_argument("--memory-limit", type=float, default=None, metavar="MB", help="for cells without a limit of their own")

    sub = add("status", _status, "Show which cells of a profile are finished.", "gkp status --profile quick --json")
    _profile_flags(sub)
    json_flag(sub)


def _run(arguments: argparse.Namespace) -> int:
    from gkp.artifact import experiments as grid
    from gkp.artifact import profiles

    if arguments.again and not arguments.only:
        raise BadInput("--again computes finished cells anew; say which ones with --only")
    cells = grid.select(profiles.cells(arguments.profile, *arguments.group), arguments.only)
    before = grid.load(cells) if arguments.again else ()
    report = grid.run(
        cells,
        recompute=arguments.again,
        jobs=arguments.jobs,
        shard=arguments.shard,
        scheduler=arguments.scheduler,
        dry_run=arguments.dry_run,
        time_limit=arguments.time_limit,
        memory_limit=arguments.memory_limit,
        check=False,
    )
    if arguments.again and not arguments.dry_run:
        print(*_comparison(before, report), sep="\n")
    print(*report.failure_lines(), sep="\n", end="\n" if report.failures else "", file=sys.stderr)
    return report.exit_status


def _comparison(before: Iterable[Result], after: Iterable[Result]) -> Iterator[str]:
    """A line for each cell that was finished before: whether it gave the same again, and what differs."""
    old = {result.cell.hash: result for result in before}
    for new in after:
        if (known := old.get(new.cell.hash)) is None:
            continue
        changed = [name for name in sorted(known.figures) if known.figures[name] != new.figures.get(name)]
        if not changed:
            yield f"the same as before: {new.cell.id}"
            continue
        was, now = known.figures.get("accuracy", {}), new.figures.get("accuracy", {})
        moved = [f"{key} {100 * was[key]:.2f} -> {100 * now[key]:.2f} %" for key in was if key in now and was[key] != now[key]]
        yield f"differs in {', '.join(moved or changed)}: {new.cell.id}"


def _status(arguments: argparse.Namespace) -> None:
    from gkp.artifact import experiments as grid
    from gkp.artifact import profiles

    found = grid.status(grid.select(profiles.cells(arguments.profile, *arguments.group), arguments.only))
    if arguments.json:
        print_json(found.to_json())
    else:
        print(*found.lines(), sep="\n")


def _profile_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--profile", default="quick", help="quick, cifar10, paper, or a file of yours (default: %(default)s)")
    sub.add_argument("--group", action="append", default=[], help="one group of the profile, e.g. main; may be repeated")
    sub.add_argument("--only", default=None, metavar="WORDS", help="cells whose id contains one of these comma-separated words")
