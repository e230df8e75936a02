"""The loggers that write into a run: ``metrics.csv`` and TensorBoard's events, both straight into its folder."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.csv_logs import _ExperimentWriter
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

__all__ = ["RunCSV", "RunTensorBoard"]


class _AppendingWriter(_ExperimentWriter):
    """Goes on in a ``metrics.csv`` that is there; Lightning's own would delete it."""

    def _check_log_dir_exists(self) -> None:
        if os.path.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Nothing: config.yaml has them."""


class RunCSV(CSVLogger):
    """``metrics.csv`` of a run, appended to.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(save_dir=run.parent, name=run.name, version="", flush_logs_every_n_steps=50)
        self._run = str(run)

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

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self._run

    def save(self) -> None:
        """Nothing: events are flushed as they come, and config.yaml has what Lightning would write here."""
