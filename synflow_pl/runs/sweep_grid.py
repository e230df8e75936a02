"""Sweep: a grid of runs, and what has become of each. How far they are is kept nowhere else than in
their own folders.
"""

from __future__ import annotations

import fcntl
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from synflow_pl.runs.progress import configuration, ended, progress

__all__ = ["CONTROLS", "FAILED", "NARROWER", "Sweep", "Task", "accuracy", "check_own", "held"]

FAILED = "failed.txt"
"""In a run that ended with an error: what the error was. Such a run starts anew; one that was only
stopped goes on.
"""
NARROWER = "narrower.json"
"""In a run of a narrower dense network: what it is narrower than, and how it compares with that."""
CONTROLS: tuple[str, ...] = ("narrower_parameters", "narrower_flops")
"""Stand among the pruners for dense networks that are narrower instead of pruned: with as many
weights as the recipe's network has at that density, or with as many FLOPs as it has then, pruned by
SynFlow.
"""
_OF_THE_GRID = {
    "seed_everything": "seeds", "pruning.density": "densities", "pruning.pruner": "pruners", "pruning.masks_path": "pruners",
    "run": "folder", "trainer.default_root_dir": "folder",
}  # fmt: skip
"""Options of ``fit`` in which the runs of a sweep differ, and the sweep's own that says them."""


@dataclass(frozen=True)
class Task:
    """One run of a sweep: ``fit`` (or ``multishot``, if there are ``levels``) and ``test``.

    ``name`` is the folder's, ``options`` are those of ``fit``; ``like`` is "parameters" or "flops"
    for a narrower dense network, whose width is still to be chosen.
    """

    name: str
    recipe: str
    density: float
    options: tuple[str, ...]
    levels: int = 0
    like: Literal["parameters", "flops"] | None = None

    @property
    def result(self) -> str:
        """Name of the run that holds what came of it: in multi-shot pruning that of the last
        level.
        """
        return f"{self.name}-level{self.levels}of{self.levels}" if self.levels else self.name

    def train(self, folder: Path, goes_on: bool = False, more: Sequence[str] = ()) -> list[str]:
        """Arguments of ``synflow_pl`` that train it.

        Args:
            folder: of the sweep.
            goes_on: from the last checkpoint of its run.
            more: options of ``fit`` that were found only now.
        """
        command = ["multishot", "--levels", str(self.levels)] if self.levels else ["fit"]
        start = (
            ["--ckpt_path", str(folder / "lightning_logs" / self.name)]
            if goes_on and not self.levels
            else []
        )
        return [
            *command,
            *self.options,
            *more,
            "--run",
            self.name,
            "--trainer.default_root_dir",
            str(folder),
            *start,
        ]

    def test(self, folder: Path) -> list[str]:
        """Arguments of ``synflow_pl`` that test it once it is trained."""
        return ["test", "--ckpt_path", str(folder / "lightning_logs" / self.result)]


@dataclass(frozen=True)
class Sweep:
    """Every recipe with every pruner at every density and seed.

    Args:
        recipes: names (mnist_fc) or files.
        pruners: names of their overlays (synflow), or files. ``dense`` is one run whatever the
            densities are; ``narrower_parameters`` and ``narrower_flops`` are dense networks as
            small as the pruned ones.
        densities: fractions of weights kept, in (0, 1]; 1 is the dense network, whatever the
            pruner.
        seeds: of initialisation and order, at least 0.
        levels: cuts of multi-shot pruning, each followed by a training; 0 prunes before the first
            step.
        options: of fit, by name, for all runs ({trainer.max_epochs: 5}).

    Raises:
        ValueError: for an impossible value, naming it.
    """

    recipes: list[str]
    pruners: list[str]
    densities: list[float]
    seeds: list[int] = field(default_factory=lambda: [0])
    levels: list[int] = field(default_factory=lambda: [0])
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("recipes", "pruners", "densities", "seeds", "levels"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name}: there is none; a sweep needs at least one")
            if len(set(values)) < len(values):
                raise ValueError(
                    f"{name}: {next(value for value in values if values.count(value) > 1)!r}"
                    " stands there twice"
                )
        for density in self.densities:
            if not 0 < density <= 1:
                raise ValueError(
                    f"densities: {density} is not in (0, 1]; compression 10^2 is density 0.01"
                )
        for name, least in (("seeds", 0), ("levels", 0)):
            if min(getattr(self, name)) < least:
                raise ValueError(f"{name}: {min(getattr(self, name))} must be at least {least}")

    def tasks(self, extra: Sequence[str] = ()) -> list[Task]:
        """All runs, seed by seed, so that a sweep that is stopped has whole curves of the first
        seeds.

        Args:
            extra: more options of ``fit``, as typed on the command line.

        Raises:
            ValueError: if an option is what the grid says, or if two different runs would have the
                same name.
        """
        options = [
            part for name, value in self.options.items() for part in (f"--{name}", _typed(value))
        ]
        for part in (*options, *extra):
            name = part.partition("=")[0].removeprefix("--")
            if part.startswith("--") and name in _OF_THE_GRID:
                raise ValueError(
                    f"--{name} cannot be the same for every run of a sweep, which sets it itself;"
                    f" give --{_OF_THE_GRID[name]}"
                )
        tasks: dict[str, Task] = {}
        for seed in self.seeds:
            for recipe in self.recipes:
                for levels in self.levels:
                    for density in sorted(self.densities, reverse=True):
                        for pruner in self.pruners:
                            task = _task(recipe, pruner, density, seed, levels, [*options, *extra])
                            same = tasks.setdefault(task.name, task)
                            if same != task:
                                one, other = next(
                                    pair
                                    for pair in zip(same.options, task.options, strict=False)
                                    if len(set(pair)) > 1
                                )
                                raise ValueError(
                                    f"{one} and {other} would both be called {task.name}; rename"
                                    " one of the two files"
                                )
        return list(tasks.values())


def _task(
    recipe: str, pruner: str, density: float, seed: int, levels: int, options: Sequence[str]
) -> Task:
    if pruner == "dense" or density == 1:
        pruner, density, levels = "dense", 1.0, 0
    control = pruner if pruner in CONTROLS else None
    levels = 0 if control else levels
    overlay = "pruners/dense" if control else pruner if Path(pruner).suffix else f"pruners/{pruner}"
    shown = Path(pruner).stem + (f"_{levels}levels" if levels else "")
    amount = "1" if density == 1 else str(density)
    pruning = (
        []
        if control or pruner == "dense"
        else ["--pruning.density", amount, "--pruning.on_collapse", "warn"]
    )
    return Task(
        name=f"{Path(recipe).stem}-{shown}-density{amount}-seed{seed}",
        recipe=recipe,
        density=density,
        options=("-c", recipe, "-c", overlay, *pruning, "--seed_everything", str(seed), *options),
        levels=levels,
        like=control.removeprefix("narrower_") if control else None,  # type: ignore[arg-type]  # one of the two
    )


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def accuracy(folder: Path, task: Task) -> float | None:
    """Its test accuracy after the last epoch, in [0, 1]; ``None`` if it is not finished: trained to
    its end and tested since.
    """
    run = folder / "lightning_logs" / task.result
    if (run / FAILED).exists():
        return None
    try:
        told = progress(run)
        return (
            told.final
            if told.final is not None and ended(configuration(run)["trainer"], told)
            else None
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


@contextmanager
def held(folder: Path, task: Task) -> Iterator[bool]:
    """Hold a run, on every machine that shares the folder, until the block or the process ends,
    however it ends.

    Yields whether it could be had: ``False`` if another process holds it.

    Raises:
        OSError: if the file system cannot lock files.
    """
    path = _note(folder, task)
    path.parent.mkdir(exist_ok=True)
    with open(path, "a+") as note:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        # What the run is made with, for whoever comes next.
        note.seek(0)
        if note.read() != _made_with(task):
            note.truncate(0)
            note.write(_made_with(task))
            note.flush()
        yield True


def check_own(folder: Path, tasks: Sequence[Task]) -> None:
    """See that the runs that are there already are those of this sweep.

    Raises:
        ValueError: if one was made with other options, or by somebody else; nothing of it has been
            touched.
    """
    for task in tasks:
        runs = [
            folder / "lightning_logs" / name
            for name in (task.name, f"{task.name}-level0of{task.levels}")
        ]
        run = next((run for run in runs if run.exists()), None)
        if run is None:
            continue
        note = _note(folder, task)
        if not note.is_file():
            raise ValueError(
                f"{run} was not made by a sweep; move it away, or give another --folder"
            )
        was = note.read_text()
        if was != _made_with(task):
            raise ValueError(
                f"{run} was made with {was!r}, not with {_made_with(task)!r}; give the same"
                " options to go on, or another --folder"
            )


def _note(folder: Path, task: Task) -> Path:
    """The file that is locked while a run is worked on, and that says what it is made with."""
    return folder / ".sweep" / task.name


def _made_with(task: Task) -> str:
    return shlex.join(task.options)
