"""The house style: one look for every picture, readable by every eye, in grey, and in print.

A picture is a matplotlib ``Figure`` of its own: no ``pyplot``, so no global state, no backend and
nothing to close. Matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

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

# Okabe & Ito 2008, which differ for every kind of colour vision, without their yellow, which is
# lost on white. The first four differ in grey too (lightness 46, 71, 0, 58 of 100); after that
# lines differ by dash and marker.
_COLOURS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "os^Dv<>P"
FIRST, SECOND, MUTED = _COLOURS[0], _COLOURS[1], "#999999"

# The text width of a page, in inches, and sizes in points that are still read when a column's width
# is all there is.
WIDTH = 6.75
# With more layers than this no picture of them all can be read.
MOST_LAYERS = 150
_TEXT, _SMALL = 9, 8
_DOTS_PER_INCH = 150


def blank(width: float = WIDTH, height: float = 4.0) -> Figure:
    """An empty figure in house style; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=_DOTS_PER_INCH)


def axes(
    figure: Figure, x: str, y: str, *, log: str = "", place: tuple[int, int, int] = (1, 1, 1)
) -> Axes:
    """Axes in house style, labelled.

    Args:
        figure: to draw in, from :func:`blank`.
        x: what the horizontal axis shows, with its unit.
        y: the same of the vertical axis; "" where its ticks are names.
        log: which axes are logarithmic: "", "x", "y" or "xy".
        place: (rows, columns, number from 1) within the figure.
    """
    from matplotlib.ticker import LogFormatterSciNotation

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
            # By default numbers stand between powers of ten on an axis of one decade, where they
            # overlap.
            axis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(0.6, 0.3)))
    return made


def curve(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the ``index``-th of a few things that are compared; all three
    differ, so that one is enough.

    These are keyword arguments of ``Axes.plot``; 56 indices look different from each other.
    """
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "marker": marker(index),
        "markersize": 4,
        "linewidth": 1.4,
    }


def marker(index: int) -> str:
    """The marker of the ``index``-th of a few things."""
    return _MARKERS[index % len(_MARKERS)]


def grid(panels: int) -> tuple[int, int]:
    """(rows, columns) for as many panels in one figure, three in a row at most."""
    columns = min(panels, 3) if panels != 4 else 2
    return -(-panels // columns), columns


def title(axes: Axes, text: str) -> None:
    """What a panel among others shows."""
    axes.set_title(text, fontsize=_TEXT)


def shades(number: int) -> list[tuple[float, ...]]:
    """As many colours, dark to light, for things that have an order, such as layers by depth: even
    steps of lightness, in grey too.
    """
    from matplotlib import colormaps

    # The lightest fifth is lost on white.
    return [
        tuple(colormaps["viridis"](0.8 * index / max(number - 1, 1))) for index in range(number)
    ]


def legend(axes: Axes, **options: Any) -> None:
    """The legend, of what has a label; ``options`` are those of ``Axes.legend``."""
    axes.legend(**{"fontsize": _SMALL, "frameon": False, "handlelength": 2.6, **options})


def short(name: str) -> str:
    """A parameter's name as a layer is called in a picture: "features.0.weight" is "features.0"."""
    return name.removesuffix(".weight")


def save(figure: Figure, path: str | os.PathLike[str]) -> list[Path]:
    """Write a figure as PNG and as PDF, each of which appears whole or not at all.

    Args:
        figure: to write.
        path: without a suffix; folders on the way are made.

    Returns:
        The paths of the two files. The same figure always gives the same bytes.
    """
    from matplotlib import rc_context

    path = Path(path)
    written = []
    for kind, unsaid in (("png", "Software"), ("pdf", "CreationDate")):
        target = path.with_name(f"{path.name}.{kind}")
        with (
            atomic_write(target) as file,
            rc_context({"pdf.fonttype": 42}),
        ):  # TrueType: publishers refuse matplotlib's default
            figure.savefig(file, format=kind, metadata={unsaid: None})
        written.append(target)
    return written
