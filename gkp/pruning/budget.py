"""The common budget: every method prunes to the same multiply-accumulates, so that only the choice of what goes differs.

The budget is what grouped kernel pruning at a rate leaves of a network by the paper's counter (paper_macs in
`gkp.pruning.cost`): its tables match methods on those. A method's scheme, uniform or as published, is scaled by one factor,
found by bisection. Counting a plan needs shapes alone (`gkp.pruning.outline`): 8 ms for ResNet-20, 50 ms for ResNet-110.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import nn

from gkp.errors import BadInput
from gkp.networks.copies import copy_of, skeleton_of
from gkp.pruning.arguments import check_rate
from gkp.pruning.cost import Cost, cost, count, macs_of_layers
from gkp.pruning.coupling import Couplings
from gkp.pruning.outline import is_as_built
from gkp.pruning.plan import Plan
from gkp.pruning.probe import cheap_copy, find_input_shape

TOLERANCE = 0.01  # of the budget: "the same MACs within 1 %"
CLOSE = 0.001  # of the budget: close enough to stop
LARGEST = 1e4  # a factor at which every scheme keeps only what must stay
STEPS, FINEST = 30, 1e-3  # of the bisection, at most; share of a factor below which no plan changes


def grouped_kernel_macs(net: nn.Module, layers: Iterable[str], rate: float, *, input_shape: Sequence[int] | None = None) -> int:
    """The paper_macs of `net` after grouped kernel pruning.

    Args:
        net: The dense network.
        layers: Names of the pruned convolutions.
        rate: Share of kernels removed, any number in (0, 1), also one that leaves no whole kernel.
        input_shape: (C, H, W) of the images; None for a usual one.

    Raises:
        BadInput: Another rate.
    """
    check_rate(rate)
    shape = tuple(input_shape or find_input_shape(net))
    macs = macs_of_layers(net, input_shape=shape)
    return round(cost(net, input_shape=shape).paper_macs - rate * sum(macs.get(name, 0) for name in layers))


def match_macs(
    net: nn.Module,
    make_plan: Callable[[float], Plan],
    target: float,
    *,
    tolerance: float = TOLERANCE,
    published: bool = False,
    input_shape: Sequence[int] | None = None,
) -> Plan:
    """Find the plan whose paper_macs come closest to a target, by bisection of one factor.

    Args:
        net: The dense network.
        make_plan: From a factor of 0 or more to a plan; a larger factor removes more, 0 removes nothing.
        target: paper_macs, or, below 1, a fraction of the dense network's.
        tolerance: Allowed deviation, as a fraction of the target.
        published: Whether factor 1 is a scheme that was published for this network; it is then taken as it is if it meets the
            target within the tolerance.
        input_shape: (C, H, W) of the images; None for a usual one.

    Raises:
        BadInput: No factor comes that close: the method keeps too much, or its steps are too coarse.
    """
    counter = Counter(net, input_shape)
    dense, goal = dense_and_goal(net, target, counter)
    tried: list[tuple[int, Plan]] = []

    def macs_at(factor: float) -> int:
        plan = make_plan(factor)
        tried.append((counter(plan).paper_macs, plan))
        return tried[-1][0]

    low, high, most, least = 0.0, 1.0, dense, macs_at(1.0)
    if abs(least - goal) <= (tolerance if published else CLOSE) * goal:
        return tried[0][1]
    while least > goal and high < LARGEST:  # bracket the factor
        low, high, most, least = high, 2 * high, least, macs_at(2 * high)
    for step in range(STEPS):  # in turn the point where a straight line meets the goal, and the middle
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
    """Raise BadInput if a plan keeps more paper_macs than `target` plus `tolerance`: no method may win by pruning less.

    Args:
        cost_of_plan: Cost of the compact network.
        target: The budget in paper_macs.
        tolerance: Allowed excess, as a fraction of the target.
        who: Name for the message.
    """
    if cost_of_plan.paper_macs > (1 + tolerance) * target:
        over = cost_of_plan.paper_macs / target - 1
        raise BadInput(
            f"{who} keeps {cost_of_plan.paper_macs:,} paper MACs, {over:.1%} more than the budget of {target:,.0f}; "
            "every method prunes to the same budget: match it with gkp.pruning.budget.match_macs"
        )


class Counter:
    """Counts the cost of one network under many plans, from shapes alone."""

    def __init__(self, net: nn.Module, input_shape: Sequence[int] | None = None):
        self.input_shape = tuple(input_shape or find_input_shape(net))
        self._shapes = cheap_copy(net, self.input_shape)
        self._copy = skeleton_of if is_as_built(net) else copy_of
        self._couplings = Couplings(net, self.input_shape)

    def __call__(self, plan: Plan) -> Cost:
        """The cost of the compact network by `plan`. Raises BadInput if the two do not fit."""
        small = self._copy(self._shapes)
        plan.compact_in_place(small, self._couplings)
        return count(small, self.input_shape)


def dense_and_goal(net: nn.Module, target: float, counter: Counter) -> tuple[int, float]:
    """The paper_macs of the dense network, and `target` in the same unit. Raises BadInput if that prunes nothing."""
    dense = counter(Plan({})).paper_macs
    goal = target * dense if 0 < target < 1 else target
    if not 0 < goal < dense:
        raise BadInput(f"the budget must lie between 0 and the {dense:,} paper MACs of {type(net).__name__}, not {target:,}")
    return dense, goal
