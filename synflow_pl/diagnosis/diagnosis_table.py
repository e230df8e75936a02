"""Tables: drawn by rich, in colour where it prints them, plain and of one width wherever else they
go.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rich.box import Box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from synflow_pl.diagnosis.diagnosis import Diagnosis

__all__ = ["drawn", "empty", "fraction", "plain", "short"]

# Rules of hyphens, so that a table reads the same in a log, a file and a terminal.
_PLAIN = Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)


def empty(*texts: str, numbers: tuple[str, ...]) -> Table:
    """A table without rows: columns of text, then columns of numbers, by their headings."""
    table = Table(box=_PLAIN, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in texts:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def plain(drawing: Any) -> str:
    """What rich draws as plain text, as wide as it has to be."""
    console = Console(
        file=io.StringIO(),
        width=10_000,
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
    )
    with console.capture() as captured:
        console.print(drawing)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def short(count: int) -> str:
    """A count in four digits: 313.2M."""
    size = float(count)
    for unit in ("", "k", "M", "G"):
        if size < 999.95:
            return f"{size:.1f}{unit}" if unit else f"{count}"
        size /= 1000
    return f"{size:.1f}T"


def fraction(value: float) -> str:
    """A fraction in four decimals, or two digits where those would tell nothing: 8.4e-05."""
    return f"{value:.4f}" if value == 0 or value >= 0.001 else f"{value:.2g}"


def drawn(told: Diagnosis) -> Group:
    """A diagnosis: its layers, the whole, and what is to be said of it."""
    headings = (
        "weights",
        "kept",
        "effective",
        "density",
        "eff. density",
        "live in",
        "live out",
        "FLOPs",
        "sparse",
        "score",
        "flow",
    )
    table = empty("parameter", "shape", numbers=headings)
    for layer in told.layers:
        table.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            *(f"{count:,}" for count in (layer.total, layer.kept, layer.effective)),
            fraction(layer.density),
            fraction(layer.effective_density),
            f"{layer.living_inputs}/{layer.inputs}",
            f"{layer.living_units}/{layer.units}",
            short(layer.flops),
            short(layer.sparse_flops),
            f"{layer.score_mean:.3g}",
            f"{layer.flow:.4f}",
            style=None if layer.effective else "red",
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        *(f"{count:,}" for count in (told.total, told.kept, told.effective)),
        fraction(told.density),
        fraction(told.effective_density),
        "",
        "alive" if told.alive else "dead",
        short(told.flops),
        short(told.sparse_flops),
        style="bold" if told.alive else "bold red",
    )
    return Group(table, "", *(Text(line) for line in _said(told)))


def _said(told: Diagnosis) -> list[str]:
    """What is to be said of the whole beside its line in the table."""
    error = (
        f"{told.conservation_error:.2g}"
        if told.conservation_error > 1e-9
        else "0 (but for rounding)"
    )
    flops = f"FLOPs {short(told.flops)} dense, {short(told.sparse_flops)} sparse"
    lines = [
        f"compression {told.compression:.4g}; {flops}; conservation error {error if told.alive else 'unknown, since nothing flows'}"
    ]
    if told.collapsed:
        lines.append(f"no weight left: {', '.join(told.collapsed)}")
    if told.broken is not None:
        lines.append(f"no path leads past {told.broken}")
    kinds: dict[str, list[str]] = {}
    for module, kind in told.inhomogeneous.items():
        kinds.setdefault(kind, []).append(module)
    lines += [
        f"not homogeneous, linear in the skeleton: {kind} ({_some(names)})"
        for kind, names in kinds.items()
    ]
    return [*lines, *told.notes]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)}: {', '.join(names[:3])}{more}"
