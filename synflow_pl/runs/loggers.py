"""Loggers that write ``metrics.csv`` and TensorBoard's events directly into a run folder."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.csv_logs import _ExperimentWriter
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from synflow_pl.io import atomic_write, storage_error, write_error_message
from synflow_pl.runs.progress import CHECKPOINT, OTHERWISE

__all__ = ["RunCSV", "RunTensorBoard", "Tested"]


@dataclass(frozen=True)
class Tested:
    """Checkpoint that a test evaluates, and the options of the test.

    Attributes:
        checkpoint: Path of the checkpoint within the run; empty for the network that was just
            trained in this process.
        epoch: Epoch of the checkpoint, counted from 0; ``None`` for a network that was just
            trained, whose epoch the trainer logs.
        steps: Optimiser steps that the checkpoint was trained for, at least 0.
        otherwise: Options that affect the test accuracy and differ from those of the run, as text;
            empty if none does.
    """

    checkpoint: str
    epoch: int | None
    steps: int
    otherwise: str

    @property
    def step(self) -> int:
        """Step of the row that a test logs, counted from 0 as in the rows of a training."""
        return max(0, self.steps - 1)


class _AppendingWriter(_ExperimentWriter):
    """Writer that appends to an existing ``metrics.csv``; Lightning's own would delete the file."""

    def _check_log_dir_exists(self) -> None:
        if os.path.isfile(self.metrics_file_path):
            # A kill may have left an incomplete last line; the next row would be appended to it.
            with open(self.metrics_file_path, "rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Do nothing, since ``config.yaml`` has the hyperparameters."""

    def save(self) -> None:
        """Append the logged metrics to the file.

        Raises:
            OSError: If the file cannot be written.
        """
        try:
            super().save()
        except OSError as error:
            if storage_error(error) is not error:
                raise
            raise OSError(write_error_message(self.metrics_file_path, error)) from error

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self.rewrite(lambda row: True)

    def rewrite(self, keep: Callable[[dict[str, str]], bool]) -> None:
        """Rewrite the file with a subset of its rows and the present columns.

        The file is replaced atomically: a kill leaves the old file or the new one.

        Args:
            keep: Function that returns whether a row, by column, is kept.
        """
        with open(self.metrics_file_path, newline="") as file:
            rows = [row for row in csv.DictReader(file) if keep(row)]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_write(self.metrics_file_path) as file:
            file.write(text.getvalue().encode())


class RunCSV(CSVLogger):
    """Logger that appends metrics to ``metrics.csv`` in a run folder.

    Args:
        run: Folder of the run.
    """

    def __init__(self, run: Path) -> None:
        # Every row is written at once, so that a kill loses none.
        super().__init__(save_dir=run.parent, name=run.name, version="", flush_logs_every_n_steps=1)
        self._run = str(run)
        self.tested: Tested | None = None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log metrics; the row of a test also names the checkpoint that was tested."""
        if self.tested is not None and _of_a_test(metrics):
            tested = self.tested
            epoch = {} if tested.epoch is None else {"epoch": tested.epoch}
            metrics = {
                **metrics,
                **epoch,
                CHECKPOINT: tested.checkpoint or "trained",
                OTHERWISE: tested.otherwise,
            }
            step = tested.step
        super().log_metrics(metrics, step)

    def rewind(self, step: int) -> None:
        """Remove the rows of a step and all later steps, which are about to be trained again.

        Rows of pruning are kept: their step is the pruning round. Those of an update of the masks
        during training are removed like others.

        Args:
            step: First step to remove, counted from 0.
        """
        if (Path(self._run) / "metrics.csv").is_file():

            def keep(row: dict[str, str]) -> bool:
                of_pruning = any(
                    value for key, value in row.items() if key and key.startswith("pruning/")
                )
                of_update = any(
                    value for key, value in row.items() if key and key.endswith("/drop_fraction")
                )
                return (of_pruning and not of_update) or (
                    (row["step"] or "").isdigit() and int(row["step"]) < step
                )

            self.experiment.rewrite(keep)

    @property
    def log_dir(self) -> str:
        """Folder of the run."""
        return self._run

    @property
    def experiment(self) -> Any:
        """Writer of the file, created on first use."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(self._run)
        return self._experiment


class RunTensorBoard(TensorBoardLogger):
    """Logger that writes TensorBoard's events into a run folder.

    Args:
        run: Folder of the run.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(save_dir=run.parent, name=run.name, version="", default_hp_metric=False)
        self._run = str(run)
        self.tested: Tested | None = None

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics; those of a test are logged at the step of the checkpoint that was tested."""
        if self.tested is not None and _of_a_test(metrics):
            step = self.tested.step
        super().log_metrics(metrics, step)

    @property
    def log_dir(self) -> str:
        """Folder of the run."""
        return self._run

    def save(self) -> None:
        """Do nothing: events are flushed as they are logged, and ``config.yaml`` has the rest."""


def _of_a_test(metrics: Mapping[str, Any]) -> bool:
    return any(name.startswith("test/") for name in metrics)
