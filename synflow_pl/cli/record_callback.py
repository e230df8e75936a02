"""Callback that records the end of training, and diagnoses masks restored from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from synflow_pl.diagnosis import diagnose
from synflow_pl.runs import RunCSV
from synflow_pl.runs.training_record import Training, write_record
from synflow_pl.training import PruneAtInit
from synflow_pl.training.introspection import find_example, find_network
from synflow_pl.training.visualization import show_diagnosis

__all__ = ["Recording"]


class Recording(Callback):
    """Record in a run that its training has ended, and diagnose masks that were restored.

    It must come before :class:`~synflow_pl.training.PruneAtInit`, which may compact the network.

    Args:
        run: Folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self._run = run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``diagnosis.json`` if masks were restored into a run without that file."""
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

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that training has ended.

        Lightning does not call this after a signal or an error, but does when the checkpoint left
        nothing to train.
        """
        if trainer.is_global_zero:
            epochs: Any = trainer.fit_loop.epoch_progress.current
            write_record(self._run, Training(True, epochs.processed, trainer.global_step))
