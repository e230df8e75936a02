"""Fill the accuracy column of the README's hyperparameter table with what was run: ``python benchmarks/table.py sweeps/table``.

A cell gets the final test accuracies of the dense network and of SynFlow at 10x and 100x, of runs that agree with the recipe in every
option. What has not been run is left empty.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from synflow_pl.cli.recipes import overlays, recipe_folder
from synflow_pl.runs.reading import LeftOut, Read, find_runs, flat, read

README = Path(__file__).parents[1] / "README.md"
_COLUMNS = (("dense", 1.0), ("synflow", 0.1), ("synflow", 0.01))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    own = parser.parse_args()
    runs = list(_readable(find_runs(own.runs)))
    lines = README.read_text().splitlines(keepends=True)
    start = next(index for index, line in enumerate(lines) if line.startswith("| recipe | lr |"))
    for index in range(start + 2, len(lines)):
        if not lines[index].startswith("| "):
            break
        entries = lines[index].rstrip("\n").strip("|").split("|")
        names = [name for quoted in re.findall(r"`([^`]+)`", entries[0]) for name in _expanded(quoted)]
        cells = [(name, cell) for name in names if (cell := _cell(name, runs))]
        told = "; ".join(cell if len(names) == 1 else f"`{name}` {cell}" for name, cell in cells)
        lines[index] = f"|{'|'.join(entries[:-1])}| {told} |\n".replace("|  |\n", "| |\n")
    README.write_text("".join(lines))


def _readable(folders: Iterable[Path]) -> Iterable[Read]:
    for folder in folders:
        try:
            yield read(folder, overlays())
        except LeftOut as reason:
            print(f"left out: {folder}: {reason}")


def _expanded(text: str) -> Iterable[str]:
    """As a shell reads braces."""
    parts = [part[1:-1].split(",") if part.startswith("{") else [part] for part in re.split(r"(\{[^{}]*\})", text)]
    return map("".join, product(*parts))


def _cell(recipe: str, runs: Iterable[Read]) -> str:
    path = recipe_folder() / f"{recipe}.yaml"
    wanted = yaml.safe_load(path.read_text())
    found = []
    for pruner, density in _COLUMNS:
        of = [run for run in runs if (run.pruner, run.density) == (pruner, density) and _agrees(run, wanted)]
        seeds = {run.seed: run.accuracies.final for run in of}
        found.append(f"{100 * seeds[min(seeds)]:.2f} (seed {min(seeds)})" if seeds else "")
    return " / ".join(found) if any(found) else ""


def _agrees(run: Read, recipe: Mapping[str, Any]) -> bool:
    """Whether a run was trained as a recipe says."""
    data = recipe["data"]
    wanted = {**flat(recipe["model"]), "data": data["class_path"], "trainer.max_epochs": recipe["trainer"]["max_epochs"]}
    wanted |= {f"data.{name}": value for name, value in data.get("init_args", {}).items()}
    plain = not run.setting.get("data.validate_on_test")
    return plain and all(run.setting.get(name) == value for name, value in wanted.items())


if __name__ == "__main__":
    main()
