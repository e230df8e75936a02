"""A wrapper that records the weights kept and the last scores of another pruner, for figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from synflow_pl.flow import Block
from synflow_pl.pruners.base import Pruner, PrunerWrapper, PruningState, Saliency

__all__ = ["RecordingPruner"]


class RecordingPruner(PrunerWrapper):
    """Prune as another pruner does, and record how many weights each layer keeps in each round.

    The cost is one count of the masks per round.

    Args:
        pruner: Pruner to record; its notes are those of the pruning.
        rounds: Number of rounds of the pruning, at least 1, or ``"auto"``; ``None`` uses the
            pruner's own number.

    Attributes:
        kept: Number of weights kept before the first round and after each round, by parameter name.
        scores: Scores that decided the last round, by parameter name, in the weight's shape; zero
            for weights that were not ranked in it. They are missing if the pruning has another
            number of rounds than ``rounds``.
    """

    def __init__(self, pruner: Pruner, rounds: int | Literal["auto"] | None = None) -> None:
        super().__init__(pruner)
        # Whether a round is the last is only known after it if their number is automatic. Every
        # round then replaces the scores of the round before.
        self._any_round_may_be_last = rounds == "auto"
        if isinstance(rounds, int):
            self.rounds = rounds
        self.kept: dict[str, list[int]] = {}
        self.scores: dict[str, Tensor] = {}

    @property
    def name(self) -> str:
        return self.pruner.name

    def prepare(self, state: PruningState) -> None:
        super().prepare(state)
        self.kept, self.scores = {name: [] for name in state.masks}, {}

    def score(self, state: PruningState) -> Mapping[str, Tensor | Saliency]:
        self._count(state)
        scores = super().score(state)
        if self._any_round_may_be_last or len(next(iter(self.kept.values()))) == self.rounds:
            self.scores = {
                name: _full_score(state, name, score, masked=not self.regrows)
                for name, score in scores.items()
            }
        return scores

    def finish(self, state: PruningState) -> None:
        super().finish(state)
        self._count(state)
        rounds = len(next(iter(self.kept.values()), ())) - 1
        if not self._any_round_may_be_last and rounds != self.rounds:
            self.scores = {}  # they are not from the last round
        self.pruner.notes = self.notes

    def after(self, earlier: RecordingPruner | None) -> RecordingPruner:
        """Return one recording of the rounds of ``earlier`` followed by the rounds of this one.

        Args:
            earlier: Recording of the preceding rounds of the same pruning; ``None`` or a recording
                without rounds is ignored.
        """
        if earlier is None or not earlier.kept:
            return self
        if not self.kept:
            return earlier
        self.kept = {name: earlier.kept[name] + counts[1:] for name, counts in self.kept.items()}
        return self

    def _count(self, state: PruningState) -> None:
        if self.kept:
            kept = torch.stack([state.masks[name].count_nonzero() for name in self.kept]).tolist()
            for counts, count in zip(self.kept.values(), kept, strict=True):
                counts.append(count)


def _full_score(
    state: PruningState, name: str, score: Tensor | Saliency, *, masked: bool
) -> Tensor:
    """Return a copy of a score, multiplied out and in the shape of the full weight."""
    product = score.weight * score.gradient if isinstance(score, Saliency) else score.detach()
    mask = state.masks[name]
    if (block := state.blocks.get(name)) is not None:
        product = _expand_block(product, block, mask.shape)
    return torch.where(mask, product, 0) if masked else product.clone()


def _expand_block(values: Tensor, block: Block, shape: torch.Size) -> Tensor:
    """Return a tensor of the full shape with the values of a block and zeros elsewhere."""
    rows = values.new_zeros(len(block.units), *shape[1:]).index_copy_(1, block.inputs, values)
    return values.new_zeros(shape).index_copy_(0, block.units, rows)
