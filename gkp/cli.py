"""The command line, `gkp COMMAND`: the library's commands, and those of `gkp.artifact.commands`.

Bad input is one line on stderr and exit status 2; a run that fails is exit status 1. Each command imports what it needs when
it runs, so that `gkp --help` answers at once.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from gkp.artifact.commands import FOLDER, artifact, command_of, json_option, out_option
from gkp.errors import BadInput, RunFailed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `argv` (default: that of this process) and return its exit status, 130 after Ctrl-C."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: waiting threads must not spin on a busy machine
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if empty := [i for i, word in enumerate(words) if not word or (word.startswith("--") and word.endswith("="))]:
            raise BadInput(f"argument {empty[0] + 1} of gkp is empty, perhaps an unset variable of the shell; give a value")
        _check_place()
        with gkp.make_context("gkp", words) as context:
            status = gkp.invoke(context) or 0
        sys.stdout.flush()  # here, where what goes wrong can be said
        return status
    except click.exceptions.Exit as end:  # --help
        return end.exit_code
    except (BadInput, click.UsageError) as error:
        return _say(_usage(error) if isinstance(error, click.UsageError) else str(error), 2)
    except RunFailed as error:
        return _say(str(error), 1)
    except KeyboardInterrupt:
        return _say("interrupted; finished cells are kept", 130)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        return _say(f"{error.filename or 'output'}: {error.strerror or error}; what is finished is kept", 1)


@click.group(no_args_is_help=False, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
def gkp() -> None:
    """Grouped kernel pruning and the attacks it is judged by."""


def _check_place() -> None:
    """Raise BadInput if the current folder was deleted: libraries that are loaded later say that in ways nobody understands."""
    try:
        os.getcwd()
    except OSError as error:
        raise BadInput(f"the current folder cannot be used ({error.strerror}); cd to another one") from error


def _drop_output() -> None:
    """Let what is still to be written go nowhere."""
    if sys.stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # type: ignore[union-attr]


def _say(message: str, status: int) -> int:
    print(f"gkp: {message}", file=sys.stderr)
    return status


def _usage(error: click.UsageError) -> str:
    """The error of click in one line that says how to mend it."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if error.ctx is None or error.ctx.command is gkp:
        return f"{message} (commands: {', '.join(gkp.commands)})"
    return f"{message} (see `{error.ctx.command_path} --help`)"


def _options(*options: Callable[[Callable], Callable]) -> Callable[[Callable], Callable]:
    """Give a command several options, in this order."""
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


def _channels(text: str) -> tuple[float, ...]:
    """Read three numbers, or one for all three channels."""
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise click.BadParameter(f"{text!r} is not three numbers such as 0.491,0.482,0.447")
    return numbers * (3 // len(numbers))


_WEIGHTS = "A file (.pt, .pth, .safetensors, ...), gkp, akamaster, srgkp-official, torchvision"
_seed = functools.partial(click.option, "--seed", default=0)
_images = _options(
    click.option("--dataset", default="cifar10", help="cifar10, digits, folder:PATH and others, see docs/data.md."),
    click.option("--examples", "n_examples", type=int, metavar="N", help="The first N.  [default: all; audit: 100]"),
    _seed(help="Of the random starts."),
)


def _network(command: Callable) -> Callable:
    """Let a command take a network: --model with --weights, or --checkpoint. It gets the loaded network as `net`."""

    @_options(
        click.option("--model", help="Architecture, e.g. resnet20, with --weights."),
        click.option("--weights", help=f"{_WEIGHTS} or a saved folder."),
        click.option("--checkpoint", type=FOLDER, help="A folder that `gkp prune` or save_model wrote."),
        click.option("--key", help="Of --weights FILE: the entry or prefix to take, where several fit, e.g. ema."),
        click.option(
            "--mean", type=_channels, metavar="R,G,B", help="Of --weights FILE.  [default: the file's, else CIFAR-10's]"
        ),
        click.option("--std", type=_channels, metavar="R,G,B", help="Of --weights FILE, as --mean."),
        click.option("--shortcut", help="Of --weights FILE: append, centre or projection.  [default: append]"),
    )
    @functools.wraps(command)
    def with_network(
        model: str | None,
        weights: str | None,
        checkpoint: Path | None,
        key: str | None,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        shortcut: str | None,
        **options: Any,
    ) -> int | None:
        from gkp.checkpoints import load_model

        # A warning about the network is one line too, as an error is.
        warnings.showwarning = lambda message, *_, **__: print(f"gkp: warning: {message}", file=sys.stderr)
        if model is None and checkpoint is None:
            raise BadInput("no network given; use --checkpoint FOLDER, or --model NAME with --weights")
        if model is not None and weights is None and checkpoint is None:
            raise BadInput(f"--model {model} needs --weights: {_WEIGHTS[0].lower()}{_WEIGHTS[1:]} or a saved folder")
        if weights is not None and checkpoint is not None:
            raise BadInput("--weights and --checkpoint name two networks; give one of them")
        named = checkpoint or weights if model else None
        given = {"mean": mean, "std": std, "shortcut": shortcut}
        fields: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
        if (fields or key) and not (named and os.path.isfile(named)):
            raise BadInput(
                f"--{next(iter(fields), 'key')} is for a file of weights; give --model NAME --weights FILE, or leave it out"
            )
        net = load_model(model or checkpoint or "", weights=named, key=key, **fields)
        if named and os.path.isfile(named):
            _say(f"{named} is taken as {_told(net)}", 0)
        return command(net=net, **options)

    return with_network


def _told(net: Any) -> str:
    """A description of a loaded network by what a file of weights does not always say itself."""
    made = net.architecture
    of_pixels = f"mean {', '.join(map(str, made.mean))} and std {', '.join(map(str, made.std))} of pixels in [0, 1]"
    return f"{made.name}, {made.num_classes} classes, shortcut {made.shortcut}, normalised by {of_pixels}"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _print_columns(rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text in columns as wide as they need."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _fraction(text: str) -> float:
    """Read a number such as 0.4375 or 7/16."""
    numerator, _, denominator = str(text).partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(f"{text!r} is neither a number nor a fraction such as 7/16") from None


def _named_value(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE, the value as JSON where it is JSON."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BadInput(f"--option {text!r} is not NAME=VALUE, e.g. alpha=0.75")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@command_of(gkp, "gkp methods --json")
@json_option
def _methods(as_json: bool) -> None:
    """List the pruning methods."""
    from gkp.pruning.registry import methods

    known = methods().values()
    if as_json:
        return _print_json([info.to_json() for info in known])
    rows = [("METHOD", "FAMILY", "PROCEDURE", "NEEDS", "FIDELITY", "REFERENCE")]
    for info in known:
        fidelity = info.fidelity.partition(":")[0]
        rows.append((info.name, info.family, info.procedure, ", ".join(info.needs) or "-", fidelity, info.reference))
    _print_columns(rows)
    print("\nWhat was adapted, and why:")
    print(*(f"  {info.name}: {info.fidelity.partition(': ')[2]}" for info in known if info.fidelity != "faithful"), sep="\n")


@command_of(gkp, "gkp prune --model resnet20 --weights akamaster --method sr-gkp --rate 0.4375 --out build/small")
@_network
@click.option("--method", default="sr-gkp", help="One of `gkp methods`.")
@click.option("--rate", type=_fraction, default="7/16", metavar="RATE", help="Share of kernels removed: 0.4375 or 7/16.")
@click.option("--groups", default=8, help="Filter groups.")
@_seed(help="For methods that draw.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the method, e.g. alpha=0.75.")
@click.option("--dataset", help="Training images for methods that look at data: as `gkp benchmark --dataset`.")
@click.option("--form", type=click.Choice(["compact", "masked"]), default="compact", help="The network to save.")
@out_option(required=True, help="Folder for model.safetensors and model.json.")
@json_option
def _prune(
    net: Any, method: str, options: Sequence[str], dataset: str | None, form: str, out: Path, as_json: bool, **given: Any
) -> None:
    """Prune a network and save it, really smaller."""
    from gkp.checkpoints import save_model
    from gkp.data.sources import load_dataset
    from gkp.pruning.cost import cost
    from gkp.pruning.probe import find_input_shape
    from gkp.pruning.prune import prune
    from gkp.pruning.registry import methods

    info = methods().get(method)
    if info is not None and info.procedure != "one-shot":
        raise BadInput(f"{method} prunes while it trains ({info.procedure}), which takes Python: gkp.pruning.train_pruned")
    if info is not None and "data" in info.needs and dataset is None:
        raise BadInput(f"{method} looks at images; give --dataset, training images such as digits or folder:PATH")
    own, rate = dict(map(_named_value, options)), given["rate"]
    if taken := [name for name in own if name in ("net", "method", "data", "input_shape", *given)]:
        raise BadInput(f"{taken[0]} is no option of a method; leave --option {taken[0]} out (see `gkp prune --help`)")
    data, shape = load_dataset(dataset, "train") if dataset else None, find_input_shape(net)
    pruned = prune(net, method, data=data, input_shape=shape, **given, **own)
    before, after = cost(net, input_shape=shape), cost(pruned, input_shape=shape)
    save_model(pruned.compact() if form == "compact" else pruned, out)
    counts = {name: [getattr(before, name), getattr(after, name)] for name in ("params", "macs", "paper_macs")}
    if as_json:
        facts = {"method": method, "rate": rate, "form": form, "folder": str(out)}
        return _print_json({**facts, "layers": len(pruned.plan), "left_out": pruned.left_out, **counts})
    print(f"{method}: {len(pruned.plan)} layers pruned at rate {rate:g}, {len(pruned.left_out)} left alone")
    for name, (old, new) in counts.items():
        print(f"  {name:<11}{old:>12,} -> {new:>12,}  ({new / old:.1%})")
    print(f"  {form} network in {out}")


@command_of(gkp, "gkp benchmark --checkpoint build/small --dataset cifar10 --protocol pixel --examples 1000 --json")
@_network
@_images
@click.option("--protocol", type=click.Choice(["pixel", "paper"]), default="pixel", help="The field's or the paper's.")
@click.option("--attack", "attacks", metavar="NAME[,NAME]", help="E.g. fgsm,pgd,apgd-ce,cascade.  [default: the protocol's]")
@click.option("--eps", metavar="EPS[,EPS]", help="Radii, e.g. 8/255,4/255.  [default: six, from 0.25/255 to 8/255]")
@click.option("--batch-size", default=200, help="Changes speed, never outcomes but autoattack's.")
@click.option("--resume", type=FOLDER, metavar="FOLDER", help="Keep finished images here and go on from them.")
@click.option(
    "--engine", type=click.Choice(["torch", "fast"]), default="torch", help="fast: compiled code, pip install gkp[fast]."
)
@click.option("--allow-nondeterministic", is_flag=True, help="Evaluate although logits change from pass to pass.")
@out_option(help="Folder for the outcome of every image.")
@json_option
def _benchmark(net: Any, dataset: str, out: Path | None, resume: Path | None, as_json: bool, **options: Any) -> None:
    """Evaluate a network under attack."""
    from gkp.evaluation.benchmark import benchmark

    found = benchmark(net, dataset, checkpoint=resume, **options)
    if out is not None:
        found.save(out)
    accuracy, interval = found.accuracy(), found.interval()
    protocol, seed = options["protocol"], options["seed"]
    if as_json:
        facts = {"dataset": dataset, "protocol": protocol, "n": found.n, "seed": seed, "accuracy": accuracy}
        return _print_json({**facts, "interval": {key: list(ends) for key, ends in interval.items()}})
    print(f"{dataset}, {protocol} protocol, first {found.n:,} test images, seed {seed}, 95 % intervals")
    percent = {key: (100 * value, 100 * interval[key][0], 100 * interval[key][1]) for key, value in accuracy.items()}
    rows = [(key, f"{value:.2f} %", f"{low:.2f} - {high:.2f}") for key, (value, low, high) in percent.items()]
    _print_columns([("ATTACK", "ACCURACY", "INTERVAL"), *rows])


@command_of(gkp, "gkp audit --checkpoint build/small --dataset cifar10 --examples 100 --eps 1/255 --out build/card")
@_network
@_images
@click.option("--eps", default="8/255", help="Radius in pixel units.")
@click.option("--parent", type=FOLDER, metavar="FOLDER", help="The dense network it was pruned from.")
@click.option("--reference-accuracy", type=float, metavar="P", help="The accuracy it is known to reach, e.g. 0.917.")
@click.option("--selection", help='How the checkpoint was chosen: "last epoch", "validation" or "test".')
@click.option("--outcomes", type=FOLDER, metavar="FOLDER", help="Folder that `gkp benchmark --out` wrote, to be reused.")
@out_option(help="Folder for card.md and card.json.")
@json_option
def _audit(
    net: Any, dataset: str, parent: Path | None, outcomes: Path | None, out: Path | None, as_json: bool, **options: Any
) -> int:
    """Check whether a robust accuracy can be believed. 22 checks on one card; exit status 1 if one fails."""
    from gkp.checkpoints import load_model
    from gkp.evaluation.audit import audit
    from gkp.evaluation.outcomes import Outcomes

    dense, known = load_model(parent) if parent else None, Outcomes.load(outcomes) if outcomes else None
    card = audit(net, dataset, parent=dense, outcomes=known, **options)
    if out is not None:
        card.save(out)
    if as_json:
        _print_json(card.to_json())
    else:
        threat = card.facts["threat_model"]
        where = f"first {threat['n']:,} test images, seed {threat['seed']}"
        print(f"{dataset}, Linf {threat['eps_text']}, {where}: robust accuracy {100 * card.reported:.2f} %")
        _print_columns([("", "CHECK", "STATUS", "NOTE")] + [(str(c.number), c.name, c.status, c.note) for c in card.checks])
        print(f"audit: {card.status}" + ("; gradients are masked: the accuracy is an upper bound" if card.masked else ""))
    return 1 if card.flags else 0


for _name, _of_artifact in artifact.commands.items():
    gkp.add_command(_of_artifact, _name)
