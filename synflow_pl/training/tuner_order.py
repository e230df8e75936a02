"""Finders: Lightning's searches for a learning rate and a batch size, which run when a fit starts
and before every other callback.
"""

from __future__ import annotations

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder
from pytorch_lightning.utilities import rank_zero_warn

__all__ = ["let_finders_wait"]


def let_finders_wait(trainer: Trainer, callback: Callback, *, sparse: bool) -> None:
    """Put ``callback`` before the finders, so that they see the pruned network.

    Args:
        trainer: setting up; the callbacks' own setup goes on in the order it began in.
        callback: that prunes.
        sparse: whether it prunes when the fit starts; else the finders see the dense network, and
            that is told in a warning.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # the trainer's connectors set it
    finders = [
        type(other).__name__
        for other in callbacks
        if isinstance(other, (LearningRateFinder, BatchSizeFinder))
    ]
    if not finders:
        return
    if not sparse:
        rank_zero_warn(
            f"Pruning: {' and '.join(finders)} will tune the dense network, which is pruned only later in training"
        )
    trainer.callbacks = [callback, *(other for other in callbacks if other is not callback)]  # type: ignore[attr-defined]
