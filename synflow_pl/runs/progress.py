"""Read how far a run has trained, and its accuracies, from ``metrics.csv`` and ``config.yaml``."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from synflow_pl.runs.run_folder import CONFIG
from synflow_pl.runs.training_record import read_record

__all__ = ["CHECKPOINT", "OTHERWISE", "Progress", "configuration", "ended", "progress"]

CHECKPOINT = "test/checkpoint"
"""Column of metrics.csv: the checkpoint that was tested; rows of older versions have none."""
OTHERWISE = "test/otherwise"
"""Column of metrics.csv: options that affect the test accuracy and differ from the run's."""

_PART = "trainer.limit_test_batches"
# Lightning's callbacks that can stop a training early. Callbacks of other packages may do so too.
_ENDING = ("EarlyStopping", "Timer", "LambdaCallback")
_KNOWN = ("pytorch_lightning.", "lightning.", "synflow_pl.")


@dataclass
class Progress:
    """State of a run: the length of its training and its accuracies, in [0, 1].

    Attributes:
        epochs: Epochs of the whole training up to the end of the last complete epoch, at least 0.
        steps: Optimiser steps up to the end of the last complete epoch, at least 0.
        ended: Whether the training has ended; ``None`` for runs of older versions, which do not
            record it.
        final: Test accuracy of the last checkpoint with the settings of the run; ``None`` if it was
            not tested.
        part: Whether ``final`` was measured on only a part of the test set.
        tests: Test accuracies by the optimiser steps of the checkpoint.
        validation: Validation accuracies by epoch, counted from 0.
        test_each_epoch: Test accuracies by epoch, counted from 0.
    """

    epochs: int = 0
    steps: int = 0
    ended: bool | None = None
    final: float | None = None
    part: bool = False
    tests: dict[int, float] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)
    test_each_epoch: dict[int, float] = field(default_factory=dict)


def progress(run: Path) -> Progress:
    """Read the progress of a run from the complete lines of its ``metrics.csv``.

    If an epoch occurs twice, because the run was resumed from before it, the later row counts.

    Args:
        run: Folder of the run.

    Raises:
        OSError: If there is no ``metrics.csv``.
        ValueError: If a file is damaged.
    """
    record = read_record(run)
    state = Progress()
    tests: list[tuple[int, float, str]] = []
    try:
        with open(run / "metrics.csv", newline="") as file:
            # An incomplete last line may end within a number.
            for row in csv.DictReader(line for line in file if line.endswith("\n")):
                if row.get("train/loss"):  # logged once per epoch, at its end
                    state.epochs, state.steps, state.final = (
                        int(row["epoch"]) + 1,
                        int(row["step"]) + 1,
                        None,
                    )
                if row.get("test/accuracy") and row.get(CHECKPOINT):
                    tests.append(
                        (
                            int(row["step"]) + 1,
                            float(row["test/accuracy"]),
                            row.get(OTHERWISE) or "",
                        )
                    )
                elif row.get("test/accuracy"):
                    state.final = float(row["test/accuracy"])
                if row.get("val/accuracy"):
                    state.validation[int(row["epoch"])] = float(row["val/accuracy"])
                if row.get("test_each_epoch/accuracy"):
                    state.test_each_epoch[int(row["epoch"])] = float(
                        row["test_each_epoch/accuracy"]
                    )
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"its metrics.csv cannot be read: {error}") from error
    if record is not None:
        state.ended = record.ended
        if record.ended:
            state.epochs, state.steps = record.epochs, record.steps
    # A test on the whole test set replaces one on a part; otherwise the latest test of a checkpoint
    # counts.
    for of_part in (True, False):
        for steps, accuracy, otherwise in tests:
            if (
                otherwise == ""
                if not of_part
                else re.fullmatch(rf"{re.escape(_PART)}=\S+", otherwise)
            ):
                state.tests[steps] = accuracy
                if steps == max(1, state.steps):
                    state.final, state.part = accuracy, of_part
    return state


def configuration(run: Path) -> Any:
    """Return the content of ``config.yaml`` in a run folder.

    Args:
        run: Folder of the run.

    Raises:
        OSError: If there is no ``config.yaml``.
        ValueError: If the file is damaged.
    """
    try:
        with open(run / CONFIG) as file:
            return yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"its {CONFIG} cannot be read: {' '.join(str(error).split())}") from error


def ended(trainer: Mapping[str, Any], state: Progress) -> bool:
    """Return whether the training of a run has ended.

    Runs of older versions do not record it. For these, ``True`` is returned where the training may
    have been stopped early by a callback or a time limit.

    Args:
        trainer: Section ``trainer`` of the configuration.
        state: Progress of the run.
    """
    if state.ended is not None:
        return state.ended
    if trainer.get("max_time") is not None or any(
        _may_end(callback) for callback in _listed(trainer.get("callbacks"))
    ):
        return True
    epochs, steps = (_bound(trainer.get(name)) for name in ("max_epochs", "max_steps"))
    nothing = trainer.get("limit_train_batches") == 0 or epochs == steps == math.inf
    return nothing or state.epochs >= epochs or state.steps >= steps


def _bound(value: Any) -> float:
    return math.inf if value in (None, -1) else value


def _listed(callbacks: Any) -> list[Any]:
    return callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]


def _may_end(callback: Any) -> bool:
    path = callback["class_path"]
    return path.endswith(_ENDING) or not path.startswith(_KNOWN)
