"""Figure of the density and the effective density of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from synflow_pl.figures.style import FIRST, MUTED, SECOND, axes, blank, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["density_per_layer"]


def density_per_layer(
    names: Sequence[str],
    densities: Sequence[float],
    overall: float,
    effective: Sequence[float] | None = None,
) -> Figure:
    """Draw the density of each layer as a horizontal bar on a logarithmic axis, first layer on top.

    Args:
        names: Names of the layers' weights, input first.
        densities: Density of each layer, in [0, 1].
        overall: Density of the whole network, in (0, 1], drawn as a line.
        effective: Effective density of each layer, in [0, 1], drawn as a second bar: the fraction
            of weights on a path of kept weights from input to output.
    """
    figure = blank(height=1.2 + (0.22 if effective is None else 0.3) * len(names))
    drawn = axes(figure, "density: fraction of the layer's weights", "", log="x")
    floor = min(density for density in [overall, *densities, *(effective or ())] if density > 0) / 3
    series = [("kept", densities, FIRST, "")]
    if effective is not None:
        series.append(("effective: on a path of kept weights", effective, SECOND, "////"))
    height = 0.8 / len(series)
    for index, (label, values, colour, hatch) in enumerate(series):
        places = [layer + (index - (len(series) - 1) / 2) * height for layer in range(len(names))]
        lengths = [max(value - floor, 0) for value in values]
        drawn.barh(
            places,
            lengths,
            left=floor,
            height=height,
            color=colour,
            hatch=hatch or None,
            edgecolor="white",
            linewidth=0.3,
            label=label,
        )
        for place, value in zip(places, values, strict=True):
            label_text = f"{100 * value:.3g} %" if value > 0 else "none"
            drawn.annotate(
                label_text,
                (max(value, floor), place),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
    drawn.axvline(
        overall,
        color=MUTED,
        linestyle="--",
        linewidth=1.2,
        label=f"all layers, {100 * overall:.3g} %",
    )
    drawn.set_xlim(floor, 2.5)
    drawn.set_yticks(range(len(names)), [short(name) for name in names])
    drawn.set_ylim(len(names) - 0.4, -0.6)
    drawn.grid(visible=False, axis="y")
    figure.legend(
        loc="outside upper left", ncols=len(series) + 1, fontsize=8, frameon=False, columnspacing=1
    )
    return figure
