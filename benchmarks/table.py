"""Write measured accuracies into the README's hyperparameter table and docs/accuracies.md.

    python benchmarks/table.py sweeps/table

The table has the final test accuracies of the dense network and of SynFlow at 10x and 100x, of runs
that agree with the recipe in every option. ``docs/accuracies.md`` has a row for each accuracy, with
the seed, the machines and a command that repeats the run. An accuracy that was not measured is
empty in the table, and its row says so.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from synflow_pl.cli.command import parse_fit
from synflow_pl.cli.recipes import overlays, recipe_folder
from synflow_pl.io import atomic_write
from synflow_pl.runs import MACHINES
from synflow_pl.runs.run_files import SkippedRun
from synflow_pl.runs.run_record import RunRecord, comparison_keys, read_run
from synflow_pl.runs.run_search import find_runs

README = Path(__file__).parents[1] / "README.md"
DETAILS = README.parent / "docs" / "accuracies.md"
_COLUMNS = (("dense", 1.0), ("synflow", 0.1), ("synflow", 0.01))
_HEAD = (
    "# Accuracies\n\n"
    "Test accuracy in percent after the last epoch, each of one run that agrees with its recipe in"
    " every option. After a command comes\n"
    "`synflow_pl test --ckpt_path` with its run; `synflow_pl sweep -c sweeps/table --recipes"
    ' "[RECIPE]"` does both for a recipe. Written by\n'
    "`python benchmarks/table.py`.\n\n"
)


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
    def accuracy(self) -> str:
        return (
            f"{100 * self.run.accuracies.final:.2f}"
            if self.run and self.run.accuracies.final is not None
            else ""
        )

    def row(self) -> list[str]:
        machines_file = self.run.folder / MACHINES if self.run else None
        machines = (
            machines_file.read_text().splitlines()
            if machines_file and machines_file.is_file()
            else ["not noted" if self.run else "not run"]
        )
        seed = str(self.run.seed) if self.run else ""
        command = f"`synflow_pl fit {shlex.join(self.options)}`"
        return [
            f"`{self.recipe}`",
            self.pruner,
            f"{self.density:g}",
            self.accuracy,
            seed,
            "; ".join(machines),
            command,
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="runs, or folders of runs"
    )
    fill(README, DETAILS, parser.parse_args().runs)


def fill(readme: Path, details: Path, folders: Sequence[Path]) -> None:
    """Write the accuracies of runs into the README's table, and their origin into ``details``.

    Args:
        readme: Path of the README.
        details: Path of the file with one row for each accuracy.
        folders: Runs, or folders of runs.
    """
    runs = list(_readable(find_runs(folders)))
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
    rows = [["recipe", "pruner", "density", "accuracy", "seed", "machine", "command"], ["---"] * 7]
    rows += [entry.row() for name in order for entry in entries_by_recipe[name]]
    for path, text in (
        (readme, "".join(lines)),
        (details, _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)),
    ):
        with atomic_write(path) as file:
            file.write(text.encode())
    count = sum(entry.run is not None for of in entries_by_recipe.values() for entry in of)
    print(f"{count} accuracies in {readme} and {details}")


def _readable(folders: Iterable[Path]) -> Iterator[RunRecord]:
    for folder in folders:
        try:
            yield read_run(folder, overlays())
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
        empty = Entry(recipe, pruner, density, None)
        alike = [
            run
            for run in runs
            if (run.pruner, run.density) == (pruner, density) and run.accuracies.final is not None
        ]
        alike = [run for run in alike if _compared(empty.options) == (run.setting, run.pruning)]
        yield Entry(recipe, pruner, density, min(alike, key=lambda run: run.seed, default=None))


@cache
def _compared(options: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the comparison keys of a run with the given options of ``fit``."""
    return comparison_keys(yaml.safe_load(parse_fit(list(options)).config_text))


if __name__ == "__main__":
    main()
