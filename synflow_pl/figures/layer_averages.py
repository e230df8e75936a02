"""The average score of a layer against its size, pruner beside pruner: Figure 4 of Tanaka et al.
2020.
"""

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
    """One panel for each pruner, one dot for each layer, on logarithmic axes; where all layers have
    the same total score, they lie on the dashed line.

    Args:
        sizes: by pruner, how many weights each layer has.
        averages: by pruner, the average score of each layer's weights. Of a negative one the
            magnitude is drawn; zero is left out.
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
        mean = sum(score / x for x, score in dots) / len(dots)  # of the layers' totals
        ends = [min(x for x, _ in dots), max(x for x, _ in dots)]
        drawn.plot(
            ends, [mean * x for x in ends], color="black", linestyle="--", linewidth=1, zorder=1
        )
    return figure
