"""Save the checkpoint from which a stopped training is resumed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from synflow_pl.io import remove_partial_files
from synflow_pl.training.collective_metrics import compute_on_all_ranks
from synflow_pl.training.signals import SignalHandler, Stopped

__all__ = ["LAST", "LastCheckpoint"]

LAST = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Save ``last.ckpt`` regularly, at the end of each epoch, and when a signal stops training.

    Each checkpoint replaces the previous one. With
    :class:`~synflow_pl.training.DurableCheckpointIO` the file is complete at any time after the
    first save.

    Args:
        every: Number of optimiser steps from one checkpoint to the next, at least 1, counted anew
            after each epoch.
        folder: Folder of the checkpoint; by default ``checkpoints`` in the run's folder.

    Attributes:
        signals: Handler of the signals that stop training.

    Raises:
        ValueError: If ``every`` is less than 1.
        Stopped: After a signal, once the checkpoint is written.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from synflow_pl.training import LastCheckpoint
        >>> callback = LastCheckpoint(every=1000)
        >>> trainer = Trainer(callbacks=[callback], logger=False, accelerator="cpu")
    """

    def __init__(self, every: int = 500, folder: str | Path | None = None) -> None:
        if every < 1:
            raise ValueError(
                f"checkpoint_every_n_steps: {every} optimiser steps must be at least 1"
            )
        self.every = every
        self.folder = folder
        self.signals = SignalHandler()
        self._path = Path(LAST)
        self._saved = 0
        self._after_validation = False
        self._between_epochs = False
        self._monitored: dict[int, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder, on all ranks, and remove partial files of a killed process there."""
        if stage != "fit":
            return
        # Prevents a deadlock of a rank that reads a metric with a rank that saves.
        compute_on_all_ranks(trainer)
        # An earlier fit that was interrupted may have left other values.
        self.signals = SignalHandler()
        self._after_validation, self._between_epochs, self._monitored = False, False, {}
        folder = (
            self.folder
            if self.folder is not None
            else Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        )
        self._path = Path(trainer.strategy.broadcast(str(folder))) / LAST
        if trainer.is_global_zero:
            remove_partial_files(self._path.parent)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle SIGTERM from now on, so that training stops after its first step."""
        self.signals.listen(trainer, signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle all signals from now on, and complete the state of a resumed training."""
        self._saved = trainer.global_step
        self.signals.listen(trainer)
        if self._between_epochs:
            trainer.fit_loop.epoch_loop.restarting = False
        for index, value in self._monitored.items():
            pl_module.lr_scheduler_step(trainer.lr_scheduler_configs[index].scheduler, value)
        self._between_epochs, self._monitored = False, {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save a checkpoint if one is due or a signal was received.

        Before a validation, the checkpoint is saved by :meth:`on_validation_end`; after the last
        batch of an epoch, by :meth:`on_train_epoch_end`.
        """
        loop = trainer.fit_loop
        if loop._should_accumulate():
            return  # a checkpoint does not contain accumulated gradients
        if loop.epoch_loop._num_ready_batches_reached():
            return
        due = self.signals.received(trainer) or trainer.global_step - self._saved >= self.every
        fetcher: Any = loop._data_fetcher
        # Lightning would skip the validation if training resumed from a checkpoint before it.
        self._after_validation = bool(due) and loop.epoch_loop._should_check_val_fx(fetcher)
        if due and not self._after_validation:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the checkpoint that was due before the validation."""
        if self._after_validation:
            self._after_validation = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a checkpoint with the metrics that ReduceLROnPlateau receives after this hook."""
        # Otherwise Lightning does not step the schedules at the end of a resumed epoch.
        trainer.fit_loop._restarting = False
        for index, config in enumerate(trainer.lr_scheduler_configs):
            due = config.interval == "epoch" and (trainer.current_epoch + 1) % config.frequency == 0
            if config.reduce_on_plateau and due and config.monitor in trainer.callback_metrics:
                self._monitored[index] = float(trainer.callback_metrics[config.monitor])
        self._save(trainer)
        self._monitored = {}

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self._path, weights_only=False)
        self._saved = trainer.global_step
        if number := self.signals.received(trainer):
            raise Stopped(number, str(self._path))

    # The methods below correct what Lightning does when it resumes.

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics that ReduceLROnPlateau receives after a checkpoint of an epoch's end.

        Lightning saves the checkpoint before it steps these schedules, and does not step them when
        training resumes.
        """
        return {"monitored": dict(self._monitored)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._monitored = dict(state_dict["monitored"])

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a checkpoint of the end of an epoch resume with the next epoch.

        With ``max_steps``, Lightning would skip that epoch.
        """
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress")
        if progress and progress["total"]["processed"] == progress["total"]["ready"]:
            self._between_epochs = True
            for counts in progress.values():
                counts["completed"] = counts["processed"]
