"""The scratch row: is it the weights that a method keeps, or only the shape (Liu et al. 2019, Rethinking)?"""

from __future__ import annotations

import copy

import torch
from torch import nn

from gkp.errors import BadInput
from gkp.models import Classifier, build_model
from gkp.plans import PrunedModel


def scratch(pruned: PrunedModel, *, seed: int = 0) -> PrunedModel:
    """A twin of the same shape, by the same plan, with newly initialised weights drawn from `seed`; `pruned` is left as it was.

    Raises BadInput for another network than one of ours if the plan restructures layers: its dense shape is then not known.
    """
    if isinstance(pruned.net, Classifier):
        architecture = pruned.net.architecture
        fields = {name: value for name, value in architecture.to_json().items() if name != "name"}
        fields |= {"mean": tuple(fields["mean"]), "std": tuple(fields["std"])}
        net: nn.Module = build_model(architecture.name, seed=seed, **fields)
    elif any(spec.restructures for spec in pruned.plan.values()) and not _dense(pruned):
        raise BadInput(f"the dense shape of this {type(pruned.net).__name__} is not known; initialise and prune it again")
    else:
        net = copy.deepcopy(pruned.net)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in net.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
    net.to(next(pruned.parameters()).device).train(pruned.training)
    return PrunedModel(net, pruned.plan, pruned.left_out)


def _dense(pruned: PrunedModel) -> bool:
    """Whether every pruned layer of the twin is still the convolution it was."""
    return all(isinstance(pruned.net.get_submodule(name), nn.Conv2d) for name in pruned.plan)
