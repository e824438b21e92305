"""Figures 1, 3 and 4: how grouped kernel pruning selects kernels, drawn from a layer of a trained network."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from torch import Tensor, nn

from gkp.artifact.figures.figure import PALETTE, Figure, panels
from gkp.errors import BadInput
from gkp.pruning.grouped import GroupedSpec, kept_count
from gkp.pruning.plan import plan_of
from gkp.pruning.sr_gkp.grouping import default_grouping, grouped_kernels
from gkp.pruning.sr_gkp.selection import BeamStep, watch_beam
from gkp.pruning.sr_gkp.smoothness import grouped_roughness, smoothness

PRUNED_GREY = "#d9d9d9"


def granularities(net: nn.Module, layer: str, *, rate: float = 7 / 16) -> Figure:
    """Figure 1: the kernels removed from a layer when the unit is a filter, a channel, a kernel or a grouped kernel.

    Filters, channels and kernels are removed by smallest L2 norm. Each square is a kernel: row = filter, column = input
    channel, shade = L2 norm.

    Args:
        net: A masked twin or compact network; its plan gives the grouped kernels.
        layer: The name of a convolution pruned by grouped kernels.
        rate: The share removed by the three other units.

    Raises:
        BadInput: There is no such layer, or it was not pruned by grouped kernels.
    """
    weight = _weight(net, layer)
    spec = _spec(net, layer)
    norm = weight.double().flatten(2).norm(dim=2)  # (C_out, C_in)
    out_channels, in_channels = norm.shape
    kept = {
        "filter": _largest(norm.norm(dim=1), rate)[:, None].expand(-1, in_channels),
        "channel": _largest(norm.norm(dim=0), rate)[None, :].expand(out_channels, -1),
        "kernel": _largest(norm.flatten(), rate).view_as(norm),
        "grouped kernel": spec.mask(in_channels)[:, :, 0, 0],
    }
    order = spec.permutation
    drawing, axes = panels(1, 4, 13, 3.9)
    points = []
    for ax, (unit, stays) in zip(axes, kept.items(), strict=True):
        rows = order if unit == "grouped kernel" else torch.arange(out_channels)
        shown = torch.where(stays, norm, torch.nan)[rows].numpy()
        ax.imshow(np.zeros_like(shown), cmap=ListedColormap([PRUNED_GREY]), aspect="auto")
        ax.imshow(shown, cmap="viridis", aspect="auto", vmin=0, vmax=float(norm.max()))
        if unit == "grouped kernel":
            for border in range(out_channels // spec.groups, out_channels, out_channels // spec.groups):
                ax.axhline(border - 0.5, color="white", linewidth=1.5)
        ax.set(title=f"{unit.capitalize()}: {1 - stays.double().mean():.1%} removed", xlabel="input channel", ylabel="filter")
        ax.set_yticks(range(out_channels), [str(int(r)) for r in rows], fontsize=6 if out_channels <= 32 else 3)
        points.append(_kernel_points(unit, norm, stays))
    drawing.suptitle(
        f"Figure 1 · Granularities of structured pruning, {layer} (shade = L2 norm of a kernel, grey = removed; "
        "grouped kernels: filters by group)"
    )
    return Figure(drawing, pd.concat(points, ignore_index=True))


def snaking(net: nn.Module, layer: str, *, groups: int = 8) -> Figure:
    """Figure 3: the filters of a layer dealt to groups in an S by smoothness, and the total smoothness of the groups.

    Args:
        net: A network that is not pruned.
        layer: The name of a convolution.
        groups: The number of filter groups.

    Raises:
        BadInput: There is no such layer.
    """
    weight = _weight(net, layer)
    rough = smoothness(weight).sum(dim=1)
    labels = default_grouping(weight, groups)
    rank = torch.empty_like(labels)
    rank[torch.argsort(rough, stable=True)] = torch.arange(len(rough))
    points = pd.DataFrame({"filter": range(len(rough)), "smoothness": rough, "rank": rank, "group": labels})
    drawing, (left, right) = panels(1, 2, 11, 3.8)
    path = points.sort_values("rank")
    left.plot(path["group"], path["rank"] // groups, color="#999999", linewidth=1, zorder=1)
    dots = left.scatter(path["group"], path["rank"] // groups, c=path["smoothness"], cmap="viridis", s=330, zorder=2)
    middle = float(rough.min() + rough.max()) / 2
    for row in path.itertuples():
        ink = "white" if row.smoothness < middle else "black"
        left.text(row.group, row.rank // groups, str(row.filter), ha="center", va="center", color=ink, fontsize=8, zorder=3)
    left.set(xlabel="filter group", ylabel="row of the deal", xticks=range(groups), yticks=range(len(rough) // groups))
    left.margins(y=0.3)
    left.invert_yaxis()
    left.set_title("Filters in the order of the deal")
    drawing.colorbar(dots, ax=left, label="smoothness (lower = smoother)")
    totals = pd.DataFrame(
        {
            "group": [*range(groups)] * 2,
            "smoothness": [*points.groupby("group")["smoothness"].sum(), *rough.view(groups, -1).sum(dim=1).tolist()],
            "filters": ["dealt S-wise"] * groups + ["in original order"] * groups,
        }
    )
    sns.barplot(totals, x="group", y="smoothness", hue="filters", palette=PALETTE[:2], ax=right)
    right.set(xlabel="filter group", ylabel="total smoothness", title="How even the groups are")
    right.legend(title=None, frameon=False)
    drawing.suptitle(f"Figure 3 · Smoothness snaking, {layer}")
    return Figure(drawing, points)


def beam(net: nn.Module, layer: str, *, rate: float = 7 / 16, groups: int = 8, group: int = 0, start: int = 0) -> Figure:
    """Figure 4: the branches of Smooth Beam Greedy in one filter group of a layer, from one start.

    Args:
        net: A network that is not pruned.
        layer: The name of a convolution.
        rate: The share of grouped kernels to remove.
        groups: The number of filter groups.
        group: The group that is drawn.
        start: The input channel of the grouped kernel from which the search starts.

    Raises:
        BadInput: There is no such layer or start.
    """
    weight = _weight(net, layer)
    labels = default_grouping(weight, groups)
    kernels, rough = grouped_kernels(weight, labels)[group], grouped_roughness(weight, labels)[group]
    if not 0 <= start < weight.shape[1]:
        raise BadInput(f"start must be an input channel of {layer}, 0 to {weight.shape[1] - 1}, not {start}")
    steps = watch_beam(kernels, rough, kept_count(weight.shape[1], rate, layer), start=start)
    points = _beam_points(steps, start)
    drawing, (ax,) = panels(1, 1, 12, 5.2)
    where = points.set_index(["size", "branch"])["height"]
    winner = _winning_line(steps)
    for row in points[points["size"] > 1].itertuples():
        on_path = winner.get(row.size) == row.branch
        colour = PALETTE[3] if on_path else (PALETTE[0] if row.stays else "#bbbbbb")
        ends = [where[row.size - 1, row.parent], row.height]
        ax.plot([row.size - 1, row.size], ends, color=colour, linewidth=2 if on_path else 0.8, zorder=1)
    for row in points.itertuples():
        on_path = row.size == 1 or winner.get(row.size) == row.branch
        colour = PALETTE[3] if on_path else (PALETTE[0] if row.stays else "#bbbbbb")
        ax.scatter(row.size, row.height, s=150, color=colour, zorder=2)
        ax.text(row.size, row.height, str(row.added), color="white", ha="center", va="center", fontsize=7, zorder=3)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=c, label=t)
        for c, t in ((PALETTE[3], "the cheapest full set"), (PALETTE[0], "goes on"), ("#bbbbbb", "cut at a check (Eq 2)"))
    ]
    ax.legend(handles=handles, frameon=False, loc="upper left")
    ax.set(xlabel="grouped kernels in the branch", ylabel="branches", yticks=[], xticks=range(1, steps[-1].size + 1))
    ax.set_title(f"Figure 4 · Smooth beam greedy, {layer}, filter group {group}, from input channel {start}")
    sns.despine(ax=ax, left=True)
    return Figure(drawing, points)


def _weight(net: nn.Module, layer: str) -> Tensor:
    dense = getattr(net, "net", net)
    try:
        weight = dense.get_submodule(layer).weight
    except AttributeError as error:
        raise BadInput(f"{type(dense).__name__} has no layer {layer} with a weight") from error
    assert isinstance(weight, Tensor)
    return weight.detach().cpu()


def _spec(net: nn.Module, layer: str) -> GroupedSpec:
    spec = plan_of(net).get(layer)
    if not isinstance(spec, GroupedSpec):
        grouped = [name for name, other in plan_of(net).items() if isinstance(other, GroupedSpec)]
        raise BadInput(f"{layer} is not pruned by grouped kernels in this network; so are {', '.join(grouped) or 'no layers'}")
    return spec


def _largest(score: Tensor, rate: float) -> Tensor:
    keep = torch.zeros(len(score), dtype=torch.bool)
    keep[torch.argsort(score, descending=True, stable=True)[: round((1 - rate) * len(score))]] = True
    return keep


def _kernel_points(unit: str, norm: Tensor, stays: Tensor) -> pd.DataFrame:
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in norm.shape), indexing="ij")
    fields = {"filter": rows, "input channel": columns, "L2 norm": norm, "stays": stays}
    return pd.DataFrame({"granularity": unit} | {name: value.flatten().numpy() for name, value in fields.items()})


def _beam_points(steps: list[BeamStep], start: int) -> pd.DataFrame:
    """A row for each branch of each step; `branch` numbers the branches that go on, best first, then those that are cut."""
    rows = [
        {"size": 1, "branch": 0, "parent": -1, "added": start, "cost": 0.0, "roughness": np.nan, "stays": True, "height": 0.0}
    ]
    for step in steps:
        stay = step.stay.tolist()
        for position, (added, parent) in enumerate(zip(step.added, step.parent, strict=True)):
            number = stay.index(position) if position in stay else len(step.added) + position
            rows.append(
                {
                    "size": step.size,
                    "branch": number,
                    "parent": int(parent),
                    "added": int(added),
                    "cost": step.cost[position],
                    "roughness": step.roughness[position],
                    "stays": position in stay,
                    "height": position - (len(step.added) - 1) / 2,
                }
            )
    return pd.DataFrame(rows)


def _winning_line(steps: list[BeamStep]) -> dict[int, int]:
    """Size -> the branch that leads to the cheapest full set."""
    last = steps[-1]
    branch = int(np.argmin(last.cost[last.stay]))
    line = {}
    for step in reversed(steps):
        line[step.size] = branch
        branch = int(step.parent[step.stay[branch]])
    return line
