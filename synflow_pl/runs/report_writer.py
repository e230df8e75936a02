"""Write the report over many runs: tables, and figures as in the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from synflow_pl.figures import Curve, accuracy_against, accuracy_grid, layers_by_pruner
from synflow_pl.figures.style import MOST_LAYERS, save
from synflow_pl.io import atomic_write, make_folder
from synflow_pl.runs.aggregate import Cell, aggregate
from synflow_pl.runs.published import published
from synflow_pl.runs.report_table import as_csv, as_grid, as_latex, as_markdown, by_density
from synflow_pl.runs.run_files import IntermediateLevel, SkippedRun
from synflow_pl.runs.run_record import RunRecord, read_run
from synflow_pl.runs.run_search import find_runs

__all__ = ["Report", "report"]

_FIRST = ("synflow", "random", "magnitude", "snip", "grasp", "grasp_inverted")
"""Pruners with a fixed line style, so that figures can be compared; others get the next styles."""


@dataclass(frozen=True)
class Report:
    """Result of a report.

    Attributes:
        cells: Rows of the table.
        left_out: Reason by folder, for each run that was left out.
        num_intermediate: Number of levels of multi-shot prunings that were skipped, since a later
            level of the same pruning exists.
        written: Paths of the files that were written.
    """

    cells: list[Cell]
    left_out: dict[Path, str]
    num_intermediate: int
    written: list[Path]


def report(
    paths: Sequence[Path],
    out: Path,
    overlays: Mapping[str, Mapping[str, Any]],
    *,
    reference: str,
    paper: bool,
) -> Report:
    """Read runs, and write the tables and the figures.

    Args:
        paths: Runs, or folders of runs.
        out: Folder to write into.
        overlays: Contents of the files of ``configs/pruners``, by name.
        reference: Pruner that the others are compared with, seed by seed.
        paper: Whether the published curves are drawn beside the measured ones, in a figure of their
            own: the accuracy of the best epoch on the test set.

    Returns:
        The cells, the runs that were left out, and the files that were written.

    Raises:
        FileNotFoundError: If a path is not a folder.
        ValueError: If there is no run to report.
    """
    runs: list[RunRecord] = []
    left_out: dict[Path, str] = {}
    num_intermediate = 0
    folders = find_runs(paths)
    if not folders:
        raise ValueError(
            f"there are no runs in {', '.join(map(str, paths))}; give a run, a folder of runs such"
            " as lightning_logs, or a sweep's"
        )
    for folder in folders:
        try:
            runs.append(read_run(folder, overlays))
        except IntermediateLevel:
            num_intermediate += 1
        except SkippedRun as reason:
            left_out[folder] = str(reason)
    cells, repeated = aggregate(runs)
    left_out |= {run.folder: reason for run, reason in repeated}
    if not cells:
        said = "".join(
            f"; {folder.name}: {reason}" for folder, reason in list(left_out.items())[:3]
        )
        raise ValueError(f"there is no finished run in {', '.join(map(str, paths))}{said}")
    written = []
    make_folder(out)
    for name, text in (
        ("table.csv", as_csv(cells, reference)),
        ("table.md", as_markdown(cells, reference)),
        ("grid.md", as_grid(cells)),
        ("table.tex", as_latex(cells, reference)),
    ):
        with atomic_write(out / name) as file:
            file.write(text.encode())
        written.append(out / name)
    for setting, of in groupby(cells, key=lambda cell: cell.setting):
        written += _figures(setting, list(of), out, paper)
    return Report(cells, left_out, num_intermediate, written)


def _figures(setting: str, cells: Sequence[Cell], out: Path, paper: bool) -> list[Path]:
    """Write the figures of one setting.

    Args:
        setting: Label of the setting.
        cells: Cells of the setting.
        out: Folder to write into.
        paper: Whether the published curves are drawn too.

    Returns:
        Paths of the files that were written.
    """
    place = "-".join(_file_name(part) for part in setting.split(", "))
    sparse = [cell for cell in cells if cell.pruner != "dense"]
    whole = next((cell.accuracy("final") for cell in cells if cell.pruner == "dense"), None)
    dense = None if whole is None else (whole.mean, whole.deviation or 0.0)
    pruners = sorted(
        {cell.pruner for cell in sparse},
        key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name),
    )
    published_curves = published(next(iter(cells[0].runs.values()))) if paper else []
    style = {
        name: index
        for index, name in enumerate([*_FIRST, *(name for name in pruners if name not in _FIRST)])
    }
    written: list[Path] = []
    if len(pruners) > 1:
        densities, by_pruner = by_density(sparse)
        rows = {pruner: [*map(_accuracy, entries)] for pruner, entries in by_pruner.items()}
        title = setting + (f"; dense {whole.mean:.1%}" if whole is not None else "")
        written += save(accuracy_grid(densities, rows, title=title), out / f"accuracies-{place}")
    for name, (label, falling, what) in _AXES.items():
        curves = [
            curve
            for pruner in pruners
            if (curve := _curve(pruner, style[pruner], sparse, what)) is not None
        ]
        if curves:
            figure = accuracy_against(label, curves, dense, title=setting, falling=falling)
            written += save(figure, out / f"accuracy_against_{name}-{place}")
    if published_curves:
        measured = [
            curve
            for x in pruners
            if (curve := _curve(x, style[x], sparse, "compression", "best_on_test")) is not None
        ]
        lines = [
            Curve(
                f"{x.pruner}, published",
                style[x.pruner],
                x.compression,
                x.mean,
                x.deviation,
                published=True,
            )
            for x in published_curves
        ]
        title = f"{setting}: best epoch on the test set, ours and published"
        figure = accuracy_against(_AXES["compression"][0], [*measured, *lines], title=title)
        written += save(figure, out / f"published-{place}")
    layers = {
        pruner: counts for pruner in pruners if (counts := _layers(pruner, sparse)) is not None
    }
    if layers:
        written += save(layers_by_pruner(layers), out / f"layers_against_compression-{place}")
    return written


# Quantities that accuracy is drawn against: the label of the axis, whether it runs from large to
# small, and the attribute of a cell.
_AXES = {
    "compression": ("compression: weights / weights kept", False, "compression"),
    "effective_density": (
        "effective density: fraction of weights kept and on a path of kept weights",
        True,
        "effective_density",
    ),
    "flops": ("FLOPs of one image", True, "flops"),
}


def _curve(
    pruner: str, style: int, cells: Sequence[Cell], what: str, which: str = "final"
) -> Curve | None:
    """Return the curve of one pruner, or ``None`` if it has no points.

    A network whose effective density is zero has no place on a logarithmic axis and is left out.

    Args:
        pruner: Label of the pruner.
        style: Index of the line style.
        cells: Cells of one setting.
        what: Quantity of the horizontal axis: a key of ``_AXES``.
        which: Kind of accuracy, as for :meth:`Cell.accuracy`.
    """
    points = []
    for cell in cells:
        accuracy = cell.accuracy(which)
        kept = cell.mean("kept") if what == "compression" else cell.mean(what)
        if cell.pruner == pruner and accuracy is not None and kept:
            points.append(
                (
                    1 / kept if what == "compression" else kept,
                    accuracy.mean,
                    accuracy.deviation or 0.0,
                )
            )
    return Curve(pruner, style, *zip(*points, strict=True)) if points else None  # type: ignore[arg-type]


def _accuracy(cell: Cell | None) -> tuple[float, float | None] | None:
    """Return the mean final accuracy of a cell and its deviation."""
    summary = None if cell is None else cell.accuracy("final")
    return None if summary is None else (summary.mean, summary.deviation)


def _layers(pruner: str, cells: Sequence[Cell]) -> tuple[list[float], dict[str, list[int]]] | None:
    """Return compressions and the weights kept per layer (Figure 2), or ``None`` if not drawable.

    The counts are those of the first seed. There are none without layers or with too many to draw.

    Args:
        pruner: Label of the pruner.
        cells: Cells of one setting.

    Returns:
        Compressions, starting with 1 for the dense network, and for each layer the number of
        weights kept at each compression.
    """
    runs = [next(iter(cell.runs.values())) for cell in cells if cell.pruner == pruner]
    runs = sorted(
        (run for run in runs if run.layers and run.kept), key=lambda run: run.kept, reverse=True
    )
    if not runs or len(runs[0].layers) > MOST_LAYERS:
        return None
    counts = [
        {layer.name: layer.total for layer in runs[0].layers},
        *({layer.name: layer.kept for layer in run.layers} for run in runs),
    ]
    return [1.0, *(1 / run.kept for run in runs)], {
        name: [count[name] for count in counts] for name in counts[0]
    }


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
