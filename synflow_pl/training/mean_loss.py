"""MeanLoss: the loss of an epoch, averaged over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

__all__ = ["MeanLoss"]


class MeanLoss(MeanMetric):
    """Averages losses of batches over all images of all ranks, each batch weighted by its number of
    images.

    Differs from MeanMetric in what it does with NaN: the loss of a training that diverged is NaN,
    not the mean over the batches before. Sums are held in float32 whatever the precision of the
    module; in bfloat16 a sum of more than 256 images would not grow.
    """

    mean_value: Tensor
    weight: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(nan_strategy="disable", **options)
        self._defaults = {name: torch.zeros((), dtype=torch.float32) for name in self._defaults}
        self.reset()

    def update(self, value: Tensor, weight: int) -> None:  # type: ignore[override]
        """Add a batch.

        Args:
            value: mean loss of the batch, scalar of any floating-point type; it is detached.
            weight: number of images in the batch, at least 1.
        """
        # Not by MeanMetric: it either leaves out NaN, which makes the device wait at each step, or
        # ignores the weight.
        self.mean_value = self.mean_value + value.detach().float() * weight
        self.weight = self.weight + weight

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Move to another device, but keep the type."""
        return super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), exclude_state)
