"""Read and write ``training.json``: whether the training of a run has ended, and what it took."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from synflow_pl.io import atomic_write

__all__ = ["RECORD", "Training", "read_record", "write_record"]

RECORD = "training.json"
"""File of a run that stores its :class:`Training`; runs of older versions have none."""


@dataclass(frozen=True)
class Training:
    """Length and cost of the training of a run.

    Attributes:
        ended: Whether the training has ended: complete, or stopped by a callback or a time limit.
            ``False`` while it runs and after a kill.
        epochs: Epochs of the whole training, at least 0; 0 unless it has ended.
        steps: Optimiser steps of the whole training, at least 0; 0 unless it has ended.
        seconds: Wall-clock time of pruning and training in seconds, added up over all resumptions,
            up to the last epoch that each of them finished.
        core_seconds: Processor time of the same in seconds: that of the first process, with its
            data workers that have ended, times the number of processes.
    """

    ended: bool
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0


def write_record(run: Path, training: Training) -> None:
    """Write ``training.json`` of a run.

    Args:
        run: Folder of the run.
        training: Content to write.

    Raises:
        OSError: If the file cannot be written.
    """
    with atomic_write(run / RECORD) as file:
        file.write(json.dumps(asdict(training)).encode() + b"\n")


def read_record(run: Path) -> Training | None:
    """Return the content of ``training.json`` of a run, or ``None`` if the run has no such file.

    Args:
        run: Folder of the run.

    Raises:
        ValueError: If the file is damaged.
    """
    path = run / RECORD
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        return Training(
            bool(content["ended"]),
            int(content["epochs"]),
            int(content["steps"]),
            # Runs of older versions have no cost.
            float(content.get("seconds", 0.0)),
            float(content.get("core_seconds", 0.0)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its {RECORD} cannot be read: {error}") from error
