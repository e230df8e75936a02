"""When to prune: at a later epoch, or gradually, the rounds spread evenly over optimiser steps (Zhu & Gupta 2017)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction

from pytorch_lightning import Trainer

from synflow_pl.pruners import Pruner

__all__ = ["Gradual", "check_time", "last_step"]


@dataclass
class Gradual:
    """Where a gradual pruning stands.

    Attributes:
        begun: optimiser steps that had been taken when it began.
        done: rounds that are over.
    """

    begun: int
    done: int = 0

    def due(self, step: int, last: int, rounds: int) -> int:
        """How many of the ``rounds`` are to be over after optimiser step ``step``; all of them from ``last`` on."""
        return rounds if step >= last else (step - self.begun) * rounds // (last - self.begun)


def last_step(trainer: Trainer, over: float, at_epoch: int) -> int:
    """The optimiser step by which a gradual pruning is over, counted from the start of training.

    Args:
        trainer: about to train.
        over: the fraction of the training that it may take, in (0, 1].
        at_epoch: epochs before it begins.

    Raises:
        ValueError: if the training has no end, or the pruning would end before it begins.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError("gradual pruning takes a part of the training, so that must have an end: give max_epochs or max_steps")
    last = math.ceil(Fraction(str(over)) * int(steps))
    epochs = trainer.max_epochs
    if epochs not in (None, -1) and at_epoch * int(steps) >= last * epochs:
        raise ValueError(
            f"at_epoch: {at_epoch} lies after the end of the gradual pruning, step {last} of {steps}; begin earlier, or let it take"
            " more of the training (over)"
        )
    return last


def check_time(
    pruner: Pruner | None,
    at_epoch: int,
    trained: str | os.PathLike[str] | None,
    masks: str | os.PathLike[str] | None,
    sanity: str | None,
    effective_density: float | None,
) -> None:
    """Refuse options that contradict each other about when, and by which weights, is pruned.

    Raises:
        ValueError: naming what cannot be and what to drop.
    """
    if isinstance(at_epoch, bool) or not isinstance(at_epoch, int) or at_epoch < 0:
        raise ValueError(f"at_epoch: {at_epoch!r} must be a whole number of epochs, at least 0")
    gradual = pruner is not None and pruner.over is not None
    if trained is not None and (pruner is None or masks is not None or at_epoch > 0 or gradual):
        raise ValueError(
            "trained scores the weights of another run, so it needs a pruner that prunes when the fit starts; drop masks, at_epoch and"
            " gradual pruning, or drop trained"
        )
    if trained is not None and sanity in ("shuffle", "reinitialise"):
        raise ValueError(f"sanity: {sanity!r} cannot go with trained, which goes on from masks and rewinds weights; invert can")
    if gradual and sanity is not None:
        raise ValueError(f"sanity: {sanity!r} checks a pruning that happens at once, and {type(pruner).__name__} is gradual")
    if gradual and effective_density is not None:
        raise ValueError(f"effective_density: {effective_density} cannot be reached by a gradual pruning; give density")
    if sanity == "reinitialise" and at_epoch > 0:
        raise ValueError("sanity: 'reinitialise' draws the weights anew that training starts from; drop at_epoch")
