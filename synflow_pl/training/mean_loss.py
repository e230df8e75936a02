"""Average the loss of an epoch over its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

__all__ = ["MeanLoss"]


class MeanLoss(MeanMetric):
    """Average the losses of batches over all images of all ranks.

    It differs from MeanMetric in two ways. NaN is not skipped, so the loss of a training that
    diverged is NaN rather than the mean of the earlier batches. Sums are float32 even if the module
    is not; in bfloat16 the sum would stop growing at 256 images.

    Args:
        options: Keyword arguments of MeanMetric other than ``nan_strategy``.
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
            value: Mean loss of the batch, a scalar of any floating-point type; it is detached.
            weight: Number of images in the batch, at least 1.
        """
        # MeanMetric.update() either skips NaN, which synchronises the device at each step, or
        # ignores the weight.
        self.mean_value = self.mean_value + value.detach().float() * weight
        self.weight = self.weight + weight

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Apply ``fn`` to the states, but keep their data type."""
        return super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), exclude_state)
