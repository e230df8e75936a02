"""Figure of conservation at every hidden unit by pruner (Figure 3 of Tanaka et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synflow_pl.figures.style import MUTED, WIDTH, axes, blank, grid, shades, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["unit_conservation"]


def unit_conservation(
    pruners: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]],
) -> Figure:
    """Draw outgoing against incoming scores of each unit, on logarithmic axes, a panel per pruner.

    Conserved scores lie on the diagonal.

    Args:
        pruners: By the pruner's name, for each layer, input first: the sums of the scores into each
            unit and out of each unit. The magnitude of negative sums is drawn; a dot is hollow if
            the signs of the two sums differ, and left out if a sum is zero.
    """
    rows, columns = grid(len(pruners))
    figure = blank(width=WIDTH * columns / 3, height=2.3 * rows)
    for number, (name, layers) in enumerate(pruners.items(), start=1):
        drawn = axes(
            figure,
            "|sum| into the unit",
            "|sum| out of the unit",
            log="xy",
            place=(rows, columns, number),
        )
        title(drawn, name)
        ends: list[float] = []
        for (into, out), shade in zip(layers, shades(len(layers)), strict=True):
            for alike in (True, False):
                dots = [
                    (abs(a), abs(b))
                    for a, b in zip(into, out, strict=True)
                    if a * b != 0 and (a * b > 0) == alike
                ]
                if dots:
                    drawn.plot(
                        *zip(*dots, strict=True),
                        linestyle="",
                        marker="o",
                        markersize=2.4,
                        rasterized=True,
                        color=shade,
                        markerfacecolor=shade if alike else "none",
                        markeredgewidth=0.4,
                    )
                    ends += [value for dot in dots for value in dot]
        if ends:
            drawn.axline(
                (min(ends), min(ends)),
                (2 * max(ends), 2 * max(ends)),
                color="black",
                linestyle="--",
                linewidth=1,
            )
            # Whole decades, so that major ticks suffice and minor labels cannot overlap.
            limits = (
                10 ** math.floor(math.log10(min(ends) * 0.9)),
                10 ** math.ceil(math.log10(max(ends) * 1.1)),
            )
            for axis, limit in ((drawn.xaxis, drawn.set_xlim), (drawn.yaxis, drawn.set_ylim)):
                limit(limits)
                axis.set_minor_formatter(lambda value, position: "")
        drawn.set_aspect("equal")
    figure.supxlabel(
        "sums of scores; dashed: conserved; dark: near the input, light: near the output",
        fontsize=8,
        color=MUTED,
    )
    return figure
