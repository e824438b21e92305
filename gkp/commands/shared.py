"""What the commands share: how they are declared, the network they are given, how they print."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gkp.errors import BadInput

Add = Callable[[str, Callable[[argparse.Namespace], "int | None"], str, str], argparse.ArgumentParser]


def json_flag(sub: argparse.ArgumentParser) -> None:
    """Adds --json."""
    sub.add_argument("--json", action="store_true", help="print JSON")


def network_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags that name a network: --model with --weights, or --checkpoint."""
    sub.add_argument("--model", default=None, help="architecture, e.g. resnet20, with --weights")
    sub.add_argument("--weights", default=None, help="akamaster, srgkp-official, gkp, or a saved folder")
    sub.add_argument("--checkpoint", type=Path, default=None, help="a folder that `gkp prune` or save_model wrote")


def load_network(arguments: argparse.Namespace) -> Any:
    """The network that the flags name. Raises BadInput for flags that name none."""
    from gkp.checkpoints import load_model

    if arguments.checkpoint is not None:
        if arguments.model is not None:
            return load_model(arguments.model, weights=arguments.checkpoint)
        return load_model(arguments.checkpoint)
    if arguments.model is None:
        raise BadInput("no network given; use --checkpoint FOLDER, or --model NAME with --weights")
    if arguments.weights is None:
        raise BadInput(f"--model {arguments.model} needs --weights: akamaster, srgkp-official, gkp or a saved folder")
    return load_model(arguments.model, weights=arguments.weights)


def print_json(value: Any) -> None:
    """Prints indented JSON."""
    print(json.dumps(value, indent=1))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of text in columns as wide as they need."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
