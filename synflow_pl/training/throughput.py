"""Log the norm of the gradient and the number of training images per second."""

from __future__ import annotations

import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from synflow_pl.training.sharded_norm import total_norm

__all__ = ["Throughput"]


class Throughput(Callback):
    """Log ``train/gradient_norm`` and ``train/images_per_second``.

    Both are logged every ``log_every_n_steps`` optimiser steps. The steps between have no cost:
    nothing is computed and the device is not synchronised, which Lightning's ThroughputMonitor does
    at every step.

    The norm is the Euclidean norm of the gradients of all kept weights before clipping. The
    callback has to follow :class:`PruneAtInit`, which zeroes the gradients of pruned weights.
    Images are counted over all devices, and the time is measured from the start of the first step
    after the last logging, validation or epoch start. Batches must be (images, labels).
    """

    def __init__(self) -> None:
        self._images = 0
        self._since: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new measurement."""
        self._restart()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new measurement, which excludes the time of the validation."""
        self._restart()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the start of the first step of a measurement."""
        if self._since is None:
            self._since = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Compute the norm of the gradient if this step is logged."""
        if trainer._logger_connector.should_update_logs:
            gradients = [
                p.grad
                for group in optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            if gradients:
                sharded = any(isinstance(gradient, DTensor) for gradient in gradients)
                norm = total_norm(gradients) if sharded else get_total_norm(gradients)
                pl_module.log("train/gradient_norm", norm, on_step=True, on_epoch=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of the batch, and log the rate if this step is logged."""
        shares = trainer.distributed_sampler_kwargs
        self._images += len(batch[1]) * (shares["num_replicas"] if shares else 1)
        stepped = not trainer.fit_loop._should_accumulate()
        if self._since is not None and stepped and trainer._logger_connector.should_update_logs:
            if pl_module.device.type == "cuda":
                # Kernels run asynchronously; the time must include those of the counted steps.
                torch.cuda.synchronize(pl_module.device)
            rate = self._images / (time.perf_counter() - self._since)
            pl_module.log("train/images_per_second", rate, on_step=True, on_epoch=False)
            self._restart()

    def _restart(self) -> None:
        self._images, self._since = 0, None
