"""The scores of one round after another, with the parameters that have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState, Saliency
from synflow_pl.pruning_checks import Batches, batches_of_round, unscored_parameters

__all__ = ["RoundScorer"]


class RoundScorer:
    """Scores the weights once per round; parameters whose first scores are all zero stay dense.

    Args:
        state: State of the pruning, prepared by the pruner.
        pruner: Pruner that computes the scores.
        batches: As in :func:`synflow_pl.prune`.
        num_kept: Number of weights kept after the last round.
        consequence: What becomes of parameters without scores, for a note, if they need not stay
            dense.

    Attributes:
        unscored: Names of the parameters whose scores were zero throughout in the first round.
    """

    def __init__(
        self,
        state: PruningState,
        pruner: Pruner,
        batches: Batches | Callable[[int], Batches],
        num_kept: int,
        consequence: str | None = None,
    ) -> None:
        self._state, self._pruner, self._batches = state, pruner, batches
        self._num_kept, self._consequence = num_kept, consequence
        self.unscored: list[str] = []

    def score(self, index: int) -> dict[str, Tensor | Saliency]:
        """Return the scores of a round by parameter name, the largest number where there are none.

        Args:
            index: Index of the round, from 0.

        Raises:
            ValueError: In the first round, if all scores are zero, or if with global scope
                parameters without scores have more weights than are to be kept.
        """
        state = self._state
        if index and callable(self._batches):
            state.batches = batches_of_round(state.loss, self._pruner, self._batches, index)
        scores = dict(self._pruner.score(state))
        if index == 0:
            self.unscored = unscored_parameters(
                state, self._pruner, scores, self._num_kept, self._consequence
            )
        return scores | {
            name: torch.full_like(state.weights[name], torch.finfo(torch.float32).max)
            for name in self.unscored
        }

    def has_scores(self, names: Iterable[str]) -> bool:
        """Return whether any of these parameters has scores."""
        return not set(names).issubset(self.unscored)
