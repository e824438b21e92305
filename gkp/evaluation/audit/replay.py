"""Evaluates some images again from a card's JSON alone (check 22), with the network and the images.

Cost: for each attack up to four images that fell and, unless it is a query attack, four that did not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from gkp.data.dataset import Dataset
from gkp.data.sources import load_dataset
from gkp.errors import BadInput
from gkp.evaluation.audit.evidence import of_text
from gkp.evaluation.audit.measure import Scaled
from gkp.evaluation.audit.probing import Subject
from gkp.evaluation.outcomes import AttackSpec
from gkp.evaluation.subject import state_sha256


def reevaluate(
    facts: Mapping[str, Any],
    model: nn.Module,
    dataset: Dataset | None = None,
    *,
    parent: nn.Module | None = None,
    images: int = 4,
) -> dict[str, tuple[int, int]]:
    """Attack -> (images with the recorded outcome, images tried), for every attack in `facts`.

    facts: what `Card.to_json` or `json.load` of a card.json gives. dataset: the split it was made on; by default loaded by the
    name in `facts`. parent: for the transferred images, which are left out without it, as are attacks whose outcome depends on
    the batch (AutoAttack). images: of each outcome, so many at most.
    Raises BadInput for another network or data set than the card's, and for facts that lack something.
    """
    try:
        threat, clean = facts["threat_model"], of_text(facts["clean"])
        data = load_dataset(threat["dataset"], threat["split"]) if dataset is None else dataset
        for what, here in (("data", data.sha256), ("model", state_sha256(model))):
            wanted = threat[f"{what}_sha256"]
            if here != wanted:
                raise BadInput(f"the card is of other {what} (sha256 {wanted[:8]}, here {here[:8]}); give what it is of")
        subject = Subject(model, data, data.first(threat["n"]), threat["seed"], batch_size=200, progress=False)
        again = {}
        for name, row in facts["attacks"].items():
            spec, right = AttackSpec(**row["spec"]), of_text(row["right"])
            chosen = np.flatnonzero(clean & ~right)[:images]
            if "queries" not in spec.options:  # a survivor takes every one of them
                chosen = np.union1d(chosen, np.flatnonzero(clean & right)[:images])
            if spec.together or (row["source"] == "parent" and parent is None):
                continue
            if parent is not None and row["source"] == "parent":
                found = subject.transferred(parent, spec, chosen)
            elif len(chosen):
                attacked = Scaled(model, facts["logit_scale"]) if row["source"] == "scaled logits" else model
                found = subject.outcomes([spec], model=attacked, positions=chosen).right[1]
            else:
                found = right[chosen]
            again[name] = int((found == right[chosen]).sum()), len(chosen)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"not the JSON of an audit's card ({type(error).__name__}: {error}); audit the network again") from error
    return again
