"""Figure of the average score of a layer against its size (Figure 4 of Tanaka et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synflow_pl.figures.style import FIRST, WIDTH, axes, blank, grid, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["layer_averages"]


def layer_averages(
    sizes: Mapping[str, Sequence[int]], averages: Mapping[str, Sequence[float]]
) -> Figure:
    """Draw the average score of each layer against its size, with logarithmic axes, by pruner.

    Layers with equal total scores lie on the dashed line.

    Args:
        sizes: Number of weights of each layer, by pruner.
        averages: Average score of each layer's weights, by pruner. The magnitude of negative
            averages is drawn; zeros are left out.
    """
    rows, columns = grid(len(averages))
    figure = blank(width=WIDTH * columns / 3, height=2.3 * rows)
    for number, (name, scores) in enumerate(averages.items(), start=1):
        drawn = axes(
            figure,
            "1 / weights in the layer",
            "|average score|",
            log="xy",
            place=(rows, columns, number),
        )
        title(drawn, name)
        dots = [
            (1 / size, abs(score))
            for size, score in zip(sizes[name], scores, strict=True)
            if score != 0
        ]
        if not dots:
            continue
        drawn.plot(
            *zip(*dots, strict=True),
            linestyle="",
            marker="o",
            markersize=4.5,
            color=FIRST,
            alpha=0.8,
        )
        mean = sum(score / x for x, score in dots) / len(dots)  # mean of the layers' totals
        ends = [min(x for x, _ in dots), max(x for x, _ in dots)]
        drawn.plot(
            ends, [mean * x for x in ends], color="black", linestyle="--", linewidth=1, zorder=1
        )
    return figure
