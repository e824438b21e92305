"""What attacks cost beside others' on the akamaster ResNet-20 and CIFAR-10 images, as shares of the others' time.

`python tests/bench_attacks.py [IMAGES]` prints the rows; tests/bench.py has them among its own. Ours attack the folded network,
folding included; what both find is judged by the network itself, and ours being weaker is an error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import gkp
from gkp.attacks.gradient import fgsm, pgd
from gkp.attacks.network import logits_of
from gkp.errors import BadInput
from gkp.evaluation.folding import folded

IMAGES, BATCH = 500, 200
RADII = {8: (100 / 8, 100 / 5), 1: (100 / 2.5, 100 / 5)}  # k of k/255: most that PGD-20 and a cascade may take, in % of theirs


def rows(images: int = IMAGES) -> list[tuple[str, float, str, float]]:
    """(what, value, unit, budget) of every measurement; none, and a line that says why, where the data is missing."""
    torch.set_num_threads(1)
    try:
        net = gkp.load_model("resnet20", weights="akamaster").eval()
        test = gkp.load_dataset("cifar10", "test").first(images)
    except BadInput as error:
        print(f"attacks: not measured, {error}")
        return []
    x, y = test.pixels(), test.labels
    found = []
    for k, (pgd_budget, cascade_budget) in RADII.items():
        share = measured(net, x, y, ours("pgd", net, k / 255, steps=20), foolbox_pgd(net, k / 255), slack=max(2, images // 500))
        found.append((f"PGD-20 / foolbox's, {images} images, {k}/255", share, "%", pgd_budget))
        share = measured(net, x, y, ours("cascade", net, k / 255), in_full(net, k / 255), slack=max(2, images // 500))
        found.append((f"cascade / FGSM, PGD-20, APGD-CE in full, {k}/255", share, "%", cascade_budget))
    return found


Finder = Callable[[Tensor, Tensor], Tensor]  # images, labels -> (attacks, N, C, H, W)


def measured(net: nn.Module, x: Tensor, y: Tensor, mine: Finder, theirs: Finder, slack: int) -> float:
    """Seconds of `mine` as a percentage of those of `theirs`, both on all images; of the processor, in one thread.

    Raises AssertionError where `mine` leaves more than `slack` images standing that `theirs` does not.
    """
    seconds, standing = [], []
    for finder in (mine, theirs):
        finder(x[:16], y[:16])  # warm up
        started = time.process_time()
        found = finder(x, y)
        seconds.append(time.process_time() - started)
        right = torch.stack([torch.cat([logits_of(net, part) for part in z.split(BATCH)]).argmax(1) == y for z in found])
        standing.append(int(right.all(0).sum()))
    if standing[0] > standing[1] + slack:
        raise AssertionError(f"{standing[0]} of {len(x)} images stand, {standing[1]} after the others' attack")
    return 100 * seconds[0] / seconds[1]


def ours(name: str, net: nn.Module, eps: float, **options: int) -> Finder:
    return lambda x, y: gkp.attack(folded(net, x), x, y, name, eps=eps, batch_size=BATCH, **options)[None]


def foolbox_pgd(net: nn.Module, eps: float) -> Finder:
    """PGD-20 as foolbox runs it: every image, every step."""
    import foolbox

    attack, model = (
        foolbox.attacks.LinfPGD(abs_stepsize=2.5 * eps / 20, steps=20),
        foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"),
    )
    return lambda x, y: torch.cat(
        [attack(model, *part, epsilons=eps)[1] for part in zip(x.split(BATCH), y.split(BATCH), strict=True)]
    )[None]


def in_full(net: nn.Module, eps: float) -> Finder:
    """FGSM, PGD-20 with all its steps, and pyautoattack's APGD-CE, each on every image."""
    from pyautoattack.autopgd_base import APGDAttack

    apgd = APGDAttack(net, n_iter=100, norm="Linf", eps=eps, seed=0, device="cpu")

    def find(x: Tensor, y: Tensor) -> Tensor:
        with torch.random.fork_rng():
            third = torch.cat([apgd.perturb(*part) for part in zip(x.split(BATCH), y.split(BATCH), strict=True)])
        return torch.stack(
            [fgsm(net, x, y, eps=eps, batch_size=BATCH), pgd(net, x, y, eps=eps, drop_fallen=False, batch_size=BATCH), third]
        )

    return find


def main(images: int) -> int:
    """Prints the rows; 1 when a budget is missed."""
    missed = 0
    for what, value, unit, budget in rows(images):
        missed += value > budget
        print(f"{what}: {value:.1f} {unit} (at most {budget:g}){'  MISSED' if value > budget else ''}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES))
