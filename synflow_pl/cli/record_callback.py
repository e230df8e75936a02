"""Callback that records the cost and end of training, and diagnoses masks that were restored."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from synflow_pl.diagnosis import diagnose
from synflow_pl.runs import RunCSV
from synflow_pl.runs.training_record import Training, read_record, write_record
from synflow_pl.training import PruneAtInit
from synflow_pl.training.introspection import find_example, find_network
from synflow_pl.training.visualization import show_diagnosis

__all__ = ["Recording"]


class Recording(Callback):
    """Record what a training took and that it has ended, and diagnose masks that were restored.

    It must come before :class:`~synflow_pl.training.PruneAtInit`, which may compact the network.

    Args:
        run: Folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self._run = run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and write ``diagnosis.json`` if masks were restored without it."""
        self._before = read_record(self._run) or Training(False)
        self._began = self._clocks()
        self._trained = False
        if not trainer.is_global_zero or (self._run / "diagnosis.json").is_file():
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the trainer's connectors set it
            if isinstance(callback, PruneAtInit) and callback.masks is not None:
                network, _ = find_network(pl_module, callback.network)
                diagnosis = diagnose(
                    network,
                    callback.masks,
                    example_input=find_example(trainer, pl_module, network, callback.input_shape),
                    spectra=callback.spectra,
                )
                show_diagnosis(
                    [logger for logger in trainer.loggers if isinstance(logger, RunCSV)], diagnosis
                )
                return

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the cost up to this epoch."""
        self._trained = True
        if trainer.is_global_zero:
            write_record(self._run, self._with_cost(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that training has ended.

        Lightning does not call this after a signal or an error, but does when the checkpoint left
        nothing to train.
        """
        if trainer.is_global_zero:
            epochs: Any = trainer.fit_loop.epoch_progress.current
            record = self._with_cost(trainer) if self._trained else self._before
            write_record(
                self._run,
                replace(record, ended=True, epochs=epochs.processed, steps=trainer.global_step),
            )

    def _with_cost(self, trainer: Trainer) -> Training:
        wall, cpu = (now - then for now, then in zip(self._clocks(), self._began, strict=True))
        return replace(
            self._before,
            ended=False,
            seconds=self._before.seconds + wall,
            core_seconds=self._before.core_seconds + cpu * trainer.world_size,
        )

    @staticmethod
    def _clocks() -> tuple[float, float]:
        """Return the wall-clock and the processor time in seconds, with that of ended children."""
        return time.monotonic(), sum(os.times()[:4])
