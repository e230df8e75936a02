"""Figure of the weights kept per layer over the rounds of one pruning, in the style of Figure 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synflow_pl.figures.style import WIDTH, axes, blank, legend, shades, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["layers_over_rounds", "lines"]

_LEGEND_ROWS = 26
_DASHES = ("-", "--", ":")


def layers_over_rounds(compression: Sequence[float], kept: Mapping[str, Sequence[int]]) -> Figure:
    """Draw the weights kept per layer after each round, on logarithmic axes, darkest at the input.

    A line that ends early is a layer collapse: the cross marks the last round in which the layer
    kept a weight.

    Args:
        compression: Compression of the whole network after each round: weights over weights kept,
            at least 1.
        kept: Number of weights of each layer after each round, by name, input first.
    """
    columns = -(-len(kept) // _LEGEND_ROWS)
    small = 8 if columns == 1 else 6
    figure = blank(width=WIDTH + 1.3 * (columns - 1), height=4.4)
    drawn = axes(
        figure, "compression: weights / weights kept", "weights left in the layer", log="xy"
    )
    lines(drawn, compression, kept)
    legend(
        drawn,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        ncols=columns,
        fontsize=small,
        columnspacing=1.0,
        labelspacing=0.35,
    )
    return figure


def lines(drawn: Axes, compression: Sequence[float], kept: Mapping[str, Sequence[int]]) -> None:
    """Draw the lines and crosses of :func:`layers_over_rounds` on existing logarithmic axes.

    Args:
        drawn: Axes to draw on.
        compression: Compression of the whole network after each round, at least 1.
        kept: Number of weights of each layer after each round, by name, input first.
    """
    for index, ((name, counts), shade) in enumerate(
        zip(kept.items(), shades(len(kept)), strict=True)
    ):
        left = [(at, count) for at, count in zip(compression, counts, strict=True) if count > 0]
        dashes = _DASHES[index % len(_DASHES)]
        drawn.plot(
            *zip(*left, strict=True),
            color=shade,
            linestyle=dashes,
            linewidth=1.4,
            label=short(name),
        )
        if 0 < len(left) < len(counts):
            drawn.plot(*left[-1], color=shade, marker="x", markersize=6, linestyle="")
