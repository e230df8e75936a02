"""Complete the trainer of a command with callbacks, loggers and the restoring of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint

from synflow_pl.cli import slurm
from synflow_pl.cli.record_callback import Recording
from synflow_pl.runs import RunCSV, RunTensorBoard
from synflow_pl.training import DurableCheckpointIO, LastCheckpoint, Reseed
from synflow_pl.training.checkpoint_connector import CheckpointConnector
from synflow_pl.training.sharded_fit import shards_parameters
from synflow_pl.training.stop_on_signal import StopOnSignal
from synflow_pl.training.throughput import Throughput

__all__ = ["add_run_callbacks", "set_loggers", "set_up_checkpoints", "training_callbacks"]


def training_callbacks(
    callbacks: list[Callback], config: Mapping[str, Any], every_n_steps: int
) -> list[Callback]:
    """Return the callbacks of a training, before the folder of the run is known.

    Args:
        callbacks: Callbacks that options of their own configure, such as
            :class:`~synflow_pl.training.PruneAtInit`.
        config: Options of the trainer.
        every_n_steps: Number of optimiser steps between checkpoints.
    """
    callbacks = [Reseed(), *callbacks]
    if not config.get("fast_dev_run") and not config.get("barebones"):
        saves = config.get("enable_checkpointing") is not False
        callbacks.append(LastCheckpoint(every_n_steps) if saves else StopOnSignal())
    return callbacks


def set_up_checkpoints(trainer: Trainer, subcommand: str, finished: Callable[[], bool]) -> None:
    """Let a trainer resume by this package's rules, write durable checkpoints and heed SLURM.

    Args:
        trainer: The trainer.
        subcommand: Name of the subcommand.
        finished: Function that returns whether the checkpoint is the end of its training. It must
            be picklable, since the strategy ``ddp_spawn`` pickles the trainer.
    """
    on_resume = partial(_rewind_metrics, trainer, subcommand)
    trainer._checkpoint_connector = CheckpointConnector(trainer, on_resume, finished=finished)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = DurableCheckpointIO()
    slurm.listen(trainer)


def _rewind_metrics(trainer: Trainer, subcommand: str, content: Mapping[str, Any]) -> None:
    """Remove what metrics.csv logged after the checkpoint, since those steps are repeated."""
    for logger in trainer.loggers:
        if isinstance(logger, RunCSV) and subcommand == "fit":
            logger.rewind(content["global_step"])


def set_loggers(trainer: Trainer, run_folder: Path | None, configured: Any) -> None:
    """Set the loggers of a trainer.

    A run always has metrics.csv, and TensorBoard's events unless another logger, or none, is
    configured.

    Args:
        trainer: The trainer.
        run_folder: Folder of the run, if the command writes into one.
        configured: Option ``trainer.logger``, instantiated.
    """
    default = configured is None or configured is True
    if default or configured is False:
        others = []
    else:
        others = configured if isinstance(configured, list) else [configured]
    if run_folder is None:
        trainer.loggers = others
    else:
        trainer.loggers = [
            RunCSV(run_folder),
            *([RunTensorBoard(run_folder)] if default else others),
        ]


def add_run_callbacks(trainer: Trainer, run_folder: Path | None) -> None:
    """Add the callbacks of a training that need its loggers or the folder of the run.

    Args:
        trainer: The trainer, with its loggers.
        run_folder: Folder of the run, if the command writes into one.
    """
    # The attribute is set by one of the trainer's connectors, so mypy does not know it.
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if trainer.loggers:
        callbacks.insert(0, LearningRateMonitor())
    # Ranks other than 0 may have no logger, and take part in the norm of sharded gradients.
    if trainer.loggers or shards_parameters(trainer):
        # After PruneAtInit, so that the time of pruning is not counted.
        callbacks.append(Throughput())
    if run_folder is not None:
        callbacks.insert(0, Recording(run_folder))
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(run_folder / "checkpoints")
