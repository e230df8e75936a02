"""When to prune: at a later epoch, or gradually, the rounds spread evenly over optimiser steps (Zhu
& Gupta 2017).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction

from pytorch_lightning import Trainer

from synflow_pl.pruners import Pruner

__all__ = ["End", "Gradual", "check_time", "last_step", "progress"]


@dataclass
class Gradual:
    """Where a gradual pruning stands.

    Attributes:
        begun: progress of the training when it began, as :func:`progress` counts it.
        done: rounds that are over.
        begun_steps: optimiser steps of all optimisers together when it began; ``None`` in
            checkpoints that do not have it.
    """

    begun: int
    done: int = 0
    begun_steps: int | None = None

    @classmethod
    def starting(cls, trainer: Trainer) -> Gradual:
        """Return the state of a gradual pruning that begins now."""
        return cls(begun=progress(trainer), begun_steps=trainer.global_step)

    def align(self, trainer: Trainer) -> None:
        """Count from the present progress where a new training begins to count again at zero."""
        self.begun = min(self.begun, progress(trainer))
        if self.begun_steps is not None:
            self.begun_steps = min(self.begun_steps, trainer.global_step)

    def due(self, trainer: Trainer, end: End, rounds: int) -> int:
        """Return how many of the ``rounds`` are to be over now; all of them from the end on."""
        begun_steps = self.begun if self.begun_steps is None else self.begun_steps
        clocks = (
            (progress(trainer), self.begun, end.progress),
            (trainer.global_step, begun_steps, end.steps),
        )
        return max(
            rounds if now >= last else (now - begun) * rounds // (last - begun)
            for now, begun, last in clocks
            if last is not None
        )


@dataclass(frozen=True)
class End:
    """When a gradual pruning has to be over: at whichever of the two numbers is reached first.

    Attributes:
        progress: progress of the training, as :func:`progress` counts it; ``None`` if the training
            is not limited by it.
        steps: optimiser steps of all optimisers together; ``None`` if the training is not limited
            by them.
    """

    progress: int | None
    steps: int | None


def progress(trainer: Trainer) -> int:
    """Return how far the training is: in optimiser steps, or in batches where the module steps its
    optimisers by hand.

    ``trainer.global_step`` counts the steps of every optimiser, so with two of them it runs twice
    as fast as the batches.
    """
    manual = not trainer.lightning_module.automatic_optimization
    return trainer.fit_loop.total_batch_idx + 1 if manual else trainer.global_step


def last_step(trainer: Trainer, over: float, at_epoch: int) -> End:
    """Return when a gradual pruning is over, counted from the start of training.

    Args:
        trainer: about to train.
        over: the fraction of the training that it may take, in (0, 1].
        at_epoch: epochs before it begins.

    Raises:
        ValueError: if the training has no end, or the pruning would end before it begins.
    """
    total = trainer.estimated_stepping_batches
    if math.isinf(total):
        raise ValueError(
            "gradual pruning takes a part of the training, so that must have an end: give max_epochs or max_steps"
        )
    epochs, part = trainer.max_epochs, Fraction(str(over))
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
            f"at_epoch: {at_epoch} lies after the end of the gradual pruning, step {end.progress} of {total}; begin earlier, or let it"
            " take more of the training (over)"
        )
    return end


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
    gradual = pruner is not None and pruner.end_fraction is not None
    if trained is not None and (pruner is None or masks is not None or at_epoch > 0 or gradual):
        raise ValueError(
            "trained scores the weights of another run, so it needs a pruner that prunes when the fit starts; drop masks, at_epoch and"
            " gradual pruning, or drop trained"
        )
    if trained is not None and sanity in ("shuffle", "reinitialise"):
        raise ValueError(
            f"sanity: {sanity!r} cannot go with trained, which goes on from masks and rewinds weights; invert can"
        )
    if gradual and sanity is not None:
        raise ValueError(
            f"sanity: {sanity!r} checks a pruning that happens at once, and {type(pruner).__name__} is gradual"
        )
    if gradual and effective_density is not None:
        raise ValueError(
            f"effective_density: {effective_density} cannot be reached by a gradual pruning; give density"
        )
    if sanity == "reinitialise" and at_epoch > 0:
        raise ValueError(
            "sanity: 'reinitialise' draws the weights anew that training starts from; drop at_epoch"
        )
