"""Schedule: how much of a layer's flow one round may take (Tanaka et al. 2020, Theorem 3 and Figure
7).

A pruning that conserves the score layer by layer never empties a layer before it has to, if in each
round

    prune size < cut size,

the total score of the weights that the round removes against that of one whole layer, which for
SynFlow all layers share. One round takes too much; enough small ones do not. Where layers differ, a
round can empty the one of smallest total first, so that is the cut size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from synflow_pl.experiments.scores import lowest_and_sum
from synflow_pl.flow import Block
from synflow_pl.pruners import Pruner, PruningState, Saliency
from synflow_pl.pruners.around import PrunerWrapper
from synflow_pl.pruning import prune

__all__ = ["RoundRatio", "largest_ratio"]


@dataclass(frozen=True)
class RoundRatio:
    """The round of one pruning in which prune size over cut size, ``ratio``, is largest; ``round``
    counts from 1.
    """

    ratio: float
    round: int


def largest_ratio(
    network: nn.Module,
    pruner: Pruner,
    density: float,
    rounds: int,
    schedule: Literal["exponential", "linear", "cubic"],
    *,
    on_round: Callable[[int, float, Mapping[str, Tensor]], None] | None = None,
    **options: Any,
) -> RoundRatio:
    """Prune ``network``, but for the end, and look at what each round takes.

    Args:
        network: left as it is.
        pruner: whose scores are not negative.
        density: fraction of prunable weights kept, in (0, 1).
        rounds: at least 1.
        schedule: density after each round.
        on_round: as that of :func:`synflow_pl.prune`.
        options: the others of :func:`synflow_pl.prune`.

    Returns:
        The largest prune size over cut size; below 1 Theorem 3 holds.

    Raises:
        ValueError: as :func:`synflow_pl.prune`, or if a score is negative, which the theorem does
            not speak of.
    """
    weighing = _Weighing(pruner)
    # A pruning that is interrupted before its end leaves the network dense: that saves a copy of
    # it.
    with suppress(_Weighed):
        prune(
            network,
            weighing,
            density=density,
            rounds=rounds,
            schedule=schedule,
            on_round=on_round,
            on_collapse="ignore",
            **options,
        )
    return RoundRatio(
        *max(
            ((ratio, index) for index, ratio in weighing.ratios.items()), key=lambda found: found[0]
        )
    )


class _Weighed(Exception):
    """The last cut has been weighed."""


class _Weighing(PrunerWrapper):
    """Weighs what each cut takes: the scores under the masks before it, and under those that it
    leaves.

    Args:
        pruner: gives the scores.
    """

    def __init__(self, pruner: Pruner) -> None:
        super().__init__(pruner)
        self.ratios: dict[int, float] = {}
        self._round = 0
        self._scores: Mapping[str, Tensor] = {}
        self._blocks: Mapping[str, Block] = {}
        self._totals: dict[str, float] = {}

    def score(self, subject: PruningState) -> Mapping[str, Tensor | Saliency]:
        self._weigh(subject)
        self._round += 1
        scores = super().score(subject)
        # Multiplied out, in tensors of their own: the cut works in the place of what it is given.
        self._scores = {
            name: s.weight * s.gradient if isinstance(s, Saliency) else s.clone()
            for name, s in scores.items()
        }
        self._blocks = dict(subject.blocks)
        # Where removed weights may come back, they all compete.
        self._totals = self._sums(subject, all_compete=self.regrows)
        return scores

    def finish(self, subject: PruningState) -> None:
        self._weigh(subject)
        raise _Weighed

    def _weigh(self, subject: PruningState) -> None:
        """Weigh the cut that has been made since the last scores."""
        if not self._scores:
            return
        taken = sum(self._totals.values()) - sum(self._sums(subject).values())
        left = [total for total in self._totals.values() if total > 0]
        if left:  # else no path is left, and there is nothing to take
            self.ratios[self._round] = taken / min(left)
        self._scores = {}

    def _sums(self, subject: PruningState, all_compete: bool = False) -> dict[str, float]:
        """By parameter name, the sum of the scores of what lives."""
        sums = {}
        for name, score in self._scores.items():
            mask = torch.ones_like(subject.masks[name]) if all_compete else subject.masks[name]
            if name in subject.ranked_separately:
                mask = mask & ~subject.ranked_separately[name]
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
