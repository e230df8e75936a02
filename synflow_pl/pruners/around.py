"""Around: a pruner that does what another does, but for one thing that a subclass changes or looks
at.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState, Saliency

__all__ = ["PrunerWrapper"]


class PrunerWrapper(Pruner):
    """A pruner that does what another does, but for one thing.

    Args:
        pruner: the other.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner
        self.rounds, self.schedule, self.regrows = pruner.rounds, pruner.schedule, pruner.regrows
        self.needs_input, self.needs_batches = pruner.needs_input, pruner.needs_batches

    def prepare(self, subject: PruningState) -> None:
        self.pruner.prepare(subject)
        self.notes = self.pruner.notes

    def score(self, subject: PruningState) -> Mapping[str, Tensor | Saliency]:
        return self.pruner.score(subject)

    def finish(self, subject: PruningState) -> None:
        self.pruner.finish(subject)
