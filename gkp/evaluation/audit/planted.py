"""The self-test of the audit (check 15): a toy network that masks its gradients, and the same network without masking.

Cost: a second, once in each process.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.attacks.network import ordinary_tensors
from gkp.data.dataset import Dataset
from gkp.evaluation.audit.checks import CHECKS, MASKING
from gkp.evaluation.audit.measure import Effort, gather
from gkp.evaluation.audit.verdict import FAIL

CLASSES, SIDE, EPS = 4, 6, 0.1


class Linear(nn.Module):
    """A linear network on 6x6 images, whose gradients are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 4)."""
        return F.linear(x.flatten(1) - 0.5, self.weight)


class Rounded(Linear):
    """The same network on pixels rounded to quarters: its gradient is zero everywhere although it is not more robust."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 4)."""
        return super().forward((x * 4).round() / 4)


def toy_images() -> Dataset:
    """40 random images with the labels that `Rounded` gives them."""
    images = torch.randint(256, (40, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = Rounded()(images.float() / 255).argmax(1)
    return Dataset("toy", "test", images, labels, CLASSES, (0.5,) * 3, (0.3,) * 3)


@cache
@ordinary_tensors()
def self_test() -> dict[str, tuple[int, ...]]:
    """The numbers of the masking checks that fail: "planted" for `Rounded`, "plain" for `Linear`."""
    effort = Effort(steps=5, apgd_steps=5, queries=200, draws=2, probes=4)
    failed = {}
    for name, net in (("planted", Rounded()), ("plain", Linear())):
        evidence = gather(net, toy_images(), n_examples=None, eps=EPS, effort=effort, progress=False)
        failed[name] = tuple(number for number in MASKING if CHECKS[number](evidence).status == FAIL)
    return failed
