"""KeepProgress: the checkpoint that a stopped training goes on from."""

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
    """Keeps ``last.ckpt`` in a run: replaced every so many optimiser steps, at the end of each
    epoch, and when a signal stops training.

    With :class:`~synflow_pl.training.DurableCheckpointIO` there is always a whole one, from the
    first on.

    Args:
        every: optimiser steps from one checkpoint to the next, at least 1; the end of an epoch
            counts as one.
        folder: where to; by default ``checkpoints`` in the run's folder.

    Raises:
        ValueError: if ``every`` is less than 1.
        Stopped: after a signal, when the checkpoint is written.
    """

    def __init__(self, every: int = 500, folder: str | Path | None = None) -> None:
        if every < 1:
            raise ValueError(
                f"checkpoint_every_n_steps: {every} optimiser steps must be at least 1"
            )
        self.every = every
        self.folder = folder
        self.interruption = SignalHandler()
        self._path = Path(LAST)
        self._saved = 0
        self._after_validation = False
        self._between_epochs = False
        self._monitored: dict[int, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, on all ranks, and remove what a killed process left half-written
        there.
        """
        if stage != "fit":
            return
        compute_on_all_ranks(trainer)  # or a rank that reads a metric waits for one that saves
        self.interruption = SignalHandler()
        self._after_validation, self._between_epochs, self._monitored = (
            False,
            False,
            {},
        )  # of an earlier fit that was interrupted
        folder = (
            self.folder
            if self.folder is not None
            else Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        )
        self._path = Path(trainer.strategy.broadcast(str(folder))) / LAST
        if trainer.is_global_zero:
            remove_partial_files(self._path.parent)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a SIGTERM, to stop after the first step."""
        self.interruption.listen(trainer, signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of a step."""
        self._saved = trainer.global_step
        self.interruption.listen(trainer)
        if self._between_epochs:
            trainer.fit_loop.epoch_loop.restarting = False
        for index, value in self._monitored.items():
            pl_module.lr_scheduler_step(trainer.lr_scheduler_configs[index].scheduler, value)
        self._between_epochs, self._monitored = False, {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save if it is time or training is to stop; at the end of an epoch, and where a validation
        follows, after that.
        """
        loop = trainer.fit_loop
        if loop._should_accumulate():
            return  # gradients are not in a checkpoint
        if loop.epoch_loop._num_ready_batches_reached():
            return  # on_train_epoch_end
        due = self.interruption.wished(trainer) or trainer.global_step - self._saved >= self.every
        fetcher: Any = loop._data_fetcher
        # Lightning would skip the validation if training resumed from a checkpoint before it.
        self._after_validation = bool(due) and loop.epoch_loop._should_check_val_fx(fetcher)
        if due and not self._after_validation:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was put off."""
        if self._after_validation:
            self._after_validation = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, with the metrics that schedules are yet to be told."""
        trainer.fit_loop._restarting = (
            False  # or Lightning leaves them untold where this epoch was resumed
        )
        for index, config in enumerate(trainer.lr_scheduler_configs):
            its_turn = (
                config.interval == "epoch" and (trainer.current_epoch + 1) % config.frequency == 0
            )
            if config.reduce_on_plateau and its_turn and config.monitor in trainer.callback_metrics:
                self._monitored[index] = float(trainer.callback_metrics[config.monitor])
        self._save(trainer)
        self._monitored = {}

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self._path, weights_only=False)
        self._saved = trainer.global_step
        if number := self.interruption.wished(trainer):
            raise Stopped(number, str(self._path))

    # -- what Lightning would get wrong

    def state_dict(self) -> dict[str, Any]:
        """At the end of an epoch: the metrics that ReduceLROnPlateau is told after the checkpoint
        is saved.
        """
        return {"monitored": dict(self._monitored)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._monitored = dict(state_dict["monitored"])

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """From the end of an epoch go on with the next one; where ``max_steps`` is given, Lightning
        would leave that one out.
        """
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress")
        if progress and progress["total"]["processed"] == progress["total"]["ready"]:
            self._between_epochs = True
            for counts in progress.values():
                counts["completed"] = counts["processed"]
