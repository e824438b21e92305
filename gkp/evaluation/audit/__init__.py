"""`audit`: 22 checks of whether a robust accuracy is reliable, reported on a card.

| module | content |
|---|---|
| `evidence` | all measurements, as plain data |
| `measure`, `probing` | measuring: outcomes of attacks, made once for all checks; probes of the network |
| `attack_checks`, `report_checks`, `verdict` | judging: 22 pure functions; statistics of small samples |
| `planted` | a self-test on a network that is known to mask its gradients |
| `card` | the card as Markdown and JSON, and evaluating again from the JSON |

Cost: see `gkp.evaluation.audit.measure`; the less robust a network, the cheaper its audit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

from gkp.attacks.network import ordinary_tensors
from gkp.attacks.options import parse_eps
from gkp.data.dataset import Dataset
from gkp.errors import BadInput
from gkp.evaluation.audit.card import Card, reevaluate
from gkp.evaluation.audit.checks import CHECKS, SELECTIONS, run_checks
from gkp.evaluation.audit.evidence import Evidence, accuracies, paired_tests
from gkp.evaluation.audit.measure import TOP_EPS, Effort, gather
from gkp.evaluation.audit.planted import self_test
from gkp.evaluation.audit.verdict import Check
from gkp.evaluation.outcomes import Outcomes
from gkp.evaluation.subject import as_dataset
from gkp.networks.fingerprint import state_sha256

__all__ = ["CHECKS", "Card", "Check", "Effort", "Evidence", "audit", "gather", "judge", "reevaluate", "run_checks"]

DEFAULT_IMAGES = 100


@ordinary_tensors()
def audit(
    model: nn.Module,
    dataset: str | Dataset = "cifar10",
    *,
    n_examples: int | None = None,
    eps: float | str = 8 / 255,
    seed: int = 0,
    parent: nn.Module | None = None,
    reference_accuracy: float | None = None,
    outcomes: Outcomes | None = None,
    selection: str | None = None,
    effort: Effort | None = None,
    batch_size: int = 200,
    progress: bool | None = None,
) -> Card:
    """Audit a network under Linf attacks of one radius.

    Args:
        model: A network from images (N, C, H, W) in [0, 1] to logits (N, K). It is evaluated in eval mode and left as it was.
        dataset: The name of a data set, of which the test split is taken, or a Dataset.
        n_examples: The number of images, the first ones; None for those of `outcomes`, or 100.
        eps: The radius, 8 / 255 or "8/255", above 0 and below 0.5. A radius at which some images are still classified correctly
            is more informative.
        seed: The seed of random starts and noise.
        parent: The dense network that this one was pruned from, for check 11.
        reference_accuracy: The known accuracy without attack, a fraction, for check 5.
        outcomes: Outcomes of `benchmark` for this network, data set and seed. Rows that the audit needs are taken from them;
            other Linf rows of this radius count for the worst case; a matrix of the paper's protocol is only used for checks 16
            and 17.
        selection: How the checkpoint was chosen, for check 19: "last epoch", "validation" or "test"; None if not stated.
        effort: How hard the audit tries, see `gkp.evaluation.audit.measure.Effort`.
        batch_size: Images in one pass.
        progress: Whether to show a bar on stderr; None for only on a terminal.

    Raises:
        BadInput: An argument is out of range, or does not fit the network or the data.
    """
    data = as_dataset(dataset)
    eps = _checked_eps(eps)
    _check_facts(reference_accuracy, selection)
    if n_examples is None:
        n_examples = outcomes.n if outcomes is not None else min(DEFAULT_IMAGES, len(data))
    if outcomes is not None:
        _check_outcomes(outcomes, model, data, n_examples, seed)
    evidence = gather(
        model, data, n_examples=n_examples, eps=eps, seed=seed, effort=effort, parent=parent, outcomes=outcomes,
        reference_accuracy=reference_accuracy, selection=selection, self_test=self_test(), batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    evidence = replace(evidence, reevaluated=reevaluate(evidence.to_json(), model, data, parent=parent))
    return judge(evidence)


def judge(evidence: Evidence) -> Card:
    """Run all checks on the evidence and put them on a card."""
    table, tests = tuple(accuracies(evidence)), tuple(paired_tests(evidence))
    return Card(run_checks(evidence), evidence.to_json(), table, tests, evidence.reported)


def _checked_eps(eps: float | str) -> float:
    radius = parse_eps(eps)
    if not 0 < radius < TOP_EPS:
        raise BadInput(f'eps {eps!r} cannot be audited; give a radius above 0 and below {TOP_EPS:g}, e.g. "8/255"')
    return radius


def _check_facts(reference_accuracy: float | None, selection: str | None) -> None:
    if reference_accuracy is not None and not 0 <= reference_accuracy <= 1:
        raise BadInput(f"reference_accuracy is {reference_accuracy!r}; give a fraction, 0.917 for 91.7 %")
    if selection is not None and selection not in SELECTIONS:
        raise BadInput(f"selection is {selection!r}; how was the checkpoint chosen: {', '.join(SELECTIONS)}?")


def _check_outcomes(outcomes: Outcomes, model: nn.Module, data: Dataset, n_examples: int, seed: int) -> None:
    """Raise BadInput unless these are outcomes of this network on the first images of these data, with this seed."""
    for what, theirs, ours in (
        ("another network", outcomes.model_sha256, state_sha256(model)),
        ("other images", outcomes.data_sha256, data.sha256),
    ):
        if theirs != ours:
            raise BadInput(f"the outcomes are of {what} (sha256 {theirs[:8]}, here {ours[:8]}); leave them out")
    if outcomes.seed != seed:
        raise BadInput(f"the outcomes were made with seed {outcomes.seed}, not {seed}; give seed={outcomes.seed}")
    if outcomes.n < n_examples or not np.array_equal(outcomes.indices[:n_examples], data.leading(n_examples)):
        raise BadInput(f"the outcomes are not of the images of benchmark(n_examples={n_examples}); leave them out")
