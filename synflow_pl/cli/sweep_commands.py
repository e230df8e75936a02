"""Command lines that train and test the runs of a sweep."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synflow_pl.runs.sweep_grid import Task

__all__ = ["evaluation_command", "fit_line", "fit_options", "training_command"]


def fit_options(task: Task) -> list[str]:
    """Return the options of ``fit`` that determine what a run computes.

    Args:
        task: Run of a sweep.
    """
    without = ["--pruning.density", "null"] if task.budget != "density" else []
    pruning = (
        [*without, f"--pruning.{task.budget}", str(task.density), "--pruning.on_collapse", "warn"]
        if task.is_pruned
        else []
    )
    return [
        "-c",
        task.recipe,
        "-c",
        task.overlay,
        *pruning,
        "--seed_everything",
        str(task.seed),
        *(part for name, value in task.settings.items() for part in (f"--{name}", _typed(value))),
        *task.extra,
    ]


def fit_line(task: Task) -> str:
    """Return :func:`fit_options` as one line, as it would be typed into a shell.

    Args:
        task: Run of a sweep.
    """
    return shlex.join(fit_options(task))


def training_command(
    task: Task, folder: Path, *, resume: bool = False, network: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the arguments of ``synflow_pl`` that train a run.

    Args:
        task: Run of a sweep; ``multishot`` trains one with levels, and ``fit`` any other.
        folder: Folder of the sweep.
        resume: Whether to resume from the last checkpoint of the run; ``multishot`` resumes by
            itself.
        network: Further arguments of the network, by name.
    """
    arguments = network or {}
    return [
        *(["multishot", "--levels", str(task.levels)] if task.levels else ["fit"]),
        *fit_options(task),
        *(
            part
            for name, value in arguments.items()
            for part in (f"--model.network.{name}", _typed(value))
        ),
        "--run",
        task.name,
        "--trainer.default_root_dir",
        str(folder),
        *(
            ["--ckpt_path", str(folder / "lightning_logs" / task.name)]
            if resume and not task.levels
            else []
        ),
    ]


def evaluation_command(task: Task, folder: Path) -> list[str]:
    """Return the arguments of ``synflow_pl`` that test a run after its training.

    Args:
        task: Run of a sweep.
        folder: Folder of the sweep.
    """
    return ["test", "--ckpt_path", str(folder / "lightning_logs" / task.result)]


def _typed(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
