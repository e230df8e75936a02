"""Figure of squared weights against layer size in training (Figure 5b of Tanaka et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synflow_pl.figures.style import FIRST, MUTED, SECOND, axes, blank, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["magnitude_growth"]


def magnitude_growth(sizes: Sequence[int], averages: Mapping[int, Sequence[float]]) -> Figure:
    """Draw the average squared weight of each layer against its size, before and after training.

    A line connects the values of a layer in between. Layers with equal totals lie on the dashed
    line.

    Args:
        sizes: Number of weights of each layer.
        averages: Average squared weight of each layer, by the number of epochs trained.
    """
    figure = blank(width=4.5, height=3.4)
    drawn = axes(figure, "1 / weights in the layer", "average squared weight", log="xy")
    inverse = [1 / size for size in sizes]
    before, after = min(averages), max(averages)
    for layer, x in enumerate(inverse):
        drawn.plot(
            [x] * len(averages),
            [averages[epoch][layer] for epoch in sorted(averages)],
            color=MUTED,
            linewidth=1,
            zorder=1,
        )
    drawn.plot(
        inverse,
        averages[before],
        "o",
        color=FIRST,
        markerfacecolor="white",
        label="at initialisation",
    )
    drawn.plot(
        inverse,
        averages[after],
        "s",
        color=SECOND,
        markeredgecolor="black",
        markeredgewidth=0.6,
        label=f"after epoch {after}",
    )
    mean = sum(score * size for score, size in zip(averages[after], sizes, strict=True)) / len(
        sizes
    )
    ends = [min(inverse), max(inverse)]
    drawn.plot(
        ends,
        [mean * x for x in ends],
        color="black",
        linestyle="--",
        linewidth=1,
        zorder=1,
        label="the same total in each layer",
    )
    legend(drawn)
    return figure
