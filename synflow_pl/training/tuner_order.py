"""Prune before Lightning's tuners search for a learning rate or a batch size.

LearningRateFinder and BatchSizeFinder run when a fit starts, before every other callback.
"""

from __future__ import annotations

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder
from pytorch_lightning.utilities import rank_zero_warn

__all__ = ["run_before_tuners"]


def run_before_tuners(trainer: Trainer, callback: Callback, *, sparse: bool) -> None:
    """Move a callback that prunes before the tuners, so that they tune the pruned network.

    Args:
        trainer: Trainer that is calling ``setup`` of its callbacks; the order of these calls does
            not change.
        callback: Callback that prunes.
        sparse: Whether the callback prunes when the fit starts. Otherwise the tuners tune the dense
            network, and a warning says so.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # the trainer's connectors set it
    tuners = [
        type(other).__name__
        for other in callbacks
        if isinstance(other, (LearningRateFinder, BatchSizeFinder))
    ]
    if not tuners:
        return
    if not sparse:
        rank_zero_warn(
            f"Pruning: {' and '.join(tuners)} will tune the dense network, which is pruned only"
            " later in training"
        )
    trainer.callbacks = [callback, *(other for other in callbacks if other is not callback)]  # type: ignore[attr-defined]
