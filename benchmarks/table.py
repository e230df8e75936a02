"""Write measured accuracies into the README's hyperparameter table and docs/accuracies.md.

    python -m benchmarks.table docs/evidence
    python -m benchmarks.table docs/evidence sweeps/table_cpu --keep

The table has the final test accuracies of the dense network and of SynFlow at 10x and 100x, of runs
that agree with the recipe in every option but those of the hardware (precision, memory format,
compiling and compacting). ``docs/accuracies.md`` has a row for each accuracy, of other pruners and
densities too, with the seed, the machines, the time, and a command that repeats the run. An
accuracy that was not measured is empty in the table, and its row says so.

``--keep`` stores the small files of each run that the tables use in ``docs/evidence`` (see
:mod:`benchmarks.evidence`), so that the tables and a report can be made from them again.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks.evidence import store
from synflow_pl.cli.command import parse_fit
from synflow_pl.cli.recipes import overlays, recipe_folder
from synflow_pl.io import atomic_write
from synflow_pl.runs import MACHINES
from synflow_pl.runs.published import published
from synflow_pl.runs.run_files import SkippedRun
from synflow_pl.runs.run_record import RunRecord, comparison_keys, read_run
from synflow_pl.runs.run_search import find_runs
from synflow_pl.runs.training_record import read_record

README = Path(__file__).parents[1] / "README.md"
DETAILS = README.parent / "docs" / "accuracies.md"
EVIDENCE = DETAILS.parent / "evidence"
_COLUMNS = (("dense", 1.0), ("synflow", 0.1), ("synflow", 0.01))
# Options that choose how a training is computed, by their names in the keys of a comparison.
_HARDWARE = {
    "trainer.precision": "--trainer.precision",
    "compile": "--model.compile",
    "channels_last": "--model.channels_last",
    "compact": "--pruning.compact",
}
_FIELDS = (
    "recipe",
    "pruner",
    "density",
    "accuracy",
    "best on test",
    "published",
    "seed",
    "hours",
    "core hours",
    "machine",
    "command",
)
_HEAD = """\
# Accuracies

Test accuracy in percent after the last epoch, and at the best epoch on the test set where it was tested after each, of one run that agrees
with its recipe in every option but those of the hardware and of what is tested, which are in the command. Published is the accuracy of Tanaka
et al. 2020 at the best epoch on the test set, mean and deviation of three runs; compare it with the column before it. Theirs train on all
images, ours keep a tenth for validation. Hours are those of pruning and training. After a command comes `synflow_pl test --ckpt_path` with
its run; `synflow_pl sweep -c sweeps/table --recipes "[RECIPE]"` does both for a recipe. The small files of the runs are in `docs/evidence`:
`python -m benchmarks.table docs/evidence` writes this page from them, and `synflow_pl report docs/evidence` makes a report.

"""  # noqa: E501


@dataclass(frozen=True)
class Entry:
    """Accuracy of one pruner at one density in one recipe.

    Attributes:
        recipe: Name of the recipe.
        pruner: Name of the pruner's overlay.
        density: Fraction of weights kept, in (0, 1].
        run: Run with the lowest seed; ``None`` if there is no run.
    """

    recipe: str
    pruner: str
    density: float
    run: RunRecord | None

    @property
    def options(self) -> tuple[str, ...]:
        density = () if self.pruner == "dense" else ("--pruning.density", str(self.density))
        return (
            "-c",
            self.recipe,
            "-c",
            f"pruners/{self.pruner}",
            *density,
            "--seed_everything",
            str(self.run.seed if self.run else 0),
        )

    @property
    def further(self) -> tuple[str, ...]:
        """Options of the hardware, and of what is tested, in which the run differs."""
        if self.run is None:
            return ()
        tested = self.run.accuracies.at_best_validation is not None
        found = {**self.run.setting, **self.run.pruning}
        recipe = {key: value for part in _compared(self.options) for key, value in part.items()}
        return (
            *(
                text
                for key, option in _HARDWARE.items()
                if found.get(key) != recipe.get(key)
                for text in (option, str(found[key]).lower())
            ),
            *(("--data.test_each_epoch", "true") if tested else ()),
        )

    @property
    def accuracy(self) -> str:
        return _percent(self.run.accuracies.final if self.run else None)

    def row(self) -> list[str]:
        command = f"`synflow_pl fit {shlex.join((*self.options, *self.further))}`"
        head = [f"`{self.recipe}`", self.pruner, f"{self.density:g}", self.accuracy]
        if self.run is None:
            return [*head, "", "", "", "", "", "not run", command]
        machines = self.run.folder / MACHINES
        record = read_record(self.run.folder)
        hours = (record.seconds / 3600, record.core_seconds / 3600) if record else (0.0, 0.0)
        return [
            *head,
            _percent(self.run.accuracies.best_on_test),
            _published(self.run),
            str(self.run.seed),
            *(f"{value:.2f}" if value else "not noted" for value in hours),
            "; ".join(machines.read_text().splitlines() if machines.is_file() else ["not noted"]),
            command,
        ]


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{100 * accuracy:.2f}"


def _published(run: RunRecord) -> str:
    """Return the published accuracy of a run's network, pruner and density; "" if there is none."""
    pruner = "synflow" if run.density == 1 else run.pruner
    return next(
        (
            f"{100 * mean:.2f} ± {100 * deviation:.2f}"
            for curve in published(run)
            for compression, mean, deviation in zip(
                curve.compression, curve.mean, curve.deviation, strict=True
            )
            if curve.pruner == pruner and math.isclose(compression * run.density, 1, rel_tol=0.01)
        ),
        "",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="runs, or folders of runs"
    )
    parser.add_argument(
        "--keep", action="store_true", help="store the small files of the runs in docs/evidence"
    )
    options = parser.parse_args()
    entries = fill(README, DETAILS, options.runs)
    if options.keep:
        for entry in entries:
            if entry.run is not None:
                store(entry.run.folder, EVIDENCE)


def fill(readme: Path, details: Path, folders: Sequence[Path]) -> list[Entry]:
    """Write the accuracies of runs into the README's table, and their origin into ``details``.

    Args:
        readme: Path of the README.
        details: Path of the file with one row for each accuracy.
        folders: Runs, or folders of runs.

    Returns:
        The rows of ``details``.
    """
    pruners = overlays()
    runs = list(_readable(find_runs(folders), pruners))
    lines = readme.read_text().splitlines(keepends=True)
    start = next(index for index, line in enumerate(lines) if line.startswith("| recipe | lr |"))
    entries_by_recipe: dict[str, list[Entry]] = {}
    for index in range(start + 2, len(lines)):
        if not lines[index].startswith("| "):
            break
        entries = lines[index].rstrip("\n").strip("|").split("|")
        names = [
            name for quoted in re.findall(r"`([^`]+)`", entries[0]) for name in _expanded(quoted)
        ]
        entries_by_recipe |= {name: list(_entries(name, runs)) for name in names}
        cells = [
            (name, " / ".join(entry.accuracy for entry in entries_by_recipe[name]))
            for name in names
            if any(entry.run for entry in entries_by_recipe[name])
        ]
        cell = "; ".join(cell if len(names) == 1 else f"`{name}` {cell}" for name, cell in cells)
        lines[index] = f"|{'|'.join(entries[:-1])}| {cell} |\n".replace("|  |\n", "| |\n")
    recipes = yaml.safe_load((recipe_folder() / "sweeps" / "table.yaml").read_text())["recipes"]
    order = [name for name in recipes if name in entries_by_recipe]
    order += [
        name
        for name in entries_by_recipe
        if name not in recipes and any(entry.run for entry in entries_by_recipe[name])
    ]
    shown = [entry for name in order for entry in entries_by_recipe[name]]
    named = [run for run in runs if run.pruner in pruners]
    shown += [entry for name in entries_by_recipe for entry in _further_entries(name, named)]
    rows = [list(_FIELDS), ["---"] * len(_FIELDS), *(entry.row() for entry in shown)]
    for path, text in (
        (readme, "".join(lines)),
        (details, _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)),
    ):
        with atomic_write(path) as file:
            file.write(text.encode())
    count = sum(entry.run is not None for entry in shown)
    print(f"{count} accuracies in {readme} and {details}")
    return shown


def _readable(
    folders: Iterable[Path], pruners: Mapping[str, Mapping[str, Any]]
) -> Iterator[RunRecord]:
    for folder in folders:
        try:
            yield read_run(folder, pruners)
        except SkippedRun as reason:
            print(f"left out: {folder}: {reason}")


def _expanded(text: str) -> Iterable[str]:
    """Return the texts that a shell expands braces to."""
    parts = [
        part[1:-1].split(",") if part.startswith("{") else [part]
        for part in re.split(r"(\{[^{}]*\})", text)
    ]
    return map("".join, product(*parts))


def _entries(recipe: str, runs: Sequence[RunRecord]) -> Iterator[Entry]:
    for pruner, density in _COLUMNS:
        yield Entry(recipe, pruner, density, _run_of(recipe, pruner, density, runs))


def _further_entries(recipe: str, runs: Sequence[RunRecord]) -> Iterator[Entry]:
    """Yield the accuracies of a recipe that have no place in the README's table."""
    dense, _ = _compared(Entry(recipe, "dense", 1.0, None).options)
    network = {key: value for key, value in dense.items() if key.startswith(("network.", "data"))}
    kinds = {(run.pruner, run.density) for run in runs if network.items() <= run.setting.items()}
    for pruner, density in sorted(kinds - set(_COLUMNS), key=lambda kind: (kind[0], -kind[1])):
        if (run := _run_of(recipe, pruner, density, runs)) is not None:
            yield Entry(recipe, pruner, density, run)


def _run_of(
    recipe: str, pruner: str, density: float, runs: Sequence[RunRecord]
) -> RunRecord | None:
    """Return the run of the lowest seed that agrees with a recipe."""
    expected = [
        _without_hardware(part) for part in _compared(Entry(recipe, pruner, density, None).options)
    ]
    alike = [
        run
        for run in runs
        if (run.pruner, run.density) == (pruner, density)
        and run.accuracies.final is not None
        and [_without_hardware(run.setting), _without_hardware(run.pruning)] == expected
    ]
    return min(alike, key=lambda run: run.seed, default=None)


def _without_hardware(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in _HARDWARE}


@cache
def _compared(options: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the comparison keys of a run with the given options of ``fit``."""
    return comparison_keys(yaml.safe_load(parse_fit(list(options)).config_text))


if __name__ == "__main__":
    main()
