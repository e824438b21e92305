"""The command line: `gkp methods | prune | benchmark | run | status | reproduce | verify | publish | html`.

Bad input is one line on stderr and exit status 2; something that failed while running is exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

    sub = add("methods", _methods, "List the pruning methods.", "gkp methods --json")
    _json_flag(sub)

    sub = add(
        "prune",
        _prune,
        "Prune a network and save it, really smaller.",
        "gkp prune --model resnet20 --weights akamaster --method sr-gkp --rate 0.4375 --out build/small",
    )
    _network_flags(sub)
    sub.add_argument("--method", default="sr-gkp", help="see `gkp methods` (default: %(default)s)")
    sub.add_argument("--rate", type=_fraction, default=7 / 16, help="share of kernels removed, e.g. 0.4375 or 7/16 (default)")
    sub.add_argument("--groups", type=int, default=8, help="filter groups (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="for methods that draw (default: %(default)s)")
    sub.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the method, e.g. alpha=0.75"
    )
    sub.add_argument("--dataset", default=None, help="training images for methods that look at data, e.g. cifar10")
    sub.add_argument("--form", choices=("compact", "masked"), default="compact", help="what to save (default: %(default)s)")
    sub.add_argument("--out", required=True, type=Path, help="folder for model.safetensors and model.json")
    _json_flag(sub)

    sub = add(
        "benchmark",
        _benchmark,
        "Evaluate a network under attack.",
        "gkp benchmark --checkpoint build/small --dataset cifar10 --protocol pixel --examples 1000 --json",
    )
    _network_flags(sub)
    sub.add_argument("--dataset", default="cifar10", help="see gkp.datasets (default: %(default)s)")
    sub.add_argument(
        "--protocol", choices=("pixel", "paper"), default="pixel", help="the field's or the paper's (default: %(default)s)"
    )
    sub.add_argument("--examples", type=int, default=None, metavar="N", help="the first N test images (default: all)")
    sub.add_argument("--seed", type=int, default=0, help="of the random starts (default: %(default)s)")
    sub.add_argument("--batch-size", type=int, default=200, help="changes speed, never outcomes (default: %(default)s)")
    sub.add_argument("--out", type=Path, default=None, help="folder for the outcome of every image")
    _json_flag(sub)

    sub = add("run", _run, "Compute the cells of a profile that are missing.", "gkp run --profile quick --only sr-gkp --jobs 2")
    _profile_flags(sub)
    sub.add_argument("--jobs", type=int, default=None, metavar="N", help="cells computed at once (default: one per core)")
    sub.add_argument("--shard", default=None, metavar="I/N", help="this runner's share, for job arrays without a cluster")
    sub.add_argument("--scheduler", default=None, help="address or file of a Dask scheduler (default: $DASK_SCHEDULER_ADDRESS)")
    sub.add_argument("--dry-run", action="store_true", help="only list cells, hours, and what is cached")
    sub.add_argument("--time-limit", type=float, default=None, metavar="SECONDS", help="for cells without a limit of their own")
    sub.add_argument("--memory-limit", type=float, default=None, metavar="MB", help="for cells without a limit of their own")

    sub = add("status", _status, "Show which cells of a profile are finished.", "gkp status --profile quick --json")
    _profile_flags(sub)
    _json_flag(sub)

    sub = add("reproduce", _reproduce, "Run the notebooks.", "gkp reproduce --profile quick --only 00_start_here")
    sub.add_argument("--profile", default="quick", help="quick, cifar10 or paper (default: %(default)s)")
    sub.add_argument("--only", default=None, help="part of a notebook's name")
    sub.add_argument("--jobs", type=int, default=None, help="workers side by side (default: the number of cores)")
    sub.add_argument("--out", type=Path, default=None, help="folder for notebooks, figures, tables (default: build/PROFILE)")
    sub.add_argument("--force", action="store_true", help="execute notebooks that are up to date too; cells stay cached")

    sub = add("verify", _verify, "Check that what is committed follows from the committed data.", "gkp verify --json")
    _json_flag(sub)

    sub = add(
        "publish", _publish, "Copy measured cells and executed notebooks to their committed places.", "gkp publish --cells"
    )
    sub.add_argument("--profile", default="cifar10", help="the profile whose cells are committed (default: %(default)s)")
    sub.add_argument("--cells", action="store_true", help="only cells, verdicts and the manifest: leave the notebooks alone")

    sub = add("html", _html, "Write the executed notebooks as HTML that needs nothing else.", "gkp html --profile quick")
    sub.add_argument("--profile", default="quick", help="whose executed notebooks (default: %(default)s)")
    sub.add_argument("--out", type=Path, default=None, help="folder to write (default: build/html)")
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


def _methods(arguments: argparse.Namespace) -> None:
    from gkp.methods import methods

    known = methods()
    if arguments.json:
        _print_json([info.to_json() for info in known.values()])
        return
    rows = [("METHOD", "FAMILY", "PROCEDURE", "NEEDS", "FIDELITY", "REFERENCE")]
    for info in known.values():
        fidelity = info.fidelity.partition(":")[0]
        rows.append((info.name, info.family, info.procedure, ", ".join(info.needs) or "-", fidelity, info.reference))
    _print_columns(rows)
    print("\nWhat was adapted, and why:")
    for info in known.values():
        if info.fidelity != "faithful":
            print(f"  {info.name}: {info.fidelity.partition(': ')[2]}")


def _prune(arguments: argparse.Namespace) -> None:
    from gkp.checkpoints import save_model
    from gkp.cost import cost
    from gkp.datasets import load_dataset
    from gkp.methods import prune

    net = _load_network(arguments)
    options = dict(_option(text) for text in arguments.option)
    shape = _input_shape(net)
    pruned = prune(
        net,
        arguments.method,
        rate=arguments.rate,
        groups=arguments.groups,
        seed=arguments.seed,
        data=load_dataset(arguments.dataset, "train") if arguments.dataset else None,
        input_shape=shape,
        **options,
    )
    small = pruned.compact() if arguments.form == "compact" else pruned
    before, after = cost(net, input_shape=shape), cost(pruned, input_shape=shape)
    save_model(small, arguments.out)
    facts = {
        "method": arguments.method,
        "rate": arguments.rate,
        "form": arguments.form,
        "folder": str(arguments.out),
        "layers": len(pruned.plan),
        "left_out": pruned.left_out,
        "params": [before.params, after.params],
        "macs": [before.macs, after.macs],
        "paper_macs": [before.paper_macs, after.paper_macs],
    }
    if arguments.json:
        _print_json(facts)
        return
    print(f"{arguments.method}: {len(pruned.plan)} layers pruned at rate {arguments.rate:g}, {len(pruned.left_out)} left alone")
    for name in ("params", "macs", "paper_macs"):
        print(f"  {name:<11}{facts[name][0]:>12,} -> {facts[name][1]:>12,}  ({facts[name][1] / facts[name][0]:.1%})")
    print(f"  {arguments.form} network in {arguments.out}")


def _benchmark(arguments: argparse.Namespace) -> None:
    from gkp.evaluation import benchmark

    out = benchmark(
        _load_network(arguments),
        arguments.dataset,
        protocol=arguments.protocol,
        n_examples=arguments.examples,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
    )
    if arguments.out is not None:
        out.save(arguments.out)
    if arguments.json:
        _print_json(
            {
                "dataset": arguments.dataset,
                "protocol": arguments.protocol,
                "n": out.n,
                "seed": arguments.seed,
                "accuracy": out.accuracy(),
                "interval": {key: list(value) for key, value in out.interval().items()},
            }
        )
        return
    protocol, images = f"{arguments.protocol} protocol", f"first {out.n:,} test images"
    print(f"{arguments.dataset}, {protocol}, {images}, seed {arguments.seed}, 95 % intervals")
    interval = out.interval()
    _print_columns(
        [("ATTACK", "ACCURACY", "INTERVAL")]
        + [
            (key, f"{100 * value:.2f} %", f"{100 * interval[key][0]:.2f} - {100 * interval[key][1]:.2f}")
            for key, value in out.accuracy().items()
        ]
    )


def _run(arguments: argparse.Namespace) -> int:
    from gkp import grid, profiles

    report = grid.run(
        profiles.cells(arguments.profile, *arguments.group),
        only=arguments.only,
        jobs=arguments.jobs,
        shard=arguments.shard,
        scheduler=arguments.scheduler,
        dry_run=arguments.dry_run,
        time_limit=arguments.time_limit,
        memory_limit=arguments.memory_limit,
        check=False,
    )
    print(*report.failure_lines(), sep="\n", end="\n" if report.failures else "", file=sys.stderr)
    return report.exit_status


def _status(arguments: argparse.Namespace) -> None:
    from gkp import grid, profiles

    found = grid.status(grid.select(profiles.cells(arguments.profile, *arguments.group), arguments.only))
    if arguments.json:
        _print_json(found.to_json())
    else:
        print(*found.lines(), sep="\n")


def _reproduce(arguments: argparse.Namespace) -> None:
    from gkp.reproduce import reproduce

    reproduce(
        arguments.profile,
        only=arguments.only,
        jobs=arguments.jobs,
        out=arguments.out,
        force=arguments.force,
        progress=sys.stderr.isatty(),
    )


def _verify(arguments: argparse.Namespace) -> int:
    from gkp.verify import verify

    checks = verify()
    if arguments.json:
        _print_json([{"check": check.name, "n": check.n, "problems": check.problems, "note": check.note} for check in checks])
    else:
        print(*(check.line for check in checks), sep="\n")
    problems = [problem for check in checks for problem in check.problems]
    print(*(f"gkp: {problem}" for problem in problems), sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def _publish(arguments: argparse.Namespace) -> int:
    from gkp.publish import publish

    done = publish(arguments.profile, cells_only=arguments.cells)
    print(*done.lines, sep="\n")
    return 1 if any(check.problems for check in done.checks) else 0


def _html(arguments: argparse.Namespace) -> None:
    from gkp.html_report import html_report

    report = html_report(arguments.profile, out=arguments.out)
    print(f"{len(report.pages)} notebooks: {report.index}")


def _json_flag(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print JSON")


def _profile_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--profile", default="quick", help="quick, cifar10, paper, or a file of yours (default: %(default)s)")
    sub.add_argument("--group", action="append", default=[], help="one group of the profile, e.g. main; may be repeated")
    sub.add_argument("--only", default=None, metavar="WORDS", help="cells whose id contains one of these comma-separated words")


def _network_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", default=None, help="architecture, e.g. resnet20, with --weights")
    sub.add_argument("--weights", default=None, help="akamaster, srgkp-official, or a saved folder")
    sub.add_argument("--checkpoint", type=Path, default=None, help="a folder that `gkp prune` or save_model wrote")


def _load_network(arguments: argparse.Namespace) -> Any:
    from gkp.checkpoints import load_model

    if arguments.checkpoint is not None:
        if arguments.model is not None:
            return load_model(arguments.model, weights=arguments.checkpoint)
        return load_model(arguments.checkpoint)
    if arguments.model is None:
        raise BadInput("no network given; use --checkpoint FOLDER, or --model NAME with --weights")
    if arguments.weights is None:
        raise BadInput(f"--model {arguments.model} needs --weights: akamaster, srgkp-official or a saved folder")
    return load_model(arguments.model, weights=arguments.weights)


def _input_shape(net: Any) -> tuple[int, int, int]:
    from gkp.models import INPUT_SIDE

    side = INPUT_SIDE.get(net.architecture.name, 32)
    return 3, side, side


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BadInput(f"--option {text!r} is not NAME=VALUE, e.g. alpha=0.75")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _fraction(text: str) -> float:
    """A number such as 0.4375 or 7/16."""
    numerator, _, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a fraction such as 7/16") from None


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
