"""Group runs into cells: runs of one pruner at one density in one setting, one for each seed."""

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
    """Runs of one pruner at one density in one setting, and statistics over their seeds.

    Attributes:
        setting: Label of the setting: data set, network, and options that differ between settings.
        pruner: Label of the pruner.
        density: Density that was requested, in (0, 1].
        runs: Runs by seed.
    """

    setting: str
    pruner: str
    density: float
    runs: Mapping[int, RunRecord]

    def accuracy(self, which: str) -> Summary | None:
        """Return the statistics of one kind of test accuracy over the seeds.

        Args:
            which: ``"final"``, ``"at_best_validation"`` or ``"best_on_test"``.

        Returns:
            The summary, or ``None`` if a run of the cell has not measured this accuracy.
        """
        values = [getattr(run.accuracies, which) for run in self.runs.values()]
        return None if None in values else summarise(values, (0, 1))

    def difference_to(self, reference: Cell | None) -> Summary | None:
        """Return the statistics of the differences in final accuracy to another cell, by seed.

        Args:
            reference: Cell whose accuracies are subtracted; ``None`` if there is none.

        Returns:
            The summary, or ``None`` if the cells have no seed in common or there is no reference.
        """
        if reference is None:
            return None
        finals, others = (
            {
                seed: run.accuracies.final
                for seed, run in cell.runs.items()
                if run.accuracies.final is not None
            }
            for cell in (self, reference)
        )
        return paired(finals, others, limits=(-1, 1))

    def mean(self, what: str) -> float | None:
        """Return the mean over seeds of one attribute of the runs.

        Args:
            what: ``"kept"``, ``"effective_density"``, ``"flops"`` or ``"whole_flops"``.

        Returns:
            The mean, or ``None`` if the value is missing for a run of the cell.
        """
        values = [getattr(run, what) for run in self.runs.values()]
        return None if None in values else fmean(values)

    @property
    def num_disconnected(self) -> int:
        """Number of runs whose network is disconnected: no path leads from input to output."""
        return sum(not run.connected for run in self.runs.values())


def aggregate(runs: Sequence[RunRecord]) -> tuple[list[Cell], list[tuple[RunRecord, str]]]:
    """Group runs into cells.

    Args:
        runs: Runs of any settings, pruners, densities and seeds.

    Returns:
        The cells, sorted by setting, density (dense to sparse) and pruner; and the runs that were
        left out, each with the reason. Of two runs with equal options and seed the second is left
        out. The label of a pruner names the options in which runs of the setting differ.
    """
    settings = _labels(runs, lambda run: run.setting, lambda run: f"{run.data}, {run.network}")
    by_setting: dict[str, list[RunRecord]] = {}
    for run, setting in zip(runs, settings, strict=True):
        by_setting.setdefault(setting, []).append(run)
    groups: dict[tuple[str, float, str], dict[int, RunRecord]] = {}
    left_out: list[tuple[RunRecord, str]] = []
    for setting, alike in by_setting.items():
        pruners = _labels(alike, lambda run: run.pruning, lambda run: run.pruner)
        for run, pruner in zip(alike, pruners, strict=True):
            cell = groups.setdefault((setting, -run.density, pruner), {})
            if run.seed in cell:
                left_out.append((run, f"it repeats {cell[run.seed].folder} in everything"))
            else:
                cell[run.seed] = run
    return [
        Cell(setting, pruner, -density, dict(sorted(of.items())))
        for (setting, density, pruner), of in sorted(groups.items())
    ], left_out


def _labels(
    runs: Sequence[RunRecord],
    options: Callable[[RunRecord], Mapping[str, Any]],
    short: Callable[[RunRecord], str],
) -> list[str]:
    """Return a label for each run: a short name, followed by the options in which namesakes differ.

    Args:
        runs: Runs to label.
        options: Function that returns the options of a run by which labels must be distinct.
        short: Function that returns the short name of a run.
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
            values = [f"{name.rpartition('.')[2]}={variant.get(name)}" for name in differing]
            labels[label, key] = ", ".join([label, *values])
    return [labels[short(run), key] for run, key in zip(runs, keys, strict=True)]
