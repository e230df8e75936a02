"""Report: what came of many runs, as a table and as the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from synflow_pl.figures import Curve, accuracy_against, layers_by_pruner
from synflow_pl.figures.style import MOST_LAYERS, save
from synflow_pl.io import atomic_write, make_folder
from synflow_pl.runs.aggregate import Cell, aggregate
from synflow_pl.runs.published import published
from synflow_pl.runs.report_table import as_csv, as_grid, as_latex, as_markdown
from synflow_pl.runs.run_record import IntermediateLevel, RunRecord, SkippedRun, find_runs, read

__all__ = ["Report", "report"]

_FIRST = ("synflow", "random", "magnitude", "snip", "grasp", "grasp_inverted")
"""Pruners that always look the same, so that figures can be compared; others take the looks after
theirs.
"""


@dataclass(frozen=True)
class Report:
    """What was reported, what was left out with the reason, how many levels stand before those that
    are reported, and the files that were written.
    """

    cells: list[Cell]
    left_out: dict[Path, str]
    between: int
    written: list[Path]


def report(
    paths: Sequence[Path],
    out: Path,
    overlays: Mapping[str, Mapping[str, Any]],
    *,
    reference: str,
    paper: bool,
) -> Report:
    """Read runs, and write the table and the figures.

    Args:
        paths: runs, or folders of runs.
        out: folder to write into.
        overlays: what the files of ``configs/pruners`` hold, by name.
        reference: pruner that the others are compared with, seed by seed.
        paper: draw the published curves beside ours: best epochs on the test set, as they are, in a
            figure of their own.

    Raises:
        FileNotFoundError: if there is no folder at a path.
        ValueError: if no run can be reported.
    """
    runs: list[RunRecord] = []
    left_out: dict[Path, str] = {}
    between = 0
    found = find_runs(paths)
    if not found:
        raise ValueError(
            f"there are no runs in {', '.join(map(str, paths))}; give a run, a folder of runs such"
            " as lightning_logs, or a sweep's"
        )
    for folder in found:
        try:
            runs.append(read(folder, overlays))
        except IntermediateLevel:
            between += 1
        except SkippedRun as reason:
            left_out[folder] = str(reason)
    all_cells, repeated = aggregate(runs)
    left_out |= {run.folder: reason for run, reason in repeated}
    if not all_cells:
        said = "".join(
            f"; {folder.name}: {reason}" for folder, reason in list(left_out.items())[:3]
        )
        raise ValueError(f"there is no finished run in {', '.join(map(str, paths))}{said}")
    written = []
    make_folder(out)
    for name, text in (
        ("table.csv", as_csv(all_cells, reference)),
        ("table.md", as_markdown(all_cells, reference)),
        ("grid.md", as_grid(all_cells)),
        ("table.tex", as_latex(all_cells, reference)),
    ):
        with atomic_write(out / name) as file:
            file.write(text.encode())
        written.append(out / name)
    for setting, of in groupby(all_cells, key=lambda cell: cell.setting):
        written += _figures(setting, list(of), out, paper)
    return Report(all_cells, left_out, between, written)


def _figures(setting: str, aggregate: Sequence[Cell], out: Path, paper: bool) -> list[Path]:
    """The figures of one setting."""
    place = "-".join(_plain(part) for part in setting.split(", "))
    sparse = [cell for cell in aggregate if cell.pruner != "dense"]
    whole = next((cell.accuracy("final") for cell in aggregate if cell.pruner == "dense"), None)
    dense = None if whole is None else (whole.mean, whole.deviation or 0.0)
    pruners = sorted(
        {cell.pruner for cell in sparse},
        key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name),
    )
    theirs = published(next(iter(aggregate[0].runs.values()))) if paper else []
    style = {
        name: index
        for index, name in enumerate([*_FIRST, *(name for name in pruners if name not in _FIRST)])
    }
    written: list[Path] = []
    for name, (label, falling, what) in _AXES.items():
        curves = [
            curve
            for pruner in pruners
            if (curve := _curve(pruner, style[pruner], sparse, what)) is not None
        ]
        if curves:
            figure = accuracy_against(label, curves, dense, title=setting, falling=falling)
            written += save(figure, out / f"accuracy_against_{name}-{place}")
    if theirs:
        ours = [
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
            for x in theirs
        ]
        title = f"{setting}: best epoch on the test set, ours and published"
        figure = accuracy_against(_AXES["compression"][0], [*ours, *lines], title=title)
        written += save(figure, out / f"published-{place}")
    layers = {
        pruner: counts for pruner in pruners if (counts := _layers(pruner, sparse)) is not None
    }
    if layers:
        written += save(layers_by_pruner(layers), out / f"layers_against_compression-{place}")
    return written


# What accuracy is drawn against: the axis, whether it runs from large to small, and where a cell
# stands on it.
_AXES = {
    "compression": ("compression: weights / weights kept", False, "compression"),
    "effective_density": (
        "effective density: fraction of weights kept and on a living path",
        True,
        "effective_density",
    ),
    "flops": ("FLOPs of one image", True, "flops"),
}


def _curve(
    pruner: str, style: int, aggregate: Sequence[Cell], what: str, which: str = "final"
) -> Curve | None:
    """One pruner's line. A dead network has no effective weight, and so no place on a logarithmic
    axis of them.
    """
    points = []
    for cell in aggregate:
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


def _layers(
    pruner: str, aggregate: Sequence[Cell]
) -> tuple[list[float], dict[str, list[int]]] | None:
    """Compressions, and the weights left in each layer there (Figure 2), of the first seed."""
    runs = [next(iter(cell.runs.values())) for cell in aggregate if cell.pruner == pruner]
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


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
