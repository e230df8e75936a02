"""The record of a run: whether its training has come to its end, and at which epoch and step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from synflow_pl.io import atomic_write

__all__ = ["RECORD", "Training", "read_record", "write_record"]

RECORD = "training.json"
"""In a run: the :class:`Training`. Runs of older versions have none."""


@dataclass(frozen=True)
class Training:
    """How far the training of a run is.

    Attributes:
        ended: whether the training came to its end, by itself, a callback or a time limit;
            ``False`` while it runs and after a kill.
        epochs: epochs of the whole training, at least 0; 0 unless it has ended.
        steps: optimiser steps of the whole training, at least 0; 0 unless it has ended.
    """

    ended: bool
    epochs: int = 0
    steps: int = 0


def write_record(run: Path, training: Training) -> None:
    """Write the record of a run.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_write(run / RECORD) as file:
        file.write(json.dumps(asdict(training)).encode() + b"\n")


def read_record(run: Path) -> Training | None:
    """Return the record of a run, or ``None`` if it has none.

    Raises:
        ValueError: if the record is damaged.
    """
    path = run / RECORD
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        return Training(bool(content["ended"]), int(content["epochs"]), int(content["steps"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its {RECORD} cannot be read: {error}") from error
