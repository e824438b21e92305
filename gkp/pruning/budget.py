"""The common budget: every method prunes to the same multiply-accumulates, so that only the choice of what goes differs.

The budget is what grouped kernel pruning at a rate leaves of a network, by the paper's counter (`gkp.pruning.cost`,
paper_macs): its tables match methods on those. A method's scheme, uniform or as published, is scaled by one factor, found by
bisection. Counting runs on the meta device and costs 20 ms for ResNet-20, 90 ms for ResNet-110.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from gkp.errors import BadInput
from gkp.pruning.cost import Cost, cost, count, macs_of_layers
from gkp.pruning.coupling import Couplings, find_input_shape, shape_copy
from gkp.pruning.plan import Plan

TOLERANCE = 0.01  # of the budget: "the same MACs within 1 %"
CLOSE = 0.001  # of the budget: near enough to stop
LARGEST = 1e4  # a factor that leaves of every scheme only what must stay
STEPS, FINEST = 30, 1e-3  # at most; of a factor: finer than the steps of any plan


def grouped_kernel_macs(net: nn.Module, layers: Iterable[str], rate: float, *, input_shape: Sequence[int] | None = None) -> int:
    """The paper_macs of `net` after grouped kernel pruning of `layers` at `rate`, the share of kernels removed.

    Defined for any rate in (0, 1), also those that leave no whole kernel. Raises BadInput for another rate.
    """
    if not 0 < rate < 1:
        raise BadInput(f"rate must lie between 0 and 1, not {rate}; the paper uses 7/16 = 0.4375 and 10/16 = 0.625")
    shape = tuple(input_shape or find_input_shape(net))
    macs = macs_of_layers(net, input_shape=shape)
    return round(cost(net, input_shape=shape).paper_macs - rate * sum(macs[name] for name in layers))


def match_macs(
    net: nn.Module,
    make_plan: Callable[[float], Plan],
    target: float,
    *,
    tolerance: float = TOLERANCE,
    published: bool = False,
    input_shape: Sequence[int] | None = None,
) -> Plan:
    """The plan `make_plan(factor)` whose paper_macs come closest to `target`, found by bisection of the factor.

    make_plan: from a factor of 0 or more to a plan; a larger factor removes more, 0 nothing. target: paper_macs, or, below 1, a
    fraction of the dense network's. tolerance: a fraction of the target. published: whether factor 1 is a scheme that was
    published for this network; it is then taken as it is where it meets the target within the tolerance. Raises BadInput if no
    factor comes that close: then the method keeps too much, or its steps are too coarse.
    """
    counter = Counter(net, input_shape)
    dense, goal = _dense_and_goal(net, target, counter)
    tried: list[tuple[int, Plan]] = []

    def macs_at(factor: float) -> int:
        plan = make_plan(factor)
        tried.append((counter(plan).paper_macs, plan))
        return tried[-1][0]

    low, high, most, least = 0.0, 1.0, dense, macs_at(1.0)
    if abs(least - goal) <= (tolerance if published else CLOSE) * goal:
        return tried[0][1]
    while least > goal and high < LARGEST:  # how far the scheme must be scaled
        low, high, most, least = high, 2 * high, least, macs_at(2 * high)
    for step in range(STEPS):  # where a straight line meets the goal, and the middle, in turn
        line = (most - goal) / (most - least) if most > goal > least else 0.5
        middle = low + (high - low) * (line if step % 2 == 0 else 0.5)
        macs = macs_at(middle)
        low, high, most, least = (middle, high, macs, least) if macs > goal else (low, middle, most, macs)
        if abs(macs - goal) <= CLOSE * goal or high - low < FINEST * high:
            break
    macs, plan = min(tried, key=lambda entry: abs(entry[0] - goal))
    if abs(macs - goal) > tolerance * goal:
        raise BadInput(
            f"the nearest plan has {macs:,} paper MACs, {macs / goal - 1:+.1%} of the {goal:,} asked for; "
            f"ask for another budget or rate, or allow tolerance={abs(macs / goal - 1) + 0.001:.3f}"
        )
    return plan


def check_budget(cost_of_plan: Cost, target: float, *, tolerance: float = TOLERANCE, who: str = "the plan") -> None:
    """Raises BadInput if a plan that costs this keeps more paper_macs than `target`, by more than `tolerance` of it.

    What keeps a method honest that would win by pruning less than the others.
    """
    if cost_of_plan.paper_macs > (1 + tolerance) * target:
        over = cost_of_plan.paper_macs / target - 1
        raise BadInput(
            f"{who} keeps {cost_of_plan.paper_macs:,} paper MACs, {over:.1%} more than the budget of {target:,.0f}; "
            "every method prunes to the same budget: match it with gkp.pruning.budget.match_macs"
        )


class Counter:
    """Counts what plans leave of one network, from shapes alone: plan -> Cost."""

    def __init__(self, net: nn.Module, input_shape: Sequence[int] | None = None):
        self.input_shape = tuple(input_shape or find_input_shape(net))
        self._shapes = shape_copy(net)
        self._couplings = Couplings(net, self.input_shape)

    def __call__(self, plan: Plan) -> Cost:
        """The cost of the network once compact by `plan`. Raises BadInput where the two do not fit."""
        small = copy.deepcopy(self._shapes)
        plan.compact_in_place(small, self._couplings)
        return count(small, self.input_shape)


def _dense_and_goal(net: nn.Module, target: float, counter: Counter) -> tuple[int, float]:
    """The paper_macs of the dense network, and `target` in such. Raises BadInput for a target that prunes nothing."""
    dense = counter(Plan({})).paper_macs
    goal = target * dense if 0 < target < 1 else target
    if not 0 < goal < dense:
        raise BadInput(f"the budget must lie between 0 and the {dense:,} paper MACs of {type(net).__name__}, not {target:,}")
    return dense, goal
