"""Figure of the densities of layers under several pruners at the same number of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synflow_pl.figures.style import WIDTH, axes, blank, curve, legend, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["density_by_pruner"]


def density_by_pruner(names: Sequence[str], densities: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the density of each layer, on a logarithmic axis, with one line per pruner.

    A layer without kept weights interrupts the line and is marked by a cross at the bottom.

    Args:
        names: Names of the layers' weights, input first.
        densities: Density of each layer, in [0, 1], by the pruner's name.
    """
    figure = blank(width=max(WIDTH, 1.5 + 0.2 * len(names)), height=4.2)
    drawn = axes(figure, "layer, input first", "density: fraction of the layer's weights", log="y")
    foot = min((d for row in densities.values() for d in row if d > 0), default=1.0) / 3
    for index, (pruner, row) in enumerate(densities.items()):
        style = curve(index)
        drawn.plot(
            range(len(row)), [d if d > 0 else float("nan") for d in row], label=pruner, **style
        )
        emptied = [place for place, d in enumerate(row) if d == 0]
        drawn.plot(
            emptied,
            [foot] * len(emptied),
            linestyle="",
            marker="x",
            markersize=6,
            color=style["color"],
        )
    drawn.set_ylim(foot / 1.3, 1.5)
    drawn.set_xticks(range(len(names)), [short(name) for name in names], rotation=90)
    legend(drawn, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(densities), 5))
    return figure
