"""Figure of accuracy against density or compression (Figures 1, 5a and 6 of Tanaka et al. 2020)."""

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
    """One curve of a figure.

    Attributes:
        name: Name in the legend.
        style: Index of the line style; curves with the same index look alike.
        x: Positions on the horizontal axis, positive.
        mean: Mean accuracy at each position, in [0, 1].
        deviation: Standard deviation of the accuracy at each position; 0 if unknown.
        published: Whether the curve is a published one, which is drawn thin and dotted.
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
    """Draw accuracies over a logarithmic axis: a line and a band of one deviation per curve.

    Args:
        what: Label of the horizontal axis.
        curves: Curves to draw.
        dense: Mean accuracy of the dense network and its standard deviation, in [0, 1], drawn as a
            horizontal line.
        title: Title of the figure.
        falling: Whether the horizontal axis runs from large to small values, so that networks get
            sparser to the right.
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
        # The band is clipped to [0, 1], which the deviation of a few seeds can exceed.
        low = [100 * max(y - d, 0) for y, d in zip(mean_, deviation_, strict=True)]
        high = [100 * min(y + d, 1) for y, d in zip(mean_, deviation_, strict=True)]
        drawn.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
    if falling:
        drawn.invert_xaxis()
    if title:
        drawn.set_title(title, fontsize=9, loc="left")
    legend(drawn, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
