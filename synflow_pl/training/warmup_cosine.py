"""Warm-up, then cosine: a learning rate that climbs for a few epochs and falls along half a cosine
(Loshchilov & Hutter 2017).
"""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

__all__ = ["WarmupCosine"]


class WarmupCosine(SequentialLR):
    """Torch's linear warm-up and cosine annealing, one after the other, as one class that a recipe
    can name.

    Args:
        optimizer: whose learning rate is the peak.
        epochs: of the whole training; the command line takes it from trainer.max_epochs.
        warmup: epochs of linear climb from a hundredth of the peak, in [1, epochs).
        final: share of the peak that is left at the end, in [0, 1].
    """

    def __init__(
        self, optimizer: Optimizer, epochs: int = 160, warmup: int = 5, final: float = 0.0
    ) -> None:
        if not 1 <= warmup < epochs:
            raise ValueError(
                f"WarmupCosine: warmup={warmup} must be at least 1 and less than epochs={epochs}"
            )
        peak = optimizer.param_groups[0]["lr"]
        climb = LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
        fall = CosineAnnealingLR(optimizer, T_max=epochs - warmup, eta_min=final * peak)
        super().__init__(optimizer, [climb, fall], milestones=[warmup])
