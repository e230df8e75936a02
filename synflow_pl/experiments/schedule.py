"""Share of a layer's total score that one round removes (Tanaka et al. 2020, Theorem 3, Figure 7).

If the score is conserved layer by layer, pruning causes no avoidable layer collapse if in each
round

    prune size < cut size,

where the prune size is the total score of the weights that the round removes, and the cut size is
the total score of one whole layer, which for SynFlow is equal in all layers. One round removes too
much; many small rounds do not. Where the totals of layers differ, a round can empty the layer with
the smallest total first, so that is the cut size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from synflow_pl.experiments.first_round_scores import lowest_and_sum
from synflow_pl.flow import Block
from synflow_pl.pruners import Pruner, PruningState, Saliency
from synflow_pl.pruners.base import PrunerWrapper
from synflow_pl.pruning import prune

__all__ = ["RoundRatio", "largest_ratio"]


@dataclass(frozen=True)
class RoundRatio:
    """Round of a pruning with the largest ratio of prune size to cut size.

    Attributes:
        ratio: Prune size over cut size.
        round: Number of the round, counted from 1.
        rounds: Number of all rounds.
    """

    ratio: float
    round: int
    rounds: int


def largest_ratio(
    network: nn.Module,
    pruner: Pruner,
    density: float,
    rounds: int | Literal["auto"],
    schedule: Literal["exponential", "linear", "cubic"] | None,
    *,
    on_round: Callable[[int, float, Mapping[str, Tensor]], None] | None = None,
    **options: Any,
) -> RoundRatio:
    """Return the largest ratio of prune size to cut size over the rounds of a pruning.

    Theorem 3 holds if it is below 1.

    Args:
        network: Network under study, which is left unchanged.
        pruner: Pruner with nonnegative scores.
        density: Fraction of prunable weights kept, in (0, 1).
        rounds: Number of rounds, at least 1, or ``"auto"`` as in :func:`synflow_pl.prune`.
        schedule: Schedule of the density over the rounds; ``None`` with ``rounds="auto"``.
        on_round: Callback of :func:`synflow_pl.prune`.
        **options: Further arguments of :func:`synflow_pl.prune`.

    Returns:
        The ratio, the round in which it occurs, and the number of rounds.

    Raises:
        ValueError: If an argument is invalid, as for :func:`synflow_pl.prune`, or a score is
            negative, to which the theorem does not apply.
    """
    recorder = _RatioRecorder(pruner)
    # A pruning that is interrupted before its end leaves the network dense, so no copy is needed.
    with suppress(_LastCutMeasured):
        prune(
            network,
            recorder,
            density=density,
            rounds=rounds,
            schedule=schedule,
            on_round=on_round,
            on_collapse="ignore",
            **options,
        )
    index, ratio = max(recorder.ratios.items(), key=lambda item: item[1])
    return RoundRatio(ratio, index, recorder.rounds_done)


class _LastCutMeasured(Exception):
    """Raised to end the pruning after the ratio of the last round was recorded."""


class _RatioRecorder(PrunerWrapper):
    """Pruner wrapper that records the ratio of prune size to cut size of each round.

    The scores of a round are summed under the masks before its cut and under those after it.

    Args:
        pruner: Pruner that computes the scores.
    """

    def __init__(self, pruner: Pruner) -> None:
        super().__init__(pruner)
        self.ratios: dict[int, float] = {}
        self.rounds_done = 0
        self._scores: Mapping[str, Tensor] = {}
        self._blocks: Mapping[str, Block] = {}
        self._totals: dict[str, float] = {}

    def score(self, state: PruningState) -> Mapping[str, Tensor | Saliency]:
        self._measure_cut(state)
        self.rounds_done += 1
        scores = super().score(state)
        # Products and copies, since the selection overwrites the scores that it is given.
        self._scores = {
            name: s.weight * s.gradient if isinstance(s, Saliency) else s.clone()
            for name, s in scores.items()
        }
        self._blocks = dict(state.blocks)
        # If the pruner can regrow weights, the pruned ones compete too.
        self._totals = self._sums(state, all_compete=self.regrows)
        return scores

    def finish(self, state: PruningState) -> None:
        self._measure_cut(state)
        raise _LastCutMeasured

    def _measure_cut(self, state: PruningState) -> None:
        """Record the ratio of the cut that was made since the last scores."""
        if not self._scores:
            return
        prune_size = sum(self._totals.values()) - sum(self._sums(state).values())
        layer_totals = [total for total in self._totals.values() if total > 0]
        if layer_totals:  # else the network is disconnected, and there is nothing to remove
            self.ratios[self.rounds_done] = prune_size / min(layer_totals)
        self._scores = {}

    def _sums(self, state: PruningState, all_compete: bool = False) -> dict[str, float]:
        """Return the sum of the scores of kept weights, by parameter name.

        Args:
            state: State of the pruning.
            all_compete: Whether pruned weights are included.

        Raises:
            ValueError: If a score is negative.
        """
        sums = {}
        for name, score in self._scores.items():
            mask = torch.ones_like(state.masks[name]) if all_compete else state.masks[name]
            if name in state.ranked_separately:
                mask = mask & ~state.ranked_separately[name]
            if name in self._blocks:
                units, inputs = self._blocks[name]
                mask = mask.index_select(0, units).index_select(1, inputs)
            lowest, sums[name] = lowest_and_sum(score, mask)
            if lowest < 0:
                raise ValueError(
                    f"{type(self.pruner).__name__} gives negative scores (in {name!r}), and what a"
                    " round takes of a layer can only be"
                    " weighed for positive ones; choose SynFlow, SNIP or another such pruner"
                )
        return sums
