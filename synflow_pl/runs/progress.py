"""Progress: how far a run is, and how well it did there, by its ``metrics.csv`` and
``config.yaml``.
"""

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
"""Column of metrics.csv: the checkpoint that a test was of; rows that older versions wrote have
none.
"""
OTHERWISE = "test/otherwise"
"""Column of metrics.csv: options that matter to the test and differ from those of the run."""

_PART = "trainer.limit_test_batches"
# The callbacks of Lightning that end a training; of those that are neither Lightning's nor ours
# nobody knows.
_ENDING = ("EarlyStopping", "Timer", "LambdaCallback")
_KNOWN = ("pytorch_lightning.", "lightning.", "synflow_pl.")


@dataclass
class Progress:
    """What is told of a run so far.

    ``epochs`` and ``steps`` are those of the whole training up to the end of the last epoch that
    ended, 0 if none has; ``ended`` is whether the training came to its end, ``None`` in runs of
    older versions, which do not say. Accuracies are in [0, 1]: ``final`` on the test set for the
    last checkpoint, with the settings of the run (``None`` if that was not tested), ``part``
    whether only a part of the test set was used; ``tests`` by optimiser steps of the checkpoint;
    the others by epoch, counted from 0.
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
    """Read the whole lines of ``metrics.csv``; of an epoch that stands there twice, since a run
    went on before it, the later counts.

    Raises:
        OSError: if there is none.
        ValueError: if it is damaged.
    """
    record = read_record(run)
    told = Progress()
    tests: list[tuple[int, float, str]] = []
    try:
        with open(run / "metrics.csv", newline="") as file:
            for row in csv.DictReader(
                line for line in file if line.endswith("\n")
            ):  # one cut short may end within a number
                if row.get("train/loss"):  # is there once for each epoch, at its end
                    told.epochs, told.steps, told.final = (
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
                    told.final = float(row["test/accuracy"])
                if row.get("val/accuracy"):
                    told.validation[int(row["epoch"])] = float(row["val/accuracy"])
                if row.get("test_each_epoch/accuracy"):
                    told.test_each_epoch[int(row["epoch"])] = float(row["test_each_epoch/accuracy"])
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"its metrics.csv cannot be read: {error}") from error
    if record is not None:
        told.ended = record.ended
        if record.ended:
            told.epochs, told.steps = record.epochs, record.steps
    # Of several tests of a checkpoint the later counts, and one on the whole test set before one on
    # a part.
    for of_part in (True, False):
        for steps, accuracy, otherwise in tests:
            if (
                otherwise == ""
                if not of_part
                else re.fullmatch(rf"{re.escape(_PART)}=\S+", otherwise)
            ):
                told.tests[steps] = accuracy
                if steps == max(1, told.steps):
                    told.final, told.part = accuracy, of_part
    return told


def configuration(run: Path) -> Any:
    """What ``config.yaml`` holds.

    Raises:
        OSError: if there is none.
        ValueError: if it is damaged.
    """
    try:
        with open(run / CONFIG) as file:
            return yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"its {CONFIG} cannot be read: {' '.join(str(error).split())}") from error


def ended(trainer: Mapping[str, Any], told: Progress) -> bool:
    """Whether the training has come to its end. Where nobody can tell, since it may have ended
    early, it has.

    Args:
        trainer: the trainer's part of the configuration.
        told: of the run.
    """
    if told.ended is not None:
        return told.ended
    if trainer.get("max_time") is not None or any(
        _may_end(callback) for callback in _listed(trainer.get("callbacks"))
    ):
        return True
    epochs, steps = (_bound(trainer.get(name)) for name in ("max_epochs", "max_steps"))
    nothing = trainer.get("limit_train_batches") == 0 or epochs == steps == math.inf
    return nothing or told.epochs >= epochs or told.steps >= steps


def _bound(value: Any) -> float:
    return math.inf if value in (None, -1) else value


def _listed(callbacks: Any) -> list[Any]:
    return callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]


def _may_end(callback: Any) -> bool:
    path = callback["class_path"]
    return path.endswith(_ENDING) or not path.startswith(_KNOWN)
