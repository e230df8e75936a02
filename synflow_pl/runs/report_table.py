"""Format the table of a report, one row per cell, as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby

from synflow_pl.runs.aggregate import Cell
from synflow_pl.runs.statistics import Summary

__all__ = ["as_csv", "as_grid", "as_latex", "as_markdown", "by_density"]

_ACCURACIES = {
    "final": "final",
    "at_best_validation": "at the best validation epoch",
    "best_on_test": "best on test",
}


def as_csv(cells: Sequence[Cell], reference: str) -> str:
    """Return the table with all columns as CSV.

    Accuracies and densities are in [0, 1]; an entry is empty if its value is not known.

    Args:
        cells: Rows of the table.
        reference: Pruner that the others are compared with, seed by seed.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [
        "setting",
        "pruner",
        "density",
        "density_kept",
        "effective_density",
        "flops",
        "seeds",
        "dead",
    ]
    for name in (*_ACCURACIES, f"final_minus_{reference}"):
        head += [f"{name}_{part}" for part in ("mean", "deviation", "low95", "high95")]
    writer.writerow([*head, "pairs"])
    for cell in cells:
        row = [
            cell.setting,
            cell.pruner,
            cell.density,
            *(cell.mean(what) for what in ("kept", "effective_density", "flops")),
        ]
        difference = cell.difference_to(_cell_of(cells, cell, reference))
        parts = [
            part
            for summary in (*map(cell.accuracy, _ACCURACIES), difference)
            for part in _parts(summary)
        ]
        writer.writerow(
            [
                *row,
                len(cell.runs),
                cell.num_disconnected,
                *parts,
                difference.count if difference else None,
            ]
        )
    return text.getvalue()


def _parts(summary: Summary | None) -> list[float | None]:
    if summary is None:
        return [None] * 4
    return [summary.mean, summary.deviation, *(summary.interval or (None, None))]


def _cell_of(cells: Sequence[Cell], like: Cell, pruner: str) -> Cell | None:
    """Return the cell of another pruner at the same setting and density.

    Args:
        cells: Cells to search.
        like: Cell whose setting and density are looked up.
        pruner: Label of the pruner.

    Returns:
        The cell; ``None`` if there is none, or if ``like`` is a cell of ``pruner`` itself.
    """
    if like.pruner == pruner:
        return None
    return next(
        (
            x
            for x in cells
            if (x.setting, x.density, x.pruner) == (like.setting, like.density, pruner)
        ),
        None,
    )


def _header(reference: str) -> list[str]:
    return [
        "pruner",
        "density",
        "effective",
        "seeds",
        *_ACCURACIES.values(),
        f"final, minus {reference}",
        "dead",
    ]


def _row(cells: Sequence[Cell], cell: Cell, reference: str, plus_minus: str) -> list[str]:
    """Return the entries of one row as text: percent, and percentage points for the difference."""

    def percent(summary: Summary | None, sign: str = "") -> str:
        if summary is None:
            return ""
        text = f"{100 * summary.mean:{sign}.2f}"
        if summary.deviation is None or summary.interval is None:
            return text
        low, high = (100 * limit for limit in summary.interval)
        return (
            f"{text} {plus_minus} {100 * summary.deviation:.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"
        )

    effective = cell.mean("effective_density")
    return [
        cell.pruner,
        f"{cell.density:.4g}",
        "" if effective is None else f"{effective:.3g}",
        str(len(cell.runs)),
        *(percent(cell.accuracy(which)) for which in _ACCURACIES),
        percent(cell.difference_to(_cell_of(cells, cell, reference)), "+"),
        f"{cell.num_disconnected} of {len(cell.runs)}" if cell.num_disconnected else "",
    ]


def as_markdown(cells: Sequence[Cell], reference: str) -> str:
    """Return one Markdown table for each setting, followed by a legend.

    Args:
        cells: Rows of the tables.
        reference: Pruner that the others are compared with, seed by seed.
    """
    text = []
    for setting, of in _by_setting(cells):
        rows = [_row(cells, cell, reference, "±") for cell in of]
        text.append(_markdown_table(setting, _header(reference), rows))
    return "\n".join([*text, _LEGEND + "\n"])


def _markdown_table(setting: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return f"**{setting}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_grid(cells: Sequence[Cell]) -> str:
    """Return one short Markdown table of final accuracies for each setting.

    It has a row for each pruner and a column for each density; † marks cells in which every network
    is disconnected.

    Args:
        cells: Entries of the tables.
    """
    text = []
    for setting, of in _by_setting(cells):
        densities, by_pruner = by_density(of)
        rows = [[pruner, *map(_short, entries)] for pruner, entries in sorted(by_pruner.items())]
        header = ["pruner", *(f"{density:.4g}" for density in densities)]
        text.append(_markdown_table(setting, header, rows))
    return "\n".join(text)


def by_density(cells: Iterable[Cell]) -> tuple[list[float], dict[str, list[Cell | None]]]:
    """Return the densities of one setting, from large to small, and the cells of each pruner.

    Args:
        cells: Cells of one setting.

    Returns:
        The densities, and for each pruner, by its label, its cell at each of them; ``None`` where
        there is no run.
    """
    entries = {(cell.pruner, cell.density): cell for cell in cells}
    densities = sorted({density for _, density in entries}, reverse=True)
    return densities, {
        pruner: [entries.get((pruner, density)) for density in densities] for pruner, _ in entries
    }


def _short(cell: Cell | None) -> str:
    if cell is None:
        return ""
    summary = cell.accuracy("final")
    number = "" if summary is None else f"{100 * summary.mean:.2f}"
    spread = (
        "" if summary is None or summary.deviation is None else f" ± {100 * summary.deviation:.2f}"
    )
    return f"{number}{spread}{' †' if cell.num_disconnected == len(cell.runs) else ''}".lstrip()


def as_latex(cells: Sequence[Cell], reference: str) -> str:
    """Return one LaTeX table for each setting, which needs no package, followed by a legend.

    Args:
        cells: Rows of the tables.
        reference: Pruner that the others are compared with, seed by seed.
    """
    text = []
    for setting, of in _by_setting(cells):
        rows = [_header(reference), *(_row(cells, cell, reference, r"$\pm$") for cell in of)]
        lines = [" & ".join(_escaped(entry) for entry in row) + r" \\" for row in rows]
        text.append(
            f"% {setting}\n\\begin{{tabular}}{{lrrr"
            + "r" * (len(rows[0]) - 4)
            + "}\n\\hline\n"
            + lines[0]
            + "\n\\hline\n"
            "" + "\n".join(lines[1:]) + "\n\\hline\n\\end{tabular}\n"
        )
    return "\n".join([*text, f"% {_LEGEND}\n"])


_LEGEND = (
    "Test accuracy in percent: mean over seeds ± sample deviation [95 % interval of the mean, by"
    " Student's t, within the possible values]; differences are taken"
    " seed by seed. Best on test is the best of all epochs, chosen on the test set: not to be"
    " compared with the other two."
)


def _by_setting(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    return [(setting, list(of)) for setting, of in groupby(cells, key=lambda cell: cell.setting)]


def _escaped(entry: str) -> str:
    for letter in "_%&#":
        entry = entry.replace(letter, f"\\{letter}")
    return entry
