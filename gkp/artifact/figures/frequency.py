"""Figure 2: an image, its frequencies below and above the cuts of Table 1, and the predictions of networks for them.

Cost: 7 images through each network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from torch import nn

from gkp.artifact.figures.figure import PALETTE, Figure, not_run, panels, saying
from gkp.artifact.results import paper_name, test_images, without_images
from gkp.data.dataset import Dataset
from gkp.data.shifts import DEFAULT, THETAS, high_frequency, low_frequency
from gkp.errors import BadInput
from gkp.evaluation.benchmark import predict

CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
RIGHT, WRONG = PALETTE[2], PALETTE[3]


def reconstructions(
    data: Dataset | str,
    position: int,
    networks: Mapping[str, nn.Module],
    *,
    thetas: Sequence[float] = THETAS,
    convention: str = DEFAULT,
) -> Figure:
    """Figure 2: an image, its low- and high-frequency versions, and the predictions of networks for all of them.

    Args:
        data: The test set, or its name; where it would have to be downloaded, or there is no network, the figure is a line of
            text.
        position: The position of the image in it.
        networks: Name -> network that takes the images of `data`.
        thetas: The cuts.
        convention: The meaning of a cut, see `gkp.data.shifts`.

    Returns:
        A figure whose points have a row for each version and network: the predicted class, its probability, and whether it is
        right.

    Raises:
        BadInput: There is no image at this position, no network, or `gkp.data.shifts` refuses a theta or the convention.
    """
    if isinstance(data, str) and not networks:
        return not_run("Figure 2")
    if not networks or not thetas:
        raise BadInput("reconstructions needs at least one network and one theta")
    if isinstance(data, str):
        if (found := test_images(data)) is None:
            return saying(without_images("Figure 2", data))
        data = found
    one = data.subset([position])
    versions: dict[tuple[str, float | None], Dataset] = {("image", None): one}
    for part, change in (("low", low_frequency), ("high", high_frequency)):
        versions |= {(part, theta): change(one, theta, convention=convention) for theta in thetas}
    points = _predictions(versions, networks, int(one.labels[0]), CLASSES.get(data.name))
    drawing, axes = panels(2, 1 + len(thetas), 2.6 * (1 + len(thetas)), 5.2 + 0.36 * len(networks))
    places = dict(zip(versions, [0, *range(1, 1 + len(thetas)), *range(2 + len(thetas), 2 + 2 * len(thetas))], strict=True))
    for ax in axes:
        ax.axis("off")
    for (part, theta), version in versions.items():
        ax = axes[places[part, theta]]
        ax.imshow(version.images[0].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
        side = "below" if part == "low" else "above"
        ax.set_title("The image" if theta is None else f"{part.capitalize()} frequencies, {side} {theta:g}", fontsize=10)
        _caption(ax, points[(points["part"] == part) & (True if theta is None else points["theta"] == theta)])
    truth = points["true class"].iloc[0]
    drawing.suptitle(f"Figure 2 · {data.name} {data.split} image {position}, {truth}; convention of the cut: {convention}")
    return Figure(drawing, points)


def _predictions(
    versions: Mapping[tuple[str, float | None], Dataset],
    networks: Mapping[str, nn.Module],
    label: int,
    classes: Sequence[str] | None,
) -> pd.DataFrame:
    rows = []
    for (part, theta), version in versions.items():
        for name, net in networks.items():
            probability, found = predict(net, version).softmax(dim=1)[0].max(dim=0)
            named = [classes[k] if classes else f"class {k}" for k in (label, int(found))]
            fields = {
                "true class": named[0],
                "predicted": named[1],
                "probability": float(probability),
                "right": int(found) == label,
            }
            rows.append({"part": part, "theta": theta, "network": name, **fields})
    return pd.DataFrame(rows).astype({"theta": float})


def _caption(ax: Axes, rows: pd.DataFrame) -> None:
    """The predictions below an image, a line for each network, with marks as well as colours."""
    for line, row in enumerate(rows.itertuples()):
        text = f"{paper_name(row.network)}: {row.predicted} {row.probability:.0%} {'✓' if row.right else '✗'}"
        colour = RIGHT if row.right else WRONG
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "top"}
        ax.annotate(text, (0.5, 0), (0, -4 - 13 * line), fontsize=9, color=colour, **place)
