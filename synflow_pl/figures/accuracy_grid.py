"""Figure of a table: the accuracy of each of many pruners at each density."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from synflow_pl.figures.style import WIDTH, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_grid"]

_SMALL = 7.5


def accuracy_grid(
    densities: Sequence[float],
    pruners: Mapping[str, Sequence[tuple[float, float | None] | None]],
    *,
    title: str = "",
) -> Figure:
    """Draw a table with a row for each pruner and a column for each density.

    Rows are ordered by their mean accuracy over the densities that all pruners have, the best
    first. In each column the best accuracy is the darkest; an accuracy that is twice as far below
    the best as the median, or further, is white.

    Args:
        densities: Densities of the columns, in the order of the columns.
        pruners: For each pruner, by name, the mean test accuracy at each density and its standard
            deviation, both in [0, 1]. The deviation is ``None`` for a single seed, and the pair is
            ``None`` where there is no run.
        title: Title of the figure.

    Raises:
        ValueError: If a pruner does not have as many entries as there are densities.

    Example:
        >>> from synflow_pl.figures import accuracy_grid
        >>> rows = {"synflow": [(0.95, 0.002), (0.91, 0.004)], "random": [(0.93, 0.003), None]}
        >>> figure = accuracy_grid([0.1, 0.01], rows)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['synflow', 'random']
    """
    from matplotlib import colormaps

    for name, entries in pruners.items():
        if len(entries) != len(densities):
            raise ValueError(f"{name}: {len(entries)} entries for {len(densities)} densities")
    complete = [i for i in range(len(densities)) if all(row[i] for row in pruners.values())]
    shared = complete or range(len(densities))

    def rank(name: str) -> float:
        return fmean([entry[0] for i in shared if (entry := pruners[name][i])] or [0.0])

    names = sorted(pruners, key=lambda name: (-rank(name), name))
    figure = blank(width=WIDTH, height=0.9 + 0.22 * len(names))
    drawn = figure.add_subplot()
    shade = colormaps["Blues"]
    for column in range(len(densities)):
        means = [entry[0] for name in names if (entry := pruners[name][column])]
        best, spread = (max(means), max(means) - median(means)) if means else (0.0, 0.0)
        for row, name in enumerate(names):
            entry = pruners[name][column]
            if entry is None:
                continue
            mean, deviation = entry
            depth = max(1 - (best - mean) / (2 * spread), 0.0) if spread else 1.0
            drawn.fill_between(
                [column - 0.5, column + 0.5], row - 0.5, row + 0.5, color=shade(0.75 * depth), lw=0
            )
            text = f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
            colour = "white" if depth > 0.75 else "black"
            drawn.text(column, row, text, ha="center", va="center", fontsize=_SMALL, color=colour)
    drawn.set_xlim(-0.5, len(densities) - 0.5)
    drawn.set_ylim(len(names) - 0.5, -0.5)
    drawn.set_xticks(range(len(densities)), [f"{density:.4g}" for density in densities])
    drawn.set_yticks(range(len(names)), names)
    drawn.set_xlabel("density; entries: test accuracy, %", fontsize=_SMALL + 1)
    drawn.tick_params(length=0, labelsize=_SMALL)
    drawn.spines[:].set_visible(False)
    if title:
        drawn.set_title(title, fontsize=9, loc="left")
    return figure
