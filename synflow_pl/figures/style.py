"""Common style of all figures, readable with colour blindness, in grey and in print.

Figures are matplotlib ``Figure`` objects made without ``pyplot``: no global state, no backend and
nothing to close. Matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synflow_pl.io import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FIRST",
    "MOST_LAYERS",
    "MUTED",
    "SECOND",
    "WIDTH",
    "axes",
    "blank",
    "curve",
    "grid",
    "legend",
    "marker",
    "save",
    "shades",
    "short",
    "title",
]

# Colours of Okabe & Ito 2008, which differ for every kind of colour vision, without their yellow,
# which is hard to see on white. The first four differ in grey too (lightness 46, 71, 0, 58 of 100);
# all lines differ by dash and marker as well.
_COLOURS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "os^Dv<>P"
FIRST, SECOND, MUTED = _COLOURS[0], _COLOURS[1], "#999999"

# Text width of a page in inches. The font sizes, in points, are readable at the width of a column.
WIDTH = 6.75
# Largest number of layers that a readable figure can show.
MOST_LAYERS = 150
_TEXT, _SMALL = 9, 8
_DOTS_PER_INCH = 150


def blank(width: float = WIDTH, height: float = 4.0) -> Figure:
    """Return an empty figure in the common style.

    Args:
        width: Width in inches.
        height: Height in inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=_DOTS_PER_INCH)


def axes(
    figure: Figure, x: str, y: str, *, log: str = "", place: tuple[int, int, int] = (1, 1, 1)
) -> Axes:
    """Add labelled axes in the common style to a figure.

    Args:
        figure: Figure made by :func:`blank`.
        x: Label of the horizontal axis, with its unit.
        y: Label of the vertical axis, with its unit; "" if its ticks are names.
        log: Names of the logarithmic axes: "", "x", "y" or "xy".
        place: Position in the figure: (rows, columns, number counted from 1).
    """
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator

    made = figure.add_subplot(*place)
    made.set_xlabel(x, fontsize=_TEXT)
    made.set_ylabel(y, fontsize=_TEXT)
    made.tick_params(which="both", labelsize=_SMALL)
    made.spines[["top", "right"]].set_visible(False)
    made.grid(visible=True, color="#E5E5E5", linewidth=0.6)
    made.set_axisbelow(True)
    for name, axis in (("x", made.xaxis), ("y", made.yaxis)):
        if name in log:
            made.set(**{f"{name}scale": "log"})
            # Minor ticks at 2 and 5 have labels if there is at most one power of ten; by default
            # there are more of them, and their labels overlap.
            axis.set_minor_locator(LogLocator(subs=(2, 5)))
            axis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(1, math.inf)))
    return made


def curve(index: int) -> dict[str, Any]:
    """Return the colour, dash and marker of the ``index``-th curve of a figure.

    All three differ between curves, so that each of them is enough to tell them apart. 56 indices
    give different styles.

    Args:
        index: Index of the curve, at least 0.

    Returns:
        Keyword arguments of ``Axes.plot``.
    """
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "marker": marker(index),
        "markersize": 4,
        "linewidth": 1.4,
    }


def marker(index: int) -> str:
    """Return the marker of the ``index``-th curve of a figure.

    Args:
        index: Index of the curve, at least 0.
    """
    return _MARKERS[index % len(_MARKERS)]


def grid(panels: int) -> tuple[int, int]:
    """Return the numbers of rows and columns of a figure, with at most three panels per row.

    Args:
        panels: Number of panels, at least 1.
    """
    columns = min(panels, 3) if panels != 4 else 2
    return -(-panels // columns), columns


def title(axes: Axes, text: str) -> None:
    """Set the title of a panel.

    Args:
        axes: Axes of the panel.
        text: Title.
    """
    axes.set_title(text, fontsize=_TEXT)


def shades(number: int) -> list[tuple[float, ...]]:
    """Return colours from dark to light, for things that have an order, such as layers by depth.

    Args:
        number: Number of colours.

    Returns:
        RGBA colours in equal steps of lightness, also in grey.
    """
    from matplotlib import colormaps

    # The lightest fifth is hard to see on white.
    return [
        tuple(colormaps["viridis"](0.8 * index / max(number - 1, 1))) for index in range(number)
    ]


def legend(axes: Axes, **options: Any) -> None:
    """Add a legend in the common style.

    Args:
        axes: Axes whose labelled artists are listed.
        **options: Further arguments of ``Axes.legend``.
    """
    axes.legend(**{"fontsize": _SMALL, "frameon": False, "handlelength": 2.6, **options})


def short(name: str) -> str:
    """Return the name of the layer of a weight: "features.0" for "features.0.weight".

    Args:
        name: Name of the parameter.
    """
    return name.removesuffix(".weight")


def save(figure: Figure, path: str | os.PathLike[str]) -> list[Path]:
    """Write a figure as PNG and as PDF, each file atomically.

    Equal figures give equal bytes.

    Args:
        figure: Figure to write.
        path: Path of the files without suffix; missing folders are created.

    Returns:
        Paths of the two files.
    """
    from matplotlib import rc_context

    path = Path(path)
    written = []
    for kind, omitted in (("png", "Software"), ("pdf", "CreationDate")):
        target = path.with_name(f"{path.name}.{kind}")
        # Fonts are embedded as TrueType (42), since publishers reject matplotlib's default.
        with atomic_write(target) as file, rc_context({"pdf.fonttype": 42}):
            figure.savefig(file, format=kind, metadata={omitted: None})
        written.append(target)
    return written
