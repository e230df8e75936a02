"""The loggers that write into a run: ``metrics.csv`` and TensorBoard's events, both straight into
its folder.
"""

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

from synflow_pl.io import atomic_write, could_not_write, storage_error
from synflow_pl.runs.progress import CHECKPOINT, OTHERWISE

__all__ = ["RunCSV", "RunTensorBoard", "Tested"]


@dataclass(frozen=True)
class Tested:
    """The subject of a test: a checkpoint and the options it is tested with.

    Attributes:
        checkpoint: path of the checkpoint within the run; empty for the network as a training in
            this process left it.
        epoch: epoch of the checkpoint, counted from 0; ``None`` for a network that was just
            trained, whose epoch the trainer knows.
        steps: optimiser steps that the checkpoint was trained for, at least 0.
        otherwise: options that matter to the test and differ from those of the run; empty if none
            does.
    """

    checkpoint: str
    epoch: int | None
    steps: int
    otherwise: str

    @property
    def step(self) -> int:
        """The step of its row, counted from 0 as in the rows of a training."""
        return max(0, self.steps - 1)


class _AppendingWriter(_ExperimentWriter):
    """Goes on in a ``metrics.csv`` that is there; Lightning's own would delete it."""

    def _check_log_dir_exists(self) -> None:
        if os.path.isfile(self.metrics_file_path):
            with open(
                self.metrics_file_path, "rb+"
            ) as file:  # a line that a kill cut short would run into the next one
                file.truncate(file.read().rfind(b"\n") + 1)
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Nothing: config.yaml has them."""

    def save(self) -> None:
        """Append what was logged.

        Raises:
            OSError: if it cannot be written.
        """
        try:
            super().save()
        except OSError as error:
            if storage_error(error) is not error:
                raise
            raise OSError(could_not_write(self.metrics_file_path, error)) from error

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self.rewrite(lambda row: True)

    def rewrite(self, keep: Callable[[dict[str, str]], bool]) -> None:
        """Write the rows that are kept anew, under the present columns; a kill leaves the old file
        or the new one.
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
    """``metrics.csv`` of a run, appended to.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(
            save_dir=run.parent, name=run.name, version="", flush_logs_every_n_steps=1
        )  # nothing waits to be lost
        self._run = str(run)
        self.tested: Tested | None = None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log metrics; a row of a test says which checkpoint was tested."""
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
        """Forget what was logged from a step on, before it is trained again; rounds of pruning are
        no steps.
        """
        if (Path(self._run) / "metrics.csv").is_file():

            def keep(row: dict[str, str]) -> bool:
                of_pruning = any(
                    value for key, value in row.items() if key and key.startswith("pruning/")
                )
                return of_pruning or ((row["step"] or "").isdigit() and int(row["step"]) < step)

            self.experiment.rewrite(keep)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self._run

    @property
    def experiment(self) -> Any:
        """What writes the file."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(self._run)
        return self._experiment


class RunTensorBoard(TensorBoardLogger):
    """TensorBoard's events of a run.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(save_dir=run.parent, name=run.name, version="", default_hp_metric=False)
        self._run = str(run)
        self.tested: Tested | None = None

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics; those of a test stand at the step of the checkpoint that was tested."""
        if self.tested is not None and _of_a_test(metrics):
            step = self.tested.step
        super().log_metrics(metrics, step)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self._run

    def save(self) -> None:
        """Nothing: events are flushed as they come, and config.yaml has what Lightning would write
        here.
        """


def _of_a_test(metrics: Mapping[str, Any]) -> bool:
    return any(name.startswith("test/") for name in metrics)
