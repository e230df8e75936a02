"""Figures: the house style and its pictures. Knows arrays, not networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["density_per_layer"]

# Okabe & Ito's blue and grey: apart for every eye, and in print.
_BLUE, _GREY = "#0072B2", "#999999"


def density_per_layer(names: Sequence[str], densities: Sequence[float], overall: float) -> Figure:
    """Horizontal bars, first layer on top: the fraction of each layer's weights that was kept, on a logarithmic axis.

    Args:
        names: of the layers, input first.
        densities: one per layer, in [0, 1].
        overall: density of the whole network, drawn as a line, in (0, 1].
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 0.22 * len(names)), layout="constrained", dpi=110)
    axes = figure.subplots()
    floor = min([overall, *(d for d in densities if d > 0)]) / 3
    axes.barh(range(len(names)), [max(density - floor, 0) for density in densities], left=floor, color=_BLUE, height=0.72)
    axes.axvline(overall, color=_GREY, linestyle="--", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlim(floor, 2.2)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    for position, density in enumerate(densities):
        label = f"{density:.2%}" if density > 0 else "collapsed"
        axes.annotate(label, (max(density, floor), position), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_xlabel(f"density: fraction of weights kept (dashed: whole network, {overall:.3g})", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
