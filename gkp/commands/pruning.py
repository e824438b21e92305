"""`gkp methods` and `gkp prune`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gkp.commands.shared import (
    Add,
    json_flag,
    load_network,
    network_flags,
    print_columns,
    print_json,
)
from gkp.errors import BadInput


def declare(add: Add) -> None:
    """Adds the commands to the parser."""
    sub = add("methods", _methods, "List the pruning methods.", "gkp methods --json")
    json_flag(sub)

    sub = add(
        "prune",
        _prune,
        "Prune a network and save it, really smaller.",
        "gkp prune --model resnet20 --weights akamaster --method sr-gkp --rate 0.4375 --out build/small",
    )
    network_flags(sub)
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
    json_flag(sub)


def _methods(arguments: argparse.Namespace) -> None:
    from gkp.pruning.registry import methods

    known = methods()
    if arguments.json:
        print_json([info.to_json() for info in known.values()])
        return
    rows = [("METHOD", "FAMILY", "PROCEDURE", "NEEDS", "FIDELITY", "REFERENCE")]
    for info in known.values():
        fidelity = info.fidelity.partition(":")[0]
        rows.append((info.name, info.family, info.procedure, ", ".join(info.needs) or "-", fidelity, info.reference))
    print_columns(rows)
    print("\nWhat was adapted, and why:")
    for info in known.values():
        if info.fidelity != "faithful":
            print(f"  {info.name}: {info.fidelity.partition(': ')[2]}")


def _prune(arguments: argparse.Namespace) -> None:
    from gkp.checkpoints import save_model
    from gkp.data.sources import load_dataset
    from gkp.pruning.cost import cost
    from gkp.pruning.coupling import find_input_shape
    from gkp.pruning.prune import prune

    net = load_network(arguments)
    options = dict(_option(text) for text in arguments.option)
    shape = find_input_shape(net)
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
        print_json(facts)
        return
    print(f"{arguments.method}: {len(pruned.plan)} layers pruned at rate {arguments.rate:g}, {len(pruned.left_out)} left alone")
    for name in ("params", "macs", "paper_macs"):
        print(f"  {name:<11}{facts[name][0]:>12,} -> {facts[name][1]:>12,}  ({facts[name][1] / facts[name][0]:.1%})")
    print(f"  {arguments.form} network in {arguments.out}")


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
