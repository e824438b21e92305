"""`gkp benchmark`, `gkp audit` and `gkp leaderboard`."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from gkp.commands.shared import (
    Add,
    json_flag,
    load_network,
    network_flags,
    print_columns,
    print_json,
)


def declare(add: Add) -> None:
    """Adds the commands to the parser."""
    sub = add(
        "benchmark",
        _benchmark,
        "Evaluate a network under attack.",
        "gkp benchmark --checkpoint build/small --dataset cifar10 --protocol pixel --examples 1000 --json",
    )
    network_flags(sub)
    sub.add_argument("--dataset", default="cifar10", help="see gkp.data.dataset (default: %(default)s)")
    sub.add_argument(
        "--protocol", choices=("pixel", "paper"), default="pixel", help="the field's or the paper's (default: %(default)s)"
    )
    sub.add_argument("--examples", type=int, default=None, metavar="N", help="the first N test images (default: all)")
    sub.add_argument("--seed", type=int, default=0, help="of the random starts (default: %(default)s)")
    sub.add_argument(
        "--attack", default=None, metavar="NAME[,NAME]", help="e.g. fgsm,pgd,apgd-ce,cascade (default: the protocol's own)"
    )
    sub.add_argument("--eps", default=None, metavar="EPS[,EPS]", help="radii, e.g. 8/255,4/255 (default: 0.25 to 8 of 255)")
    sub.add_argument(
        "--batch-size", type=int, default=200, help="changes speed, never outcomes but autoattack's (default: %(default)s)"
    )
    sub.add_argument(
        "--resume", type=Path, default=None, metavar="FOLDER", help="keep finished images here and go on from them"
    )
    sub.add_argument("--allow-nondeterministic", action="store_true", help="evaluate although logits change from pass to pass")
    sub.add_argument("--out", type=Path, default=None, help="folder for the outcome of every image")
    json_flag(sub)

    sub = add(
        "audit",
        _audit,
        "Check whether a network's robust accuracy can be believed: 22 checks on one card.",
        "gkp audit --checkpoint build/small --dataset cifar10 --examples 100 --eps 1/255 --out build/card",
    )
    network_flags(sub)
    sub.add_argument("--dataset", default="cifar10", help="see gkp.data.dataset (default: %(default)s)")
    sub.add_argument("--examples", type=int, default=None, metavar="N", help="the first N test images (default: 100)")
    sub.add_argument("--eps", default="8/255", help="radius in pixel units (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of the random starts (default: %(default)s)")
    sub.add_argument("--parent", type=Path, default=None, metavar="FOLDER", help="the dense network it was pruned from")
    sub.add_argument(
        "--reference-accuracy", type=float, default=None, metavar="P", help="what it is known to reach, e.g. 0.917"
    )
    sub.add_argument("--selection", default=None, help='how the checkpoint was chosen: "last epoch", "validation" or "test"')
    sub.add_argument("--outcomes", type=Path, default=None, help="folder that `gkp benchmark --out` wrote, to be reused")
    sub.add_argument("--out", type=Path, default=None, help="folder for card.md and card.json")
    json_flag(sub)

    sub = add(
        "leaderboard",
        _leaderboard,
        "Write RobustBench entries as one sortable HTML page.",
        "gkp leaderboard build/entries --out build/leaderboard.html",
    )
    sub.add_argument("folders", nargs="+", type=Path, help="folders of entries, ours or RobustBench's model_info")
    sub.add_argument("--out", required=True, type=Path, help="the HTML file to write")
    sub.add_argument("--title", default="Robustness leaderboard", help="its heading (default: %(default)s)")


def _benchmark(arguments: argparse.Namespace) -> None:
    from gkp.evaluation.benchmark import benchmark

    _warnings_in_one_line()
    out = benchmark(
        load_network(arguments),
        arguments.dataset,
        protocol=arguments.protocol,
        n_examples=arguments.examples,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        attacks=arguments.attack,
        eps=arguments.eps,
        checkpoint=arguments.resume,
        allow_nondeterministic=arguments.allow_nondeterministic,
    )
    if arguments.out is not None:
        out.save(arguments.out)
    if arguments.json:
        print_json(
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
    print_columns(
        [("ATTACK", "ACCURACY", "INTERVAL")]
        + [
            (key, f"{100 * value:.2f} %", f"{100 * interval[key][0]:.2f} - {100 * interval[key][1]:.2f}")
            for key, value in out.accuracy().items()
        ]
    )


def _audit(arguments: argparse.Namespace) -> int:
    from gkp.checkpoints import load_model
    from gkp.evaluation.audit import audit
    from gkp.evaluation.outcomes import Outcomes

    _warnings_in_one_line()
    card = audit(
        load_network(arguments),
        arguments.dataset,
        n_examples=arguments.examples,
        eps=arguments.eps,
        seed=arguments.seed,
        parent=load_model(arguments.parent) if arguments.parent else None,
        reference_accuracy=arguments.reference_accuracy,
        selection=arguments.selection,
        outcomes=Outcomes.load(arguments.outcomes) if arguments.outcomes else None,
    )
    if arguments.out is not None:
        card.save(arguments.out)
    if arguments.json:
        print_json(card.to_json())
    else:
        threat = card.facts["threat_model"]
        where = f"first {threat['n']:,} test images, seed {threat['seed']}"
        print(f"{arguments.dataset}, Linf {threat['eps_text']}, {where}: robust accuracy {100 * card.reported:.2f} %")
        print_columns([("", "CHECK", "STATUS", "NOTE")] + [(str(c.number), c.name, c.status, c.note) for c in card.checks])
        print(f"audit: {card.status}" + ("; gradients are masked: the accuracy is an upper bound" if card.masked else ""))
    return 1 if card.flags else 0


def _leaderboard(arguments: argparse.Namespace) -> None:
    from gkp.artifact.leaderboard import leaderboard
    from gkp.evaluation.robustbench.entry import load_entries

    print(leaderboard(load_entries(arguments.folders), arguments.out, title=arguments.title))


def _warnings_in_one_line() -> None:
    """A ModelWarning of ours reads like an error of ours: one line, no source."""
    warnings.showwarning = lambda message, *_, **__: print(f"gkp: warning: {message}", file=sys.stderr)
