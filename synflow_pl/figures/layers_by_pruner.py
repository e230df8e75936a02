"""Figure of the weights kept per layer against compression (Figure 2 of Tanaka et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synflow_pl.figures.layers_over_rounds import lines
from synflow_pl.figures.style import MUTED, WIDTH, axes, blank, grid, short, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["layers_by_pruner"]

_LEGEND_ROWS = 26


def layers_by_pruner(
    prunings: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[int]]]],
) -> Figure:
    """Draw the weights kept per layer against compression, a panel per pruner on common axes.

    Layers are darkest at the input. A line that ends in a cross is a layer without weights at the
    next compression.

    Args:
        prunings: By pruner, the increasing compressions of the whole network, each at least 1, and
            for each layer, by name and input first, the number of weights kept at each compression.
    """
    rows, columns = grid(len(prunings))
    figure = blank(width=(WIDTH - 1.2) * columns / 3 + 1.2, height=max(2.3 * rows, 4.0))
    panels = []
    for number, (name, (compression, kept)) in enumerate(prunings.items(), start=1):
        drawn = axes(figure, "", "", log="xy", place=(rows, columns, number))
        title(drawn, name)
        lines(drawn, compression, kept)
        panels.append(drawn)
    for drawn in panels[1:]:
        drawn.sharex(panels[0])
        drawn.sharey(panels[0])
    panels[0].autoscale()
    figure.supxlabel(
        "compression: weights / weights kept; a cross: nothing is left of the layer after it",
        fontsize=8,
        color=MUTED,
    )
    figure.supylabel("weights left in the layer", fontsize=8, color=MUTED)
    handles = [line for line in panels[0].lines if not str(line.get_label()).startswith("_")]
    if len(handles) > _LEGEND_ROWS:  # too many to read; the first and the last explain the shades
        handles = [handles[0], handles[-1]]
    labels = [short(str(line.get_label())) for line in handles]
    figure.legend(
        handles,
        labels,
        loc="outside right center",
        fontsize=7,
        frameon=False,
        handlelength=2.0,
        labelspacing=0.3,
    )
    return figure
