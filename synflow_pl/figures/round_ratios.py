"""Figure of prune size over cut size against rounds (Figure 7 of Tanaka et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from synflow_pl.figures.style import axes, blank, grid, legend, marker, shades, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["round_ratios"]


def round_ratios(panels: Mapping[str, Mapping[float, Mapping[int, float]]]) -> Figure:
    """Draw the largest ratio of prune size to cut size against rounds, a panel per schedule.

    There is one line for each compression, lightest for the highest. Below the dashed line no round
    can empty a layer.

    Args:
        panels: Largest ratio by title of the panel, by exponent x of the compression 10^x, and by
            number of rounds.
    """
    rows, columns = grid(len(panels))
    figure = blank(height=3.1 * rows)
    ratios = [
        1.0,
        *(ratio for lines in panels.values() for line in lines.values() for ratio in line.values()),
    ]
    for number, (name, lines) in enumerate(panels.items(), start=1):
        drawn = axes(
            figure,
            "rounds",
            "largest prune size / cut size",
            log="y",
            place=(rows, columns, number),
        )
        title(drawn, name)
        for index, (exponent, shade) in enumerate(
            zip(sorted(lines), shades(len(lines)), strict=True)
        ):
            line = sorted(lines[exponent].items())
            label = f"compression $10^{{{exponent:g}}}$"
            drawn.plot(
                *zip(*line, strict=True),
                color=shade,
                marker=marker(index),
                markersize=4,
                linewidth=1.4,
                label=label,
            )
        drawn.axhline(1, color="black", linestyle="--", linewidth=1)
        drawn.set_ylim(min(ratios) / 1.4, max(ratios) * 1.4)
        drawn.yaxis.set_major_formatter("{x:g}")
    legend(figure.axes[0])
    return figure
