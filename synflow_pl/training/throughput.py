"""Pace: how large the gradient is and how many images a second are trained on, now and then."""

from __future__ import annotations

import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

__all__ = ["Throughput"]


class Throughput(Callback):
    """Logs ``train/gradient_norm`` and ``train/images_per_second`` every ``log_every_n_steps``
    optimiser steps, and costs nothing on
    the steps between: nothing is computed, and the device is not waited for.

    The norm is Euclidean, over all that trains and lives, before clipping: it has to stand after
    :class:`PruneAtInit`, which zeroes the gradients of removed weights. Images are counted over all
    devices, and the time runs from the start of the first step since the last logging, validation
    or epoch; batches are (images, labels). (Lightning's ThroughputMonitor waits for the device at
    every step.)
    """

    def __init__(self) -> None:
        self._images = 0
        self._since: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._restart()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation takes time in which nothing is trained on."""
        self._restart()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note when a step begins."""
        if self._since is None:
            self._since = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure the gradient, if this step is logged."""
        if trainer._logger_connector.should_update_logs:
            gradients = [
                p.grad
                for group in optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            if gradients:
                pl_module.log(
                    "train/gradient_norm", get_total_norm(gradients), on_step=True, on_epoch=False
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step's images, and log if it is time."""
        self._images += len(batch[1]) * trainer.world_size
        stepped = not trainer.fit_loop._should_accumulate()
        if self._since is not None and stepped and trainer._logger_connector.should_update_logs:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(
                    pl_module.device
                )  # steps are queued: the clock has to wait for those that it counts
            rate = self._images / (time.perf_counter() - self._since)
            pl_module.log("train/images_per_second", rate, on_step=True, on_epoch=False)
            self._restart()

    def _restart(self) -> None:
        self._images, self._since = 0, None
