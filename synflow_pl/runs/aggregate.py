"""Cells: runs that repeat each other but for their seed, brought together; a cell is one pruner at
one density in one setting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from synflow_pl.runs.run_record import RunRecord
from synflow_pl.runs.statistics import Summary, paired, summarise

__all__ = ["Cell", "aggregate"]


@dataclass(frozen=True)
class Cell:
    """Runs of one pruner at one density in one setting, one for each seed, and what is said of them
    together.
    """

    setting: str
    pruner: str
    density: float
    runs: Mapping[int, RunRecord]

    def accuracy(self, which: str) -> Summary | None:
        """Of ``final``, ``at_best_validation`` or ``best_on_test``; ``None`` if a run of the cell
        has not measured it.
        """
        found = [getattr(run.accuracies, which) for run in self.runs.values()]
        return None if None in found else summarise(found)

    def beside(self, reference: Cell | None) -> Summary | None:
        """Of the differences in final accuracy to another pruner's, seed by seed."""
        if reference is None:
            return None
        known = (
            {seed: run.accuracies.final for seed, run in cell.runs.items()}
            for cell in (self, reference)
        )
        return paired(
            *(
                {seed: final for seed, final in finals.items() if final is not None}
                for finals in known
            )
        )

    def mean(self, what: str) -> float | None:
        """Over seeds, of ``kept``, ``effective_density``, ``flops`` or ``whole_flops``; ``None`` if
        a run of the cell does not say.
        """
        found = [getattr(run, what) for run in self.runs.values()]
        return None if None in found else fmean(found)

    @property
    def dead(self) -> int:
        """How many of its networks have no path from input to output left."""
        return sum(not run.alive for run in self.runs.values())


def aggregate(runs: Sequence[RunRecord]) -> tuple[list[Cell], list[tuple[RunRecord, str]]]:
    """All cells, by setting, density (from dense to sparse) and pruner, and the runs that are left
    out with the reason.

    Of two runs that differ in nothing, the second is left out.
    """
    settings = _labels(runs, lambda run: run.setting, lambda run: f"{run.data}, {run.network}")
    pruners = _labels(runs, lambda run: run.pruning, lambda run: run.pruner)
    found: dict[tuple[str, float, str], dict[int, RunRecord]] = {}
    out: list[tuple[RunRecord, str]] = []
    for run, setting, pruner in zip(runs, settings, pruners, strict=True):
        cell = found.setdefault((setting, -run.density, pruner), {})
        if run.seed in cell:
            out.append((run, f"it repeats {cell[run.seed].folder} in everything"))
        else:
            cell[run.seed] = run
    return [
        Cell(setting, pruner, -density, dict(sorted(of.items())))
        for (setting, density, pruner), of in sorted(found.items())
    ], out


def _labels(
    runs: Sequence[RunRecord],
    options: Callable[[RunRecord], Mapping[str, Any]],
    short: Callable[[RunRecord], str],
) -> list[str]:
    """What each run is called: shortly, and where two called alike differ in an option, with the
    options in which they differ.
    """
    keys = [json.dumps(options(run), sort_keys=True, default=str) for run in runs]
    alike: dict[str, dict[str, Mapping[str, Any]]] = {}
    for run, key in zip(runs, keys, strict=True):
        alike.setdefault(short(run), {})[key] = options(run)
    labels: dict[tuple[str, str], str] = {}
    for label, variants in alike.items():
        names = sorted({name for variant in variants.values() for name in variant})
        differing = [
            name
            for name in names
            if len({json.dumps(variant.get(name), default=str) for variant in variants.values()})
            > 1
        ]
        for key, variant in variants.items():
            told = [f"{name.rpartition('.')[2]}={variant.get(name)}" for name in differing]
            labels[label, key] = ", ".join([label, *told])
    return [labels[short(run), key] for run, key in zip(runs, keys, strict=True)]
