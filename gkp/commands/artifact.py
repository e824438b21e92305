"""`gkp reproduce`, `gkp verify`, `gkp publish` and `gkp html`: the artifact as a whole."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gkp.commands.shared import Add, json_flag, print_json


def declare(add: Add) -> None:
    """Adds the commands to the parser."""
    sub = add("reproduce", _reproduce, "Run the notebooks.", "gkp reproduce --profile quick --only 00_start_here")
    sub.add_argument("--profile", default="quick", help="quick, cifar10 or paper (default: %(default)s)")
    sub.add_argument("--only", default=None, help="part of a notebook's name")
    sub.add_argument("--jobs", type=int, default=None, help="workers side by side (default: the number of cores)")
    sub.add_argument("--out", type=Path, default=None, help="folder for notebooks, figures, tables (default: build/PROFILE)")
    sub.add_argument(
        "--compute",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compute missing cells, or show only finished ones (default: compute, but not cifar10, which is committed)",
    )
    sub.add_argument("--force", action="store_true", help="execute notebooks that are up to date too; cells stay cached")

    sub = add("verify", _verify, "Check that what is committed follows from the committed data.", "gkp verify --json")
    json_flag(sub)

    sub = add(
        "publish", _publish, "Copy measured cells and executed notebooks to their committed places.", "gkp publish --cells"
    )
    sub.add_argument("--profile", default="cifar10", help="the profile whose cells are committed (default: %(default)s)")
    sub.add_argument("--cells", action="store_true", help="only cells, verdicts and the manifest: leave the notebooks alone")

    sub = add("html", _html, "Write the executed notebooks as HTML that needs nothing else.", "gkp html --profile quick")
    sub.add_argument("--profile", default="quick", help="whose executed notebooks (default: %(default)s)")
    sub.add_argument("--out", type=Path, default=None, help="folder to write (default: build/html)")


def _reproduce(arguments: argparse.Namespace) -> None:
    from gkp.artifact.notebooks import reproduce

    reproduce(
        arguments.profile,
        only=arguments.only,
        jobs=arguments.jobs,
        out=arguments.out,
        force=arguments.force,
        compute=arguments.compute,
        progress=sys.stderr.isatty(),
    )


def _verify(arguments: argparse.Namespace) -> int:
    from gkp.artifact.verify import verify

    checks = verify()
    if arguments.json:
        print_json([{"check": check.name, "n": check.n, "problems": check.problems, "note": check.note} for check in checks])
    else:
        print(*(check.line for check in checks), sep="\n")
    problems = [problem for check in checks for problem in check.problems]
    print(*(f"gkp: {problem}" for problem in problems), sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def _publish(arguments: argparse.Namespace) -> int:
    from gkp.artifact.publish import publish

    done = publish(arguments.profile, cells_only=arguments.cells)
    print(*done.lines, sep="\n")
    return 1 if any(check.problems for check in done.checks) else 0


def _html(arguments: argparse.Namespace) -> None:
    from gkp.artifact.html_report import html_report

    report = html_report(arguments.profile, out=arguments.out)
    print(f"{len(report.pages)} notebooks: {report.index}")
