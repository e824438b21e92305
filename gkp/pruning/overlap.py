"""The overlap of two grouped kernel plans of one network: do two selections decide differently at all?"""

from __future__ import annotations

from dataclasses import dataclass

from gkp.errors import BadInput
from gkp.pruning.grouped import GroupedSpec
from gkp.pruning.plan import Plan


@dataclass(frozen=True)
class Overlap:
    """The overlap of two plans.

    Attributes:
        filters: Number of filters of all pruned layers.
        differing: Number of filters for which the two plans keep different kernels.
        share: Share of the kernels kept by the first plan that the second keeps too; plans drawn at random share 1 - rate.
    """

    filters: int
    differing: int
    share: float


def overlap(one: Plan, other: Plan) -> Overlap:
    """Compare two grouped kernel plans filter by filter, however each of them groups the filters.

    Raises:
        BadInput: They do not prune the same layers, or not all of them by grouped kernels.
    """
    if not one or set(one) != set(other):
        raise BadInput("two plans of the same layers are needed, with one layer at least")
    filters = differing = kept = both = 0
    for name, first in one.items():
        second = other[name]
        if not (isinstance(first, GroupedSpec) and isinstance(second, GroupedSpec)):
            raise BadInput(f"{name} is not pruned by grouped kernels in both plans")
        if len(first.group_of_filter) != len(second.group_of_filter):
            raise BadInput(
                f"{name} has {len(first.group_of_filter)} filters in one plan, {len(second.group_of_filter)} in the other"
            )
        channels = 1 + max(int(first.kept.max()), int(second.kept.max()))
        a, b = first.mask(channels).flatten(1), second.mask(channels).flatten(1)
        filters += len(a)
        differing += int((a != b).any(dim=1).sum())
        kept += int(a.sum())
        both += int((a & b).sum())
    return Overlap(filters, differing, both / kept)
