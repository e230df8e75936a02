"""Text tables in one style, built with rich."""

from __future__ import annotations

import io

from rich.box import Box
from rich.console import Console, RenderableType
from rich.table import Table

__all__ = ["format_count", "format_fraction", "new_table", "render_plain"]

# Rules of hyphens make a table look the same in a log, a file and a terminal.
_PLAIN = Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)


def new_table(*texts: str, numbers: tuple[str, ...]) -> Table:
    """Return a table without rows, with columns of text followed by columns of numbers.

    Args:
        texts: Headings of the text columns, which are aligned to the left.
        numbers: Headings of the number columns, which are aligned to the right.
    """
    table = Table(box=_PLAIN, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in texts:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def render_plain(renderable: RenderableType) -> str:
    """Return a rich renderable as plain text without colours and without a limit on its width."""
    console = Console(
        file=io.StringIO(),
        width=10_000,
        color_system=None,
        force_terminal=False,
        # In a notebook rich would display an HTML output besides capturing the text.
        force_jupyter=False,
        legacy_windows=False,
    )
    with console.capture() as captured:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def format_count(count: int) -> str:
    """Return a count with four significant digits and a unit prefix, for example ``313.2M``."""
    size = float(count)
    for unit in ("", "k", "M", "G"):
        if size < 999.95:
            return f"{size:.1f}{unit}" if unit else f"{count}"
        size /= 1000
    return f"{size:.1f}T"


def format_fraction(value: float) -> str:
    """Return a fraction with four decimals, or with two digits below 0.001 (``8.4e-05``)."""
    return f"{value:.4f}" if value == 0 or value >= 0.001 else f"{value:.2g}"
