"""Accuracy against how much of a network is left: Figures 1 and 6 of Tanaka et al. 2020, and 5a,
where the curves are of one pruner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synflow_pl.figures.style import MUTED, axes, blank, curve, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Curve", "accuracy_against"]


@dataclass(frozen=True)
class Curve:
    """Points of one line: where they stand, positive; the mean accuracy there, in [0, 1]; and its
    deviation, 0 where it is not known.

    Curves of the same ``style`` look alike; one that was ``published`` by others is drawn thin and
    dotted.
    """

    name: str
    style: int
    x: Sequence[float]
    mean: Sequence[float]
    deviation: Sequence[float]
    published: bool = False


def accuracy_against(
    what: str,
    curves: Sequence[Curve],
    dense: tuple[float, float] | None = None,
    *,
    title: str = "",
    falling: bool = False,
) -> Figure:
    """One line with a band of a deviation up and down for each curve, over a logarithmic axis.

    Args:
        what: is on that axis.
        curves: to draw.
        dense: mean accuracy of the dense network, in [0, 1], and its deviation: a line across.
        title: of the picture.
        falling: the axis runs from large to small, so that networks get sparser to the right
            whatever is measured.
    """
    figure = blank(height=3.6)
    drawn = axes(figure, what, "test accuracy, %", log="x")
    if dense is not None:
        mean, deviation = dense
        drawn.axhline(100 * mean, color=MUTED, linestyle="--", linewidth=1.2, label="dense")
        drawn.axhspan(
            100 * (mean - deviation), 100 * (mean + deviation), color=MUTED, alpha=0.2, linewidth=0
        )
    for one in curves:
        points = sorted(zip(one.x, one.mean, one.deviation, strict=True))
        x, mean_, deviation_ = zip(*points, strict=True)
        look = curve(one.style)
        if one.published:
            look |= {
                "linewidth": 0.8,
                "linestyle": ":",
                "markersize": 2.5,
                "markerfacecolor": "white",
            }
        drawn.plot(x, [100 * y for y in mean_], label=one.name, **look)
        # No accuracy is below nothing or above everything, whatever the deviation of a few seeds
        # is.
        low = [100 * max(y - d, 0) for y, d in zip(mean_, deviation_, strict=True)]
        high = [100 * min(y + d, 1) for y, d in zip(mean_, deviation_, strict=True)]
        drawn.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
    if falling:
        drawn.invert_xaxis()
    if title:
        drawn.set_title(title, fontsize=9, loc="left")
    legend(drawn, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
