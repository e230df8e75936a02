"""Compute when each round of a gradual pruning is due.

The rounds of a gradual pruning are spread evenly over the optimiser steps (Zhu & Gupta 2017, "To
prune, or not to prune").
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from pytorch_lightning import Trainer

from synflow_pl.pruners import Pruner
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.schedules import SCHEDULES, as_density
from synflow_pl.training.training_clock import End, find_end, progress

__all__ = ["Gradual", "GradualPruning", "density_after"]


@dataclass
class Gradual:
    """State of a gradual pruning, which is stored in checkpoints.

    Attributes:
        begun: Progress of the training when the pruning began, as
            :func:`~synflow_pl.training.training_clock.progress` returns it.
        done: Number of completed rounds.
        begun_steps: Number of steps of all optimisers together when the pruning began; ``None`` in
            checkpoints that do not have it.
    """

    begun: int
    done: int = 0
    begun_steps: int | None = None

    @classmethod
    def starting(cls, trainer: Trainer) -> Gradual:
        """Return the state of a gradual pruning that begins now.

        Args:
            trainer: Trainer of the network.
        """
        return cls(begun=progress(trainer), begun_steps=trainer.global_step)

    def align(self, trainer: Trainer) -> None:
        """Lower the start to the present progress if a new training counts from zero again.

        Args:
            trainer: Trainer of the network.
        """
        self.begun = min(self.begun, progress(trainer))
        if self.begun_steps is not None:
            self.begun_steps = min(self.begun_steps, trainer.global_step)

    def due(self, trainer: Trainer, end: End, rounds: int) -> int:
        """Return the number of rounds that should be completed by now.

        Args:
            trainer: Trainer of the network.
            end: End of the pruning, from which on all rounds are due.
            rounds: Number of all rounds.
        """
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


class GradualPruning:
    """Rounds of the gradual pruning of one network: how many are completed, and how many are due.

    Attributes:
        state: State of the pruning, which checkpoints store; ``None`` if it has not begun.
    """

    def __init__(self) -> None:
        self.state: Gradual | None = None
        self._end = End(None, None)

    @property
    def done(self) -> int:
        """Number of completed rounds."""
        return self.state.done if self.state is not None else 0

    def begin(self, trainer: Trainer) -> None:
        """Begin now, with no completed round.

        Args:
            trainer: Trainer of the network.
        """
        self.state = Gradual.starting(trainer)

    def plan(self, trainer: Trainer, end_fraction: float, at_epoch: int) -> None:
        """Compute the step at which all rounds are due, when a training starts.

        Args:
            trainer: Trainer that is about to train.
            end_fraction: Fraction of the training after which all rounds are completed, in (0, 1].
            at_epoch: Number of epochs before the pruning begins.

        Raises:
            ValueError: If the training has no end, or the pruning would end before it begins.
        """
        self._end = find_end(trainer, "gradual pruning", "end_fraction", end_fraction, at_epoch)
        if self.state is not None:
            self.state.align(trainer)

    def due(self, trainer: Trainer, rounds: int) -> int:
        """Return the number of rounds that should be completed by now; 0 before the pruning begins.

        Args:
            trainer: Trainer of the network.
            rounds: Number of all rounds.
        """
        return self.state.due(trainer, self._end, rounds) if self.state is not None else 0

    def unfinished(self, rounds: int) -> bool:
        """Return whether the pruning has begun and has not completed all rounds.

        Args:
            rounds: Number of all rounds.
        """
        return self.state is not None and self.state.done < rounds

    def complete(self, rounds: int) -> None:
        """Set the number of completed rounds of a pruning that has begun.

        Args:
            rounds: Number of completed rounds.
        """
        assert self.state is not None
        self.state.done = rounds


def density_after(options: PruningOptions, pruner: Pruner, due: int, total: int) -> Fraction:
    """Return the density that a gradual pruning has after some of its rounds.

    Args:
        options: Options of the pruning, with the density or the number of weights after the last
            round.
        pruner: Pruner, whose own rounds and schedule are used where the options have none.
        due: Number of rounds that are completed.
        total: Number of prunable weights.
    """
    rounds = options.rounds if isinstance(options.rounds, int) else pruner.rounds
    target = (
        as_density(options.density)
        if options.density is not None
        else Fraction(options.num_kept or 0, total)
    )
    schedule = SCHEDULES[options.schedule or pruner.schedule]
    return schedule(target, Fraction(due, rounds)) if due < rounds else target
