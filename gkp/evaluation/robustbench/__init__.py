"""RobustBench: run its `benchmark()` on any network, and write entries in its JSON schema with additional fields.

    clean, robust = robustbench_benchmark(net, n_examples=1000, eps=8 / 255)
    outcomes = gkp.benchmark(net, attacks=[AttackSpec("autoattack", "8/255")], n_examples=1000)
    save_entry(entry(outcomes, net, name="SR-GKP, rate 7/16", architecture="ResNet-20"), "build/entries")

`gkp leaderboard` renders a folder of entries as a page.
"""

from gkp.evaluation.robustbench.adapter import robustbench_benchmark
from gkp.evaluation.robustbench.entry import entry, load_entries, save_entry
from gkp.evaluation.robustbench.schema import best_known, check_entry

__all__ = [
    "best_known",
    "check_entry",
    "entry",
    "load_entries",
    "robustbench_benchmark",
    "save_entry",
]
