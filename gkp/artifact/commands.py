"""The commands of the artifact: leaderboard, run, status, reproduce, verify, publish, html, lab.

`gkp.cli` includes them; each command imports what it needs when it runs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click

from gkp.errors import BadInput, need_extra
from gkp.files import user_path

FOLDER = click.Path(path_type=Path)
artifact = click.Group()


def command_of(group: click.Group, example: str) -> Callable[[Callable], click.Command]:
    """Declare a command with an example in its help.

    Args:
        group: The group of the command.
        example: A command line, "gkp NAME ...".
    """
    return group.command(example.split()[1], epilog=f"\b\nExample:\n  {example}")


def _command(example: str) -> Callable[[Callable], click.Command]:
    """Declare a command of the artifact; where packages are missing it names the extra that has them."""

    def declare(run: Callable) -> click.Command:
        @wraps(run)
        def checked(*arguments: Any, **options: Any) -> Any:
            need_extra("artifact", "matplotlib", "papermill", "distributed", "psutil")
            return run(*arguments, **options)

        return command_of(artifact, example)(checked)

    return declare


def _seconds(text: str) -> float:
    """Read a length of time such as 90s, 25min or 1.5h."""
    found = re.fullmatch(r"([0-9.]+) *(s|min|h)", str(text))
    try:
        return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]]  # type: ignore[index]
    except (TypeError, ValueError):
        raise click.BadParameter(f"{text!r} is no length of time such as 90s, 25min or 1.5h") from None


def _to_be_written(_: click.Context, __: click.Parameter, folder: Path | None) -> Path | None:
    """Refuse a folder that cannot be written before the work is done and not after it."""
    if folder is not None:
        place = folder = user_path(folder)
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK):
            what = "belongs to another user" if place.is_dir() else "is no folder"
            raise BadInput(f"cannot write to {folder}: {place} {what}; choose a folder you may write to")
    return folder


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
out_option = partial(click.option, "--out", type=FOLDER, callback=_to_be_written)
_profile = click.option("--profile", default="quick", help="quick, cifar10, paper, or a file of yours.")
_group = click.option("--group", "groups", multiple=True, help="One group of the profile, e.g. main; may be repeated.")
_words = click.option("--only", metavar="WORDS", help="Cells whose id contains one of these comma-separated words.")


@_command("gkp leaderboard build/entries --out build/leaderboard.html")
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The HTML file to write.")
@click.option("--title", default="Robustness leaderboard", help="The heading of the page.")
def _leaderboard(folders: tuple[Path, ...], out: Path, title: str) -> None:
    """Write RobustBench entries as one sortable HTML page.

    FOLDERS hold entries of ours, or RobustBench's model_info.
    """
    from gkp.artifact.leaderboard import leaderboard
    from gkp.evaluation.robustbench.entry import load_entries

    print(leaderboard(load_entries(folders), out, title=title))


@_command("gkp run --profile quick --only sr-gkp --jobs 2")
@_profile
@_group
@_words
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Cells computed at once.  [default: one per core]")
@click.option("--shard", metavar="I/N", help="This runner's share, for job arrays without a cluster.")
@click.option("--scheduler", help="Address or file of a Dask scheduler.  [default: $DASK_SCHEDULER_ADDRESS]")
@click.option("--again", is_flag=True, help="Compute finished cells again and compare; needs --only.")
@click.option("--dry-run", is_flag=True, help="Only list cells, with estimated hours, and which of them are cached.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="For cells without a limit of their own.",
)
@click.option(
    "--memory-limit", type=click.FloatRange(min=0, min_open=True), metavar="MB", help="For cells without a limit of their own."
)
@click.option("--for", "seconds", type=_seconds, metavar="TIME", help="Stop after 25min, 90s or 2h; the next run continues.")
@click.option(
    "--probe/--no-probe", default=None, help="Measure this machine first, 20 s once.  [default: a GPU, for its cells]"
)
def _run(profile: str, groups: Sequence[str], only: str | None, again: bool, **options: Any) -> int:
    """Compute the cells of a profile that are missing."""
    from gkp.artifact import experiments, profiles

    if again and not only:
        raise BadInput("--again computes finished cells anew; say which ones with --only")
    cells = experiments.select(profiles.cells(profile, *groups), only)
    before = experiments.load(cells) if again else ()
    report = experiments.run(cells, recompute=again, check=False, **options)
    if again and not options["dry_run"]:
        print(*report.compared_with(before), sep="\n")
    print(*report.failure_lines(), sep="\n", end="\n" if report.failures else "", file=sys.stderr)
    return report.exit_status


@_command("gkp status --profile quick --json")
@_profile
@_group
@_words
@json_option
def _status(profile: str, groups: Sequence[str], only: str | None, as_json: bool) -> None:
    """Show which cells of a profile are finished."""
    from gkp.artifact import experiments, profiles

    found = experiments.status(experiments.select(profiles.cells(profile, *groups), only))
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        print(*found.lines(), sep="\n")


@_command("gkp reproduce --profile quick --only 00_start_here")
@click.option("--profile", help="quick, cifar10, paper, or a file of yours.  [default: a first look at cifar10 and quick]")
@click.option("--only", help="Part of a notebook's name.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Workers side by side.  [default: the number of cores]")
@out_option(help="Folder for notebooks, figures, tables.  [default: build/PROFILE]")
@click.option(
    "--compute/--no-compute",
    default=None,
    help="Compute missing cells, or show only finished ones.  [default: compute, but not cifar10, which is committed]",
)
@click.option("--force", is_flag=True, help="Execute notebooks that are up to date too; cells stay cached.")
def _reproduce(profile: str | None, **options: Any) -> None:
    """Execute the notebooks; without a profile, show the committed results and run one notebook live."""
    chosen = {name: value for name, value in options.items() if name in ("only", "out", "compute") and value is not None}
    if profile is None and not chosen:
        from gkp.artifact.first_look import first_look

        first_look(jobs=options["jobs"], force=options["force"])
    else:
        from gkp.artifact.notebooks import reproduce

        reproduce(profile or "quick", **options)


@_command("gkp verify --json")
@json_option
def _verify(as_json: bool) -> int:
    """Check that verdicts, notebooks and hashes follow from the committed data."""
    from gkp.artifact.verify import verify

    checks = verify()
    if as_json:
        rows = [{"check": check.name, "n": check.n, "problems": check.problems, "note": check.note} for check in checks]
        print(json.dumps(rows, indent=1))
    else:
        print(*(check.line for check in checks), sep="\n")
    problems = [problem for check in checks for problem in check.problems]
    print(*(f"gkp: {problem}" for problem in problems), sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


@_command("gkp publish --cells")
@click.option("--profile", default="cifar10", help="The profile whose cells are committed.")
@click.option("--cells", "cells_only", is_flag=True, help="Only cells, verdicts and the manifest: leave the notebooks alone.")
def _publish(profile: str, cells_only: bool) -> int:
    """Copy cells and executed notebooks to where they are committed."""
    from gkp.artifact.publish import publish

    done = publish(profile, cells_only=cells_only)
    print(*done.lines, sep="\n")
    return 1 if any(check.problems for check in done.checks) else 0


@_command("gkp html --profile cifar10")
@click.option("--profile", default="cifar10", help="The profile of the notebooks: quick, cifar10, paper, or a file of yours.")
@out_option(help="Folder to write.  [default: build/report]")
def _html(profile: str, out: Path | None) -> None:
    """Write the report, every claim with its evidence and the executed notebooks, as self-contained HTML."""
    from gkp.artifact.html_report import html_report

    report = html_report(profile, out=out)
    print(f"{len(report.pages)} notebooks: {report.index}")


@_command("gkp lab")
@click.option("--browser/--no-browser", default=True, help="Open it in a browser.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port on this machine.  [default: 8888, or the next that is free]")
def _lab(browser: bool, port: int | None) -> None:
    """Open the notebooks in JupyterLab, with the kernel of this environment."""
    from gkp.artifact.kernel import lab
    from gkp.artifact.verify import root_of

    lab(root_of(None) / "notebooks", browser=browser, port=port)
