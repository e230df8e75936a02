"""Conservation: what flows into a unit flows out of it (Tanaka et al. 2020, Theorem 1 and Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synflow_pl.figures.style import MUTED, axes, blank, legend, shades, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["unit_scores"]

# More entries than this cover the dots.
_MOST_ENTRIES = 20


def unit_scores(units: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """One dot per unit on logarithmic axes, with the diagonal on which it lies if its scores are conserved.

    Args:
        units: by layer, input first: the sums of the scores of the weights into each of its units, and out of each. A unit with a sum
            that is not positive has no place on these axes and is left out.
    """
    figure = blank(width=5.4, height=4.4)
    drawn = axes(figure, "sum of scores into the unit", "sum of scores out of the unit", log="xy")
    ends: list[float] = []
    for (name, (into, out)), shade in zip(units.items(), shades(len(units)), strict=True):
        dots = [(a, b) for a, b in zip(into, out, strict=True) if a > 0 and b > 0]
        if dots:
            drawn.plot(*zip(*dots, strict=True), linestyle="", marker="o", markersize=3.5, color=shade, alpha=0.7, label=short(name))
            ends += [value for dot in dots for value in dot]
    if ends:
        drawn.axline((min(ends), min(ends)), (2 * max(ends), 2 * max(ends)), color=MUTED, linestyle="--", linewidth=1, zorder=1)
    drawn.set_aspect("equal", adjustable="datalim")
    if 0 < len(units) <= _MOST_ENTRIES:
        legend(drawn, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
