"""Recording: the callback that keeps a run's record, and the diagnosis of a run that begins with
the masks of a checkpoint.
"""

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
    """Records in a run that its training has come to its end, and describes masks that were
    restored and not chosen here.

    It comes before :class:`~synflow_pl.training.PruneAtInit`, which may make the network smaller.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self._run = run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``diagnosis.json`` if masks were restored into a run that has none."""
        if not trainer.is_global_zero or (self._run / "diagnosis.json").is_file():
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the trainer's connectors set it
            if isinstance(callback, PruneAtInit) and callback.masks is not None:
                network, _ = find_network(pl_module, callback.network)
                found = diagnose(
                    network,
                    callback.masks,
                    example_input=find_example(trainer, pl_module, callback.input_shape),
                )
                show_diagnosis(
                    [logger for logger in trainer.loggers if isinstance(logger, RunCSV)], found
                )
                return

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the end; a training that a signal or an error stopped does not come here, one with
        nothing left to train does.
        """
        if trainer.is_global_zero:
            epochs: Any = trainer.fit_loop.epoch_progress.current
            write_record(self._run, Training(True, epochs.processed, trainer.global_step))
