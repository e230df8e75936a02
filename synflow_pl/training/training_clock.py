"""Count the steps of a training, and find the step at which a pruning during it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from pytorch_lightning import Trainer

__all__ = ["End", "find_end", "progress"]


@dataclass(frozen=True)
class End:
    """End of a pruning during training: the first of two limits that is reached.

    Attributes:
        progress: Progress of the training, as :func:`progress` returns it; ``None`` if the training
            is not limited by it.
        steps: Number of steps of all optimisers together; ``None`` if the training is not limited
            by them.
    """

    progress: int | None
    steps: int | None


def progress(trainer: Trainer) -> int:
    """Return the number of optimiser steps so far, or of batches under manual optimisation.

    Under manual optimisation ``trainer.global_step`` sums the steps of all optimisers, so with two
    of them it grows twice as fast as the number of batches.

    Args:
        trainer: Trainer of the network.
    """
    manual = not trainer.lightning_module.automatic_optimization
    return trainer.fit_loop.total_batch_idx + 1 if manual else trainer.global_step


def find_end(trainer: Trainer, method: str, option: str, fraction: float, at_epoch: int) -> End:
    """Return the end of a pruning during training, counted from the start of training.

    Args:
        trainer: Trainer that is about to train.
        method: Name of the pruning during training, for messages.
        option: Name of the option that sets the fraction, for messages.
        fraction: Fraction of the training after which the pruning has ended, in (0, 1].
        at_epoch: Number of epochs before the pruning begins.

    Raises:
        ValueError: If the training has no end, or the pruning would end before it begins.
    """
    total = trainer.estimated_stepping_batches
    if math.isinf(total):
        raise ValueError(
            f"{method} takes a part of the training, so that must have an end: give max_epochs or"
            " max_steps"
        )
    epochs, part = trainer.max_epochs, Fraction(str(fraction))
    if trainer.lightning_module.automatic_optimization:
        end = End(math.ceil(part * int(total)), None)
    else:
        batches = trainer.num_training_batches
        counted = None if epochs in (None, -1) or math.isinf(batches) else int(batches) * epochs
        end = End(
            math.ceil(part * counted) if counted is not None else None,
            math.ceil(part * trainer.max_steps) if trainer.max_steps != -1 else None,
        )
        total = total if counted is None else counted
    if (
        end.progress is not None
        and epochs not in (None, -1)
        and at_epoch * int(total) >= end.progress * epochs
    ):
        raise ValueError(
            f"at_epoch: {at_epoch} lies after the end of the {method}, step {end.progress} of"
            f" {total}; begin earlier, or let it take more of the training ({option})"
        )
    return end
