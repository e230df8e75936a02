"""Metrics of an epoch are computed on all ranks at the same points, so that one rank alone may read
them.

Lightning computes the metrics of an epoch when they are first read: ``trainer.callback_metrics``,
``logged_metrics`` and ``progress_bar_metrics`` are collective calls until then. The progress bar
reads them on the first rank alone, and so may a callback under ``if trainer.is_global_zero``. If
another rank calls something else collectively meanwhile (a checkpoint, ``all_gather``), each waits
for the other forever.
"""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultCollection

__all__ = ["compute_on_all_ranks"]


def compute_on_all_ranks(trainer: Trainer) -> None:
    """Let a trainer compute metrics of an epoch as soon as they are complete, instead of when they
    are first read.

    What was logged in training, validation or test steps is computed when the last step has ended,
    before any hook of the epoch's end runs; what a hook of the epoch's end logs is computed there.
    All ranks do both at the same time, and later reads use the cached values. Does nothing for a
    single process. Call it on all ranks.

    Args:
        trainer: a trainer whose strategy has set up its environment.
    """
    if trainer.world_size == 1:
        return
    connector = trainer._logger_connector
    connector.__class__ = _Eager
    for loop in (
        trainer.fit_loop.epoch_loop,
        trainer.fit_loop.epoch_loop.val_loop,
        trainer.validate_loop,
        trainer.test_loop,
    ):
        loop._results.__class__ = _EagerResults
        loop._results.connector = connector  # type: ignore[attr-defined]


class _Eager(_LoggerConnector):
    """Computes the metrics that were logged in steps when the last step has ended."""

    ending = False  # true from the end of the last step to the end of the epoch's last hook

    def epoch_end_reached(self) -> None:
        super().epoch_end_reached()
        self.ending = True
        _ = self.metrics

    def on_batch_start(self, batch: Any, dataloader_idx: int | None = None) -> None:
        super().on_batch_start(batch, dataloader_idx)
        self.ending = False

    def reset_results(self) -> None:
        super().reset_results()
        self.ending = False


class _EagerResults(_ResultCollection):
    """Computes a metric that a hook of the epoch's end logs."""

    connector: _Eager

    def log(self, fx: str, name: str, *args: Any, **options: Any) -> None:
        super().log(fx, name, *args, **options)
        if self.connector.ending:
            _ = self.connector.metrics
