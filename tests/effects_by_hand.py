"""Finished networks with outcome matrices made by hand: so many images are right, the first ones."""

import numpy as np

from gkp.artifact.experiments.kinds import EvaluateCell, PruneCell, TrainCell
from gkp.artifact.experiments.report import Result
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.evaluation.statistics import wilson

N = 400
BASELINE = TrainCell(dataset="digits", epochs=1)
ATTACKS = {
    "paper": (("fgsm", 0.01, "fgsm-0.01"), ("fgsm", 0.1, "fgsm-0.1"), ("pgd", "8/255", "pgd-8/255")),
    "pixel": (("fgsm", "1/255", "fgsm-1/255"), ("pgd", "1/255", "pgd-1/255")),
    "strong": (("autoattack", "1/255", "autoattack-1/255"),),
}
STRONG = {"protocol": "pixel", "attacks": ({"attack": "autoattack", "eps": "1/255"},), "purpose": "autoattack-small"}


def pruned(method: str, seed: int = 0, **fields) -> PruneCell:
    """A network that was fine-tuned for two epochs."""
    return PruneCell(net=BASELINE, method=method, **{"epochs": 2, "seed": seed} | fields)


def trained(net, folder, **figures) -> Result:
    """A finished network."""
    return Result(net, {"params": 152_794, "paper_macs": 23_390_858} | figures, folder, True)


def evaluated(net, folder, clean: int, attacked: int, *, protocol: str = "paper", first: int = 0) -> Result:
    """Its finished evaluation: of N images so many are right without attack, and so many under each attack.

    protocol: "paper", "pixel", or "strong" for AutoAttack in pixels.
    """
    fields = STRONG if protocol == "strong" else {"protocol": protocol}
    specs = tuple(AttackSpec(name, eps, key=key) for name, eps, key in ATTACKS[protocol])
    right = np.arange(N)[None] < np.array([clean] + [attacked] * len(specs))[:, None]
    header = {"dataset": "digits", "split": "test", "data_sha256": "d", "model_sha256": "m", "seed": 0}
    out = Outcomes(
        right=right,
        indices=np.arange(first, first + N),
        labels=np.zeros(N, dtype=np.int64),
        predictions=(~right[0]).astype(np.int64),
        attacks=specs,
        protocol=fields["protocol"],
        bounds=(0.0, 1.0),
        versions={},
        seconds=0.0,
        **header,
    )
    cell = EvaluateCell(net=net, **fields)
    where = folder / cell.hash
    out.save(where)
    accuracy = {key: float(row.mean()) for key, row in out.rows().items()}
    interval = {key: list(wilson(int(row.sum()), N)) for key, row in out.rows().items()}
    return Result(cell, {"accuracy": accuracy, "interval": interval, "n": N}, where, True)


def report(folder, **counts: tuple[int, ...]) -> list[Result]:
    """Networks of each method, named with "_" for "-": images right under attack by seed; 360 without attack."""
    found = [trained(BASELINE, folder)]
    for name, seeds in counts.items():
        for seed, attacked in enumerate(seeds):
            net = pruned(name.replace("_", "-"), seed)
            found += [trained(net, folder), evaluated(net, folder, 360, attacked)]
            found.append(evaluated(net, folder, 360, attacked, protocol="pixel"))
    return found
