"""The run folder: one under ``lightning_logs`` for each training.

A run holds ``config.yaml``, ``metrics.csv``, TensorBoard's events, ``masks.safetensors``,
``diagnosis.csv`` and ``diagnosis.json``, ``training.json``, ``machines.txt``, and ``checkpoints/``.
"""

from __future__ import annotations

import re
from pathlib import Path

from synflow_pl.io import cannot_make, make_folder

__all__ = ["CONFIG", "MACHINES", "PRUNED", "claim", "run_of"]

CONFIG = "config.yaml"
MACHINES = "machines.txt"
"""In a run: a line for each kind of machine that it was made on."""
PRUNED = "-pruned"
"""How the name of a run ends in which a network was pruned and not trained."""


def claim(root: Path, name: str) -> Path:
    """Make the folder ``root/name``, or ``name-2``, ``name-3``, ... if it is taken; two processes
    never get the same one.

    Raises:
        ValueError: if the name cannot be a folder's.
        OSError: if the folder cannot be made, naming it and the reason.
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
            raise OSError(cannot_make(folder, error, "--trainer.default_root_dir")) from error
        else:
            return folder


def run_of(path: Path) -> Path | None:
    """The run that a checkpoint or a folder belongs to, if it belongs to one."""
    for folder in (path, path.parent, path.parent.parent):
        if (folder / CONFIG).is_file():
            return folder
    return None
