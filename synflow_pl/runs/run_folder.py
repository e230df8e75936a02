"""Run folders: one for each training, under ``lightning_logs``.

A run folder contains ``config.yaml``, ``metrics.csv``, TensorBoard's events, ``masks.safetensors``,
``diagnosis.csv``, ``diagnosis.json``, ``training.json``, ``machines.txt`` and ``checkpoints/``.
"""

from __future__ import annotations

import re
from pathlib import Path

from synflow_pl.io import folder_error_message, make_folder

__all__ = ["CONFIG", "MACHINES", "PRUNED", "create_run_folder", "find_run_folder"]

CONFIG = "config.yaml"
MACHINES = "machines.txt"
"""File of a run with one line for each kind of machine that worked on it."""
PRUNED = "-pruned"
"""Suffix of the name of a run that pruned a network without training it."""


def create_run_folder(root: Path, name: str) -> Path:
    """Create the folder ``root/name``, or ``name-2``, ``name-3``, ... if it exists already.

    Two processes never get the same folder.

    Args:
        root: Parent folder, created if it does not exist.
        name: Name of the run.

    Returns:
        Path of the new folder.

    Raises:
        ValueError: If ``name`` is not a valid name of a run.
        OSError: If the folder cannot be created; the message names it and the reason.
    """
    if not re.fullmatch(r"[\w.+=@-]+", name) or name.startswith("."):
        raise ValueError(
            f"run: {name!r} cannot be a run's name; use letters, digits and any of . _ + = @ -"
        )
    make_folder(root, "--trainer.default_root_dir")
    number = 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        except OSError as error:
            raise OSError(
                folder_error_message(folder, error, "--trainer.default_root_dir")
            ) from error
        else:
            return folder


def find_run_folder(path: Path) -> Path | None:
    """Return the run folder that contains a checkpoint or a folder, or ``None``.

    Args:
        path: Path of a run, of its folder of checkpoints, or of a checkpoint in that folder.
    """
    for folder in (path, path.parent, path.parent.parent):
        if (folder / CONFIG).is_file():
            return folder
    return None
