"""Stop a training that saves no checkpoints on a signal."""

from __future__ import annotations

import signal
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from synflow_pl.training.signals import SignalHandler, Stopped

__all__ = ["StopOnSignal"]


class StopOnSignal(Callback):
    """Stop on every rank after the step in which any rank received a signal.

    :class:`~synflow_pl.training.LastCheckpoint` does so after it has saved a checkpoint. This
    callback takes its place where checkpoints are disabled: Lightning alone would end one rank and
    let the others wait for it until a collective call times out.

    Raises:
        Stopped: After a signal.
    """

    def __init__(self) -> None:
        self._signals = SignalHandler()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the signals of an earlier fit."""
        self._signals = SignalHandler()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle SIGTERM from now on, so that training stops after its first step."""
        self._signals.listen(trainer, signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle all signals from now on."""
        self._signals.listen(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop if a signal was received."""
        self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal was received in a validation."""
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if number := self._signals.received(trainer):
            raise Stopped(number)
