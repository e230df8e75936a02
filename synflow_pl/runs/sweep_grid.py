"""Sweeps: the grid of runs, and which of them are finished.

The progress of a sweep is stored only in the folders of its runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from synflow_pl.runs.progress import configuration, ended, progress

__all__ = [
    "CONTROLS",
    "FAILED",
    "NARROWER",
    "Sweep",
    "Task",
    "accuracy",
]

FAILED = "failed.txt"
"""File of a run that ended with an error, with the message. Such a run starts from the beginning;
one that was only stopped is resumed.
"""
NARROWER = "narrower.json"
"""File of a run of a narrower dense network that compares it with the network of the recipe."""
CONTROLS: tuple[str, ...] = ("narrower_parameters", "narrower_flops")
"""Values of ``pruners`` that stand for dense networks that are narrower instead of pruned.

They have as many weights as the recipe's network at that density, or as many FLOPs as that network
pruned by SynFlow. With ``budget="flops"`` they have that fraction of the FLOPs.
"""
_OF_THE_GRID = {
    "seed_everything": "seeds",
    "pruning.density": "densities",
    "pruning.pruner": "pruners",
    "pruning.masks_path": "pruners",
    "run": "folder",
    "trainer.default_root_dir": "folder",
}
"""Options of ``fit`` in which the runs of a sweep differ, and the option of the sweep for each."""


Budget = Literal["density", "effective_density", "flops", "parameters", "latency"]
"""Option of the pruning that limits what is kept."""


@dataclass(frozen=True)
class Task:
    """One run of a sweep: a training with ``fit`` or ``multishot``, followed by ``test``.

    Attributes:
        name: Name of the run's folder.
        recipe: Name or path of the recipe.
        overlay: Name or path of the pruner's overlay.
        density: Fraction of weights kept, or of what ``budget`` limits, in (0, 1].
        seed: Seed of initialisation and order of the data.
        settings: Further options of ``fit``, by name.
        extra: Further options of ``fit``, as typed on the command line.
        levels: Levels of multi-shot pruning; 0 trains with ``fit``.
        like: ``"parameters"`` or ``"flops"`` for a narrower dense network, whose width is not
            chosen yet; else ``None``.
        budget: Option of the pruning that ``density`` sets.
    """

    name: str
    recipe: str
    overlay: str
    density: float
    seed: int
    settings: Mapping[str, Any]
    extra: tuple[str, ...] = ()
    levels: int = 0
    like: Literal["parameters", "flops"] | None = None
    budget: Budget = "density"

    @property
    def is_pruned(self) -> bool:
        """True for a sparse network, False for a dense one of any width."""
        return self.density < 1 and self.like is None

    @property
    def result(self) -> str:
        """Name of the run with the results; in multi-shot pruning that of the last level."""
        return f"{self.name}-level{self.levels}of{self.levels}" if self.levels else self.name


@dataclass(frozen=True)
class Sweep:
    """Grid of runs: every recipe with every pruner at every density and seed.

    Args:
        recipes: Names of recipes (``mnist_fc``), or paths of files.
        pruners: Names of their overlays (``synflow``), or paths of files. ``dense`` is one run for
            all densities; ``narrower_parameters`` and ``narrower_flops`` are dense networks as
            small as the pruned ones.
        densities: Fractions of weights kept, or of what ``budget`` limits, in (0, 1]; 1 is the
            dense network for every pruner.
        seeds: Seeds of initialisation and order of the data, at least 0.
        levels: Numbers of levels of multi-shot pruning, each a pruning followed by a training; 0
            prunes before the first step.
        options: Options of ``fit`` for all runs, by name (``{trainer.max_epochs: 5}``).
        budget: What ``densities`` are fractions of: ``"density"`` (weights),
            ``"effective_density"``, ``"flops"``, ``"parameters"`` or ``"latency"``.
        then: Further grids that follow in this order, each as the options in which it differs.

    Raises:
        ValueError: If a value is out of range; the message names it.
    """

    recipes: list[str]
    pruners: list[str]
    densities: list[float]
    seeds: list[int] = field(default_factory=lambda: [0])
    levels: list[int] = field(default_factory=lambda: [0])
    options: dict[str, Any] = field(default_factory=dict)
    budget: Budget = "density"
    then: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("recipes", "pruners", "densities", "seeds", "levels"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name}: there is none; a sweep needs at least one")
            if len(set(values)) < len(values):
                raise ValueError(
                    f"{name}: {next(value for value in values if values.count(value) > 1)!r}"
                    " is given twice"
                )
        for density in self.densities:
            if not 0 < density <= 1:
                raise ValueError(
                    f"densities: {density} is not in (0, 1]; compression 10^2 is density 0.01"
                )
        for name, least in (("seeds", 0), ("levels", 0)):
            if min(getattr(self, name)) < least:
                raise ValueError(f"{name}: {min(getattr(self, name))} must be at least {least}")

        possible = {"density": CONTROLS, "flops": ("narrower_flops",)}.get(self.budget, ())
        for control in CONTROLS:
            if control in self.pruners and control not in possible:
                raise ValueError(
                    f"pruners: {control} has no network for budget {self.budget!r}; leave it out"
                )
        if self.budget != "density" and any(self.levels):
            raise ValueError(
                f"budget: {self.budget!r} cannot be reached in levels, which multiply densities;"
                " leave out levels or budget"
            )
        self._parts()

    def _parts(self) -> list[Sweep]:
        """Return the grids of the sweep in their order.

        Raises:
            ValueError: If one of ``then`` has an option that a grid does not have.
        """
        names = [name for name in self.__dataclass_fields__ if name != "then"]
        for part in self.then:
            if unknown := sorted(part.keys() - set(names)):
                raise ValueError(
                    f"then: {unknown[0]} is not an option of a grid; choose from {', '.join(names)}"
                )
        return [self, *(replace(self, **{**part, "then": []}) for part in self.then)]

    def tasks(self, extra: Sequence[str] = ()) -> list[Task]:
        """Return all runs of the sweep, those of each grid ordered by seed.

        A grid that is stopped early therefore has complete curves of the first seeds.

        Args:
            extra: Further options of ``fit``, as typed on the command line.

        Raises:
            ValueError: If an option is one that the grid sets, or if two different runs would have
                the same name.
        """
        typed = [part.partition("=")[0] for part in extra if part.startswith("--")]
        of_the_grid = {**_OF_THE_GRID, f"pruning.{self.budget}": "densities"}
        for name in (*self.options, *(option.removeprefix("--") for option in typed)):
            if name in of_the_grid:
                raise ValueError(
                    f"--{name} cannot be the same for every run of a sweep, which sets it itself;"
                    f" give --{of_the_grid[name]}"
                )
        tasks: dict[str, Task] = {}
        for task in (task for part in self._parts() for task in part._tasks(extra)):
            first = tasks.setdefault(task.name, task)
            if first != task:
                one, other = (
                    (first.recipe, task.recipe)
                    if first.recipe != task.recipe
                    else (first.overlay, task.overlay)
                )
                raise ValueError(
                    f"{one} and {other} would both be called {task.name}; rename one of the two"
                    " files"
                )
        return list(tasks.values())

    def _tasks(self, extra: Sequence[str]) -> Iterator[Task]:
        """Yield the runs of this grid alone; dense ones come once for each density."""
        for seed in self.seeds:
            for recipe in self.recipes:
                for levels in self.levels:
                    for density in sorted(self.densities, reverse=True):
                        for pruner in self.pruners:
                            yield self._task(recipe, pruner, density, seed, levels, extra)

    def _task(
        self,
        recipe: str,
        pruner: str,
        density: float,
        seed: int,
        levels: int,
        extra: Sequence[str],
    ) -> Task:
        if pruner == "dense" or density == 1:
            pruner, density, levels = "dense", 1.0, 0
        control = pruner if pruner in CONTROLS else None
        levels = 0 if control else levels
        shown = Path(pruner).stem + (f"_{levels}levels" if levels else "")
        amount = "1" if density == 1 else str(density)
        budget: Budget = "density" if pruner == "dense" else self.budget
        if control:
            overlay = "pruners/dense"
        else:
            overlay = pruner if Path(pruner).suffix else f"pruners/{pruner}"
        return Task(
            name=f"{Path(recipe).stem}-{shown}-{budget}{amount}-seed{seed}",
            recipe=recipe,
            overlay=overlay,
            density=density,
            seed=seed,
            settings=self.options,
            extra=tuple(extra),
            levels=levels,
            like=control.removeprefix("narrower_") if control else None,  # type: ignore[arg-type]  # one of the two
            budget=budget,
        )


def accuracy(folder: Path, task: Task) -> float | None:
    """Return the test accuracy of a run after its last epoch, in [0, 1].

    Args:
        folder: Folder of the sweep.
        task: Run of the sweep.

    Returns:
        The accuracy, or ``None`` if the run has not been trained to its end and tested.
    """
    run = folder / "lightning_logs" / task.result
    if (run / FAILED).exists():
        return None
    try:
        state = progress(run)
        return (
            state.final
            if state.final is not None and ended(configuration(run)["trainer"], state)
            else None
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
