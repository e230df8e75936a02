"""Warm up a learning rate linearly and anneal it along half a cosine."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

__all__ = ["WarmupCosine"]


class WarmupCosine(SequentialLR):
    """Warm up the learning rate linearly, then anneal it along half a cosine.

    This combines torch's LinearLR and CosineAnnealingLR (Loshchilov & Hutter 2017, "SGDR") in one
    class that a recipe can name.

    Args:
        optimizer: Optimiser whose learning rate is the peak.
        epochs: Number of epochs of the training; the command line takes it from trainer.max_epochs.
        warmup: Number of epochs of the warm-up from a hundredth of the peak, in [1, epochs).
        final: Fraction of the peak at the end, in [0, 1].

    Raises:
        ValueError: If ``warmup`` is not in [1, epochs).

    Example:
        >>> import torch
        >>> from synflow_pl.training import WarmupCosine
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> scheduler = WarmupCosine(optimizer, epochs=10, warmup=2)
        >>> f"{scheduler.get_last_lr()[0]:.3f}"
        '0.001'
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
