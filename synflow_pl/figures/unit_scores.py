"""Figure of conservation at the units of one network (Figure 3 of Tanaka et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synflow_pl.figures.style import MUTED, axes, blank, legend, shades, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["unit_scores"]

# Largest number of entries of the legend; more would cover the dots.
_MOST_ENTRIES = 20


def unit_scores(units: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw outgoing against incoming scores of each unit, on logarithmic axes.

    Conserved scores lie on the diagonal.

    Args:
        units: For each layer, by name and input first: the sums of the scores into each of its
            units and out of each unit. The magnitude of negative sums is drawn; a dot is hollow if
            the signs of the two sums differ, and left out if a sum is zero.
    """
    figure = blank(width=5.4, height=4.4)
    drawn = axes(
        figure, "|sum of scores into the unit|", "|sum of scores out of the unit|", log="xy"
    )
    ends: list[float] = []
    for (name, sums), shade in zip(units.items(), shades(len(units)), strict=True):
        label: str | None = short(name)
        for alike in (True, False):
            dots = [
                (abs(into), abs(out))
                for into, out in zip(*sums, strict=True)
                if into * out != 0 and (into * out > 0) == alike
            ]
            if dots:
                face = shade if alike else "none"
                marks: dict[str, Any] = {
                    "marker": "o",
                    "markersize": 3.5,
                    "alpha": 0.7,
                    "markerfacecolor": face,
                    "markeredgecolor": shade,
                }
                drawn.plot(*zip(*dots, strict=True), linestyle="", label=label, **marks)
                label = None
                ends += [value for dot in dots for value in dot]
    if ends:
        drawn.axline(
            (min(ends), min(ends)),
            (2 * max(ends), 2 * max(ends)),
            color=MUTED,
            linestyle="--",
            linewidth=1,
            zorder=1,
        )
        if len(units) <= _MOST_ENTRIES:
            legend(drawn, loc="center left", bbox_to_anchor=(1, 0.5))
    drawn.set_aspect("equal", adjustable="datalim")
    return figure
