"""Compute the metrics of an epoch on all ranks at the same points of the training.

Lightning computes the metrics of an epoch when they are first read: until then, reading
``trainer.callback_metrics``, ``logged_metrics`` or ``progress_bar_metrics`` is a collective call.
The progress bar reads them on rank 0 alone, and so may a callback under
``if trainer.is_global_zero``. If another rank makes a different collective call meanwhile (a
checkpoint, ``all_gather``), the ranks deadlock.
"""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultCollection

__all__ = ["compute_on_all_ranks"]


def compute_on_all_ranks(trainer: Trainer) -> None:
    """Let a Trainer compute the metrics of an epoch as soon as they are complete.

    Metrics that are logged in training, validation or test steps are computed after the last step,
    before the hooks of the epoch's end run. Metrics that such a hook logs are computed when they
    are logged. All ranks do both at the same time, and later reads use the cached values. The
    function has no effect in a single process; with several, every rank has to call it.

    Args:
        trainer: Trainer whose strategy has set up its environment.
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
    """Compute the metrics of an epoch's steps after the last step."""

    ending = False  # True from the end of the last step to the end of the epoch's last hook

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
    """Compute a metric when a hook of the epoch's end logs it."""

    connector: _Eager

    def log(self, fx: str, name: str, *args: Any, **options: Any) -> None:
        super().log(fx, name, *args, **options)
        if self.connector.ending:
            _ = self.connector.metrics
