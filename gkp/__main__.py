"""The command line: `gkp COMMAND`; see `gkp.commands`.

Bad input is one line on stderr and exit status 2; something that failed while running is exit status 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from gkp.commands import artifact, cells, evaluating, pruning
from gkp.errors import BadInput, RunFailed


def parser() -> argparse.ArgumentParser:
    """The argument parser of the `gkp` command, with every subcommand."""
    top = argparse.ArgumentParser(
        prog="gkp", description="Grouped kernel pruning and the attacks it is judged by.", epilog="See `gkp COMMAND --help`."
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"Example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(run=run)
        return sub

    for part in (pruning, evaluating, cells, artifact):
        part.declare(add)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of the command `argv` (default: the process's arguments): 0, 1 for a failed run, 2 for bad input."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: waiting threads must not spin on a busy machine
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except BadInput as error:
        print(f"gkp: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"gkp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gkp: interrupted; finished cells are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
